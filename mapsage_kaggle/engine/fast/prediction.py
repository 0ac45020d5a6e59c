"""From logits to classes faster than mmsegmentation: of equal logits the same classes, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.models.utils import resize

from mapsage_kaggle.messages import Message

_WINDOWS_AT_ONCE = 4
"""Sliding windows in one forward pass on a GPU: one of 512 × 512 alone does not fill it."""


@contextmanager
def quick_prediction(core: torch.nn.Module, *, windows_at_once: int = _WINDOWS_AT_ONCE) -> Iterator[None]:
    """Within it, a segmentor of mmsegmentation's own kind turns logits into classes faster.

    Logits that have their image's size already are not resized again, the highest is found by a kernel that
    is several times as fast on a CPU, and sliding windows are added in place, not padded to the size of the
    image. Given equal logits, all results are equal; but more than one of ``windows_at_once`` in a forward
    pass on a GPU changes logits by rounding. What a subclass overrides is left alone.
    """
    replaced = []
    if isinstance(core, EncoderDecoder):
        kind = type(core)
        if kind.postprocess_result is BaseSegmentor.postprocess_result:
            # On the instance, so that what a subclass overrides is still called.
            object.__setattr__(core, "postprocess_result", _Postprocess(core))
            replaced.append("postprocess_result")
        if kind.slide_inference is EncoderDecoder.slide_inference:
            object.__setattr__(core, "slide_inference", _Slide(core, windows_at_once))
            replaced.append("slide_inference")
    try:
        yield
    finally:
        for name in replaced:
            object.__delattr__(core, name)


class _Postprocess:
    def __init__(self, core: EncoderDecoder) -> None:
        self.core = core

    def __call__(self, seg_logits: torch.Tensor, data_samples: Sequence[Any] | None = None) -> Sequence[Any]:
        """Return the samples with logits and classes; by the stock method where they are not plain."""
        if (
            data_samples is None
            or seg_logits.shape[1] == 1
            or any(sample.metainfo.get("flip") for sample in data_samples)
        ):
            return type(self.core).postprocess_result(self.core, seg_logits, data_samples)
        for logits, sample in zip(torch.split(seg_logits, 1), data_samples, strict=True):
            (own,) = at_own_size(logits, sample.metainfo, self.core)
            sample.set_data({"seg_logits": PixelData(data=own), "pred_sem_seg": PixelData(data=highest(own))})
        return data_samples


def at_own_size(logits: torch.Tensor, meta: Mapping[str, Any], core: EncoderDecoder) -> torch.Tensor:
    """Return one image's logits, ``(1, classes, H, W)``, without its padding and at its own size."""
    padding = meta["img_padding_size"] if "img_padding_size" in meta else meta.get("padding_size")
    left, right, top, bottom = padding or (0, 0, 0, 0)
    own = logits[:, :, top : logits.shape[2] - bottom, left : logits.shape[3] - right]
    size = meta["ori_shape"]
    if tuple(own.shape[2:]) != tuple(size):
        own = resize(own, size, mode="bilinear", align_corners=core.align_corners, warning=False)
    return own


def highest(logits: torch.Tensor) -> torch.Tensor:
    """Return ``logits.argmax(dim=0, keepdim=True)``: int64 ``(1, H, W)`` of ``(classes, H, W)``."""
    # torch's argmax over the first axis of a CPU tensor walks it pixel by pixel; its maximum does not.
    return logits.max(dim=0, keepdim=True).indices if logits.device.type == "cpu" else logits.argmax(0, True)


class _Slide:
    def __init__(self, core: EncoderDecoder, windows_at_once: int) -> None:
        self.core = core
        self.windows_at_once = windows_at_once

    def __call__(self, inputs: torch.Tensor, batch_img_metas: list[dict[str, Any]]) -> torch.Tensor:
        """Return logits of the whole images, of shape ``(batch, classes, height, width)``."""
        core, (batch, _, height, width) = self.core, inputs.shape
        places = list(_windows(core.test_cfg, height, width))
        at_once = max(1, self.windows_at_once // batch) if inputs.is_cuda else 1
        total = inputs.new_zeros((batch, core.out_channels, height, width))
        counts = inputs.new_zeros((1, 1, height, width))
        for begin in range(0, len(places), at_once):
            group = places[begin : begin + at_once]
            windows = torch.cat([inputs[place] for place in group])
            # The head enlarges its logits to what the first image's description says.
            batch_img_metas[0]["img_shape"] = windows.shape[2:]
            logits = core.encode_decode(windows, batch_img_metas * len(group))
            for place, part in zip(group, logits.split(batch), strict=True):
                total[place] += part
                counts[place] += 1
        return total / counts


def _windows(test_cfg: Any, height: int, width: int) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Yield the places of sliding windows, row by row; those that would stick out are moved inwards.

    Raises:
        AssertionError: They leave pixels out; mmsegmentation raises the same.
    """
    rows, columns = (
        list(along(length, crop, stride))
        for length, crop, stride in zip((height, width), test_cfg.crop_size, test_cfg.stride, strict=True)
    )
    for windows in (rows, columns):
        if any(start > end for (_, end), (start, _) in pairwise(windows)):
            raise AssertionError(
                Message(
                    "Sliding windows of {size} at a stride of {stride} leave pixels out. Choose a stride "
                    "that is no larger than the window.",
                    tuple(test_cfg.crop_size),
                    tuple(test_cfg.stride),
                )
            )
    every = slice(None)
    for top, bottom in rows:
        for left, right in columns:
            yield every, every, slice(top, bottom), slice(left, right)


def along(length: int, size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of the windows along one axis; the last one is moved back to end with it."""
    for index in range(max(length - size + stride - 1, 0) // stride + 1):
        end = min(index * stride + size, length)
        yield max(end - size, 0), end
