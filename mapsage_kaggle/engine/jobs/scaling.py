"""Whether an image is predicted whole or in windows, and at what scale."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from mmseg.models.utils import resize

from mapsage_kaggle.engine.jobs.child import Emit
from mapsage_kaggle.engine.jobs.inference import TrainedModel
from mapsage_kaggle.imagery.windows import Axis, plan_axis
from mapsage_kaggle.messages import Message

WHOLE_SIDE = 2048
"""An image of at most so many pixels, squared, is predicted whole, unless windows are asked for."""
WINDOW = 1024
_MAX_SPAN = 4 * WINDOW
"""The most of an image's own pixels that one side of a window spans, unless windows are asked for."""


class Notices:
    """Emits each kind of notice once, whatever images it is met in. Safe from any thread."""

    def __init__(self, emit: Emit) -> None:
        self._emit, self._lock = emit, threading.Lock()
        self._told: set[str] = set()

    def tell(self, *messages: Message) -> None:
        """Emit those of a template of which none was emitted."""
        for message in messages:
            with self._lock:
                is_new = message.template not in self._told
                self._told.add(message.template)
            if is_new:
                self._emit("notice", message=message)


def of_unknown_scale(path: Path, factor: float) -> Message:
    """Return the notice that nothing says at what scale a model was trained."""
    return Message(
        "{path} is seen at {factor} times its own size: images of up to {side} x {side} pixels are as the "
        "config's test pipeline resizes them, larger ones at their own size. The scale of the training is "
        "not known; say another with --scale FACTOR, or --gsd and --trained-gsd in metres.",
        path,
        f"{factor:.3g}",
        WHOLE_SIDE,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """How images are seen.

    Attributes:
        factor: At how many times their own size. None: as the test pipeline resizes them; in windows at their
            own.
        window: Side of the windows, in pixels as the model sees them. None: those of the config's
            ``test_cfg``, else 1024, over images that are too large to be predicted whole.
        overlap: Of neighbouring windows, in the same pixels. None: a quarter.
    """

    factor: float | None = None
    window: int | None = None
    overlap: int | None = None

    @property
    def of_whole(self) -> float | None:
        """``factor`` for images that are predicted whole: who asks for windows asks for no other size."""
        return 1.0 if self.factor is None and self.window is not None else self.factor

    def is_whole(self, height: int, width: int) -> bool:
        """Return whether an image of this size, in pixels, is predicted whole."""
        factor = self.factor or 1.0
        if self.window is not None:
            return max(height, width) * factor <= self.window
        return height * width * max(1.0, factor) ** 2 <= WHOLE_SIDE**2

    def axes(self, height: int, width: int, model: TrainedModel) -> tuple[Axis, Axis]:
        """Return where windows lie down and across, in the image's own pixels."""
        _, span = self._window(model)
        overlap = span // 4 if self.overlap is None else int(self.overlap / (self.factor or 1.0))
        return plan_axis(height, span, overlap), plan_axis(width, span, overlap)

    def logits(self, crops: torch.Tensor, model: TrainedModel) -> torch.Tensor:
        """Return a model's logits of windows, at the windows' own size."""
        if self.factor is None or self.factor == 1.0:
            return model.logits(crops, windows=None)
        size, span = self._window(model)
        own = tuple(crops.shape[2:])
        seen = tuple(size if side == span else max(1, round(side * self.factor)) for side in own)
        resized = resize(crops.float(), seen, mode="bilinear", align_corners=False)
        logits = model.logits(resized, windows=None)
        align_corners = bool(model.net.align_corners)
        found: torch.Tensor = resize(logits, own, mode="bilinear", align_corners=align_corners, warning=False)
        return found

    def _window(self, model: TrainedModel) -> tuple[int, int]:
        """Return a window's side as the model sees it, and in the image's own pixels."""
        factor = self.factor or 1.0
        if self.window is not None:
            return self.window, math.ceil(self.window / factor)
        size = min(model.windows.size) if model.windows is not None else WINDOW
        span = math.ceil(size / factor)
        most = max(_MAX_SPAN, size)
        return (size, span) if span <= most else (round(most * factor), most)
