"""The order of the samples, and the random draws of each, from its global position alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from functools import partial
from itertools import count, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch.utils.data
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Sampler

from mapsage_kaggle.engine import seeding
from mapsage_kaggle.engine.contents import TrainingData
from mapsage_kaggle.engine.drawing import own_generators, seed_own
from mapsage_kaggle.engine.reading import GuardedDataset, name_of
from mapsage_kaggle.errors import TrainingError
from mapsage_kaggle.messages import Message


class Draw(NamedTuple):
    """What a data worker needs to make one sample."""

    position: int
    sample: int
    seed: int


def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """Return the order of the samples in one epoch, int64 of shape ``(length,)``.

    It comes from NumPy's ``RandomState``, whose streams are frozen by contract (NEP 19), so that a
    newer library in a later session does not reshuffle the run.
    """
    value = seeding.derive(seeding.ORDER, seed, epoch)
    state = np.random.RandomState([value & 0xFFFFFFFF, value >> 32])
    return state.permutation(length)


@DATA_SAMPLERS.register_module(name="MapsageOrder")
class PositionOrder(Sampler[int]):
    """The endless order of a run: global position ``k`` is sample ``k % n`` of epoch ``k // n``.

    Any position is located without walking the earlier ones. Without ``shuffle`` each epoch has the data
    set's order.

    Raises:
        TrainingError: The data set is empty.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.length = len(dataset)
        if self.length == 0:
            raise TrainingError("The training data set is empty.", "Check data_root and data_prefix.")
        self.shuffle = shuffle
        self.seed = 0 if seed is None else seed
        self._epoch = -1
        self._order: np.ndarray = np.arange(self.length)

    def index(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        if self.shuffle and epoch != self._epoch:
            self._order, self._epoch = permutation(self.seed, epoch, self.length), epoch
        return int(self._order[offset])

    def __iter__(self) -> Iterator[int]:
        return map(self.index, count())

    def __len__(self) -> int:
        return self.length


@DATA_SAMPLERS.register_module(name="MapsageBatches")
class PositionBatches(Sampler[list[Draw]]):
    """Cuts the order into iterations, ranks and micro-batches.

    Iteration ``i`` (counted from 0) is made of positions ``i * B`` to ``i * B + B - 1``, whatever the number
    of ranks and the size of the micro-batch. Each rank takes a contiguous share, so that two ranks see the
    same global batch as one. All ranks make the same number of passes, since synchronised norms look at all
    ranks' parts in each; only a rank with fewer images than that makes fewer.

    Args:
        sampler: The order.
        batch_size: As the config has it, for hooks and schedulers that read it; it decides nothing.
        effective_batch: ``B``, images per iteration over all ranks.
        micro_batch: Images per forward pass and rank, at most the rank's share; None for all of it.
        rank: This worker's rank.
        world_size: How many ranks there are.

    Raises:
        TrainingError: There are more ranks than images in a batch.
    """

    def __init__(
        self,
        sampler: PositionOrder,
        batch_size: int,
        effective_batch: int,
        micro_batch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.sampler = sampler
        self.effective_batch = effective_batch
        self.rank = int(os.environ.get("RANK", 0)) if rank is None else rank
        self.world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
        if effective_batch < self.world_size:
            raise TrainingError(
                Message(
                    "A batch of {images} images cannot be split over {count} ranks.",
                    effective_batch,
                    self.world_size,
                ),
                Message(
                    "Use at most {count} GPUs (--gpus {same}), or a larger batch size.",
                    effective_batch,
                    effective_batch,
                ),
            )
        begin, end = (rank * effective_batch // self.world_size for rank in (self.rank, self.rank + 1))
        largest_share = -(-effective_batch // self.world_size)
        size = micro_batch or largest_share
        self.slices = _cut(begin, end, size, -(-largest_share // size))
        self.batch_size = batch_size
        self.start_iteration = 0

    @property
    def micro_batches(self) -> int:
        """Forward passes per iteration on this rank."""
        return len(self.slices)

    def draws(self, iteration: int, micro_batch: int) -> list[Draw]:
        """Return the samples of one micro-batch on this rank."""
        begin = iteration * self.effective_batch
        start, stop = self.slices[micro_batch]
        return [
            Draw(
                position,
                self.sampler.index(position),
                seeding.derive(seeding.SAMPLE, self.sampler.seed, position),
            )
            for position in range(begin + start, begin + stop)
        ]

    def __iter__(self) -> Iterator[list[Draw]]:
        for iteration in count(self.start_iteration):
            for micro_batch in range(self.micro_batches):
                yield self.draws(iteration, micro_batch)

    def __len__(self) -> int:
        return -(-self.sampler.length // self.effective_batch)


def _cut(first: int, last: int, size: int, passes: int) -> tuple[tuple[int, int], ...]:
    """Return a share's micro-batches: full ones, or as many even ones as other ranks need passes."""
    share = last - first
    if -(-share // size) < passes <= share:
        bounds = [first + index * share // passes for index in range(passes + 1)]
        return tuple(pairwise(bounds))
    return tuple((start, min(start + size, last)) for start in range(first, last, size))


@DATASETS.register_module(name="MapsagePositional")
class PositionalDataset(GuardedDataset):
    """Any map-style data set, with each sample's random draws seeded from its position.

    The substitute for an unloadable sample follows from the position, so that it is the same in every run.
    Its options are :class:`GuardedDataset`'s.
    """

    contents: TrainingData | None = None
    _owns_generators: bool | None = None

    def __getitem__(self, draw: Draw) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            return self._load(draw)
        with seeding.preserved_generators():
            return self._load(draw)

    def _load(self, draw: Draw) -> Any:
        index, sample = self.first_loadable(
            self._candidates(draw), prepare=partial(self._seed, draw.seed), position=draw.position
        )
        if self.contents is not None:
            self.contents.read(name_of(self.dataset, index))
        self.check_labels(index, sample)
        return sample

    def _seed(self, seed: int) -> None:
        seeding.seed_sample(seed)
        if self._owns_generators is not False:
            # Searched each time: a transform may have replaced one.
            generators = own_generators(self.dataset)
            self._owns_generators = bool(generators)
            seed_own(generators, seed)

    def _candidates(self, draw: Draw) -> Iterator[int]:
        yield draw.sample
        for attempt in count():
            yield seeding.derive(seeding.SUBSTITUTE, draw.seed, attempt) % len(self.dataset)
