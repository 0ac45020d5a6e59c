"""Follow training that another process supervises, through its work dir.

After a kernel restart that process is gone, and the training that it left saves and ends by itself; one
that a command in a terminal supervises goes on. Either way its events and its record are in the work dir,
and a file there requests a stop or a save.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mapsage_kaggle.checkpoints.lock import holder_of
from mapsage_kaggle.events import Event, EventLog, EventTail, ProgressSink, emit_to_sinks
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.processes import ProcessId
from mapsage_kaggle.records import SessionRecord, read_record
from mapsage_kaggle.spec import ask_save, ask_stop

POLL_S = 0.25
LOOK_S = 2.0
"""How often to check that the training is still there."""
GAP_S = 90.0
"""How long, at most, nobody holds the work dir between two children of a session."""


class Follower:
    """Passes on the events of a work dir, and requests a stop or a save of its training.

    Args:
        work_dir: Where the training writes.
        sinks: Receive all its events so far, and each new one. One that raises is dropped.
    """

    def __init__(self, work_dir: Path, sinks: Sequence[ProgressSink] = ()) -> None:
        self.files = WorkDir(work_dir)
        self._sinks = list(sinks)
        self._tail = EventTail(self.files.events)
        self._supervisor: ProcessId | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mapsage-follower", daemon=True)

    def start(self) -> Follower:
        """Follow in a thread; returns at once."""
        self._thread.start()
        return self

    @property
    def running(self) -> bool:
        """Whether a training process holds the work dir."""
        return holder_of(self.files.path) is not None

    @property
    def supervised(self) -> bool:
        """Whether the process that started the training is alive; without it the training soon ends."""
        return self._supervisor is not None and self._supervisor.alive

    def goes_on(self) -> bool:
        """Whether a session goes on there, also while it has no training process; reads the events."""
        self.read()
        return self.running or not self._is_over(0.0)

    def record(self) -> SessionRecord | None:
        """Return the session's record; None where it is missing or unreadable."""
        return read_record(self.files.session)

    def stop(self) -> None:
        """Ask the training to save and stop."""
        ask_stop(self.files)

    def save(self) -> None:
        """Ask the training to save a checkpoint now."""
        ask_save(self.files)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until training in the work dir has ended; return whether it has."""
        return self._done.wait(timeout_s)

    def ended_record(self) -> SessionRecord | None:
        """Wait until training has ended, and return the record."""
        self._done.wait()
        return self.record()

    def read(self) -> None:
        """Pass on the events since the last call."""
        for event in self._tail.read_new():
            self._see(event)
            for message in emit_to_sinks(event, self._sinks):
                warning = Event(event="warning", iteration=event.iteration, data={"message": message})
                with suppress(OSError):
                    EventLog(self.files.events).append(warning)

    def _see(self, event: Event) -> None:
        if event.event == "start":
            self._supervisor = ProcessId.stated(event.data, "supervisor") or self._supervisor

    def _follow(self) -> None:
        look_at, free_since = 0.0, None
        try:
            while True:
                self.read()
                now = time.monotonic()
                if now >= look_at:
                    look_at = now + LOOK_S
                    free_since = None if self.running else free_since or now
                    if free_since is not None and self._is_over(now - free_since):
                        self.read()
                        return
                time.sleep(POLL_S)
        finally:
            self._done.set()

    def _is_over(self, free_s: float) -> bool:
        """Tell whether no other child of the session will follow."""
        record = self.record()
        return record is None or record.stop_reason != "running" or not self.supervised or free_s > GAP_S
