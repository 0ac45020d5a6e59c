"""Whether an image is seen whole or through windows, and at how many times its own size."""

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
"""An image of at most so many pixels squared is seen whole, unless windows are asked for."""
WINDOW = 1024
_MAX_SPAN = 4 * WINDOW
"""How many of an image's own pixels one side of a window spans, unless windows are asked for."""


class Notices:
    """Tells of each kind of thing once, whatever images it is met in. Safe from any thread."""

    def __init__(self, emit: Emit) -> None:
        self._emit, self._lock = emit, threading.Lock()
        self._told: set[str] = set()

    def tell(self, *messages: Message) -> None:
        """Tell those of a template of which none was told."""
        for message in messages:
            with self._lock:
                is_new = message.template not in self._told
                self._told.add(message.template)
            if is_new:
                self._emit("notice", message=message)


def of_unknown_scale(path: Path, factor: float) -> Message:
    """Return what a person is told where nothing says at what scale a model was trained."""
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
        factor: At how many times their own size. None: as the test pipeline resizes them; through windows
            at their own.
        window: Side of the windows, in pixels as the model sees them. None: those of the config's
            ``test_cfg``, else 1024, over images that are larger than is seen whole.
        overlap: Of neighbouring windows. None: a quarter.
    """

    factor: float | None = None
    window: int | None = None
    overlap: int | None = None

    @property
    def of_whole(self) -> float | None:
        """``factor`` for images that are seen whole: who asks for windows asks for no other size."""
        return 1.0 if self.factor is None and self.window is not None else self.factor

    def is_whole(self, height: int, width: int) -> bool:
        """Return whether an image of so many pixels is seen whole."""
        factor = self.factor or 1.0
        if self.window is not None:
            return max(height, width) * factor <= self.window
        return height * width * max(1.0, factor) ** 2 <= WHOLE_SIDE**2

    def axes(self, height: int, width: int, model: TrainedModel) -> tuple[Axis, Axis]:
        """Return where windows lie, in the image's own pixels."""
        _, span = self._window(model)
        overlap = span // 4 if self.overlap is None else int(self.overlap / (self.factor or 1.0))
        return plan_axis(height, span, overlap), plan_axis(width, span, overlap)

    def logits(self, crops: torch.Tensor, model: TrainedModel) -> torch.Tensor:
        """Return what a model says of windows, at the windows' own size."""
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
