"""Only deterministic algorithms on a GPU, and the kit's own where torch has none."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.deterministic
from torch.nn import functional

_cross_entropy: Callable[..., torch.Tensor] = functional.cross_entropy
_adaptive_avg_pool2d: Callable[..., torch.Tensor] = functional.adaptive_avg_pool2d
_interpolate: Callable[..., torch.Tensor] = functional.interpolate
_REFUSAL = "does not have a deterministic implementation"


def only_deterministic() -> None:
    """Make torch run deterministic algorithms only, from now on and in the whole process.

    Two operators that segmentation models need have none in torch for CUDA (2.6 to 2.13) and would end
    training in its first iteration: cross entropy over label maps and adaptive average pooling. They are
    replaced in ``torch.nn.functional``, by the same sums in a fixed order. So is bilinear upsampling: torch's
    own deterministic gradient sorts each pixel's four contributions, where two matrix products do.
    """
    torch.use_deterministic_algorithms(True)
    # Nothing here reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    functional.cross_entropy = cross_entropy
    functional.adaptive_avg_pool2d = adaptive_avg_pool2d
    functional.interpolate = interpolate


def is_refusal(error: BaseException) -> bool:
    """Return whether torch refused an operator for having no deterministic implementation."""
    return isinstance(error, RuntimeError) and _REFUSAL in str(error)


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return what ``torch.nn.functional.cross_entropy`` does, with label maps as lists of pixels.

    The kernel for lists is deterministic where each pixel keeps its own loss. Logits are ``(N, C, …)``, class
    indices ``(N, …)``, weights ``(C,)``; probabilities ``(N, C, …)`` are left to torch.
    """
    options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    is_map = input.dim() > 2 and target.dim() == input.dim() - 1
    if not is_map or label_smoothing or size_average is not None or reduce is not None:
        return _cross_entropy(
            input, target, weight, size_average, reduce=reduce, reduction=reduction, **options
        )
    pixels = input.movedim(1, -1).reshape(-1, input.shape[1])
    flat = target.reshape(-1)
    losses = _cross_entropy(pixels, flat, weight, reduction="none", **options)
    if reduction == "none":
        return losses.view(target.shape)
    if reduction == "sum":
        return losses.sum()
    counted = flat != ignore_index
    if weight is None:
        return losses.sum() / counted.sum()
    return losses.sum() / weight[torch.where(counted, flat, 0)].mul(counted).sum()


def adaptive_avg_pool2d(input: torch.Tensor, output_size: Any) -> torch.Tensor:
    """Return what ``torch.nn.functional.adaptive_avg_pool2d`` does, as two matrix products.

    Takes ``(…, H, W)``; ``output_size`` is one number or two, None for the input's.
    """
    sizes = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    height, width = (size or length for size, length in zip(sizes, input.shape[-2:], strict=True))
    if (height, width) == (1, 1):
        return _adaptive_avg_pool2d(input, (1, 1))  # a plain mean
    return _products(_bins(input.shape[-2], height), input, _bins(input.shape[-1], width))


def interpolate(
    input: torch.Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> torch.Tensor:
    """Return what ``torch.nn.functional.interpolate`` does, bilinear with a gradient as two matrix products.

    Takes ``(N, C, H, W)`` for what is replaced; all else is left to torch.
    """
    needs_gradient = torch.is_grad_enabled() and input.requires_grad
    if mode != "bilinear" or input.dim() != 4 or size is None or antialias or not needs_gradient:
        return _interpolate(
            input, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias=antialias
        )
    height, width = (size, size) if isinstance(size, int) else (int(item) for item in size)
    corners = bool(align_corners)
    rows, columns = _between(input.shape[-2], height, corners), _between(input.shape[-1], width, corners)
    return _products(rows, input, columns)


def _products(rows: torch.Tensor, input: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return ``rows @ input @ columns.T``, in float32 or better whatever autocast says, in its dtype."""
    with torch.autocast(device_type=input.device.type, enabled=False):
        exact = input if input.dtype == torch.float64 else input.float()
        return (rows.to(exact) @ exact @ columns.to(exact).T).to(input.dtype)


@functools.lru_cache(maxsize=64)
def _between(length: int, places: int, align_corners: bool) -> torch.Tensor:
    """Return the matrix ``(places, length)`` of bilinear weights along one side."""
    matrix = torch.zeros(places, length, dtype=torch.float64)
    for place in range(places):
        if align_corners:
            source = place * (length - 1) / (places - 1) if places > 1 else 0.0
        else:
            source = max(0.0, (place + 0.5) * length / places - 0.5)
        before = min(math.floor(source), length - 1)
        matrix[place, before] += 1.0 - (source - before)
        matrix[place, min(before + 1, length - 1)] += source - before
    return matrix


@functools.lru_cache(maxsize=64)
def _bins(length: int, bins: int) -> torch.Tensor:
    """Return the matrix ``(bins, length)`` whose rows average the places of each bin."""
    begins = [index * length // bins for index in range(bins)]
    # No negative numbers: ONNX, which this is exported to as well, rounds their quotients to zero.
    ends = [((index + 1) * length + bins - 1) // bins for index in range(bins)]
    places = torch.arange(length)
    rows = [
        ((places >= begin) & (places < end)).double() / (end - begin)
        for begin, end in zip(begins, ends, strict=True)
    ]
    return torch.stack(rows)
