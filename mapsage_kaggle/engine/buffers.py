"""Buffers that forward passes update: the same on all ranks, and updated once.

mmengine wraps models with ``broadcast_buffers=False``, so each rank's BatchNorm would follow its own share of
the data, and validation would depend on the rank that runs it.

A backbone that recomputes its blocks in the backward pass (``with_cp``) would let BatchNorm see the same data
twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed
from torch.nn.modules.batchnorm import _BatchNorm

from mapsage_kaggle.engine.ranks import wrappers_of


def synchronise_buffers(core: torch.nn.Module) -> None:
    """Make every buffer the same on all ranks. Collective; meant for each iteration's end.

    BatchNorm's running mean and variance become the mean over ranks: for the mean that is what one
    rank would have seen in the whole batch, for the variance it leaves out what lies between the
    ranks' means. Any other buffer becomes that of rank 0. Called after every iteration, it keeps
    the result independent of when checkpoints are written.
    """
    averaged, counters = [], []
    done: set[int] = set()
    for module in core.modules():
        if not isinstance(module, _BatchNorm):
            continue
        done |= {id(buffer) for buffer in module.buffers(recurse=False)}
        if not module.training or isinstance(module, torch.nn.SyncBatchNorm):
            continue  # nothing has changed, or it is the same everywhere
        averaged += [item for item in (module.running_mean, module.running_var) if item is not None]
        if module.num_batches_tracked is not None:
            counters.append(module.num_batches_tracked)
    others = [buffer for buffer in core.buffers() if id(buffer) not in done]
    for group in _alike(averaged):
        flat = torch.cat([buffer.reshape(-1) for buffer in group])
        torch.distributed.all_reduce(flat)
        _spread(flat / torch.distributed.get_world_size(), group)
    for group in _alike(counters):
        # Ranks may need different numbers of micro-batches for their shares.
        flat = torch.stack(group)
        torch.distributed.all_reduce(flat, op=torch.distributed.ReduceOp.MAX)
        _spread(flat, group)
    for group in _alike(others):
        flat = torch.cat([buffer.reshape(-1) for buffer in group])
        torch.distributed.broadcast(flat, src=0)
        _spread(flat, group)


def _alike(buffers: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Group buffers by type and device, in an order that is the same on every rank."""
    groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for buffer in buffers:
        groups.setdefault((buffer.dtype, buffer.device), []).append(buffer)
    return list(groups.values())


def _spread(flat: torch.Tensor, group: list[torch.Tensor]) -> None:
    begin = 0
    for buffer in group:
        buffer.copy_(flat[begin : begin + buffer.numel()].view_as(buffer))
        begin += buffer.numel()


class HeldBuffers:
    """A copy of a model's buffers, and of the tensors that its modules hold besides.

    Some modules write into theirs, others replace them.
    """

    def __init__(self, core: torch.nn.Module) -> None:
        self._held = [
            (owner, name, tensor, tensor.detach().clone())
            for module in core.modules()
            for owner in (module._buffers, vars(module))
            for name, tensor in owner.items()
            if isinstance(tensor, torch.Tensor)
        ]

    def have_changed(self) -> bool:
        return not all(
            owner[name] is tensor and torch.equal(tensor, value) for owner, name, tensor, value in self._held
        )

    @torch.no_grad()
    def put_back(self) -> None:
        for owner, name, tensor, value in self._held:
            tensor.copy_(value)
            owner[name] = tensor


def keep_in_backward(optim_wrapper: Any, core: torch.nn.Module) -> None:
    """Make backward passes leave every buffer as the forward pass left it, from now on.

    A forward pass that is recomputed within one updates them again. Whether any is, the modules say
    (``with_cp``) or the first backward pass shows; where none is, the following ones are left alone.
    mmengine's wrapper does the backward passes; its method is wrapped.
    """
    recomputes: bool | None = any(getattr(module, "with_cp", False) for module in core.modules()) or None

    def keeping(backward: Callable[..., Any]) -> Callable[..., Any]:
        def kept(*args: Any, **options: Any) -> Any:
            nonlocal recomputes
            if recomputes is False:
                return backward(*args, **options)
            before = HeldBuffers(core)
            result = backward(*args, **options)
            if recomputes is None:
                recomputes = before.have_changed()
            if recomputes:
                before.put_back()
            return result

        return kept

    for part in wrappers_of(optim_wrapper):
        part.backward = keeping(part.backward)
