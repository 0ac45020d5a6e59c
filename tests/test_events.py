"""Events: one JSON object a line, written whole, read as far as they are written."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapsage_kaggle.events import Event, EventLog, EventTail, finite, parse_events, read_events

FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.text(min_size=1).filter(lambda name: name not in ("event", "time_s", "iteration"))


@given(
    kind=st.text(min_size=1),
    iteration=st.integers(0, 10**9),
    time_s=st.integers(0, 8 * 10**11 - 1).map(lambda n: n / 8),
    data=st.dictionaries(NAMES, VALUES, max_size=4),
)
def test_an_event_is_read_back_as_it_was_written(
    kind: str, iteration: int, time_s: float, data: dict[str, Any]
) -> None:
    event = Event(event=kind, iteration=iteration, time_s=time_s, data=data)
    line = event.to_line()
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert Event.from_line(line) == event


def test_a_line_begins_with_the_contract_s_names() -> None:
    line = Event(event="validation", iteration=40, time_s=12.3456, data={"mIoU": 51.5}).to_line()
    assert json.loads(line) == {"event": "validation", "time_s": 12.346, "iteration": 40, "mIoU": 51.5}


def test_what_json_cannot_say_becomes_null_at_any_depth() -> None:
    data = {"loss": math.nan, "scores": {"IoU": [1.0, math.inf, (-math.inf,)]}}
    line = Event(event="iteration", iteration=1, data=data).to_line()
    assert "NaN" not in line
    assert "Infinity" not in line
    assert Event.from_line(line).data == {"loss": None, "scores": {"IoU": [1.0, None, [None]]}}


def test_keys_that_are_no_text_become_text() -> None:
    assert finite({1: {2.5: "a"}}) == {"1": {"2.5": "a"}}


@pytest.mark.parametrize("name", ["event", "time_s", "iteration"])
def test_data_may_not_take_the_name_of_what_every_event_has(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Event(event="warning", iteration=0, data={name: 1}).to_line()


@pytest.mark.parametrize(
    "line", ["", "nonsense", "[]", "3", '{"event": "x", "iteration": 1}', '{"event": "x"']
)
def test_what_is_no_event_is_told(line: str) -> None:
    with pytest.raises(ValueError):
        Event.from_line(line)


def test_a_file_that_is_not_there_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.jsonl") == []
    assert EventTail(tmp_path / "events.jsonl").read_new() == []


def event(number: int) -> Event:
    return Event(event="iteration", iteration=number, time_s=float(number), data={"text": "für 地图"})


def test_events_are_appended_in_order(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for number in range(3):
        log.append(event(number))
    assert read_events(path) == [event(0), event(1), event(2)]


def test_each_event_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(os, "write", lambda descriptor, data: written.append(data) or len(data))
    EventLog(tmp_path / "events.jsonl").append(event(1))
    assert written == [event(1).to_line().encode()]


def test_a_line_that_is_torn_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    line = event(1).to_line().encode()
    cut = line.index("地".encode()) + 1  # within a character
    tail = EventTail(path)
    path.write_bytes(event(0).to_line().encode() + line[:cut])
    assert tail.read_new() == [event(0)]
    assert tail.read_new() == []
    with path.open("ab") as stream:
        stream.write(line[cut:])
    assert tail.read_new() == [event(1)]
    assert tail.read_new() == []


def test_broken_lines_are_left_out_and_those_behind_them_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    broken = [b"\x00" * 20, b"{}", b'{"event": "x", "time_s": null, "iteration": 1}', b"\xff\xfe", b""]
    lines = [event(0).to_line().encode(), *(item + b"\n" for item in broken), event(1).to_line().encode()]
    path.write_bytes(b"".join(lines))
    assert read_events(path) == [event(0), event(1)]


def test_a_line_that_a_killed_process_left_unfinished_costs_the_next_line_only(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(event(0).to_line().encode() + b'{"event": "itera')
    log = EventLog(path)
    log.append(event(1))
    log.append(event(2))
    assert read_events(path) == [event(0), event(2)]


def test_what_a_full_disk_did_not_take_comes_before_the_next_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    log, write = EventLog(path), os.write
    log.append(event(0))
    room = 0

    def full(descriptor: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    with monkeypatch.context() as context:
        context.setattr(os, "write", full)
        log.append(event(1))
        log.append(event(2))
        assert read_events(path) == [event(0)]
        room = 1
        log.append(event(3))
    assert read_events(path) == [event(0), event(1), event(2), event(3)]


@pytest.mark.parametrize("tries", [1, 2])
def test_a_line_of_which_the_disk_took_a_part_is_written_whole_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    path = tmp_path / "events.jsonl"
    log, write, left = EventLog(path), os.write, [10] * tries
    with monkeypatch.context() as context:
        context.setattr(
            os, "write", lambda descriptor, data: write(descriptor, data[: left.pop()] if left else data)
        )
        log.append(event(1))
        log.append(event(2))
    assert read_events(path) == [event(1), event(2)]


def test_another_failure_than_a_full_disk_is_told(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "missing" / "events.jsonl")
    with pytest.raises(FileNotFoundError):
        log.append(event(1))


def test_a_tail_from_the_end_leaves_out_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append(event(0))
    tail = EventTail(path, from_end=True)
    log.append(event(1))
    assert tail.read_new() == [event(1)]


def test_of_a_long_log_the_ends_and_the_neighbours_of_other_events_are_read() -> None:
    told = [Event(event="iteration", iteration=number, time_s=float(number)) for number in range(1, 1001)]
    told[500:500] = [Event(event="validation", iteration=500, time_s=500.5)]
    content = "".join(event.to_line() for event in told).encode()

    found, num_broken = parse_events(content, most=20)

    iterations = [event.iteration for event in found if event.event == "iteration"]
    assert num_broken == 0
    assert iterations[:10] == list(range(1, 11))
    assert iterations[-10:] == list(range(991, 1001))
    assert {500, 501} <= set(iterations)
    assert [event.iteration for event in found if event.event == "validation"] == [500]
    assert len(iterations) < 50
    assert parse_events(content, most=1000) == (told, 0)


def test_a_torn_line_in_a_long_log_is_counted() -> None:
    lines = [Event(event="iteration", iteration=number).to_line() for number in range(1000)]
    lines[501] = lines[501][:30] + "\n"

    _, num_broken = parse_events("".join(lines).encode(), most=10)

    assert num_broken == 1
