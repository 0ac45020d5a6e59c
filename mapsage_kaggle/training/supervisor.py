"""Start a training child, watch it, and end it in good order."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.config.modules import CodePlaces
from mapsage_kaggle.events import Event, EventKind, EventLog, EventTail, ProgressSink, emit_to_sinks
from mapsage_kaggle.messages import Message, joined_by
from mapsage_kaggle.pace import OUTPUT_S_PER_BYTE
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.processes import (
    POLL_S,
    Child,
    ProcessId,
    child_environment,
    module_command,
    oom_kills,
    outlive,
    start,
)
from mapsage_kaggle.spec import SUPERVISOR_VARIABLE, ask_save, ask_stop
from mapsage_kaggle.training.fallback import Kind, Outcome
from mapsage_kaggle.training.hang import explain_silence
from mapsage_kaggle.training.output import OutputWatch

STOP_GRACE_S = 180.0
"""How long a child that was asked to stop may take to save before it is killed."""
EXPLAIN_S = 60.0
"""How long to look at what a silent child is doing before it is ended all the same."""
TERMINATION_S = 20.0
"""How long a child may take to end, torchrun to end its workers, when we end it."""
UNKNOWN_GRACE_S = 10.0
"""How long a process that never announced itself as a worker may live on: it has nothing to save."""
HANG_FACTOR = 20.0
HANG_LEAST_S = 600.0
"""Silence for this long, or for so many iterations if that is longer, is taken for a hang."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How to start a training child.

    Attributes:
        spec: The file with its ``ChildSpec``.
        work_dir: Where its events and log go.
        num_workers: Ranks on this machine.
        threads: Per rank, pinned.
        gpus: Whether each rank gets a GPU; else none is visible.
        code: Where the config's own modules are imported from.
        passed: Environment variables that the child gets although they look like credentials.
        tracking: Environment variables for its trackers, an API key among them.
        scratch: For caches of libraries.
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
    code: CodePlaces = field(default_factory=CodePlaces)
    passed: tuple[str, ...] = ()
    tracking: Mapping[str, str] = field(default_factory=dict, repr=False)
    scratch: Path
    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str = ""
    deterministic: bool = False

    @property
    def several_machines(self) -> bool:
        return self.nnodes > 1 or bool(self.rdzv_endpoint)

    def command(self) -> list[str]:
        """Return the command line: the worker's own where it is the only one, else torchrun's."""
        worker = self.code.start("mapsage_kaggle.engine.worker")
        if self.num_workers == 1 and not self.several_machines:
            return module_command(*worker, str(self.spec))
        command = module_command(
            "torch.distributed.run", f"--nproc-per-node={self.num_workers}", "--max-restarts=0"
        )
        if self.several_machines:
            place = urlsplit(f"//{self.rdzv_endpoint}")
            command += [
                f"--nnodes={self.nnodes}", f"--node-rank={self.node_rank}",
                f"--master-addr={place.hostname}", f"--master-port={place.port or 29500}",
            ]  # fmt: skip
        else:
            # The machine's own name may not resolve where there is no network.
            command += ["--standalone", "--nnodes=1", "--local-addr=127.0.0.1"]
        return [*command, "-m", *worker, str(self.spec)]

    def environment(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        env = child_environment(
            threads=self.threads,
            scratch=self.scratch,
            gpus=self.gpus,
            passed=self.passed,
            environ=environ,
        )
        env |= self.tracking
        env[SUPERVISOR_VARIABLE] = str(os.getpid())
        if not self.several_machines and Path("/sys/class/net/lo").exists():
            # Ranks of one machine need no network, and its own name may not resolve.
            env.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if self.deterministic:
            env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        return env


class Supervisor:
    """Runs one training child at a time and passes its events on.

    Args:
        work_dir: Where the child writes.
        clock: The session's; a child that ignores it is ended when the output must be saved.
        sinks: Receive every event, in the supervising thread. One that raises is dropped.
        hang_after_s: The least silence that is taken for a hang.
        output: The folder that Kaggle keeps; by default the work dir.
    """

    def __init__(
        self,
        work_dir: Path,
        clock: SessionClock,
        sinks: Sequence[ProgressSink] = (),
        *,
        hang_after_s: float = HANG_LEAST_S,
        output: Path | None = None,
    ) -> None:
        self._hang_after_s = hang_after_s
        self.output = OutputWatch(work_dir, output or work_dir, self._warn)
        self._output_bytes = 0.0
        self._output_measured_s = -math.inf
        self._files = WorkDir(work_dir)
        self._clock = clock
        self._sinks = list(sinks)
        self._stop = threading.Event()
        self._kill = threading.Event()
        self._tail = EventTail(self._files.events, from_end=True)
        self.iteration = 0

    # -- asking

    def request_stop(self) -> None:
        """Ask the child to save and end. Safe from any thread and from a signal handler."""
        self._stop.set()

    def request_save(self) -> None:
        """Ask the child to save a checkpoint now."""
        ask_save(self._files)

    def kill(self) -> None:
        """Kill the child at once; what is proven stays."""
        self._stop.set()
        self._kill.set()

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested, here or by the file in the work dir."""
        return self._stop.is_set() or self._files.stop_request.exists()

    @property
    def killed(self) -> bool:
        return self._kill.is_set()

    # -- running

    def run(self, launch: Launch) -> Outcome:
        """Run a child until it has ended, workers included."""
        watch, killed_before = _Watch(self.iteration, self._hang_after_s), oom_kills() or 0
        with self._files.log.open("ab") as log:
            child = start(launch.command(), launch.environment(), log)
        try:
            self._stay_with(child, watch)
            if watch.ended_by_us == "hung":
                watch.was_doing = self._explain(child, watch)
        finally:
            self._end(child, watch)
        self._read_events(watch)
        self.iteration = max(self.iteration, watch.iteration)
        return watch.outcome(
            child.returncode,
            out_of_memory=(oom_kills() or 0) > killed_before,
            stop_asked=self.stopping,
        )

    def _stay_with(self, child: Child, watch: _Watch) -> None:
        asked_at: float | None = None
        while not child.ended():
            self._read_events(watch)
            now = time.monotonic()
            if self._kill.is_set():
                watch.ended_by_us = "killed"
                return
            if asked_at is None and self.stopping:
                try:
                    ask_stop(self._files)
                except OSError:  # a full disk, say; a signal needs no room
                    child.signal_group(signal.SIGTERM)
                asked_at = now
            if asked_at is not None and now - asked_at > STOP_GRACE_S:
                watch.ended_by_us = "killed"
                return
            if self.left_to_hand_over_s() < 0:
                # The child should have stopped by itself long ago; half the reserve is left to hand over.
                watch.ended_by_us = "late"
                return
            self.output.look_now_and_then()
            if watch.silent_s(now) > watch.patience_s():
                watch.ended_by_us = "hung"
                watch.was_silent_s = watch.silent_s(now)
                return
            time.sleep(POLL_S)

    def _explain(self, child: Child, watch: _Watch) -> str:
        """Log what a child is doing, and return where its ranks are; where that fails, warn."""
        found = [*filter(None, [ProcessId.of(child.pid)]), *child.descendants()]
        silent_s = watch.silent_s(time.monotonic())
        told: list[str] = []

        def look() -> None:
            try:
                told.append(
                    explain_silence(found, watch.workers, self._files.log, last=watch.last, silent_s=silent_s)
                )
            except OSError as error:
                why = error.strerror or error
                self._warn(Message("What training was doing could not be seen: {why}.", why))

        # In a thread: nvidia-smi cannot even be killed where a GPU has fallen off its bus.
        thread = threading.Thread(target=look, name="hang", daemon=True)
        thread.start()
        thread.join(EXPLAIN_S)
        return told[0] if told else ""

    def left_to_hand_over_s(self) -> float:
        """Return the time until Kaggle must begin to save the output, to end with half the reserve left."""
        return self._clock.left_s() + 0.5 * self._clock.reserve_s - self._output_s(time.monotonic())

    def pass_on(self, kinds: Collection[EventKind]) -> None:
        """Pass events of some kinds, written after the last child had ended, to the sinks."""
        for event in self._tail.read_new():
            if event.event in kinds:
                self._emit_to_sinks(event)

    def _emit_to_sinks(self, event: Event) -> None:
        for warning in emit_to_sinks(event, self._sinks):
            self._warn(warning)

    def _warn(self, message: str) -> None:
        warning = Event(event="warning", iteration=self.iteration, data={"message": message})
        with suppress(OSError, ValueError):  # a full disk must not end training either
            EventLog(self._files.events).append(warning)

    def _output_s(self, now: float) -> float:
        """Return how long Kaggle will need to save the checkpoints; measured every half minute."""
        if now - self._output_measured_s > 30.0:
            self._output_measured_s = now
            self._output_bytes = float(sum(map(_size_bytes, self._files.path.glob("*.pth"))))
        return self._output_bytes * OUTPUT_S_PER_BYTE

    def _read_events(self, watch: _Watch) -> None:
        for event in self._tail.read_new():
            watch.see(event)
            self._emit_to_sinks(event)

    def _end(self, child: Child, watch: _Watch) -> None:
        """Make sure that nothing of the child is left: torchrun where there is one, workers, data workers."""
        # Workers have sessions of their own, and one just started has not announced itself yet.
        left = set[ProcessId]()
        if not child.ended() and watch.ended_by_us != "killed":
            left |= child.descendants()
            child.signal_group(signal.SIGTERM)
            child.ends_within(TERMINATION_S)
        if not child.ended():
            child.signal_group(signal.SIGSTOP)  # so that it starts nothing more meanwhile
            left |= child.descendants()
            child.signal_group(signal.SIGKILL)
        child.wait()
        if child.stdin is not None:
            child.stdin.close()  # workers that outlived torchrun see the end of the pipe, save and end
        patience_s = 0.0 if self._kill.is_set() or watch.ended_by_us in ("hung", "late") else 60.0
        for worker in watch.workers:
            outlive(worker, patience_s)
        for process in left - watch.workers.keys():
            outlive(process, min(patience_s, UNKNOWN_GRACE_S))


class _Watch:
    """What has been seen of one child."""

    def __init__(self, iteration: int, hang_after_s: float) -> None:
        self.iteration = iteration
        self._hang_after_s = hang_after_s
        self.proven: int | None = None
        self._began: int | None = None
        self._reached = 0
        self.workers: dict[ProcessId, int] = {}
        self.last: Event | None = None
        self.was_doing = ""
        self.ended_by_us: Literal["", "hung", "late", "killed"] = ""
        self.was_silent_s = 0.0
        self._stop: Event | None = None
        self._failure: Event | None = None
        self._last_s = time.monotonic()
        self._iteration_s = 0.0
        self._is_starting = True
        self._stage = "training"

    def see(self, event: Event) -> None:
        """Take one event of the child; uploads and some warnings are the supervisor's: no sign of life."""
        if event.event in ("upload", "warning"):
            return
        self._last_s, self.last = time.monotonic(), event
        self.iteration = max(self.iteration, event.iteration)
        if event.event == "training":
            self._began = event.iteration
        elif event.event in ("iteration", "stop", "failure"):
            if self._began is None and event.event == "iteration":
                self._began = event.iteration - 1  # machines that only follow report no more
            self._reached = max(self._reached, event.iteration)
        if event.event == "start":
            worker = ProcessId.stated(event.data)
            if worker is not None:
                self.workers[worker] = int(event.data.get("rank") or 0)
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
            # The first one counts: what follows is other ranks that lost it, which say so (``peer``).
            self._failure = event

    @property
    def trained(self) -> int:
        """Iterations that the child is known to have done."""
        return max(0, self._reached - self._began) if self._began is not None else 0

    @property
    def gained(self) -> int:
        """Iterations from where the child began to its newest proven checkpoint."""
        if self.proven is None or self._began is None:
            return 0
        return max(0, self.proven - self._began)

    def silent_s(self, now: float) -> float:
        """Return the time since the last event."""
        return now - self._last_s

    def patience_s(self) -> float:
        """Return how long silence is normal: twice as long before the first iteration."""
        usual = max(self._hang_after_s, HANG_FACTOR * self._iteration_s)
        return usual * 2 if self._is_starting else usual

    def outcome(self, code: int | None, *, out_of_memory: bool = False, stop_asked: bool = False) -> Outcome:
        """Return the verdict: what the child recorded counts, not torchrun's exit code.

        A child takes our SIGTERM for a stop request. So its report of one is not believed unless a stop
        was asked for.

        ``out_of_memory`` says that the OOM killer has struck while it ran: the victim cannot report.
        """
        ours = self._stop is not None and self._stop.data.get("reason") == "user" and not stop_asked
        if self.ended_by_us == "hung" and ours:
            return self._ended_outcome()
        late = self.ended_by_us == "late"
        seen = Outcome(
            kind="crashed",
            iteration=self.iteration,
            trained=self.trained,
            proven=self.proven,
            gained=self.gained,
        )
        # Workers whose torchrun was killed take the supervisor for gone, and save. Unless they were to
        # end anyway, they are restarted.
        orphaned = self._stop is not None and self._stop.data.get("orphaned") and code != 0
        if self._stop is not None and (not orphaned or late or stop_asked):
            reason, message = self._stop.data.get("reason", "completed"), self._stop.data.get("message", "")
            if late and ours:
                reason, message = "deadline", _TOLD_TO_STOP
            return replace(
                seen,
                kind="done",
                reason=str(reason),
                message=str(message),
                iteration=self._stop.iteration,
                data=self._stop.data,
                last_event_s=self._stop.time_s,
            )
        if self._failure is not None:
            told, message = self._failure.data.get("kind"), str(self._failure.data.get("message", ""))
            kind: Kind = told if told in ("memory", "shared_memory", "precision", "refused") else "error"
            return replace(seen, kind=kind, message=message, data=self._failure.data)
        if late and self._is_starting:
            message = Message("The session's time was up before training began.")
            return replace(seen, kind="done", reason="deadline", message=message)
        if self.ended_by_us:
            return self._ended_outcome()
        if out_of_memory and self._stop is None:
            message = Message("The machine's memory ran out, and the kernel killed a process for it.")
            return replace(
                seen, kind="memory", message=message, data={"kind": "memory", "stage": self._stage}
            )
        message = Message("The training process ended without a word (exit code {code}).", code)
        if self._stop is not None:
            message = Message("torchrun ended before its workers (exit code {code}); they have saved.", code)
        return replace(seen, message=message)

    def _ended_outcome(self) -> Outcome:
        """Return the verdict on a child that we ended."""
        messages = {
            "hung": Message("The training process said nothing for {seconds} s.", f"{self.was_silent_s:.0f}"),
            "late": Message(
                "The session's time was up, and the training process was ended before it had saved."
            ),
            "killed": Message("The training process was ended before it had saved."),
        }
        message: str = messages[self.ended_by_us]
        return Outcome(
            kind="killed" if self.ended_by_us == "killed" else "hung",
            reason="deadline" if self.ended_by_us == "late" else "",
            message=joined_by(" ", (message, self.was_doing)) if self.was_doing else message,
            iteration=self.iteration,
            proven=self.proven,
            data=self._stop.data if self._stop is not None else {},
        )


_TOLD_TO_STOP = Message(
    "The session's time was up and training had not ended by itself: it was told to, and everything is saved."
)


def _size_bytes(path: Path) -> int:
    """Return a file's size; 0 for one that retention has just deleted."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
