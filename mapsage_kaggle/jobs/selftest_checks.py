"""The self-test's checks, each in a process of its own, so that each can be ended in time.

    python -m mapsage_kaggle.jobs.selftest_checks job.json

prints a finding as one JSON object a line, as soon as it is made. What a check finds is decided by
functions that are given figures alone.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mapsage_kaggle import schema
from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.errors import MachineError, MapsageError
from mapsage_kaggle.events import finite
from mapsage_kaggle.jobs.trial import DRAWING, MAX_ITERS, TO_ROUNDING, VAL_INTERVAL, Trial
from mapsage_kaggle.machine import Gpu, Machine
from mapsage_kaggle.messages import Message, from_said, joined_by, text_of, with_said
from mapsage_kaggle.processes import ChildError, child_environment, module_command, run
from mapsage_kaggle.records import Exactness, SessionRecord, share_of_steps
from mapsage_kaggle.training.fallback import VALIDATION_RUNGS

State = Literal["holds", "does not hold", "measured", "not measured"]
MAX_APART = {"cpu": 1e-4, "cuda": 1e-3}
"""Weights that equal others to rounding are not further from them, relative to their length."""
MAX_APART_IN_FAST_MODE = 1e-2
STOP_AT, KILL_AT = 7, 8
WARM_UP = 5
"""So many of the first iterations are not timed."""
SCALER = "loss_scale=dict(init_scale=16.0, growth_interval=4)"
"""So low that nothing overflows: then the scale doubles every four iterations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        state: ``holds`` or ``does not hold``; ``measured`` where nothing is promised; ``not measured``.
        message: A sentence with the figures, or why there are none.
        figures: What was measured, by name.
    """

    name: str
    state: State
    message: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return finite(with_said({**dataclasses.asdict(self), "message": self.message}))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Finding:
        return cls(**from_said(document))


# -- deciding


def _finding(name: str, holds: bool, message: str, figures: Mapping[str, Any]) -> Finding:
    return Finding(name=name, state="holds" if holds else "does not hold", message=message, figures=figures)


def judge_exact(name: str, found: Mapping[str, Any], exactness: Exactness, *, must: bool) -> Finding:
    """Decide whether a run that was cut equals one that was not.

    ``found`` is the comparison of their last checkpoints. Unless they ``must`` be the same bit for bit, they
    have to be as far as the cut one's record says.
    """
    apart, places = float(found["apart"]), [str(place) for place in found["differences"]]
    num, count, length = len(places), int(found["num_values"]), f"{apart:.1e}"
    figures = {
        "values": count, "differing": num, "first": places[:3], "apart": apart, "bitwise": exactness.bitwise,
        "repeatable": exactness.repeatable, "difference": exactness.difference,
    }  # fmt: skip
    why, holds = joined_by("; ", exactness.reasons or (Message("bit for bit"),)), False
    if found["iterations"] != [MAX_ITERS] * 2 or count == 0:
        at = " and ".join(map(str, found["iterations"]))
        message = Message("The runs ended at {at}, and not both at {end}.", at, MAX_ITERS)
    elif places and (must or exactness.bitwise or not apart < MAX_APART_IN_FAST_MODE):
        message = Message(
            "Cut differs from uncut in {num} of {count} values, beginning with {place}; the weights are "
            "{apart} of their length apart. The record says: {why}.",
            num, count, places[0], length, why,
        )  # fmt: skip
    elif must and not exactness.bitwise:
        message = Message("Cut equals uncut bit for bit, but the record does not say so: {why}.", why)
    elif places:
        template = "Cut equals uncut to rounding, as the record says: {apart} of the weights' length apart."
        message, holds = Message(template, length), True
    else:
        message, holds = Message("Cut equals uncut bit for bit, in all of {count} values.", count), True
    return _finding(name, holds, message, figures)


def judge_killed(
    found: Mapping[str, Any], exactness: Exactness, resumed_at: Sequence[int], device: str
) -> Finding:
    """Decide whether a run whose process was killed equals one that was left alone, its scaler too."""
    finding, scale = judge_exact("killed", found, exactness, must=True), found["loss_scale"]
    figures = {**finding.figures, "resumed_at": list(resumed_at), "loss_scale": scale}
    message, holds = finding.message, finding.state == "holds"
    if list(resumed_at) != [VAL_INTERVAL] or scale is None:
        template = "Killed at {at}, it went on from {start}, not {wanted}; its loss scale is {scale}."
        at = ", ".join(map(str, resumed_at)) or "nothing"
        message, holds = Message(template, KILL_AT, at, VAL_INTERVAL, scale), False
    elif holds:
        message = Message(
            "Killed at {at}, it went on from {start} and equals the other bit for bit; so does the loss "
            "scale, {scale} at the end ({device}).",
            KILL_AT, VAL_INTERVAL, f"{scale:.0f}", device,
        )  # fmt: skip
    return _finding("killed", holds, message, figures)


def judge_split(
    name: str, found: Mapping[str, Any], exactness: Exactness, what: str, *, cuda: bool
) -> Finding:
    """Decide whether a batch that was split in another way gave the same weights to rounding."""
    apart = float(found["apart"])
    figures = {"apart": apart, "grade": exactness.grade, "split": list(exactness.split or ())}
    holds = found["iterations"] == [MAX_ITERS] * 2 and apart < MAX_APART["cuda" if cuda else "cpu"]
    template = "{what}: the weights at the end are {apart} of their length apart."
    message = Message(template, what, f"{apart:.1e}")
    return _finding(name, holds, message, figures)


def judge_memory(
    found: Mapping[str, Any], record: SessionRecord, restarts: Sequence[str], *, cuda: bool
) -> Finding:
    """Decide whether memory that ran out at every rung has cost the rungs, and nothing else."""
    learned = record.learned
    came_to = (learned.micro_batch, learned.with_cp, learned.validation_rung)
    what = Message("Memory filled at every rung ({count} restarts)", len(restarts))
    finding = judge_split("memory", found, record.exactness, what, cuda=cuda)
    figures = {**finding.figures, "restarts": list(restarts), "came_to": list(came_to)}
    if came_to == (1, True, len(VALIDATION_RUNGS) - 1) and set(restarts) == {"memory"}:
        return replace(finding, figures=figures)
    template = "{what} led to a micro-batch of {size}, with_cp {recomputed} and validation rung {rung}."
    return _finding("memory", False, Message(template, what, *came_to), figures)


def steps_of(lines: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Return what a meter's lines say: a step's median time, the share of steps, and the peak.

    Args:
        lines: Iteration, ``begin`` or ``end``, when, and the most bytes taken so far.
    """
    times = {(int(at), what): float(when) for at, what, when, _ in lines}
    done = sorted(at for at, what in times if what == "end" and at >= WARM_UP)
    steps_s = [times[at, "end"] - times[at, "begin"] for at in done]
    whole_s = times[done[-1], "end"] - times[done[0], "begin"]
    return {
        "step_ms": 1000 * statistics.median(steps_s),
        "share": sum(steps_s) / whole_s,
        "peak_mb": max(float(item[3]) for item in lines) / 1e6,
    }


