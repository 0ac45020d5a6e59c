"""A store of checkpoints, and what it tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.stores import Events

from mapsage_kaggle.checkpoints.store import CheckpointStore


@pytest.fixture
def events() -> Events:
    return []


@pytest.fixture
def store(tmp_path: Path, events: Events) -> CheckpointStore:
    return CheckpointStore(tmp_path / "work", on_event=lambda *event: events.append(event))
