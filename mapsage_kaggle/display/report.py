"""stub"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mapsage_kaggle.display.panels import Panel
from mapsage_kaggle.display.text import outcome_text


def write_report(folders: Sequence[Path], *, out: Path | None = None) -> Path:
    return folders[0]


def outcome_panel(record, work_dir, words):
    return Panel(
        title=words("outcome"),
        tone="bad" if record.stop_reason == "failed" else "good",
        tail=(outcome_text(record, work_dir),),
    )