# -- measuring


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """Where a check works, and on what."""

    scratch: Path
    machine: Machine
    lines: str = ""

    @property
    def usable(self) -> list[Gpu]:
        return [gpu for gpu in self.machine.gpus if gpu.supported is True]

    @property
    def gpus(self) -> int:
        """How many a session takes: one, where there is any."""
        return min(1, len(self.usable))

    def trial(self, name: str, lines: str = DRAWING, **options: Any) -> Trial:
        data = self.scratch / "scenes"
        if not data.is_dir():
            generate_scenes(data, train=6, val=2, size=128, seed=1)
        return Trial(
            root=self.scratch / name, data=data, machine=self.machine, lines=lines + self.lines,
            options={"gpus": self.gpus, **options},
        )  # fmt: skip


def check_exact(ground: Ground, *, precision: str, deterministic: bool) -> Iterator[Finding]:
    trial = partial(ground.trial, precision=precision, deterministic=deterministic)
    whole, cut = trial("whole"), trial("cut")
    whole.train()
    cut.train(stop=STOP_AT, ends="user")
    cut.hand_over()
    record = cut.train()
    name = exact_name(precision, deterministic=deterministic)
    must = deterministic or not ground.gpus
    yield judge_exact(name, whole.compared(cut), record.exactness, must=must)


