"""A run's way through many short sessions, each of which ends badly, cut short or damaged as it was dealt.

``endure`` takes a stand-in through a list of fates and asserts after each session what must be true of
any: it began at the newest sound checkpoint there was, it ended as its fate says, and it left no process
behind. What really happened is counted from what the sessions left, not from what was meant to happen.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import memory_faults
from support.standin import StandIn, none_left, processes_of

WAYS = (
    "deadline", "stop", "sigterm", "kill rank", "kill rank, damage", "kill torchrun", "kill supervisor",
    "kill all",
)  # fmt: skip
WAYS_OF_ONE = tuple(way for way in WAYS if way != "kill torchrun")
"""Those of a run that never has several ranks: the only one has no torchrun."""
DAMAGES = ("truncated", "bit-flipped", "half-written")
_DAMAGED_S = 1.0
"""The time of change that a damaged file gets: moving it keeps that, writing it anew does not."""
FROM_OUTSIDE = {"sigterm", "kill torchrun", "kill supervisor", "kill all"}

HOOK = '''
"""What one session has to go through at a chosen iteration, once."""
import json, os, signal, time
from dataclasses import replace
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from support.ordeal import FROM_OUTSIDE, damage

@HOOKS.register_module()
class Ordeal(Hook):
    priority = "LOWEST"

    def __init__(self, way, at, stop, rank, marker, workers, left_s):
        self.way, self.at, self.stop, self.rank, self.marker = way, at, stop, rank, Path(marker)
        self.workers, self.left_s = workers, left_s

    def before_train(self, runner):
        loader = runner.train_dataloader
        if loader.num_workers:
            loader.num_workers = self.workers  # as on a machine with more cores than this one may have

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank == 0 and runner.iter + 1 >= self.stop:
            # Also where a child that was killed had come further and saved.
            Path(runner.work_dir, "stop_request.json").write_text(json.dumps({"action": "stop"}))
        if runner.iter + 1 != self.at or runner.rank != self.rank or self.marker.exists():
            return
        self.marker.touch()
        if self.way == "deadline":
            control = runner.session.control
            limit_s = control.clock.elapsed_s() + self.left_s
            control.clock = replace(control.clock, limit_s=limit_s, reserve_s=0.0)
        elif self.way.startswith("kill rank"):
            if self.way.endswith("damage"):
                files = sorted(Path(runner.work_dir).glob("iter_*.pth"), key=lambda path: int(path.stem[5:]))
                if files:
                    damage(files[-1], "bit-flipped", self.at)
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.way in FROM_OUTSIDE:
            end = time.monotonic() + 60  # wait here for what comes from outside
            over = self.marker.with_suffix(".over")
            while not over.exists() and time.monotonic() < end:
                time.sleep(0.01)
'''
HOOK_CONFIG = """
custom_imports["imports"].append("ordeal_hook")
custom_hooks.append(dict(type="Ordeal", **{options!r}))
train_dataloader["persistent_workers"] = {persistent}
default_hooks["checkpoint"]["interval"] = 2
"""


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What one session is to go through.

    Attributes:
        way: One of ``WAYS``, or ``complete``.
        iterations: How many it may do before that.
        workers: Data workers.
        persistent: Whether they outlive an epoch.
        ranks: Training processes.
        memory: The phase in which memory runs out on the way, or none.
        damage: What befalls the newest checkpoint afterwards, one of ``DAMAGES``, or none.
        stays: Whether the next session goes on in the same work dir, as after a kernel restart.
        loses_record: Whether ``session.json`` is lost, and what was learned of the memory with it.
        delay_s: How long after its moment a kill from outside comes, or how much time is left then.
    """

    way: str
    iterations: int = 3
    workers: int = 0
    persistent: bool = False
    ranks: int = 1
    memory: str = ""
    damage: str = ""
    stays: bool = False
    loses_record: bool = False
    delay_s: float = 0.0


def deal(seed: int, sessions: int, *, phases: Sequence[str] = (), ranks: Sequence[int] = (1,)) -> list[Fate]:
    """Deal fates at random, yet so that each kind comes about equally often."""
    draw = random.Random(seed)

    def deck(cards: Sequence[Any]) -> list[Any]:
        dealt: list[Any] = []
        while len(dealt) < sessions:
            dealt += draw.sample(cards, len(cards))
        return dealt[:sessions]

    # Every other session at most: two files are kept, and one must be sound.
    damages = deck([kind for damage in DAMAGES for kind in (damage, "")])
    ways = WAYS if max(ranks) > 1 else WAYS_OF_ONE
    memory = deck([*phases, ""]) if phases else [""] * sessions
    return [
        Fate(
            way=way, iterations=draw.randint(1, 4), workers=workers, persistent=persistent,
            ranks=2 if way == "kill torchrun" else num_ranks, memory=phase, damage=damaged,
            stays=draw.random() < 0.3, loses_record=bool(phases) and draw.random() < 0.3,
            delay_s=draw.uniform(0.0, 0.2),
        )
        for way, workers, persistent, num_ranks, phase, damaged in zip(
            deck(ways), deck((0, 1, 3)), deck((True, False)), deck(ranks), memory, damages, strict=True
        )
    ]  # fmt: skip


