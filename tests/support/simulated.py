"""Simulated sessions."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.pace import OUTPUT_S_PER_BYTE, Pace

HOUR_S = 3600.0


MAX_KEPT = 4


@dataclass
class Machine:
    """A machine whose timings are drawn: what things really take.

    Attributes:
        rng: Where the draws come from.
        noise: Spread of each duration, relative.
        drift: By how much all has become slower at the end of the session, relative.
        step: A moment at which all becomes slower, and by how much; relative to the session.
        stalls: Stalls to expect in a session.
        longest_stall_s: The longest of them.
    """

    rng: random.Random
    iteration_s: float
    validation_s: float
    copy_s: float
    write_s: float
    finish_s: float
    checkpoint_bytes: float
    noise: float = 0.0
    drift: float = 0.0
    step: tuple[float, float] = (1.0, 0.0)
    stalls: float = 0.0
    longest_stall_s: float = 0.0

    def slowness(self, part: float) -> float:
        """Return by how much all is slower after a part of the session."""
        return 1 + self.drift * part + (self.step[1] if part > self.step[0] else 0.0)

    def takes(self, usual_s: float, part: float) -> float:
        """Draw a duration."""
        noise = self.rng.lognormvariate(0.0, self.noise) if self.noise else 1.0
        return usual_s * noise * self.slowness(part)


@dataclass
class SimulatedSession:
    """What ``engine.session.WorkerSession`` does to the clock and the pace, on a fake clock."""

    machine: Machine
    clock: SessionClock
    pace: Pace
    val_interval: int
    save_every_s: float
    owed_validation: int | None = None
    control: Any = None
    spec: Any = field(default_factory=lambda: SimpleNamespace(validation_rung=0))
    now_s: float = 0.0
    writing_until_s: float | None = None
    saved_iteration: int = -1
    saved_at_s: float = 0.0
    num_best: int = 0
    kept: int = 0
    stall_at_s: list[float] = field(default_factory=list)
    decided_s: float = 0.0
    start_up_s: float = 0.0
    has_trained: bool = False
    stalled_s: float = 0.0
    slowest_s: dict[str, float] = field(default_factory=dict)
    trace: list[tuple[Any, ...]] = field(default_factory=list)

    # time

    def now(self) -> float:
        return self.now_s

    def spend(self, kind: str, usual_s: float) -> float:
        """Let a duration pass, with the stalls that lie in it."""
        seconds = self.machine.takes(usual_s, self.now_s / self.clock.limit_s)
        while self.stall_at_s and self.stall_at_s[0] < self.now_s + seconds:
            self.stall_at_s.pop(0)
            stall_s = self.machine.longest_stall_s * 10 ** self.machine.rng.uniform(-2, 0)
            seconds += stall_s
            self.stalled_s += stall_s
        self.pass_time(seconds)
        self.slowest_s[kind] = max(seconds, self.slowest_s.get(kind, 0.0))
        return seconds

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        if self.writing_until_s is not None and self.writing_until_s <= self.now_s:
            self.pace.write_ends(self.writing_until_s)
            self.writing_until_s = None
            self.pace.output_bytes = self.kept * self.machine.checkpoint_bytes
            if self.kept == MAX_KEPT:
                self.pace.checkpoint_bytes = 0.0

    def join(self) -> None:
        if self.writing_until_s is not None:
            self.pass_time(self.writing_until_s - self.now_s)

    # what the loop calls, as in engine.session and engine.checkpointing

    @property
    def checkpoints(self) -> SimulatedSession:
        return self

    def training_begins(self, iteration: int, max_iters: int, *, next_position: int) -> None:
        self.saved_iteration = iteration
        self.start_up_s = self.now_s

    def run_iteration(self, iteration: int) -> None:
        self.has_trained = True
        seconds = self.spend("iteration", self.machine.iteration_s)
        if len(self.pace.iteration) or "iteration_s" in self.pace.expected:
            self.pace.iteration.add(seconds)
        else:
            self.pace.guess(iteration_s=seconds)

    def due(self, iteration: int, *, since: int) -> bool:
        return self.now_s - self.saved_at_s >= self.save_every_s

    def save(self, iteration: int, *, owed_validation: int | None = None) -> None:
        self.trace.append(("save", iteration, owed_validation, round(self.now_s, 6)))
        self.owed_validation = owed_validation
        if iteration != self.saved_iteration:
            self.kept = min(MAX_KEPT, self.kept + 1)
        self.saved_iteration = iteration
        self.pace.copy.add(self.spend("copy", self.machine.copy_s))
        self.submit("write", self.machine.write_s)

    def submit(self, kind: str, usual_s: float) -> None:
        self.join()
        self.pace.write_begins(self.now_s, best=kind == "best")
        # In the background: drawn now, while the clock goes on.
        begin_s = self.now_s
        seconds = self.spend_aside(kind, usual_s)
        self.writing_until_s = begin_s + seconds
        self.saved_at_s = self.now_s

    def spend_aside(self, kind: str, usual_s: float) -> float:
        seconds = self.machine.takes(usual_s, self.now_s / self.clock.limit_s)
        if self.stall_at_s and self.stall_at_s[0] < self.now_s + seconds:
            self.stall_at_s.pop(0)
            stall_s = self.machine.longest_stall_s * 10 ** self.machine.rng.uniform(-2, 0)
            seconds += stall_s
            self.stalled_s += stall_s
        self.slowest_s[kind] = max(seconds, self.slowest_s.get(kind, 0.0))
        return seconds

    def validate(self, abort: type[Exception]) -> None:
        """Validate in parts, and leave it where the control says so, as ``ValidationPulse`` does."""
        begin_s, parts = self.now_s, 24
        for _ in range(parts):
            if self.control.stop_asked():
                raise abort
            self.spend("part", self.machine.validation_s / parts)
        self.slowest_s["validation"] = max(self.now_s - begin_s, self.slowest_s.get("validation", 0.0))

    def validation_begins(self) -> None:
        self.trace.append(("validation", round(self.now_s, 6)))
        self.validation_began_s = self.now_s

    def validation_left(self) -> None:
        self.trace.append(("left", round(self.now_s, 6)))
        self.pace.left_validation(self.now_s - self.validation_began_s)

    def validation_done(self, iteration: int, metrics: Any) -> None:
        self.pace.validated(self.now_s - self.validation_began_s)
        if self.machine.rng.random() < 0.6:
            self.spend("best copy", 0.3 * self.machine.copy_s)
            self.submit("best", 0.3 * self.machine.write_s)
        self.save(iteration)

    def whole_s(self) -> float:
        if not self.has_trained:
            return self.clock.left_s()
        return self.clock.limit_s - self.clock.reserve_s - self.start_up_s

    def skip_validation(self, iteration: int) -> None:
        self.trace.append(("skip", iteration, round(self.now_s, 6)))
        self.save(iteration)

    def owed_does_not_fit(self) -> None:
        self.trace.append(("does not fit", round(self.now_s, 6)))

    def save_end(self, iteration: int) -> None:
        if iteration != self.saved_iteration:
            self.save(iteration, owed_validation=self.owed_validation)

    def finish(self, iteration: int, stop: str) -> None:
        self.join()
        self.spend("finish", self.machine.finish_s)
        # Kaggle's saving of the output.
        self.pass_time(self.kept * self.machine.checkpoint_bytes * OUTPUT_S_PER_BYTE)
        self.trace.append(("end", iteration, stop, round(self.now_s, 6)))


class Left(Exception):
    """A validation was left."""


@dataclass
class SimulatedControl:
    """``engine.control.Control`` on one rank, without torch: the decisions are the product's own."""

    session: SimulatedSession

    def stop_asked(self) -> bool:
        return self.session.pace.must_leave_validation(self.session.clock)

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
    ) -> SimpleNamespace:
        verdict = self.session.pace.decide(
            self.session.clock,
            validation_due=validation_due,
            save_due=save_due,
            may_stop=may_stop,
            saved=saved,
            stride=stride,
            whole_s=whole_s,
        )
        stop = "deadline" if verdict.stop else ""
        if not stop:
            self.session.decided_s, self.session.stalled_s = self.session.now_s, 0.0
        return SimpleNamespace(stop=stop, save=save_due, validate=verdict.validate, skip=verdict.skip)


