"""Only deterministic algorithms on a GPU, and the kit's own where torch has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

_cross_entropy: Callable[..., torch.Tensor] = functional.cross_entropy
_adaptive_avg_pool2d: Callable[..., torch.Tensor] = functional.adaptive_avg_pool2d
_REFUSAL = "does not have a deterministic implementation"


def only_deterministic() -> None:
    """Let torch run deterministic algorithms only, from now on and in the whole process.

    Two things that segmentation models need have none in torch for CUDA (2.6 to 2.13) and would end
    training in its first iteration: cross entropy over label maps and adaptive average pooling.
    They are replaced where ``torch.nn.functional`` offers them, by the same sums in a fixed order.
    Of enlarging bilinearly torch takes care by itself.
    """
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    functional.cross_entropy = cross_entropy
    functional.adaptive_avg_pool2d = adaptive_avg_pool2d


def is_refusal(error: BaseException) -> bool:
    """Tell whether torch refused an operator for having no deterministic implementation."""
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

    The kernel for lists is deterministic where each pixel keeps its own loss.

    Args:
        input: Logits, ``(N, C, …)``.
        target: Class indices ``(N, …)``; probabilities ``(N, C, …)`` are left to torch.
        weight: By class, ``(C,)``.
        size_average: As in torch, deprecated there.
        ignore_index: The class that does not count.
        reduce: As in torch, deprecated there.
        reduction: ``none``, ``mean`` or ``sum``.
        label_smoothing: As in torch.
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
    """Return what ``torch.nn.functional.adaptive_avg_pool2d`` does, as two products of matrices.

    Args:
        input: ``(…, H, W)``.
        output_size: One number or two, None for as many as there are.
    """
    sizes = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    height, width = (size or length for size, length in zip(sizes, input.shape[-2:], strict=True))
    if (height, width) == (1, 1):
        return _adaptive_avg_pool2d(input, (1, 1))  # a plain mean
    rows, columns = _bins(input.shape[-2], height, input), _bins(input.shape[-1], width, input)
    return rows @ input @ columns.T


def _bins(length: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """Return the matrix ``(bins, length)`` whose rows average the places of each bin."""
    begins = [index * length // bins for index in range(bins)]
    ends = [-(-(index + 1) * length // bins) for index in range(bins)]
    places = torch.arange(length)
    rows = [
        ((places >= begin) & (places < end)).double() / (end - begin)
        for begin, end in zip(begins, ends, strict=True)
    ]
    return torch.stack(rows).to(like)