@dataclass
class Endured:
    """What a run went through.

    Attributes:
        sessions: How many there were.
        seconds: How long all of it took.
        seen: How often each thing really happened.
    """

    sessions: int = 0
    seconds: float = 0.0
    seen: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        counts = ", ".join(f"{what} {number}" for what, number in sorted(self.seen.items()))
        return f"{self.sessions} sessions in {self.seconds:.0f} s: {counts}"


def damage(path: Path, kind: str, seed: int) -> None:
    """Damage a file in place, at a place that is drawn, and mark it by its time."""
    draw = random.Random(seed)
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    at = draw.randrange(1, len(content))
    if kind == "bit-flipped":
        content[at] ^= 1 << draw.randrange(8)
    elif kind == "truncated":
        del content[at:]
    else:
        content[at:] = bytes(len(content) - at)  # blocks that never reached the disk
        content[-1] ^= 1  # surely another byte, should the last ones have been 0
    path.write_bytes(content)
    os.utime(path, (_DAMAGED_S, _DAMAGED_S))
    path.chmod(0o444)


def endure(run: StandIn, fates: Sequence[Fate], say: Any = print) -> Endured:
    """Take a run through its fates and then to its end."""
    began, endured = time.monotonic(), Endured()
    (run.root / "moments").mkdir()
    (run.root / "code").mkdir(exist_ok=True)
    (run.root / "code" / "ordeal_hook.py").write_text(HOOK)
    for number, fate in enumerate([*fates, *[Fate(way="complete")] * 3], 1):
        begin_s = time.monotonic()
        sound = _checkpoints(run, damaged=False)
        start = _iteration(sound[-1]) if sound else 0
        above = [path for path in _checkpoints(run, damaged=True) if _iteration(path) >= start]
        # The run must not be over before its fates are.
        last = run.max_iters - 4 - max(0, len(fates) - number)
        at = max(start + 1, min(start + fate.iterations, last))
        _one_session(run, fate, number, start, at, above, endured)
        endured.sessions, endured.seconds = number, time.monotonic() - began
        record = run.record()
        say(
            f"{number:3} {start:3}-{record.end_iteration:<3} {time.monotonic() - begin_s:4.0f} s "
            f"{fate.way}, {fate.ranks} rank(s), {fate.workers} worker(s), {fate.memory or '-'}: "
            f"{record.stop_reason}, {record.learned.micro_batch}"
        )
        if fate.way == "complete" and record.stop_reason == "completed":
            return endured
        _after(run, fate, number, endured)
    raise AssertionError(f"not complete after {endured}")


def _iteration(path: Path) -> int:
    return int(path.stem[5:])


def _checkpoints(run: StandIn, *, damaged: bool) -> list[Path]:
    """Return the checkpoints that are attached or in the work dir, the newest last."""
    files = [path for name in ("input", "working") for path in (run.root / name).rglob("iter_*.pth")]
    return sorted((path for path in files if (path.stat().st_mtime == _DAMAGED_S) == damaged), key=_iteration)