def run(session: SimulatedSession, *, iteration: int = 0, max_iters: int = 10**9) -> tuple[int, str]:
    """Do what ``SessionTrainLoop.run`` does, in its order; a test below holds that it is so."""
    control = session.control = SimulatedControl(session)

    def validate() -> str:
        session.validation_begins()
        try:
            session.validate(Left)
        except Left:
            session.validation_left()
            return decide_saved() or "user"
        session.validation_done(iteration, {})
        return ""

    def decide_saved() -> str:
        return str(control.decide(validation_due=False, save_due=False, saved=True).stop)

    session.training_begins(iteration, max_iters, next_position=0)
    stop = ""
    if session.owed_validation is not None:
        whole_s = session.whole_s()
        decision = control.decide(validation_due=True, save_due=False, saved=True, whole_s=whole_s)
        if decision.skip:
            session.skip_validation(iteration)
        elif decision.stop == "deadline":
            session.owed_does_not_fit()
        stop = (validate() or decide_saved()) if decision.validate else decision.stop
    while not stop and iteration < max_iters:
        session.run_iteration(iteration)
        iteration += 1
        due = iteration % session.val_interval == 0 or iteration == max_iters
        decision = control.decide(
            validation_due=due,
            save_due=session.due(iteration, since=iteration - 1),
            whole_s=session.whole_s(),
        )
        stop = decision.stop
        if due and decision.skip:
            session.skip_validation(iteration)
        elif due:
            session.save(iteration, owed_validation=iteration)
            if decision.validate:
                stop = validate() or decide_saved()
        elif decision.save:
            session.save(iteration)
    if iteration >= max_iters and session.owed_validation is None:
        stop = "completed"
    session.save_end(iteration)
    session.finish(iteration, stop)
    return iteration, stop