def check_killed(ground: Ground) -> Iterator[Finding]:
    kind = 'type="AmpOptimWrapper", dtype="float16"' if ground.gpus else 'type="ScaledOnCPU"'
    lines = f"{DRAWING}optim_wrapper = dict({kind}, {SCALER})\n"
    whole, killed = (ground.trial(name, lines, deterministic=True) for name in ("whole", "killed"))
    whole.train()
    record = killed.train(kill=KILL_AT)
    resumed_at = [event.iteration for event in killed.events("resume")]
    device = "float16" if ground.gpus else Message("a stand-in for float16 on the CPU")
    yield judge_killed(whole.compared(killed), record.exactness, resumed_at, device)


def check_split(ground: Ground) -> Iterator[Finding]:
    """Memory that is full at every rung, and two ranks: each equals one forward pass on one rank."""
    trial = partial(ground.trial, lines=TO_ROUNDING, precision="float32")
    whole, full, cuda = trial("whole"), trial("full"), ground.gpus > 0
    whole.train()
    fill = [(3, "forward"), (4, "backward"), (9, "forward")]
    record = full.train(fill=fill, fill_validation=len(VALIDATION_RUNGS) - 1)
    restarts = [str(event.data["kind"]) for event in full.events("restart")]
    yield judge_memory(whole.compared(full), record, restarts, cuda=cuda)
    usable = ground.usable[:2]
    if cuda:
        # Where there is one card, it is there twice; ranks that share it speak by gloo.
        ranks = trial("ranks", gpus=2)
        ranks = replace(ranks, machine=replace(ground.machine, gpus=(usable[0], usable[-1])))
    else:
        ranks = trial("ranks", cpu_ranks=2)
    try:
        record = ranks.train()
    except MapsageError as error:
        if len(usable) != 1:
            raise
        message = Message("Two ranks on one GPU did not train, which nobody promises: {why}", text_of(error))
        yield Finding(name="ranks", state="not measured", message=message)
        return
    what = (Message("Two ranks on the CPU"), Message("Two ranks on one GPU"), Message("Two GPUs"))[
        len(usable)
    ]
    yield judge_split("ranks", whole.compared(ranks), record.exactness, what, cuda=cuda)


