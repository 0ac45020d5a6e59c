"""One optimizer step over an effective batch that is split over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper

from mapsage_kaggle.errors import TrainingError


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

    Each micro-batch's loss is weighted with its share of the effective batch, so that the sum of
    the gradients is the gradient of the whole. Ranks average their gradients, hence the factor
    ``world_size``.

    Args:
        model: The model, wrapped or not.
        optim_wrapper: Its optimizer.
        data: This rank's micro-batches of one iteration.
        effective_batch: Images per iteration over all ranks.
        world_size: How many ranks there are.
        before_forward: Called with the micro-batch's index, to seed the generators.

    Raises:
        TrainingError: The model brings a training step of its own, which cannot be split.
    """
    core: Any = model.module if is_model_wrapper(model) else model
    if type(core).train_step is not BaseModel.train_step:
        raise TrainingError(
            f"{type(core).__name__} has a train_step of its own, which cannot be split into micro-batches.",
            "Train it on one GPU with its own batch size.",
        )
    runs_of: Any = model
    # mmengine counts backward passes as iterations; for us the iteration counts once.
    inner_count = optim_wrapper._inner_count
    logs: dict[str, torch.Tensor] = {}
    for index, micro_batch in enumerate(data):
        last = index == len(data) - 1
        no_sync = nullcontext() if last or not hasattr(model, "no_sync") else runs_of.no_sync()
        before_forward(index)
        with no_sync:
            with optim_wrapper.optim_context(model):
                inputs = core.data_preprocessor(micro_batch, True)
                losses = runs_of._run_forward(inputs, mode="loss")
            loss, log_vars = core.parse_losses(losses)
            share = _num_images(micro_batch) / effective_batch
            optim_wrapper.backward(optim_wrapper.scale_loss(loss * (share * world_size)))
        for name, value in log_vars.items():
            weighted = value.detach() * (share * world_size)
            logs[name] = logs[name] + weighted if name in logs else weighted
    optim_wrapper._inner_count = inner_count + 1
    if optim_wrapper.should_update():
        optim_wrapper.step()
        optim_wrapper.zero_grad()
    return logs


def _num_images(micro_batch: Any) -> int:
    inputs = micro_batch["inputs"]
    return len(inputs)