RESERVE_S = 60.0


def simulated(seed: int, *, known: bool | None = None, **kind: Any) -> SimulatedSession:
    """Draw a session of about 20 to 150 iterations, in one of the given kinds of timing."""
    rng = random.Random(seed)
    limit_s = rng.uniform(600.0, 1200.0)
    machine = Machine(
        rng=rng,
        iteration_s=math.exp(rng.uniform(math.log(6.0), math.log(30.0))),
        validation_s=rng.uniform(5.0, 120.0),
        copy_s=rng.uniform(0.0, 1.0),
        write_s=rng.uniform(0.5, 12.0),
        finish_s=rng.uniform(1.0, 8.0),
        checkpoint_bytes=rng.uniform(0.0, 5e7),
        **{name: value(rng) if callable(value) else value for name, value in kind.items()},
    )
    expected = {"finish_s": machine.finish_s * (1.3 if machine.noise else 1.0)}
    if known if known is not None else rng.random() < 0.5:
        expected |= {
            "iteration_s": machine.iteration_s,
            "validation_s": machine.validation_s,
            "save_s": machine.write_s,
            "best_s": 0.3 * machine.write_s,
            "copy_s": machine.copy_s,
        }
    pace = Pace(expected=expected, checkpoint_bytes=machine.checkpoint_bytes)
    pace.guess(save_s=2.0 * machine.write_s, best_s=machine.write_s)
    pace.validation_iterations = 1.5 * machine.validation_s / machine.iteration_s
    clock = SessionClock(started_s=0.0, limit_s=limit_s, reserve_s=RESERVE_S)
    session = SimulatedSession(
        machine=machine,
        clock=clock,
        pace=pace,
        val_interval=rng.randint(5, 40),
        save_every_s=rng.uniform(30.0, 200.0),
        owed_validation=0 if rng.random() < 0.2 else None,
        now_s=rng.uniform(0.0, 30.0),
    )
    session.clock = SessionClock(
        started_s=0.0, limit_s=limit_s, reserve_s=RESERVE_S, now=lambda: session.now_s
    )
    count = sum(rng.random() < machine.stalls / 10 for _ in range(10))
    # Every second one in the last part of the session, where it matters.
    session.stall_at_s = sorted(limit_s * (1 - rng.random() * rng.choice((1.0, 0.2))) for _ in range(count))
    return session


def one_and_a_save_s(session: SimulatedSession) -> float:
    """Return what the longest iteration or validation and the longest save take, at the slowest."""
    slowest, pace, machine = session.slowest_s, session.pace, session.machine
    one_s = max(slowest["iteration"], slowest.get("validation", 0.0), pace.validation_s())
    save_s = max(slowest.get("copy", 0.0) + slowest.get("write", 0.0), pace.copy_s() + pace.save_s())
    finish_s = max(0.0, pace.expected["finish_s"] - slowest["finish"])
    return one_s + save_s + finish_s + machine.checkpoint_bytes * OUTPUT_S_PER_BYTE


def known(**seconds: float) -> Pace:
    """Return a pace that an earlier session has measured."""
    defaults = {
        "iteration_s": 10.0,
        "validation_s": 100.0,
        "save_s": 8.0,
        "best_s": 3.0,
        "copy_s": 1.0,
        "finish_s": 4.0,
    }
    return Pace(expected={**defaults, **seconds})
