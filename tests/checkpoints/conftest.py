"""True checkpoints, a store of them, and what it tells."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.real_checkpoints import real_checkpoints
from support.stores import Events

from mapsage_kaggle.checkpoints.store import CheckpointStore


@pytest.fixture
def events() -> Events:
    return []


@pytest.fixture
def store(tmp_path: Path, events: Events) -> CheckpointStore:
    return CheckpointStore(tmp_path / "work", on_event=lambda *event: events.append(event))


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Return the work dir of a true mmengine run."""
    return real_checkpoints() / "tiny"


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """Return a copy of a true checkpoint, to be damaged."""
    return Path(shutil.copy(tiny / "iter_8.pth", tmp_path / "iter_8.pth"))


@pytest.fixture
def legacy(tiny: Path, tmp_path: Path) -> Path:
    """Return a true checkpoint in the old format."""
    tree = torch.load(tiny / "iter_8.pth", weights_only=False)
    torch.save(tree, tmp_path / "iter_8.pth", _use_new_zipfile_serialization=False)
    return tmp_path / "iter_8.pth"
