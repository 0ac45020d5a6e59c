"""Long chains of short sessions that are stopped, killed and damaged at random: ``make soak``."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.children import Children, DirectRun
from support.memory_faults import FAULTY_CONFIG, TO_ROUNDING, plant, samples
from support.ordeal import DAMAGES, WAYS, WAYS_OF_ONE, Fate, deal, endure
from support.standin import StandIn, differences

SEED = 20261123
SESSIONS = 30

# Dies at the n-th file event in the work dir, counted from 1; the number comes from a file, once.
KILLER = '''
"""Kills this process at a chosen file event of its saves."""
import os, signal, sys
from pathlib import Path

order = Path(__file__).with_name("kill_at")
if order.exists():
    die_at, count = int(order.read_text()), 0
    order.unlink()
    real_fsync = os.fsync

    def event():
        global count
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name, arguments):
        if name in ("os.rename", "os.remove") and "work_dirs" in str(arguments[0]):
            event()
        elif name == "open" and "work_dirs" in str(arguments[0]) and str(arguments[0]).endswith(".tmp"):
            event()

    def fsync(descriptor):
        event()
        real_fsync(descriptor)
        event()

    os.fsync = fsync
    sys.addaudithook(audit)
'''


@pytest.mark.soak
def test_training_killed_at_every_file_event_of_its_saves_loses_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    extra = 'custom_imports["imports"].append("killer")\ndefault_hooks["checkpoint"]["interval"] = 3\n'
    with Children() as children:

        def new(name: str) -> tuple[StandIn, Path]:
            run = StandIn.with_scenes(tmp_path / name, max_iters=6, val_interval=6, size=64)
            config = run.config(extra=extra)
            (config.parent / "killer.py").write_text(KILLER)
            return run, config

        whole, config = new("whole")
        assert DirectRun(whole, children).train(config) == 0, whole.work_dir.log.read_text()
        number, lost = 0, 0
        while True:
            number += 1
            run, config = new(f"kill_{number:03d}")
            (config.parent / "kill_at").write_text(str(number))
            code = DirectRun(run, children).train(config)
            if code == 0:
                break
            assert code == -signal.SIGKILL, run.work_dir.log.read_text()
            proven = max((event.iteration for event in run.events("checkpoint")), default=0)
            assert DirectRun(run, children).train(config) == 0, run.work_dir.log.read_text()
            resumed = max((event.iteration for event in run.events("resume")), default=0)
            lost += resumed < proven
            assert differences(whole.checkpoint(6), run.checkpoint(6)) == []
            assert list(run.work_dir.path.glob("*.tmp")) == []
    print(f"killed at {number - 1} file events, work lost {lost} times, {time.monotonic() - began:.0f} s")
    assert number > 30
    assert lost == 0


# --- (a) one rank: bit for bit


def exact(root: Path, *, max_iters: int) -> StandIn:
    """Return a run with dropout, drop path and the full augmentation pipeline."""
    run = StandIn.with_scenes(root, max_iters=max_iters, val_interval=5, cold=True)
    run.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    return run


def assert_equal_to_the_uninterrupted(whole: StandIn, cut: StandIn) -> None:
    done = whole.train()
    assert done.returncode == 0, done.stdout + done.stderr
    last = whole.max_iters
    assert differences(whole.checkpoint(last), cut.checkpoint(last)) == []


@pytest.mark.soak
def test_thirty_sessions_that_end_badly_equal_one_bit_for_bit(tmp_path: Path) -> None:
    options = {"max_iters": 3 * SESSIONS}
    cut = exact(tmp_path / "cut", **options)
    endured = endure(cut, deal(SEED, SESSIONS))
    print(endured)
    seen = endured.seen
    assert endured.sessions > SESSIONS
    assert {what for what in WAYS_OF_ONE if seen[what] < 2} == set()
    assert {kind for kind in DAMAGES if seen[f"damaged newest: {kind}"] < 2} == set()
    # Every damaged checkpoint was told of by the session that met it.
    assert seen["ladder: at the start"] >= sum(seen[f"damaged newest: {kind}"] for kind in DAMAGES)
    assert seen["ladder: at a restart"] > 0
    for workers in ("1 worker(s)", "3 worker(s)"):
        assert seen[f"{workers}, persistent"] > 0
        assert seen[f"{workers}, not persistent"] > 0
    assert min(seen["0 worker(s)"], seen["in the same work dir"], seen["handed over"]) > 0
    assert_equal_to_the_uninterrupted(exact(tmp_path / "whole", **options), cut)


@pytest.mark.soak
def test_five_sessions_that_end_badly_equal_one_bit_for_bit(tmp_path: Path) -> None:
    fates = [
        Fate(way="deadline", iterations=4, damage="truncated"),
        Fate(way="kill all", iterations=3, workers=1, persistent=True, damage="bit-flipped"),
        Fate(way="kill supervisor", iterations=3, workers=3, stays=True, damage="half-written"),
        Fate(way="kill rank, damage", iterations=4, workers=3, persistent=True),
    ]
    cut = exact(tmp_path / "cut", max_iters=17)
    endured = endure(cut, fates)
    print(endured)
    seen = endured.seen
    assert [seen[fate.way] for fate in fates] == [1] * 4
    assert [seen[f"damaged newest: {kind}"] for kind in DAMAGES] == [1] * 3
    assert (seen["ladder: at the start"], seen["ladder: at a restart"]) == (3, 1)
    whole = exact(tmp_path / "whole", max_iters=17)
    whole.cold = False
    assert_equal_to_the_uninterrupted(whole, cut)


# --- (b) one and two ranks, and memory that runs out: to rounding

PHASES = ("forward", "backward", "step", "validation")
BOUND = 1e-4
"""How far the weights may be apart at the end, relative to their length."""


def to_rounding(root: Path, *, max_iters: int) -> StandIn:
    """Return a run of the *to rounding* class that can be made to run out of memory."""
    run = StandIn.with_scenes(
        root, size=96, max_iters=max_iters, val_interval=5, extra=TO_ROUNDING + FAULTY_CONFIG, cold=True
    )
    run.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    plant(run)
    return run


def assert_equal_to_rounding(whole: StandIn, cut: StandIn) -> None:
    """Compare what was trained on, exactly, and what came of it, to rounding."""
    done = whole.train()
    assert done.returncode == 0, done.stdout + done.stderr
    # The images of each iteration, as augmented; which rank saw which first is of no matter.
    seen = [
        {iteration: sorted(map(tuple, images)) for iteration, images in samples(run).items()}
        for run in (whole, cut)
    ]
    assert seen[0] == seen[1]
    states = [run.checkpoint(run.max_iters) for run in (whole, cut)]
    assert states[0]["param_schedulers"] == states[1]["param_schedulers"]
    weights = [_flat(state["state_dict"]) for state in states]
    difference = float((weights[0] - weights[1]).norm() / weights[0].norm())
    print(f"weights {difference:.1e} apart after {whole.max_iters} iterations")
    assert difference < BOUND


def _flat(state: dict[str, Any]) -> Any:
    import torch

    return torch.cat([state[name].double().reshape(-1) for name in sorted(state)])


@pytest.mark.soak
def test_thirty_sessions_without_memory_on_one_and_two_ranks_equal_one_to_rounding(tmp_path: Path) -> None:
    options = {"max_iters": 3 * SESSIONS}
    cut = to_rounding(tmp_path / "cut", **options)
    endured = endure(cut, deal(SEED, SESSIONS, phases=PHASES, ranks=(1, 2)))
    print(endured)
    seen = endured.seen
    assert endured.sessions > SESSIONS
    assert {what for what in WAYS if not seen[what]} == set()
    assert {phase for phase in PHASES if not seen[f"memory: {phase}"]} == set()
    assert {kind for kind in DAMAGES if not seen[f"damaged newest: {kind}"]} == set()
    assert seen["memory: ladder"] >= 10
    assert min(seen["1 rank(s)"], seen["2 rank(s)"]) >= 10
    assert_equal_to_rounding(to_rounding(tmp_path / "whole", **options), cut)


@pytest.mark.soak
def test_five_sessions_without_memory_on_one_and_two_ranks_equal_one_to_rounding(tmp_path: Path) -> None:
    fates = [
        Fate(way="stop", iterations=3, memory="forward"),
        Fate(way="deadline", iterations=3, memory="backward", ranks=2, damage="bit-flipped"),
        Fate(way="kill all", iterations=3, memory="validation", workers=1, loses_record=True),
        Fate(way="stop", iterations=3, memory="step", ranks=2),
    ]
    cut = to_rounding(tmp_path / "cut", max_iters=17)
    endured = endure(cut, fates)
    print(endured)
    assert endured.seen["memory: ladder"] >= 3
    assert endured.seen["2 rank(s)"] == 2
    assert_equal_to_rounding(to_rounding(tmp_path / "whole", max_iters=17), cut)
