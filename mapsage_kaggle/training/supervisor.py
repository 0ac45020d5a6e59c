"""Starts a training child, watches it, ends it in good order, and decides whether to start another."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mapsage_kaggle.clock import OUTPUT_S_PER_BYTE, SessionClock
from mapsage_kaggle.environment import oom_kills
from mapsage_kaggle.events import Event, EventLog, EventTail, ProgressSink
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.spec import SUPERVISOR_VARIABLE, ask_save, ask_stop

POLL_S = 0.1
STOP_GRACE_S = 180.0
"""How long a child that was asked to stop may take to save before it is killed."""
TERMINATION_S = 20.0
"""How long torchrun may take to end its workers when we end it."""
UNKNOWN_GRACE_S = 10.0
"""How long a process that has not said that it is a worker may live on: it has nothing to save."""
HANG_FACTOR = 20.0
HANG_LEAST_S = 600.0
"""A child is taken for hung after this long without an event, or longer where iterations are slow."""

Kind = Literal["done", "memory", "refused", "error", "crashed", "hung", "killed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How to start a training child.

    Attributes:
        spec: The file with its ``ChildSpec``.
        work_dir: Where its events and log go.
        num_workers: Ranks on this machine.
        threads: Per rank, pinned.
        gpus: Whether each rank gets a GPU; else none is visible.
        import_paths: Folders that must be importable, first ones first.
        scratch: For what libraries cache.
        nnodes: Machines, as torchrun takes it.
        node_rank: This machine's number.
        rdzv_endpoint: ``host:port`` where the machines meet; empty for one machine.
        deterministic: Whether deterministic algorithms are asked for.
    """

    spec: Path
    work_dir: Path
    num_workers: int = 1
    threads: int = 1
    gpus: bool = False
    import_paths: tuple[Path, ...] = ()
    scratch: Path
    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str = ""
    deterministic: bool = False

    @property
    def several_machines(self) -> bool:
        """Whether this machine has to meet others."""
        return self.nnodes > 1 or bool(self.rdzv_endpoint)

    def command(self) -> list[str]:
        """Return torchrun's command line."""
        command = [
            sys.executable, "-m", "torch.distributed.run",
            f"--nproc-per-node={self.num_workers}", "--max-restarts=0",
        ]  # fmt: skip
        if self.several_machines:
            host, _, port = self.rdzv_endpoint.partition(":")
            command += [
                f"--nnodes={self.nnodes}", f"--node-rank={self.node_rank}",
                f"--master-addr={host}", f"--master-port={port or 29500}",
            ]  # fmt: skip
        else:
            # The machine's own name may not resolve where there is no network.
            command += ["--standalone", "--nnodes=1", "--local-addr=127.0.0.1"]
        return [*command, "-m", "mapsage_kaggle.engine.worker", str(self.spec)]

    def environment(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the child's environment."""
        env = child_environment(
            threads=self.threads,
            import_paths=self.import_paths,
            scratch=self.scratch,
            gpus=self.gpus,
            environ=environ,
        )
        env[SUPERVISOR_VARIABLE] = str(os.getpid())
        if not self.several_machines and Path("/sys/class/net/lo").exists():
            # Ranks of one machine need no network, and its own name may not resolve.
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if self.deterministic:
            env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        return env


def child_environment(
    *,
    threads: int,
    import_paths: Sequence[Path],
    scratch: Path,
    gpus: bool,
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the environment of a child that loads torch.

    Args:
        threads: Of its numerical libraries.
        import_paths: Folders that must be importable, first ones first.
        scratch: For what libraries cache, which must not go into the user's home.
        gpus: Whether it may see them.
        environ: What to start from; by default this process's own.
    """
    env = dict(os.environ if environ is None else environ)
    env |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    paths = [str(path) for path in import_paths]
    env["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [env.get("PYTHONPATH")])])
    env["PYTHONUNBUFFERED"] = "1"
    env["MPLBACKEND"] = "Agg"
    env["MPLCONFIGDIR"] = str(scratch / "matplotlib")
    env["TORCH_HOME"] = str(scratch / "torch")
    env.setdefault("XDG_CACHE_HOME", str(scratch / "cache"))
    if not gpus:
        env["CUDA_VISIBLE_DEVICES"] = ""
    return env


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a child ended.

    Attributes:
        kind: ``done`` in good order; ``memory`` ran out of it; ``refused`` will fail again the
            same way; ``error`` an exception; ``crashed`` without a word; ``hung``; ``killed`` by us
            after a stop request it did not follow.
        reason: For ``done``: ``completed``, ``deadline`` or ``user``. For ``hung``: ``deadline`` where
            it was still there when the session's time was up.
        message: What it said last.
        iteration: Where it got to.
        trained: Iterations that it has done itself.
        proven: The iteration of the newest checkpoint that it proved, if any.
        gained: Iterations by which that is further than where it began.
        data: What the last event said besides.
        told_s: For ``done``: when the child said so, in seconds since the epoch; None where there was none.
    """

    kind: Kind
    reason: str = ""
    message: str = ""
    iteration: int = 0
    trained: int = 0
    proven: int | None = None
    gained: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    told_s: float | None = None


class Supervisor:
    """Runs one training child at a time and passes its events on.

    Args:
        work_dir: Where the child writes.
        clock: The session's time; a child that ignores it is ended at the limit.
        hang_after_s: How long a child may say nothing, at least, before it is taken for hung.
        sinks: Told of every event, from the supervising thread. One that raises is told no more.
    """

    def __init__(
        self,
        work_dir: Path,
        clock: SessionClock,
        sinks: Sequence[ProgressSink] = (),
        *,
        hang_after_s: float = HANG_LEAST_S,
    ) -> None:
        self._hang_after_s = hang_after_s
        self._output_bytes = 0.0
        self._output_measured_s = -math.inf
        self._files = WorkDir(work_dir)
        self._clock = clock
        self._sinks = list(sinks)
        self._stop = threading.Event()
        self._kill = threading.Event()
        self._tail = EventTail(self._files.events, from_end=True)
        self.iteration = 0

    def add_sink(self, sink: ProgressSink) -> None:
        """Tell one more sink from now on."""
        self._sinks.append(sink)

    # -- asking

    def request_stop(self) -> None:
        """Ask the child to save and end. Safe from any thread and from a signal handler."""
        self._stop.set()

    def request_save(self) -> None:
        """Ask the child for a checkpoint now."""
        ask_save(self._files)

    def kill(self) -> None:
        """End the child at once; what is proven stays."""
        self._stop.set()
        self._kill.set()

    @property
    def stopping(self) -> bool:
        """Whether a stop was asked for, here or by the file in the work dir."""
        return self._stop.is_set() or self._files.stop_request.exists()

    @property
    def killed(self) -> bool:
        """Whether all is to end at once."""
        return self._kill.is_set()

    # -- running

    def run(self, launch: Launch) -> Outcome:
        """Start a child and stay with it until it has ended, workers included."""
        watch, killed_before = _Watch(self.iteration, self._hang_after_s), oom_kills() or 0
        with self._files.log.open("ab") as log:
            process = subprocess.Popen(
                launch.command(),
                env=launch.environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._stay_with(process, watch)
        finally:
            self._end(process, watch)
        self._read_events(watch)
        self.iteration = max(self.iteration, watch.iteration)
        return watch.outcome(
            process.returncode,
            out_of_memory=(oom_kills() or 0) > killed_before,
            stop_asked=self.stopping,
        )

    def _stay_with(self, process: subprocess.Popen[bytes], watch: _Watch) -> None:
        asked_at: float | None = None
        while process.poll() is None:
            self._read_events(watch)
            now = time.monotonic()
            if self._kill.is_set():
                watch.ended_by_us = "killed"
                return
            if asked_at is None and self.stopping:
                try:
                    ask_stop(self._files)
                except OSError:  # a full disk, say; a signal needs no room
                    _signal_group(process.pid, signal.SIGTERM)
                asked_at = now
            if asked_at is not None and now - asked_at > STOP_GRACE_S:
                watch.ended_by_us = "killed"
                return
            if self.left_to_hand_over_s() < 0:
                # The child should have stopped by itself long ago; half the reserve is left to us.
                watch.ended_by_us = "late"
                return
            if watch.silent_s(now) > watch.patience_s():
                watch.ended_by_us = "hung"
                watch.was_silent_s = watch.silent_s(now)
                return
            time.sleep(POLL_S)

    def left_to_hand_over_s(self) -> float:
        """Return how long it is until half the reserve is left and the output must be saved."""
        return self._clock.left_s() + 0.5 * self._clock.reserve_s - self._output_s(time.monotonic())

    def pass_on(self, kinds: Collection[str]) -> None:
        """Tell the sinks of events of some kinds that were written after the last child had ended."""
        for event in self._tail.read_new():
            if event.event in kinds:
                self._tell_sinks(event)

    def _tell_sinks(self, event: Event) -> None:
        """Tell all sinks; one that fails is told no more: a closed terminal must not end a training."""
        for sink in tuple(self._sinks):
            try:
                sink.handle(event)
            except Exception as error:  # noqa: BLE001 - whatever it writes to raises what it likes
                self._sinks.remove(sink)
                message = f"Progress is no longer shown ({type(error).__name__}: {error}); training goes on."
                warning = Event(event="warning", iteration=event.iteration, data={"message": message})
                with suppress(OSError, ValueError):  # nor must a full disk
                    EventLog(self._files.events).append(warning)

    def _output_s(self, now: float) -> float:
        """Return how long Kaggle will need to save the work dir; measured every half minute."""
        if now - self._output_measured_s > 30.0:
            self._output_measured_s = now
            self._output_bytes = float(sum(map(_size_bytes, self._files.path.glob("*.pth"))))
        return self._output_bytes * OUTPUT_S_PER_BYTE

    def _read_events(self, watch: _Watch) -> None:
        for event in self._tail.read_new():
            watch.see(event)
            self._tell_sinks(event)

    def _end(self, process: subprocess.Popen[bytes], watch: _Watch) -> None:
        """Make sure that nothing of the child is left: torchrun, its workers, their data workers."""
        # Workers have sessions of their own, and one that has only just been started has not said so yet.
        left = set[int]()
        if process.poll() is None and watch.ended_by_us != "killed":
            left |= _descendants(process.pid)
            _signal_group(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=TERMINATION_S)
        if process.poll() is None:
            _signal_group(process.pid, signal.SIGSTOP)  # so that it starts nothing more meanwhile
            left |= _descendants(process.pid)
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()  # workers that outlived torchrun see the end of the pipe, save and end
        patience_s = 0.0 if self._kill.is_set() or watch.ended_by_us in ("hung", "late") else 60.0
        for pid in watch.workers:
            _outlive(pid, patience_s)
        for pid in left - watch.workers:
            _outlive(pid, min(patience_s, UNKNOWN_GRACE_S))


class _Watch:
    """What has been seen of one child."""

    def __init__(self, iteration: int, hang_after_s: float) -> None:
        self.iteration = iteration
        self._hang_after_s = hang_after_s
        self.proven: int | None = None
        self._began: int | None = None
        self._reached = 0
        self.workers: set[int] = set()
        self.ended_by_us: Literal["", "hung", "late", "killed"] = ""
        self.was_silent_s = 0.0
        self._stop: Event | None = None
        self._failure: Event | None = None
        self._last_s = time.monotonic()
        self._iteration_s = 0.0
        self._is_starting = True
        self._stage = "training"

    def see(self, event: Event) -> None:
        """Take one event of the child; what the supervisor's side wrote is no sign of life."""
        if event.event == "upload":
            return
        self._last_s = time.monotonic()
        self.iteration = max(self.iteration, event.iteration)
        if event.event == "training":
            self._began = event.iteration
        elif event.event in ("iteration", "stop", "failure"):
            if self._began is None and event.event == "iteration":
                self._began = event.iteration - 1  # of machines that only follow, no more is told
            self._reached = max(self._reached, event.iteration)
        if event.event == "start" and "pid" in event.data:
            self.workers.add(int(event.data["pid"]))
        elif event.event == "iteration":
            self._iteration_s = float(event.data.get("iteration_s") or 0.0)
            self._is_starting = False
            self._stage = "training"
        elif event.event == "validation_start":
            self._stage = "validation"
        elif event.event == "checkpoint":
            self.proven = event.iteration
        elif event.event == "stop":
            self._stop = event
        elif event.event == "failure" and (self._failure is None or self._failure.data.get("kind") == "peer"):
            # The first one counts: what follows is other ranks that miss it, and they say so (``peer``).
            self._failure = event

    @property
    def trained(self) -> int:
        """Iterations that the child is known to have done."""
        return max(0, self._reached - self._began) if self._began is not None else 0

    @property
    def gained(self) -> int:
        """Iterations by which the newest proven checkpoint is further than where the child began."""
        if self.proven is None or self._began is None:
            return 0
        return max(0, self.proven - self._began)

    def silent_s(self, now: float) -> float:
        """Return how long nothing has been heard."""
        return now - self._last_s

    def patience_s(self) -> float:
        """Return how long silence is normal; the first word may take longer than the next."""
        usual = max(self._hang_after_s, HANG_FACTOR * self._iteration_s)
        return usual * 2 if self._is_starting else usual

    def outcome(self, code: int | None, *, out_of_memory: bool = False, stop_asked: bool = False) -> Outcome:
        """Return the verdict: what the child recorded counts, torchrun's exit code does not.

        A child takes our SIGTERM for a request like any other. So its word that it was stopped on
        request is not believed where we sent one and nobody had asked.

        Args:
            code: That exit code.
            out_of_memory: The kernel has killed a process for want of memory while the child ran. A
                child that it killed could say nothing.
            stop_asked: Somebody has asked for a stop.
        """
        ours = self._stop is not None and self._stop.data.get("reason") == "user" and not stop_asked
        if self.ended_by_us == "hung" and ours:
            return self._ended_outcome()
        late = self.ended_by_us == "late"
        # Workers whose torchrun was killed take us for gone, and save; but here we are.
        if self._stop is not None and (not self._stop.data.get("orphaned") or code == 0 or late):
            reason, message = self._stop.data.get("reason", "completed"), self._stop.data.get("message", "")
            if late and ours:
                reason, message = "deadline", _TOLD_TO_STOP
            return Outcome(
                kind="done",
                reason=str(reason),
                message=str(message),
                iteration=self._stop.iteration,
                trained=self.trained,
                proven=self.proven,
                gained=self.gained,
                data=self._stop.data,
                told_s=self._stop.time_s,
            )
        if self._failure is not None:
            kind = self._failure.data.get("kind", "error")
            return Outcome(
                kind=kind if kind in ("memory", "refused") else "error",
                message=str(self._failure.data.get("message", "")),
                iteration=self.iteration,
                trained=self.trained,
                proven=self.proven,
                gained=self.gained,
                data=self._failure.data,
            )
        if late and self._is_starting:
            return Outcome(
                kind="done",
                reason="deadline",
                message="The session's time was up before training began.",
                iteration=self.iteration,
                trained=self.trained,
                proven=self.proven,
                gained=self.gained,
            )
        if self.ended_by_us:
            return self._ended_outcome()
        if out_of_memory and self._stop is None:
            return Outcome(
                kind="memory",
                message="The machine's memory ran out, and the kernel killed a process for it.",
                iteration=self.iteration,
                trained=self.trained,
                proven=self.proven,
                gained=self.gained,
                data={"kind": "memory", "stage": self._stage},
            )
        return Outcome(
            kind="crashed",
            message=f"The training process ended without a word (torchrun's exit code {code})."
            if self._stop is None
            else f"torchrun ended before its workers (exit code {code}); they have saved.",
            iteration=self.iteration,
            trained=self.trained,
            proven=self.proven,
            gained=self.gained,
        )

    def _ended_outcome(self) -> Outcome:
        """Return the verdict on a child that we ended."""
        messages = {
            "hung": f"The training process said nothing for {self.was_silent_s:.0f} s.",
            "late": "The session's time was up, and the training process was ended before it had saved.",
            "killed": "The training process was ended before it had saved.",
        }
        return Outcome(
            kind="killed" if self.ended_by_us == "killed" else "hung",
            reason="deadline" if self.ended_by_us == "late" else "",
            message=messages[self.ended_by_us],
            iteration=self.iteration,
            proven=self.proven,
            data=self._stop.data if self._stop is not None else {},
        )


_TOLD_TO_STOP = (
    "The session's time was up and training had not ended by itself: it was told to, and everything is saved."
)


# -- what to do after a child has ended


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder:
    """How far the kit has gone to make training fit and go on.

    Attributes:
        micro_batch: Images per forward pass and rank.
        with_cp: Whether blocks are recomputed in the backward pass.
        validation_rung: How far validation goes, as an index of :data:`VALIDATION_RUNGS`.
        crashes: Ends other than in good order since the last new checkpoint.
        above: A micro-batch that memory did not hold without recomputing, where fewer images have still
            to be trained on.
        least: The smallest micro-batch that the model can be trained with, as far as is known.
    """

    micro_batch: int
    with_cp: bool = False
    validation_rung: int = 0
    crashes: int = 0
    above: int | None = None
    least: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Next:
    """What follows: another child with these settings, or the end.

    Attributes:
        ladder: The settings of the next child; None for the end.
        wait_s: How long to wait before it.
        message: For a person.
    """

    ladder: Ladder | None
    wait_s: float = 0.0
    message: str = ""


MAX_CRASHES = 3
MANY_ITERATIONS = 100
"""After so many, memory that runs out says little of what an iteration needs."""
_TOO_FEW = "Expected more than 1 value per channel when training"
"""torch's words for a BatchNorm over a single value: one image whose features are pooled to 1x1."""
VALIDATION_RUNGS = (
    "as the config says",
    "one image at a time, and what training holds in reserve is given back first",
    "one image at a time, and its logits are put together and enlarged on the CPU",
)
"""What validation does to get by with less memory. Neither changes the scores by more than rounding."""


def decide_next(
    ladder: Ladder, outcome: Outcome, *, can_recompute: bool, time_left_s: float, adapt: bool = True
) -> Next:
    """Decide what follows the end of a child. Pure.

    Out of memory: half the micro-batch, down to one image; then recomputing blocks in the backward
    pass. The effective batch, and so the meaning of an iteration, stays. Where BatchNorm cannot be
    trained with so few images, blocks are recomputed with the micro-batch before. A child that had
    got far, whose memory may have run out by fragmentation, is first started again as it was: only
    where memory then runs out early is less of it asked for. A validation that ran out gains nothing
    from that: it has rungs of its own. Crashes and hangs are tried again from the newest proven
    checkpoint, three times without progress at most.

    Args:
        ladder: The settings of the child that has ended.
        outcome: How it ended.
        can_recompute: Whether its backbone can recompute blocks.
        time_left_s: Of the session.
        adapt: Whether running out of memory is answered at all, instead of ending there.
    """
    if outcome.kind in ("done", "killed") or outcome.reason == "deadline":
        return Next(ladder=None, message=outcome.message)
    if outcome.kind == "refused":
        return _next_after_refusal(ladder, outcome, can_recompute=can_recompute)
    if outcome.kind == "memory" and not adapt:
        return Next(ladder=None, message=f"{outcome.message} Nothing is to be adapted to it, as was asked.")
    if outcome.kind == "memory" and outcome.data.get("stage") == "validation":
        return _next_for_validation(ladder, outcome)
    if outcome.kind == "memory" and outcome.trained >= MANY_ITERATIONS and outcome.gained > 0:
        return Next(
            ladder=replace(ladder, crashes=0),
            message=f"Out of memory after {outcome.trained} iterations, which had fitted: starting again "
            "from the newest checkpoint in the same way.",
        )
    if outcome.kind == "memory":
        if ladder.micro_batch > ladder.least:
            smaller = max(ladder.least, ladder.micro_batch // 2)
            return Next(
                ladder=replace(
                    ladder,
                    micro_batch=smaller,
                    crashes=0,
                    above=None if ladder.with_cp else ladder.micro_batch,
                ),
                message=f"Out of memory: going on with {smaller} image(s) per forward pass and more of them; "
                "the batch that the optimizer sees stays the same.",
            )
        if can_recompute and not ladder.with_cp:
            return Next(
                ladder=replace(ladder, with_cp=True, crashes=0),
                message="Out of memory with one image: going on with blocks recomputed in the backward pass "
                "(with_cp).",
            )
        if ladder.least > 1:
            return Next(ladder=None, message=_neither_fits(ladder, outcome))
        return Next(
            ladder=None,
            message=f"Out of memory with one image per forward pass. {outcome.message} "
            "Use a smaller crop (crop_size) or a smaller backbone.",
        )
    crashes = 1 if outcome.proven is not None else ladder.crashes + 1
    if crashes > MAX_CRASHES:
        return Next(
            ladder=None, message=f"{outcome.message} It was tried {MAX_CRASHES} times again without progress."
        )
    wait_s = 5.0 * 2 ** (crashes - 1)
    if time_left_s < wait_s + 60.0:
        return Next(ladder=None, message=f"{outcome.message} There is no time left to try again.")
    again = replace(ladder, crashes=crashes)
    return Next(
        ladder=again,
        wait_s=wait_s,
        message=f"{outcome.message} Starting again from the newest checkpoint in {wait_s:.0f} s "
        f"(try {crashes} of {MAX_CRASHES}).",
    )


def _next_after_refusal(ladder: Ladder, outcome: Outcome, *, can_recompute: bool) -> Next:
    if ladder.above is None or _TOO_FEW not in outcome.message:
        return Next(ladder=None, message=outcome.message)
    least = ladder.micro_batch + 1
    if not can_recompute:
        return Next(ladder=None, message=_neither_fits(replace(ladder, least=least), outcome))
    return Next(
        ladder=replace(ladder, micro_batch=ladder.above, with_cp=True, crashes=0, above=None, least=least),
        message=f"BatchNorm cannot be trained with {ladder.micro_batch} image(s) per forward pass: going on "
        f"with {ladder.above}, and blocks recomputed in the backward pass (with_cp).",
    )


def _neither_fits(ladder: Ladder, outcome: Outcome) -> str:
    return (
        f"Fewer than {ladder.least} images per forward pass are too few for BatchNorm, and memory does not "
        f"hold more. {outcome.message} Use a smaller crop (crop_size), a smaller backbone, or a norm that "
        "needs no other images (norm_cfg = dict(type='GN', num_groups=32))."
    )


def _next_for_validation(ladder: Ladder, outcome: Outcome) -> Next:
    rung = ladder.validation_rung + 1
    if rung < len(VALIDATION_RUNGS):
        return Next(
            ladder=replace(ladder, validation_rung=rung, crashes=0),
            message=f"Out of memory in validation: going on with {VALIDATION_RUNGS[rung]}.",
        )
    return Next(
        ladder=None,
        message=f"Out of memory in validation with {VALIDATION_RUNGS[-1]}. {outcome.message} "
        "Validate smaller images (the Resize of the validation pipeline), or in windows "
        "(test_cfg = dict(mode='slide', crop_size=…, stride=…)).",
    )


def _size_bytes(path: Path) -> int:
    """Return a file's size; 0 for one that retention has just deleted."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _outlive(pid: int, patience_s: float) -> None:
    """Wait until a worker is gone; kill it, and what it started, when it takes too long."""
    for seconds in (patience_s, 10.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not _alive(pid):
                return
            time.sleep(POLL_S)
        _signal_group(pid, signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)  # it need not lead a group


def _descendants(pid: int) -> set[int]:
    """Return the processes that a process has started, and those that they have."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue  # it has ended meanwhile
        children.setdefault(int(parent), []).append(int(folder.name))
    found, waiting = set[int](), [pid]
    while waiting:
        started = children.get(waiting.pop(), [])
        found.update(started)
        waiting += started
    return found


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")
