"""Rank 0 decides what happens next, once per iteration, for all ranks alike."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch.distributed
from mmengine.dist import get_rank

from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.engine.ranks import is_local_rank_zero, num_machines, reduce_number
from mapsage_kaggle.pace import Pace
from mapsage_kaggle.spec import STACKS_SIGNAL

Stop = Literal["", "deadline", "user", "orphaned", "early"]
ORPHAN_GRACE_S = 600.0
"""How long a worker whose supervisor is gone may take to save and end."""
_STOPS: tuple[Stop, ...] = ("", "deadline", "user", "orphaned", "early")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What all ranks do at an iteration boundary.

    Attributes:
        stop: Why to end here, empty to continue.
        save: Whether to write a checkpoint now.
        validate: Whether a validation that is due is run now.
        skip: Whether a validation that is due is skipped for good, since no session is long enough.
    """

    stop: Stop
    save: bool
    validate: bool
    skip: bool = False


class PipeWatch:
    """Notices that the supervisor is gone: the read end of its pipe, our standard input, reaches its end.

    A killed notebook kernel runs no handler and sends no signal, but the kernel of the operating system
    closes its files. The supervisor never writes to the pipe.
    """

    def __init__(self, descriptor: int = 0) -> None:
        self.closed = threading.Event()
        self._descriptor = descriptor
        threading.Thread(target=self._watch, name="supervisor-pipe", daemon=True).start()

    def exit_after(self, grace_s: float) -> None:
        """Exit this process ``grace_s`` after the supervisor has gone, if it has not ended by then."""

        def arm() -> None:
            self.closed.wait()
            # Its timer needs no Python to run: a library that hangs may hold the interpreter's lock.
            faulthandler.dump_traceback_later(grace_s, exit=True)

        threading.Thread(target=arm, name="orphan-limit", daemon=True).start()

    def _watch(self) -> None:
        try:
            while os.read(self._descriptor, 4096):
                pass
        except OSError:
            # Not a readable descriptor (a worker started by hand): nobody is there to be missed.
            return
        self.closed.set()


class Control:
    """Collects the reasons to stop or save, and makes one decision of them.

    Args:
        clock: The session's time.
        pace: What things cost here.
        stop_request: The file by which the supervisor, or anyone, asks for a stop. It stays: another
            child of the session must see it too.
        save_request: The file by which a checkpoint is asked for.
        watch_pipe: Whether standard input is the supervisor's pipe.
    """

    def __init__(
        self,
        *,
        clock: SessionClock,
        pace: Pace,
        stop_request: Path,
        save_request: Path,
        watch_pipe: bool = True,
    ) -> None:
        self.clock = clock
        self.pace = pace
        self._stop_request = stop_request
        self._save_request = save_request
        self._pipe = PipeWatch() if watch_pipe and _is_pipe(0) else None
        self._terminated = threading.Event()

    def install_signal_handlers(self) -> None:
        """Turn SIGTERM into a stop request, dump stacks when asked; leave Ctrl-C to the supervisor."""
        faulthandler.register(STACKS_SIGNAL, file=2)
        signal.signal(signal.SIGTERM, lambda *_: self._terminated.set())
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_supervisor(self, grace_s: float = ORPHAN_GRACE_S) -> None:
        """End this process for certain some time after its supervisor has gone.

        A worker that then hangs, in a collective or on a disk, reaches no boundary where it could stop, and
        nobody else is left to end it. Its stacks go to standard error.
        """
        if self._pipe is not None:
            self._pipe.exit_after(grace_s)

    def _asked(self) -> tuple[Stop, bool]:
        """Return the reason to stop, and whether a checkpoint was asked for, on this machine."""
        if self._pipe is not None and self._pipe.closed.is_set():
            return "orphaned", False
        if self._terminated.is_set() or self._stop_request.exists():
            return "user", False
        return "", self._take_save_request()

    def _take_save_request(self) -> bool:
        try:
            self._save_request.unlink()
        except FileNotFoundError:
            return False
        return True

    def _asked_anywhere(self) -> tuple[Stop, bool]:
        """Return what rank 0 must know: what was asked on any machine. Collective with several."""
        stop, save = self._asked() if is_local_rank_zero() else ("", False)
        if num_machines() == 1:
            return stop, save
        # That another machine's supervisor is gone ends training, but leaves ours to finish the record.
        stop = "user" if stop == "orphaned" and get_rank() != 0 else stop
        code = reduce_number(_STOPS.index(stop) << 1 | int(save), torch.distributed.ReduceOp.MAX)
        return _STOPS[code >> 1], bool(code & 1)

    def stop_asked(self) -> bool:
        """Return whether a validation must be left: on request, or far too late. Collective."""
        stop, _ = self._asked_anywhere()
        late = get_rank() == 0 and self.pace.must_leave_validation(self.clock)
        return bool(_agree(int(bool(stop) or late)))

    def decide(
        self,
        *,
        validation_due: bool,
        save_due: bool,
        may_stop: bool = True,
        saved: bool = False,
        stride: int = 1,
        whole_s: float = math.inf,
        early: bool = False,
    ) -> Decision:
        """Return what happens at this boundary. Collective: every rank must call it.

        Args:
            validation_due: The schedule asks for a validation here.
            save_due: The save schedule asks for a checkpoint here (only rank 0's word counts).
            may_stop: False inside a gradient accumulation, which a checkpoint cannot hold.
            saved: The present state is saved already.
            stride: Iterations until training may stop again.
            whole_s: The most that is ever left for a validation, at the start of a session.
            early: Something has ended the run here, whatever is left of it (only rank 0's word counts).
        """
        code = 0
        stop, save = self._asked_anywhere() if may_stop else ("", False)
        if get_rank() == 0:
            validate = skip = False
            if early and may_stop and not validation_due and stop != "orphaned":
                stop = "early"
            if not stop:
                verdict = self.pace.decide(
                    self.clock,
                    validation_due=validation_due,
                    save_due=save or save_due,
                    saved=saved,
                    may_stop=may_stop,
                    stride=stride,
                    whole_s=whole_s,
                )
                stop, validate, skip = "deadline" if verdict.stop else "", verdict.validate, verdict.skip
                if skip and early:
                    stop = "early"
            code = _STOPS.index(stop) << 3 | int(skip) << 2 | int(save or save_due) << 1 | int(validate)
        code = _agree(code)
        return Decision(
            stop=_STOPS[code >> 3], save=bool(code & 2), validate=bool(code & 1), skip=bool(code & 4)
        )


def _is_pipe(descriptor: int) -> bool:
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _agree(code: int) -> int:
    """Return rank 0's ``code`` on every rank.

    A sum and not a broadcast, so that it cannot succeed on rank 0 while another rank is gone.
    """
    return reduce_number(code if get_rank() == 0 else 0, torch.distributed.ReduceOp.SUM)
