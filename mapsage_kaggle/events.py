"""What happens during training, as values: one JSON object a line in ``events.jsonl``."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from mapsage_kaggle.messages import Message, from_said, with_said
from mapsage_kaggle.outside import open_regular, parse_json, visible
from mapsage_kaggle.paths import FULL

EventKind = Literal[
    "start", "resume", "training", "iteration", "validation_start", "validating", "validation",
    "checkpoint", "retention", "restart", "ladder", "warning", "failure", "stop", "upload", "end",
]  # fmt: skip
"""The kinds that this version writes and compares with. Those of other versions are read like them."""

_RESERVED = ("event", "iteration", "time_s")
_MAX_ITERATION = 10**9
_MAX_TIME_S = 1e11
_MAX_LINE_BYTES = 2**20
_MAX_CHUNK_BYTES = 64 * 2**20
_MAX_KEPT = 1000
_ITERATION = b'{"event": "iteration", '
"""How a line of the commonest kind begins."""
_NUM_KEPT_AT_ENDS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One thing that happened.

    Attributes:
        event: Its kind; of a file that another version wrote, maybe none of :data:`EventKind`.
        iteration: Iterations done when it happened.
        data: What else there is to say, JSON values by name.
    """

    event: EventKind
    iteration: int
    time_s: float = field(default_factory=time.time)
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_line(self) -> str:
        """Return the event as one line of JSON, newline included. Not-a-number becomes null."""
        clash = [key for key in self.data if key in _RESERVED]
        if clash:
            raise ValueError(f"event data may not use the names {clash}")
        document = {"event": self.event, "time_s": round(self.time_s, 3), "iteration": self.iteration}
        return json.dumps(finite({**document, **with_said(self.data)}), ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Event:
        """Read one line.

        Raises:
            ValueError: The line is not a JSON object with ``event``, ``time_s`` and ``iteration``.
        """
        document = parse_json(line)
        if not isinstance(document, dict) or not all(key in document for key in _RESERVED):
            raise ValueError(f"not an event: {visible(line, 80)}")
        kind, iteration, time_s = (document[key] for key in _RESERVED)
        if type(kind) is not str or type(iteration) is not int or type(time_s) not in (int, float):
            raise ValueError(f"not an event: {visible(line, 80)}")
        if not (0 <= iteration <= _MAX_ITERATION and 0.0 <= time_s < _MAX_TIME_S):
            raise ValueError(f"no event of any run: {visible(line, 80)}")
        data = from_said({key: value for key, value in document.items() if key not in _RESERVED})
        return cls(event=cast("EventKind", kind), iteration=iteration, time_s=float(time_s), data=data)


def finite(value: Any) -> Any:
    """Return ``value`` with every NaN and infinity replaced by None: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


class ProgressSink(Protocol):
    """Receives events: a terminal, a widget, a test."""

    def handle(self, event: Event) -> None:
        """Take one event. Must return quickly: it is called from the supervising thread."""


def emit_to_sinks(event: Event, sinks: list[ProgressSink]) -> list[Message]:
    """Pass an event to all sinks; return what to warn of.

    One that fails is taken off the list: a closed terminal must not end training.
    """
    told = []
    for sink in tuple(sinks):
        try:
            sink.handle(event)
        except Exception as error:  # noqa: BLE001 - whatever it writes to raises what it likes
            sinks.remove(sink)
            template = "Progress is no longer shown ({name}: {why}); training goes on."
            told.append(Message(template, type(error).__name__, error))
    return told


class EventLog:
    """Appends events to a file, each in a single write, so that no reader sees half of one.

    A disk that is full for a while ends nobody: what cannot be written is kept, as far as it is little,
    and goes in front of the next event.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: list[bytes] = []

    def append(self, event: Event) -> None:
        """Add one event, after those that could not be written before.

        Raises:
            OSError: The file cannot be written, for another reason than a full disk.
        """
        self._kept.append(event.to_line().encode("utf-8", "backslashreplace"))
        try:
            self._write_kept()
        except OSError as error:
            if error.errno not in FULL:
                self._kept.clear()
                raise
        del self._kept[:-_MAX_KEPT]

    def _write_kept(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            while self._kept:
                line = self._kept[0]
                if os.write(descriptor, line) == len(line):
                    del self._kept[0]
                elif not line.startswith(b"\n"):
                    # The beginning of a line without its end: the next one must not be joined to it.
                    self._kept[0] = b"\n" + line
                else:
                    return
        finally:
            os.close(descriptor)


class EventTail:
    """Reads what has been appended to an event file since the last look.

    A file that has been put away and begun anew, as a new session does in the same work dir, is
    read from its start.

    Attributes:
        num_left_out: Lines that are no events.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = 0
        self._inode: int | None = None
        self._rest = b""
        self.num_left_out = 0
        if from_end and path.exists():
            found = path.stat()
            self._offset, self._inode = found.st_size, found.st_ino

    def read_new(self) -> list[Event]:
        """Return the events that have been completed since the last call; broken lines are left out."""
        try:
            with open_regular(self._path) as stream:
                found = os.fstat(stream.fileno())
                if self._inode not in (None, found.st_ino) or found.st_size < self._offset:
                    self._offset, self._rest = 0, b""
                self._inode = found.st_ino
                stream.seek(self._offset)
                chunk = stream.read(_MAX_CHUNK_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            self._rest = b"too long"
        events, num_broken = _parse_lines(lines)
        self.num_left_out += num_broken
        return events


def read_events(path: Path) -> list[Event]:
    """Return all events of a file; a missing file has none, and broken lines are left out."""
    return EventTail(path).read_new()


def read_log(path: Path) -> bytes:
    """Return an event file as it is, up to 64 MiB of it; a missing one is empty."""
    try:
        with open_regular(path) as stream:
            return stream.read(_MAX_CHUNK_BYTES)
    except FileNotFoundError:
        return b""


def last_word_s(events: Sequence[Event]) -> float | None:
    return max((event.time_s for event in events), default=None)


def parse_events(content: bytes, *, most: int | None = None) -> tuple[list[Event], int]:
    """Return the events of a whole file, and how many of the lines looked at are none.

    Args:
        content: Of the file; what follows its last newline is passed over.
        most: About how many iterations to look at, evenly chosen; those next to another kind of event, and
            the first and last few, are always among them. None looks at all.
    """
    lines = content.split(b"\n")[:-1]
    return _parse_lines(lines if most is None else _thinned(lines, most))


def _thinned(lines: Sequence[bytes], most: int) -> Sequence[bytes]:
    is_plain = [line.startswith(_ITERATION) and line.endswith(b"}") for line in lines]
    step = -(-sum(is_plain) // most)
    if step <= 1:
        return lines
    last = len(lines) - 1
    return [
        line
        for index, line in enumerate(lines)
        if not is_plain[index]
        or index % step == 0
        or not _NUM_KEPT_AT_ENDS <= index <= last - _NUM_KEPT_AT_ENDS
        or not (is_plain[index - 1] and is_plain[index + 1])
    ]


def _parse_lines(lines: Sequence[bytes]) -> tuple[list[Event], int]:
    events = [event for event in map(_parse, lines) if event is not None]
    return events, len(lines) - len(events)


def _parse(line: bytes) -> Event | None:
    try:
        return Event.from_line(line.decode("utf-8")) if len(line) <= _MAX_LINE_BYTES else None
    except (ValueError, TypeError, OverflowError):
        return None
