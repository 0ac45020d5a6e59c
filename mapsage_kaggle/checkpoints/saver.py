"""When a checkpoint is due, and how it is written while training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from mapsage_kaggle.checkpoints.proving import SaveFailed
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.messages import Message
from mapsage_kaggle.pace import Samples
from mapsage_kaggle.records import CheckpointRef


class BackgroundSaver:
    """Saves in a thread of its own, one at a time, so that training goes on meanwhile.

    :meth:`submit` waits for the save before it, so never more than one state is held in memory
    for it. The thread is not a daemon: Python itself waits for it at a normal end, and every
    other way out of training is to call :meth:`wait`.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        # Python's Thread.join is not used: before 3.13 it takes a thread for ended when Ctrl-C
        # interrupts the wait (https://github.com/python/cpython/issues/90882).
        self._done: threading.Event | None = None
        self._saved: list[CheckpointRef] = []
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        return self._done is not None and not self._done.is_set()

    def submit(
        self,
        name: str,
        write: Callable[[BinaryIO], None],
        *,
        iteration: int,
        metric: str | None = None,
        value: float | None = None,
        make_last: bool = True,
        then: Callable[[CheckpointRef], None] | None = None,
    ) -> None:
        """Start a save, as :meth:`CheckpointStore.save`; waits for the one before it first.

        A save before it that failed has been told as an event, and is forgotten here: the new one makes up
        for it. An error that is not of the disk is raised. ``write`` must not read what training changes:
        give it a copy. ``then`` is called in the thread with the proven checkpoint, such as to refresh the
        record. The checkpoint is safe whether this works or not, so that an OSError is only told.
        """
        self.join()
        if isinstance(self._error, SaveFailed):
            self._error = None
        self._raise_error()

        def work() -> None:
            try:
                ref = self._store.save(
                    name, write, iteration=iteration, metric=metric, value=value, make_last=make_last
                )
                self._saved.append(ref)
                if then is not None:
                    self._call(then, ref)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                self._error = error
            finally:
                done.set()

        done = self._done = threading.Event()
        try:
            threading.Thread(target=work, name=f"save {name}").start()
        except RuntimeError:  # no more threads
            self._done = None
            raise

    def wait(self) -> tuple[CheckpointRef, ...]:
        """Wait until nothing is being saved; return what has been proven since the last call.

        Ctrl-C while waiting is raised after the save has ended; a second one at once.

        Raises:
            SaveFailed: The last save failed. Raised once; what was proven before is still there.
        """
        self.join()
        self._raise_error()
        saved, self._saved = tuple(self._saved), []
        return saved

    def join(self) -> None:
        """Wait until nothing is being saved, and raise nothing but Ctrl-C."""
        done = self._done
        if done is None:
            return
        try:
            done.wait()
        except KeyboardInterrupt:
            done.wait()
            raise

    def _call(self, then: Callable[[CheckpointRef], None], ref: CheckpointRef) -> None:
        try:
            then(ref)
        except OSError as error:
            message = Message("{file} is proven, but what follows a save failed: {why}.", ref.file, error)
            self._store._emit("warning", ref.iteration, {"message": message})

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error


EVERY_S = 300.0
LONGEST_S = 1800.0
MAX_COST = 0.005


class SaveSchedule:
    """Says when the next save by time is due.

    The interval is ``every_s``, or as much longer as it takes for the measured cost of a save to
    stay below ``max_cost`` of the training time, but never more than ``longest_s``: on a machine
    so slow, losing hours would cost more than saving does.
    """

    def __init__(
        self,
        *,
        every_s: float = EVERY_S,
        max_cost: float = MAX_COST,
        longest_s: float = LONGEST_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (every_s > 0 and 0 < max_cost <= 1 and longest_s >= every_s):
            raise ValueError(f"no schedule: every_s={every_s}, max_cost={max_cost}, longest_s={longest_s}")
        self._every_s = every_s
        self._max_cost = max_cost
        self._longest_s = longest_s
        self._now = now
        self._costs = Samples(8)
        self._last_s = now()

    @property
    def interval_s(self) -> float:
        return min(self._longest_s, max(self._every_s, self._costs.mean() / self._max_cost))

    def due(self) -> bool:
        return self._now() - self._last_s >= self.interval_s

    def left_s(self) -> float:
        """Return how long it is to the next save; negative where it is overdue."""
        return self._last_s + self.interval_s - self._now()

    def saved(self, *, cost_s: float) -> None:
        """Note a save, by time or by iteration: the clock starts anew.

        Its cost is how long training was held up by it, plus what it lost to the writing in the background
        where that is known.
        """
        self._costs.add(cost_s)
        self._last_s = self._now()

    def failed(self) -> None:
        """Note a save that failed: the next one is tried after the usual interval, not at once."""
        self._last_s = self._now()
