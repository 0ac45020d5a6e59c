"""Widgets: what a person reads on them."""

from __future__ import annotations

from pathlib import Path

from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Panel
from mapsage_kaggle.display.widgets import CheckpointPicker


def test_the_picker_tells_attached_sessions_apart_by_their_folders() -> None:
    tail = "work_dirs/segformer/iter_8000.pth"
    paths = [Path(f"/kaggle/input/session-{number}/{tail}") for number in (1, 2)]

    picker = CheckpointPicker(Words("en"), paths, on_choice=lambda path, weights_only: Panel(title=""))

    labels = [label for label, path in picker._what.options if path is not None]
    assert labels == [f"session-1/{tail}", f"session-2/{tail}"]
