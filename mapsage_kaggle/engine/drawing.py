"""Whether samples follow from their positions: transforms' own generators are seeded, samples drawn twice.

Python's, NumPy's and torch's global generators are seeded for each sample. A transform may own others:
albumentations has had its own since 1.4.21, imgaug and kornia have theirs, and so has any use of
``np.random.default_rng()``. Those that a data set holds, at any depth, are seeded too. What then still
differs is found by drawing.
"""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader, Dataset

from mapsage_kaggle.config.reading import type_name
from mapsage_kaggle.engine import seeding
from mapsage_kaggle.engine.digests import digest
from mapsage_kaggle.engine.reading import EVENTS_VARIABLE

NUM_DRAWN = 8
"""Samples that are drawn twice."""
DRAWN_WITHIN_S = 20.0
PATIENCE_S = 120.0
"""How long one sample may take; the first one waits for the data set to be built."""
_MAX_ITEMS, _MAX_OBJECTS = 1000, 20_000
_Generator: TypeAlias = "np.random.Generator | np.random.RandomState | random.Random | torch.Generator"
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_GLOBAL: tuple[Any, ...] = (
    np.random.mtrand._rand,
    random._inst,
    torch.default_generator,
)
_LEAVES = (type, ModuleType, torch.Tensor, np.ndarray, str, bytes)


def own_generators(owner: Any) -> list[_Generator]:
    """Return the generators that an object holds, at any depth, each once and in a fixed order."""
    found: list[_Generator] = []
    seen: dict[int, Any] = {}
    left = [owner]
    while left and len(seen) < _MAX_OBJECTS:
        item = left.pop()
        if id(item) in seen or isinstance(item, _LEAVES) or any(item is known for known in _GLOBAL):
            continue
        seen[id(item)] = item
        if isinstance(item, _GENERATORS):
            found.append(item)
        elif isinstance(item, Mapping):
            left += item.values() if len(item) <= _MAX_ITEMS else ()
        elif isinstance(item, (list, tuple)):
            left += item if len(item) <= _MAX_ITEMS else ()
        else:
            left += (getattr(item, "__dict__", None) or {}).values()
    return found


def seed_own(generators: Sequence[_Generator], seed: int) -> None:
    """Seed a transform's own generators for one sample, each with a stream of its own."""
    for index, generator in enumerate(generators):
        value = seeding.derive(seeding.OWN, seed, index)
        if isinstance(generator, np.random.Generator):
            bits = generator.bit_generator
            bits.state = type(bits)(value).state
        elif isinstance(generator, np.random.RandomState):
            generator.seed(value & 0xFFFFFFFF)
        elif isinstance(generator, torch.Generator):
            generator.manual_seed(value & 0x7FFFFFFFFFFFFFFF)
        else:
            generator.seed(value)


def what_differs(dataset: Mapping[str, Any], draws: Sequence[Any]) -> tuple[str, ...]:
    """Draw samples twice, each time in a fresh process and another order; return what gave two results.

    Returns:
        The classes of the transforms that were the first to differ, or of the data set; empty where none did.

    Raises:
        Exception: A sample could not be drawn.
    """
    if all(one == other for one, other in _twice(dataset, draws, each_step=False)):
        return ()
    names: dict[str, None] = {}
    for one, other in _twice(dataset, draws, each_step=True):
        first = next((a for a, b in zip(one, other, strict=False) if a != b), None)
        if first is not None:
            names[first[0]] = None
    return tuple(names) or (type_name(dataset.get("type")),)


_Steps: TypeAlias = "list[tuple[str, str]]"
_Drawn: TypeAlias = "list[tuple[_Steps, _Steps]]"


def _twice(dataset: Mapping[str, Any], draws: Sequence[Any], *, each_step: bool) -> _Drawn:
    """Return each sample's digests by step, as the one process and the other drew it."""
    end_s = time.monotonic() + DRAWN_WITHIN_S
    swapped = [draw for index in range(0, len(draws), 2) for draw in draws[index : index + 2][::-1]]
    walks = [in_forks(_Anew(dataset, each_step=each_step), order) for order in (draws, swapped)]
    drawn: tuple[dict[int, _Steps], dict[int, _Steps]] = ({}, {})
    found: _Drawn = []
    try:
        for pair in zip(*walks, strict=True):
            for mine, (position, steps) in zip(drawn, pair, strict=True):
                mine[position] = steps
            found = [
                (drawn[0][position], drawn[1][position]) for position in drawn[0] if position in drawn[1]
            ]
            if found and time.monotonic() > end_s:
                break
    finally:
        for walk in walks:
            walk._shutdown_workers()  # at once: an error's traceback would keep them alive
    return found


def in_forks(dataset: Dataset[Any], draws: Sequence[Any], *, num_workers: int = 1) -> Any:
    """Return torch's iterator over what a data set makes of some draws, in processes of their own."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=list(draws),
        num_workers=num_workers,
        collate_fn=lambda item: item,
        multiprocessing_context="fork",
        generator=torch.Generator(),  # so that nothing is drawn from the global one
        timeout=PATIENCE_S,
    )
    return iter(loader)


class _Anew(Dataset[Any]):
    """A data set that is built in the process that asks for the first sample, as in a session."""

    def __init__(self, cfg: Mapping[str, Any], *, each_step: bool) -> None:
        self._cfg = cfg
        self._each_step = each_step
        self._dataset: Any = None
        self._steps: _Steps = []

    def __getitem__(self, draw: Any) -> tuple[int, _Steps]:
        if self._dataset is None:
            os.environ.pop(EVENTS_VARIABLE, None)  # damage is reported once, when it is trained on
            seeding.seed_sample(0)
            self._dataset = DATASETS.build(copy.deepcopy(self._cfg))
            if hasattr(self._dataset, "full_init"):
                self._dataset.full_init()
            if self._each_step:
                wrap_transforms(self._dataset, lambda transform: _Watched(transform, self._steps))
        self._steps.clear()
        sample = self._dataset[draw]
        innermost = getattr(self._dataset, "dataset", self._dataset)
        return draw.position, [*self._steps, (type(innermost).__name__, digest(sample))]


class _Watched:
    """Wraps a transform, to note a digest of each result."""

    def __init__(self, transform: Any, steps: _Steps) -> None:
        self._transform, self._steps = transform, steps

    def __call__(self, results: Any) -> Any:
        results = self._transform(results)
        self._steps.append((type(self._transform).__name__, digest(results)))
        return results

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transform, name)


def wrap_transforms(dataset: Any, wrap: Callable[[Any], Any]) -> None:
    """Replace every transform of a data set, and of those in it, by what ``wrap`` makes of it."""
    pipeline = getattr(dataset, "pipeline", None)
    transforms = getattr(pipeline, "transforms", pipeline)
    if isinstance(transforms, list):
        transforms[:] = [wrap(item) for item in transforms]
    for inner in (getattr(dataset, "dataset", None), *islice(getattr(dataset, "datasets", ()), _MAX_ITEMS)):
        if inner is not None:
            wrap_transforms(inner, wrap)
