"""Numbers out of range: what a loss scaler mends, and what ends training."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict

from mapsage_kaggle.engine.overflow import (
    MAX_OVERFLOWS,
    MAX_SKIPPED,
    HalfPrecisionError,
    OverflowWatch,
)
from mapsage_kaggle.errors import TrainingError


class Scaled(OptimWrapper):
    """mmengine's mixed precision with its loss scaler, on a CPU, where gradients may be planted."""

    def __init__(self, *, fused: bool = False, scale: float = 2.0**16, fixed: bool = False, every: int = 1):
        self.weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([self.weight], lr=1e-3, fused=fused)
        super().__init__(optimizer, accumulative_counts=every)
        # Without growth, so that the scale tells how many steps were left out.
        self.loss_scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**9)
        self._new_scale = scale if fixed else None

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        self.loss_scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        self.loss_scaler.step(self.optimizer)
        self.loss_scaler.update(self._new_scale)

    def train(self, *, overflow: bool) -> None:
        self.update_params((self.weight * (math.inf if overflow else 1.0)).sum())


@pytest.fixture(params=[False, True], ids=["stock", "fused"])
def scaled(request: pytest.FixtureRequest) -> Scaled:
    return Scaled(fused=request.param, scale=2.0**40)


UNSCALED: Any = SimpleNamespace()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_without_a_scaler_the_first_loss_that_is_no_number_ends_training(value: float) -> None:
    watch = OverflowWatch(UNSCALED)
    watch.check(6, {"loss": 0.5})
    with pytest.raises(TrainingError, match=r"decode\.loss_ce became .* in iteration 7;") as caught:
        watch.check(7, {"decode.loss_ce": value, "loss": value})
    assert not isinstance(caught.value, HalfPrecisionError)


def test_a_figure_that_is_no_loss_may_be_nan() -> None:
    OverflowWatch(UNSCALED).check(7, {"decode.acc_seg": math.nan, "loss": 0.5})


def test_losses_that_overflow_now_and_then_are_normal_with_a_scaler() -> None:
    watch = OverflowWatch(Scaled())
    for iteration in range(1, 10 * MAX_OVERFLOWS):
        watch.check(iteration, {"loss": 0.5 if iteration % MAX_OVERFLOWS == 0 else math.inf})


def test_losses_out_of_range_are_half_precision_s_and_it_is_said_since_when() -> None:
    watch = OverflowWatch(Scaled())
    watch.check(4, {"loss": 0.5})
    with pytest.raises(HalfPrecisionError, match=f"in iteration 5 and stayed so until {5 + MAX_OVERFLOWS};"):
        for iteration in range(5, 1000):
            watch.check(iteration, {"loss": math.nan})


def test_a_scaler_that_is_switched_off_excuses_nothing() -> None:
    off: Any = SimpleNamespace(loss_scaler=torch.amp.GradScaler("cpu", enabled=False))
    with pytest.raises(TrainingError):
        OverflowWatch(off).check(1, {"loss": math.nan})


def test_steps_that_are_left_out_now_and_then_are_normal(scaled: Scaled) -> None:
    watch = OverflowWatch(scaled)
    for iteration in range(1, MAX_SKIPPED + 8):
        scaled.train(overflow=iteration != MAX_SKIPPED)
        watch.check(iteration, {"loss": 0.5})
    assert not torch.equal(scaled.weight, torch.ones(3))


def test_steps_that_are_all_left_out_end_half_precision(scaled: Scaled) -> None:
    watch = OverflowWatch(scaled)
    with pytest.raises(
        HalfPrecisionError, match=f"the last {MAX_SKIPPED} steps, up to iteration {MAX_SKIPPED}"
    ):
        for iteration in range(1, 1000):
            scaled.train(overflow=True)
            watch.check(iteration, {"loss": 0.5})
    assert torch.equal(scaled.weight, torch.ones(3))


def test_a_fixed_scale_that_never_fits_does_not_go_on_for_ever() -> None:
    scaled = Scaled(scale=512.0, fixed=True)
    watch = OverflowWatch(scaled)
    with pytest.raises(HalfPrecisionError, match=f"the last {MAX_SKIPPED} steps"):
        for iteration in range(1, 1000):
            scaled.train(overflow=True)
            watch.check(iteration, {"loss": 0.5})


def test_a_scale_below_one_ends_half_precision_and_one_of_one_does_not(scaled: Scaled) -> None:
    scaled = Scaled(scale=2.0)
    watch = OverflowWatch(scaled)
    scaled.train(overflow=True)
    watch.check(1, {"loss": 0.5})
    scaled.train(overflow=False)
    watch.check(2, {"loss": 0.5})
    scaled.train(overflow=True)
    with pytest.raises(HalfPrecisionError, match=r"has come down to 0\.5 in iteration 3"):
        watch.check(3, {"loss": 0.5})


def test_iterations_without_a_step_of_their_own_count_for_nothing() -> None:
    scaled = Scaled(scale=2.0**40, every=2)
    watch = OverflowWatch(scaled)
    with pytest.raises(
        HalfPrecisionError, match=f"the last {MAX_SKIPPED} steps, up to iteration {2 * MAX_SKIPPED}"
    ):
        for iteration in range(1, 1000):
            scaled.train(overflow=True)
            watch.check(iteration, {"loss": 0.5})


def test_each_of_several_optimizers_is_watched() -> None:
    good, bad = Scaled(), Scaled(scale=1.0)
    watch = OverflowWatch(OptimWrapperDict(good=good, bad=bad))
    good.train(overflow=False)
    bad.train(overflow=True)
    with pytest.raises(HalfPrecisionError, match="has come down"):
        watch.check(1, {"loss": 0.5})
