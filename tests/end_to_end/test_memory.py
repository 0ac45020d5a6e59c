"""Memory faults raised from inside each phase of training, and what becomes of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.memory_faults import FAULTY_CONFIG, TO_ROUNDING, plant, samples
from support.standin import StandIn

pytestmark = pytest.mark.slow(scope_s=25)

MAX_ITERS, VAL_INTERVAL = 14, 6


def stand_in(root: Path, **plan: int) -> StandIn:
    run = StandIn.with_scenes(
        root, max_iters=MAX_ITERS, val_interval=VAL_INTERVAL, size=96, extra=TO_ROUNDING + FAULTY_CONFIG
    )
    plant(run, **plan)
    return run


def weights(run: StandIn) -> Any:
    import torch

    state = run.checkpoint(MAX_ITERS)["state_dict"]
    return torch.cat([state[name].double().reshape(-1) for name in sorted(state)])


def test_memory_that_runs_out_in_any_phase_costs_a_rung_and_nothing_else(tmp_path: Path) -> None:
    whole = stand_in(tmp_path / "whole")
    done = whole.train()
    assert done.returncode == 0, done.stdout + done.stderr

    run = stand_in(tmp_path / "faulty", forward=3, backward=7, step=9, validation=11)
    done = run.train()
    assert done.returncode == 0, done.stdout + done.stderr

    restarts = run.events("restart")
    failures = run.events("failure")
    assert [event.data["kind"] for event in restarts] == ["memory"] * 4
    assert [event.data["stage"] for event in failures] == ["training"] * 3 + ["validation"]
    for event, within in zip(failures, ("in loss", "in full", "in step", "in predict"), strict=True):
        assert within in event.data["trace"]
    # Each child's own word says with which rung it went on.
    rungs = ("2 image(s)", "1 image(s)", "with_cp", "in validation: going on with one image at a time")
    for event, rung in zip(restarts, rungs, strict=True):
        assert rung in event.data["message"]
    record = run.record()
    learned = record.learned
    assert (learned.micro_batch, learned.with_cp, learned.validation_rung) == (1, True, 1)
    # The backward fault came at 7, after a validation at 6; nothing of its half-done iteration was kept.
    assert [event.iteration for event in run.events("resume")] == [6, 6, 12]
    assert record.stop_reason == "completed"

    assert samples(run) == samples(whole)
    expected, actual = weights(whole), weights(run)
    assert float((actual - expected).norm() / expected.norm()) < 1e-5
    scores = [
        {event.iteration: event.data["metrics"]["mIoU"] for event in item.events("validation")}
        for item in (whole, run)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=0.05)
