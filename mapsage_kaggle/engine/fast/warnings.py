"""Warnings that are emitted once in a session, whichever of its processes meets the reason first."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from mapsage_kaggle.engine.reading import EVENTS_VARIABLE
from mapsage_kaggle.events import Event, EventLog, read_events

_warned: set[tuple[str, str]] = set()


def warn_once(key: str, message: str) -> None:
    """Append a warning to the events, unless they hold one of the same key.

    Data workers and ranks share the events, and restarted ones find what those before have warned of. A
    warning that cannot be written is dropped: training does not need it. ``key`` is the reason, without
    figures that change.
    """
    path = os.environ.get(EVENTS_VARIABLE)
    if not path or (path, key) in _warned:
        return
    _warned.add((path, key))
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            with contextlib.suppress(OSError):  # without locks, two may warn at the same moment
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not any(event.data.get("once") == key for event in read_events(Path(path))):
                data = {"message": message, "once": key}
                EventLog(Path(path)).append(Event(event="warning", iteration=0, data=data))
        finally:
            os.close(descriptor)
