"""A tail follows an event file through what sessions do to it."""

from __future__ import annotations

from pathlib import Path

from mapsage_kaggle.events import Event, EventLog, EventTail


def test_a_file_that_was_put_away_and_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    for iteration in range(3):
        EventLog(file).append(Event(event="iteration", iteration=iteration, data={}))
    tail = EventTail(file, from_end=True)
    file.rename(tmp_path / "old.jsonl")
    for iteration in range(5):
        EventLog(file).append(Event(event="stop", iteration=iteration, data={}))
    assert [event.iteration for event in tail.read_new()] == [0, 1, 2, 3, 4]
    EventLog(file).append(Event(event="end", iteration=9, data={}))
    assert [event.event for event in tail.read_new()] == ["end"]
