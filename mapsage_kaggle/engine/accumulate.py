"""One optimizer step over an effective batch that is split over micro-batches and ranks.

A loss that averages over pixels divides by a number of its own: all pixels, the pixels that are
not ignored, or the sum of their class weights. Where that number differs between the parts of a
batch, the mean of the parts' means is not the mean of the whole. So the numbers are counted for
the whole effective batch before the first forward pass, and each part's loss is weighted with its
part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmseg.models.losses import CrossEntropyLoss

from mapsage_kaggle.engine.buffers import synchronise_buffers
from mapsage_kaggle.engine.ranks import core_model
from mapsage_kaggle.errors import TrainingError
from mapsage_kaggle.messages import Message

_EPS = torch.finfo(torch.float32).eps
"""What mmsegmentation's ``weight_reduce_loss`` adds to a normaliser."""


def accumulated_step(
    model: torch.nn.Module,
    optim_wrapper: OptimWrapper,
    data: Sequence[Any],
    *,
    effective_batch: int,
    world_size: int,
    before_forward: Callable[[int], None],
) -> Mapping[str, torch.Tensor]:
    """Run forward and backward for each micro-batch, then one step; return the losses for the log.

    Each loss is weighted with its part of the effective batch, so that the sum of the gradients is the
    gradient of the whole: per-pixel losses of mmsegmentation by their own normaliser, all others by images.
    Ranks average their gradients, hence the factor ``world_size``. Buffers are the same on all ranks
    afterwards. With several ranks it is collective. ``data`` are this rank's micro-batches of one iteration;
    ``before_forward`` is called with each one's index before it is preprocessed and before its forward pass,
    to seed the generators.

    Returns:
        The losses of the whole effective batch, the same on every rank.

    Raises:
        TrainingError: The model overrides ``train_step``, which cannot be split.
    """
    core: Any = core_model(model)
    if type(core).train_step is not BaseModel.train_step:
        raise TrainingError(
            Message(
                "{kind} has a train_step of its own, which cannot be split into micro-batches.",
                type(core).__name__,
            ),
            "Train it on one GPU with its own batch size.",
        )
    runs_of: Any = model
    inputs = []
    for index, micro_batch in enumerate(data):
        before_forward(index)
        inputs.append(core.data_preprocessor(micro_batch, True))
    losses_of = normalised_losses(core)
    parts = [_parts(losses_of, item) for item in inputs]
    totals = _totals(parts, world_size)
    # mmengine counts backward passes as iterations; here an iteration counts once. Ranks exchange their
    # gradients in the last pass, where by that count the step is due.
    inner_count = optim_wrapper._inner_count
    logs: dict[str, torch.Tensor] = {}
    for index, (micro_batch, item) in enumerate(zip(data, inputs, strict=True)):
        last = index == len(data) - 1
        no_sync = nullcontext() if last or not hasattr(model, "no_sync") else runs_of.no_sync()
        share = len(micro_batch["inputs"]) / effective_batch
        optim_wrapper._inner_count = inner_count
        before_forward(index)
        with no_sync, _weighted(losses_of, parts[index], totals, item, share):
            with optim_wrapper.optim_context(model):
                losses = runs_of._run_forward(item, mode="loss")
            loss, log_vars = core.parse_losses(losses)
            optim_wrapper.backward(optim_wrapper.scale_loss(loss * (share * world_size)))
        for name, value in log_vars.items():
            weighted = value.detach() * share
            logs[name] = logs[name] + weighted if name in logs else weighted
    optim_wrapper._inner_count = inner_count + 1
    if optim_wrapper.should_update():
        optim_wrapper.step()
        optim_wrapper.zero_grad()
    if world_size > 1:
        synchronise_buffers(core)
        logs = _summed(logs)
    return logs


# -- which losses have a normaliser that is known


