"""Run a session, here or in a thread, and turn its record into an exit code."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress

from mapsage_kaggle.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_TRAINING, MapsageError
from mapsage_kaggle.events import ProgressSink
from mapsage_kaggle.messages import Message, text_of
from mapsage_kaggle.records import SessionRecord
from mapsage_kaggle.training.fallback import Outcome
from mapsage_kaggle.training.prepare import Prepared
from mapsage_kaggle.training.session import SessionRun
from mapsage_kaggle.training.supervisor import Supervisor
from mapsage_kaggle.training.upload import uploads


class TrainingHandle:
    """A session that trains in a thread: stop it, have it save, or wait for it."""

    def __init__(self, prepared: Prepared, sinks: Sequence[ProgressSink] = ()) -> None:
        self.prepared = prepared
        self.supervisor = Supervisor(
            prepared.work_dir,
            prepared.clock,
            sinks,
            hang_after_s=prepared.options.hang_after_s,
            output=prepared.discovery.paths.working,
        )
        self._record: SessionRecord | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="mapsage-supervisor", daemon=True)
        self._done = threading.Event()
        self.interrupted = False

    def start(self) -> TrainingHandle:
        """Begin; returns at once."""
        self._thread.start()
        return self

    @property
    def running(self) -> bool:
        return self._thread.ident is not None and not self._done.is_set()

    def stop(self) -> None:
        """Ask it to save and stop. Safe from any thread."""
        self.supervisor.request_stop()

    def save(self) -> None:
        """Ask it to save a checkpoint now."""
        self.supervisor.request_save()

    def wait(self) -> SessionRecord:
        """Wait for its end and return the record.

        Ctrl-C (a cell's interrupt) once: everything is saved, and the record returned as usual.
        Twice: the child is killed, with the last proven checkpoint intact.

        Raises:
            MapsageError: It failed with nothing new to hand over.
            OSError: It could not even begin, such as on a full disk.
        """
        # Not Thread.join: interrupted, it may take a living thread for a dead one (CPython issue 90882).
        while not self._done.is_set():
            try:
                self._done.wait(0.2)
            except KeyboardInterrupt:
                if self.interrupted:
                    self.supervisor.kill()
                self.interrupted = True
                self.supervisor.request_stop()
        if self._error is not None:
            raise self._error
        assert self._record is not None
        return self._record

    def _run(self) -> None:
        try:
            self._record = _train(self.prepared, self.supervisor)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            self._error = error
        finally:
            self._done.set()


def train(prepared: Prepared, *, sinks: Sequence[ProgressSink] = ()) -> SessionRecord:
    """Train until the end, the deadline or a stop request, and hand over.

    Returns:
        The final record. Its ``exit_code`` tells how it ended.

    Raises:
        MapsageError: It failed with nothing new to hand over; the record says so too.
    """
    return TrainingHandle(prepared, sinks).start().wait()


def _train(prepared: Prepared, supervisor: Supervisor) -> SessionRecord:
    session = SessionRun(prepared, supervisor)
    session.begin()
    with uploads(prepared, supervisor):
        try:
            outcome, message = session.run_children()
        except Exception as error:  # noqa: BLE001 - what is proven is handed over all the same
            with suppress(OSError), session.files.log.open("a", encoding="utf-8") as log:
                log.write(traceback.format_exc())
            message = (
                text_of(error)
                if isinstance(error, MapsageError)
                else Message("Supervising the training failed: {kind}: {why}.", type(error).__name__, error)
            )
            outcome = Outcome(kind="error", message=message, iteration=prepared.start_iteration)
        return session.end(outcome, message)


def exit_code_of(record: SessionRecord, *, interrupted: bool) -> int:
    """Return the command's exit code: the record's, or 130 where Ctrl-C stopped it in good order."""
    if interrupted and record.exit_code == EXIT_DONE and record.stop_reason == "user":
        return EXIT_INTERRUPTED
    return record.exit_code if record.exit_code is not None else EXIT_TRAINING
