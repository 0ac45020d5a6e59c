"""Numbers out of range: what a loss scaler recovers from, and what ends training, or half precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mapsage_kaggle.engine.ranks import wrappers_of
from mapsage_kaggle.errors import TrainingError
from mapsage_kaggle.messages import Message

MAX_OVERFLOWS = 32
"""For this many iterations a loss may be NaN or Inf before a loss scaler is given up on."""
MAX_SKIPPED = 32
"""This many skipped steps in a row are not cured by a smaller scale."""
MIN_SCALE = 1.0
"""Below it gradients overflow by themselves, and small ones vanish: the scale only does harm."""


class HalfPrecisionError(TrainingError):
    """A model cannot be trained in half precision: in float32 it may be."""


class OverflowWatch:
    """Ends training where numbers stay out of range, before a checkpoint with poisoned weights is written.

    A loss scaler skips the steps of an overflow by itself and halves its scale each time, so with one a few
    such losses or steps in a row are normal. A scale goes from 2**16 to 1 in 16 steps.
    """

    def __init__(self, optim_wrapper: Any) -> None:
        self._overflow_began: int | None = None
        parts = wrappers_of(optim_wrapper)
        self._scaled = [_ScaledSteps(part) for part in parts if _scaler_of(part) is not None]

    def check(self, iteration: int, losses: Mapping[str, float]) -> None:
        """Check an iteration's losses, and what the loss scaler made of its step.

        Raises:
            TrainingError: Without a loss scaler, a loss is NaN or Inf; the message says since when.
            HalfPrecisionError: With one, losses or skipped steps have stayed out of range, or the scale is
                too small.
        """
        for steps in self._scaled:
            steps.check(iteration)
        bad = [name for name, value in losses.items() if "loss" in name and not math.isfinite(value)]
        if not bad:
            self._overflow_began = None
            return
        began = self._overflow_began = self._overflow_began or iteration
        if self._scaled and iteration - began < MAX_OVERFLOWS:
            return
        when = (
            Message("{began} and stayed so until {iteration}", began, iteration)
            if iteration > began
            else str(began)
        )
        kind = HalfPrecisionError if self._scaled else TrainingError
        raise kind(
            Message(
                "{name} became {value} in iteration {when}; the checkpoints before it are untouched.",
                bad[0],
                losses[bad[0]],
                when,
            ),
            "Lower the learning rate or clip the gradients more (optim_wrapper.clip_grad), and resume.",
        )


class _ScaledSteps:
    """The steps of one optimizer behind a loss scaler.

    Whether one was taken is read from the GPU only after the losses, which have synchronised with it anyway.
    """

    def __init__(self, part: Any) -> None:
        self._scaler = _scaler_of(part)
        self._skipped = 0
        self._attempted = False
        self._stepped = False
        self._found_inf: Any = None
        part.optimizer.register_step_pre_hook(self._before_step)
        part.step = self._noting(part.step)

    def _noting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            self._attempted, self._stepped, self._found_inf = True, False, None
            return step(*args, **options)

        return noted

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        # Not called for a skipped step, but for a fused optimizer's, which decides on the GPU.
        self._stepped, self._found_inf = True, getattr(optimizer, "found_inf", None)

    def check(self, iteration: int) -> None:
        if not self._attempted:
            return
        self._attempted = False
        stepped = self._stepped and (self._found_inf is None or not bool(self._found_inf))
        self._skipped = 0 if stepped else self._skipped + 1
        scale = self._scaler.get_scale()
        if self._skipped >= MAX_SKIPPED:
            problem = Message(
                "The loss scaler has left out the last {skipped} steps, up to iteration {iteration}: "
                "gradients are out of the range of half precision. Nothing was learned in them.",
                self._skipped,
                iteration,
            )
        elif scale < MIN_SCALE:
            problem = Message(
                "The loss scale has come down to {scale} in iteration {iteration}: gradients are out "
                "of the range of half precision, and small ones are lost.",
                f"{scale:g}",
                iteration,
            )
        else:
            return
        raise HalfPrecisionError(problem, "Train in float32 (--precision float32).")


def _scaler_of(optim_wrapper: Any) -> Any:
    """Return an optimizer's loss scaler where it is in use, else None."""
    scaler = getattr(optim_wrapper, "loss_scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None