def _one_session(
    run: StandIn, fate: Fate, number: int, start: int, at: int, above: Sequence[Path], endured: Endured
) -> None:
    moment = run.root / "moments" / f"{number:03d}"
    # A damaged copy of what is resumed may be looked at, or not; and of a damaged file without a record
    # beside it nothing may say any more that it is of this run.
    must_step = any(_iteration(path) > start and (path.parent / "session.json").exists() for path in above)
    # A kill of rank 1 is as likely as one of rank 0; everything else is rank 0's matter.
    rank = number % fate.ranks if fate.way.startswith("kill rank") else 0
    # Whatever is meant to happen at its moment, soon after it the session ends.
    later = {"stop": 0, "deadline": 3, "complete": run.max_iters}.get(fate.way, 1)
    options = {
        "way": fate.way, "at": at, "stop": at + later, "rank": rank, "marker": str(moment),
        "workers": fate.workers, "left_s": fate.delay_s,
    }  # fmt: skip
    extra = HOOK_CONFIG.format(options=options, persistent=fate.persistent and fate.workers > 0)
    if "faulty" in run.extra:
        phase = {fate.memory: "any" if fate.memory == "validation" else start} if fate.memory else {}
        memory_faults.plant(run, **phase)
    process = run.start(
        "--cpu-ranks", str(fate.ranks), "--hang-after", "120s", workers=fate.workers, extra=extra
    )
    hit = False
    if fate.way in FROM_OUTSIDE:
        end = time.monotonic() + 240
        while not moment.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if process.poll() is None:
            hit = _strike(run, fate, process, moment)
    output, _ = process.communicate(timeout=300)
    assert none_left(run.root), f"orphans of session {number}\n{output}"
    record = run.record()
    context = f"session {number}, {fate}, from {start} to {at}:\n{output}\n{run.work_dir.log.read_text()}"
    assert record.start_iteration == start, context
    codes = {"kill supervisor": {-signal.SIGKILL}, "kill all": {-signal.SIGKILL}}.get(fate.way, {0})
    restarts = [event.data["kind"] for event in run.events("restart")]
    exhausted = record.exit_code == 5 and record.message.startswith("Out of memory")
    assert process.returncode in codes | ({5} if exhausted else set()), context
    seen = endured.seen
    if fate.way == "deadline":
        seen[fate.way] += record.stop_reason == "deadline"
        seen["validation owed"] += record.owed_validation is not None
    elif fate.way.startswith("kill rank"):
        seen[fate.way] += bool({"crashed", "error"} & set(restarts))
    elif fate.way in FROM_OUTSIDE:
        seen[fate.way] += hit
    elif fate.way == "stop":
        seen[fate.way] += record.stop_reason == "user"
    seen[f"{fate.ranks} rank(s)"] += 1
    kept = "persistent" if fate.persistent else "not persistent"
    seen[f"{fate.workers} worker(s)" + (f", {kept}" if fate.workers else "")] += 1
    seen["restart"] += len(restarts)
    seen["memory: ladder"] += restarts.count("memory")
    seen["memory: ladder at its end"] += exhausted
    if fate.memory:
        for phase in memory_faults.come_to_pass(run):
            seen[f"memory: {phase}"] += phase == fate.memory
    # That an output whose end was damaged was trained apart is told for as long as it is attached.
    told = [event for event in run.events() if "trained apart" not in event.data.get("message", "")]
    kinds = [event.event for event in told]
    begun = kinds.index("start")
    assert ("ladder" in kinds[:begun]) or not must_step, context
    assert ("ladder" not in kinds[:begun]) or above, context
    seen["ladder: at the start"] += "ladder" in kinds[:begun]
    seen["ladder: at a restart"] += "ladder" in kinds[begun:]


def _strike(run: StandIn, fate: Fate, process: subprocess.Popen[str], moment: Path) -> bool:
    """Do from outside what the fate says; return whether there was still somebody to do it to."""
    over = moment.with_suffix(".over")
    if fate.way == "kill all":
        over.touch()  # training goes on meanwhile, so that it may strike anywhere
        time.sleep(fate.delay_s)
        hit = process.poll() is None
        while left := processes_of(run.root):
            for pid in left:
                _kill(pid)
        return hit
    if fate.way == "kill torchrun":
        found = [pid for pid in processes_of(run.root) if b"torch.distributed.run" in _command_of(pid)]
        for pid in found:
            os.killpg(pid, signal.SIGKILL)
        hit = bool(found)
    else:
        number = signal.SIGKILL if fate.way == "kill supervisor" else signal.SIGTERM
        os.kill(process.pid, number)
        hit = True
    over.touch()
    return hit


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _after(run: StandIn, fate: Fate, number: int, endured: Endured) -> None:
    """Hand over what the session has left, and damage it."""
    seen = endured.seen
    if fate.loses_record:
        run.work_dir.session.unlink()
        seen["record lost"] += 1
    if fate.stays:
        seen["in the same work dir"] += 1
    else:
        # Three outputs stay attached, the older ones as what there is to fall back on.
        run.hand_over(f"notebooks/alice/run-{seen['handed over'] % 3}")
        seen["handed over"] += 1
    sound = _checkpoints(run, damaged=False)
    newest = [path for path in sound if _iteration(path) == _iteration(sound[-1])]
    if fate.damage and len(newest) < len(sound):
        for path in newest:  # the same iteration may lie in several outputs
            damage(path, fate.damage, number)
        seen[f"damaged newest: {fate.damage}"] += 1