@dataclass(frozen=True, kw_only=True, slots=True)
class NormalisedLoss:
    """A loss module whose normaliser can be counted from the labels alone."""

    module: Any
    ignore_index: int

    def normaliser(self, labels: torch.Tensor) -> torch.Tensor:
        """Return what the loss divides its sum over ``labels`` by, up to a constant factor.

        Args:
            labels: int64 of shape ``(N, H, W)``.

        Returns:
            A float64 scalar on the labels' device.
        """
        loss = self.module
        if loss.use_sigmoid:
            # pos_weight is no part of the mean; channels are the constant factor.
            if not loss.avg_non_ignore:
                return labels.new_tensor(labels.numel(), dtype=torch.float64)
            return ((labels >= 0) & (labels != self.ignore_index)).sum().double() + _EPS
        if loss.class_weight is not None:
            weights = torch.as_tensor(loss.class_weight, dtype=torch.float64, device=labels.device)
            return weights[labels[labels != self.ignore_index]].sum() + _EPS
        if loss.avg_non_ignore:
            return (labels != self.ignore_index).sum().double() + _EPS
        return labels.new_tensor(labels.numel() + _EPS, dtype=torch.float64)


def normalised_losses(core: torch.nn.Module) -> tuple[NormalisedLoss, ...]:
    """Return the model's losses whose normaliser is known: mmsegmentation's cross entropy in its heads."""
    return tuple(
        NormalisedLoss(module=loss, ignore_index=int(head.ignore_index))
        for head, loss in _head_losses(core)
        if _is_normalised(head, loss)
    )


def _head_losses(core: torch.nn.Module) -> Iterator[tuple[Any, Any]]:
    for head in core.modules():
        losses = getattr(head, "loss_decode", None)
        if isinstance(losses, torch.nn.ModuleList):
            yield from ((head, loss) for loss in losses)
        elif isinstance(losses, torch.nn.Module):
            yield head, losses


def _is_normalised(head: Any, loss: Any) -> bool:
    return (
        isinstance(loss, CrossEntropyLoss)
        and type(loss).forward is CrossEntropyLoss.forward
        and loss.reduction == "mean"
        and not loss.use_mask
        and isinstance(getattr(head, "ignore_index", None), int)
        # A pixel sampler gives weights that depend on the predictions.
        and getattr(head, "sampler", None) is None
    )


# -- counting and weighting


def _labels(item: Any) -> torch.Tensor | None:
    """Return a preprocessed micro-batch's label maps, ``(N, H, W)``; None where it has none."""
    samples = item.get("data_samples") if isinstance(item, Mapping) else None
    if not samples or not all(hasattr(sample, "gt_sem_seg") for sample in samples):
        return None
    return torch.stack([sample.gt_sem_seg.data for sample in samples]).squeeze(1)


def _parts(losses: Sequence[NormalisedLoss], item: Any) -> torch.Tensor | None:
    """Return each loss's normaliser in one micro-batch, float64 of shape ``(len(losses),)``."""
    labels = _labels(item) if losses else None
    if labels is None:
        return None
    return torch.stack([loss.normaliser(labels) for loss in losses])


def _totals(parts: Sequence[torch.Tensor | None], world_size: int) -> torch.Tensor | None:
    """Return each loss's normaliser over the effective batch. Collective where ``world_size`` > 1."""
    known = [part for part in parts if part is not None]
    if len(known) != len(parts) or not known:
        return None
    total = torch.stack(known).sum(dim=0)
    if world_size > 1:
        torch.distributed.all_reduce(total)
    return total


@contextmanager
def _weighted(
    losses: Sequence[NormalisedLoss],
    part: torch.Tensor | None,
    total: torch.Tensor | None,
    item: Any,
    share: float,
) -> Iterator[None]:
    """Within it, each known loss is multiplied by (its part of the normaliser / share of images).

    The caller multiplies everything by the share of images, which leaves the known losses with
    their own weight and all others with that of their images. A head that hands a loss other
    labels than the label maps (sampled points, boundaries) keeps the weight of its images.
    """
    if part is None or total is None:
        yield
        return
    labels = _labels(item)
    assert labels is not None
    handles = []
    for index, loss in enumerate(losses):
        factor = part[index] / total[index] / share

        def hook(
            _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, factor: Any = factor
        ) -> Any:
            label = args[1] if len(args) > 1 else kwargs.get("label")
            if kwargs.get("weight") is not None or not _same(label, labels):
                return output
            return output * factor.to(output.dtype)

        handles.append(loss.module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _same(label: Any, labels: torch.Tensor) -> bool:
    return (
        isinstance(label, torch.Tensor) and label.shape == labels.shape and bool(torch.equal(label, labels))
    )


def _summed(logs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add up the logged values of all ranks, in one message."""
    names = sorted(logs)
    values = torch.stack([logs[name].double().reshape(()) for name in names])
    torch.distributed.all_reduce(values)
    return {name: values[names.index(name)] for name in logs}
