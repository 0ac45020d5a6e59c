"""Losses that are no numbers: which of them a loss scaler mends, and which end training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mapsage_kaggle.errors import TrainingError

MAX_OVERFLOWS = 32
"""So many losses in a row that are NaN or Inf are no overflow that a loss scaler will mend."""


class LossWatch:
    """Ends training where a loss is NaN or Inf, before a checkpoint with poisoned weights is written.

    A loss scaler leaves out the steps of an overflow by itself and halves its scale each time, so
    with one a few such losses in a row are normal. A scale goes from 2**16 to 1 in 16 steps.
    """

    def __init__(self) -> None:
        self._overflow_began: int | None = None

    def check(self, iteration: int, losses: Mapping[str, float], optim_wrapper: Any) -> None:
        """Take note of an iteration's losses.

        Raises:
            TrainingError: One is NaN or Inf, and that is not normal; it says where it began.
        """
        bad = [name for name, value in losses.items() if "loss" in name and not math.isfinite(value)]
        if not bad:
            self._overflow_began = None
            return
        scaler = getattr(optim_wrapper, "loss_scaler", None)
        began = self._overflow_began = self._overflow_began or iteration
        if scaler is not None and scaler.is_enabled() and iteration - began < MAX_OVERFLOWS:
            return
        when = f"{began} and stayed so until {iteration}" if iteration > began else str(began)
        raise TrainingError(
            f"{bad[0]} became {losses[bad[0]]} in iteration {when}; the checkpoints before it are untouched.",
            "Lower the learning rate or clip the gradients more (optim_wrapper.clip_grad), and resume.",
        )
