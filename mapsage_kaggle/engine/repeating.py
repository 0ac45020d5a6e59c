"""Whether a step repeats: one micro-batch's gradients, computed twice from the same state."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper

from mapsage_kaggle.engine import seeding
from mapsage_kaggle.engine.buffers import HeldBuffers
from mapsage_kaggle.engine.digests import digest
from mapsage_kaggle.engine.drawing import own_generators

_SIMPLE = (type(None), bool, int, float, str)


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition:
    """The result of computing the same gradients twice.

    Attributes:
        repeatable: Whether they are equal bit for bit.
        difference: The largest absolute difference of an element, 0.0 between zeros of either sign; infinite
            where one is not a number, or missing.
        unseen: The classes of the model's parts that did not begin anew with the seed: those whose own
            generators went on, and the data preprocessor where it made two results of the batch.
    """

    repeatable: bool
    difference: float
    unseen: tuple[str, ...] = ()


def measure(core: torch.nn.Module, optim_wrapper: OptimWrapper, data: Any, *, seed: int) -> Repetition:
    """Compute the gradients of a micro-batch twice, and leave everything as it was.

    Neither optimizer, loss scaler, message hub nor hooks are touched; gradients, buffers, the global
    generators and the modules' own numbers are restored. One rank measures alone: its norms look at its own
    images. ``core`` is the model without its distributed wrapper, in training mode; ``seed`` is for all
    global generators before each preprocessing and each forward pass. Both passes are of what the
    preprocessor made first, so that where it draws the device can still be seen to repeat.

    Raises:
        TypeError: The model overrides ``train_step``.
        Exception: It cannot be computed again, such as for lack of memory; all is restored.
    """
    model: Any = core
    if type(model).train_step is not BaseModel.train_step:
        raise TypeError(f"{type(core).__name__} has a train_step of its own")
    parameters = [parameter for parameter in core.parameters() if parameter.requires_grad]
    with _left_as_it_is(core, parameters) as put_back:
        item: Any = None
        found: list[list[torch.Tensor | None]] = []
        ends: list[list[tuple[str, str]]] = []
        for step in range(2):
            put_back()
            for parameter in parameters:
                parameter.grad = None
            seeding.seed_all(seed)
            again = model.data_preprocessor(copy.deepcopy(data), True)
            made = (type(model.data_preprocessor).__name__, digest(again))
            item = again if step == 0 else item
            del again
            seeding.seed_all(seed)
            with optim_wrapper.optim_context(core):
                losses = model._run_forward(item, mode="loss")
            model.parse_losses(losses)[0].backward()
            # On the host, so that the device need not hold them twice.
            gradients = [parameter.grad for parameter in parameters]
            found.append([None if gradient is None else gradient.cpu() for gradient in gradients])
            ends.append([made, *_generators(core)])
            del losses, gradients
    pairs = [(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None]
    differences = [float((a.double() - b.double()).abs().max()) for a, b in pairs if not _are_same(a, b)]
    both = all((a is None) == (b is None) for a, b in zip(*found, strict=True))
    is_finite = both and all(map(math.isfinite, differences))
    return Repetition(
        repeatable=both and not differences,
        difference=max(differences, default=0.0) if is_finite else math.inf,
        unseen=tuple(dict.fromkeys(one[0] for one, other in zip(*ends, strict=False) if one != other)),
    )


def _generators(core: torch.nn.Module) -> list[tuple[str, str]]:
    """Return the states of the generators that modules hold themselves, each with its holder's class."""
    return [
        (type(module).__name__, digest(generator))
        for module in core.modules()
        for generator in own_generators({**vars(module), "_modules": None})
    ]


def _are_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are the same to the last bit."""
    return torch.equal(*(item.contiguous().reshape(-1).view(torch.uint8) for item in (one, other)))


@contextlib.contextmanager
def _left_as_it_is(
    core: torch.nn.Module, parameters: list[torch.nn.Parameter]
) -> Iterator[Callable[[], None]]:
    """Restore gradients, buffers, generators and the modules' own numbers, whatever happens.

    Yields what restores buffers and numbers in between.
    """
    buffers = HeldBuffers(core)
    gradients = [(parameter, parameter.grad) for parameter in parameters]
    numbers = [
        (module, {name: value for name, value in vars(module).items() if isinstance(value, _SIMPLE)})
        for module in core.modules()
    ]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()

    def put_back() -> None:
        buffers.put_back()
        for module, values in numbers:
            vars(module).update(values)

    try:
        with torch.random.fork_rng(devices=devices), _as_one_rank_of_one():
            yield put_back
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        put_back()


@contextlib.contextmanager
def _as_one_rank_of_one() -> Iterator[None]:
    """Hide the other ranks: a synchronised norm would wait for them."""
    before = torch.distributed.is_initialized
    setattr(torch.distributed, "is_initialized", lambda: False)  # noqa: B010
    try:
        yield
    finally:
        setattr(torch.distributed, "is_initialized", before)  # noqa: B010