def check_step(ground: Ground) -> Iterator[Finding]:
    """What a step takes, beside mmengine's own runner."""
    cuda = ground.gpus > 0
    data, threads = ground.scratch / "scenes", ground.machine.num_cpus
    generate_scenes(data, train=4, val=1, size=512 if cuda else 256, seed=1)
    base, num = ("train_earthvqa_kaggle.py", 30) if cuda else ("demo.py", 15)
    lines = (
        "model = dict(backbone=dict(init_cfg=None))\n"
        f"train_cfg = dict(max_iters={num}, val_interval={num})\n"
        f"train_dataloader.update(num_workers={1 + cuda}, persistent_workers=True)\n"
        "custom_hooks = [dict(type='Metered', file={file!r})]\n"
    )
    meters = {name: ground.scratch / f"{name}.jsonl" for name in ("kit", "stock")}
    kit, stock = (
        Trial(
            root=ground.scratch / name, data=data, machine=ground.machine, base=base,
            lines=lines.replace("{file!r}", repr(str(file))) + ground.lines,
            options={"gpus": ground.gpus, "threads": threads},
        )
        for name, file in meters.items()
    )  # fmt: skip
    record = kit.train()
    command = module_command("mapsage_kaggle.engine.plain", str(stock.config()), str(stock.work_dir.path))
    env = child_environment(threads=threads, scratch=ground.scratch, gpus=cuda)
    done = run(command, timeout_s=None, env=env)
    if done.code != 0:
        raise ChildError(done.code, done.errors.strip().splitlines()[-3:])
    ours, theirs = (
        steps_of([json.loads(line) for line in file.read_text("utf-8").splitlines()])
        for file in meters.values()
    )
    precision, timings_s = record.exactness.precision, record.timings_s
    figures = {
        "kit": ours, "stock": theirs, "config": base, "precision": precision,
        "share_of_session": share_of_steps(timings_s), "session_s": timings_s["session"],
    }  # fmt: skip
    message = Message(
        "A step of {config} takes {ours} ms in {precision}, {theirs} ms by mmengine alone; at most "
        "{our_peak} and {their_peak} MB are taken, and steps are {share} and {their_share} % of the time "
        "from the first to the last.",
        base, f"{ours['step_ms']:.0f}", precision, f"{theirs['step_ms']:.0f}", f"{ours['peak_mb']:.0f}",
        f"{theirs['peak_mb']:.0f}", f"{100 * ours['share']:.0f}", f"{100 * theirs['share']:.0f}",
    )  # fmt: skip
    yield Finding(name="step", state="measured", message=message, figures=figures)


# -- which


def exact_name(precision: str, *, deterministic: bool) -> str:
    return f"exact {precision}{' deterministic' if deterministic else ''}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A check.

    Attributes:
        part: How much of the time for all of them it may take.
        alone: Whether nothing else may run meanwhile.
        why_not: Why it cannot be made here; empty where it can.
    """

    names: tuple[str, ...]
    run: Callable[[Ground], Iterator[Finding]]
    part: float
    alone: bool = False
    why_not: str = ""


def checks_for(machine: Machine) -> tuple[Check, ...]:
    usable = [gpu for gpu in machine.gpus if gpu.supported is True]
    cuda = bool(usable)
    exact = []
    for precision in ("float32", "float16", "bfloat16"):
        why = ""
        if precision != "float32" and not cuda:
            why = Message("Half precision needs a GPU: on the CPU the kit trains in float32.")
        elif precision == "bfloat16" and (usable[0].capability or (0, 0)) < (8, 0):
            template = "{gpu} only emulates bfloat16, and the kit does not use it there."
            why = Message(template, usable[0].name)
        for deterministic in (False, True):
            work = partial(check_exact, precision=precision, deterministic=deterministic)
            name = exact_name(precision, deterministic=deterministic)
            exact.append(Check(names=(name,), run=work, part=0.6, why_not=why))
    return (
        *exact,
        Check(names=("killed",), run=check_killed, part=0.6),
        Check(names=("memory", "ranks"), run=check_split, part=0.9, alone=cuda),
        Check(names=("step",), run=check_step, part=0.5, alone=True),
    )


def _tell(finding: Finding) -> None:
    sys.stdout.write(json.dumps(finding.to_json()) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Make the check that a job names by its first finding, and print what it finds."""
    job = json.loads(Path(arguments[0]).read_bytes())
    machine = schema.built(Machine, job["machine"])
    ground = Ground(scratch=Path(job["scratch"]), machine=machine, lines=job["lines"])
    [check] = [check for check in checks_for(machine) if check.names[0] == job["check"]]
    left = list(check.names)
    try:
        for finding in check.run(ground):
            _tell(finding)
            left.remove(finding.name)
    except (MapsageError, ChildError, OSError) as error:
        # A machine that cannot is no promise that was broken; a session that fails is one.
        broken = isinstance(error, MapsageError) and not isinstance(error, MachineError)
        state: State = "does not hold" if broken else "not measured"
        for name in left:
            message = Message("It could not be done: {why}", text_of(error))
            _tell(Finding(name=name, state=state, message=message))
            state = "not measured"
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
