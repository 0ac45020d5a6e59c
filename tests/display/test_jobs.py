"""What a terminal says of work after training, while it runs and at its end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from mapsage_kaggle.display import jobs
from mapsage_kaggle.display.jobs import JobProgress, prediction_text
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.jobs.predict import Prediction
from mapsage_kaggle.messages import Message


def lines_of(monkeypatch: pytest.MonkeyPatch, *events: tuple[float, dict[str, Any]]) -> list[str]:
    """Return what is printed of progress, each with the time at which it is made."""
    now = [0.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with JobProgress("images", stream) as progress:
        for now[0], event in events:
            progress.take({"event": "progress", "total": 10, **event})
    return stream.getvalue().splitlines()


def test_the_time_left_follows_from_what_was_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_of(
        monkeypatch,
        (0.0, {"done": 4, "before": 4}),
        (60.0, {"done": 5.5, "before": 4, "name": "city"}),
        (100.0, {"done": 7, "before": 5}),
        (130.0, {"done": 10, "before": 5}),
    )

    assert lines == [
        "4 of 10 images",
        "5.5 of 10 images, city, about 3m 00s left",
        "7 of 10 images, about 2m 30s left",
        "10 of 10 images",
    ]


def test_work_that_does_not_say_what_was_done_before_counts_from_its_first_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = lines_of(monkeypatch, (0.0, {"done": 6}), (40.0, {"done": 8}))

    assert lines[-1] == "8 of 10 images, about 40s left"


def test_what_the_child_refuses_is_said_in_the_language_of_the_notebook() -> None:
    stream = io.StringIO()
    problem = Message("{path} is no file.", "tile.png")

    with JobProgress("images", stream, Words("zh").translate) as progress:
        progress.take({"event": "refused", "path": "tile.png", "problem": problem})

    assert stream.getvalue() == "tile.png 不是文件。\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_image_s_name_neither_formats_nor_steers_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()

    with JobProgress("images", stream) as progress:
        for name in ("tile[red].png", "a[/b]\x1b]0;title\x07.png"):
            progress.take({"event": "progress", "done": 1, "total": 10, "name": name})
            progress._bar.refresh()  # type: ignore[union-attr]

    assert "tile[red].png" in stream.getvalue()
    assert r"a[/b]\x1b]0;title\x07.png" in stream.getvalue()


def test_a_prediction_tells_its_pace_in_megapixels() -> None:
    found = Prediction(
        out=Path("maps"), num_done=1, num_before=2, num_pixels=30_000_000, refused=(), skipped=(), files={},
        seconds=12.0, peak_memory_bytes=1,
    )  # fmt: skip

    assert prediction_text(found).splitlines()[0] == (
        "1 image in 12.0 s, 2.50 megapixels a second, 2 done before"
    )
