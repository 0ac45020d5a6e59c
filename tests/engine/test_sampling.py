"""Which sample comes at which position, on which rank, in which micro-batch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mapsage_kaggle.engine import sampling, seeding
from mapsage_kaggle.engine.faults import failure_kind, failure_message
from mapsage_kaggle.engine.reading import ReadableDataset
from mapsage_kaggle.engine.sampling import (
    Draw,
    PositionalDataset,
    PositionBatches,
    PositionOrder,
    permutation,
)
from mapsage_kaggle.errors import TrainingError

SAMPLES = 5


def order(seed: int | None = 3, **options: Any) -> PositionOrder:
    return PositionOrder(range(SAMPLES), seed=seed, **options)


def batches(rank: int = 0, world_size: int = 1, *, size: int = 2, effective: int = 4) -> PositionBatches:
    return PositionBatches(order(), effective, effective, size, rank=rank, world_size=world_size)


def positions(of: PositionBatches, iteration: int) -> list[list[int]]:
    """Return the positions of each micro-batch of an iteration on one rank."""
    return [
        [draw.position for draw in of.draws(iteration, micro_batch)]
        for micro_batch in range(of.micro_batches)
    ]


# --- the order -------------------------------------------------------------------------------------------


# A run that is resumed by a later version goes on in this order: it must never change.
@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (0, 0, [3, 4, 6, 1, 5, 2, 0, 7]),
        (0, 1, [7, 4, 5, 6, 0, 1, 3, 2]),
        (1, 0, [3, 4, 7, 5, 2, 1, 0, 6]),
        (304, 5, [0, 5, 4, 9, 2, 6, 3, 7, 1, 8]),
    ],
)
def test_the_permutation_of_an_epoch_is_frozen(seed: int, epoch: int, expected: list[int]) -> None:
    found = permutation(seed, epoch, len(expected))
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_a_permutation_takes_all_bits_of_the_derived_value(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    for value in (0, 1, 1 << 31, 1 << 32, 1 << 63):
        monkeypatch.setattr(seeding, "derive", lambda *_, value=value: value)
        seen.add(tuple(permutation(0, 0, 50)))
    assert len(seen) == 5


def test_no_generator_of_the_process_is_drawn_from_or_seeded() -> None:
    np.random.seed(1)
    expected = np.random.random(2).tolist()
    np.random.seed(1)
    first = np.random.random()
    permutation(0, 0, 10)
    assert [first, np.random.random()] == expected


def test_each_epoch_has_every_sample_once_in_a_permutation_of_its_own() -> None:
    walk = [order().index(position) for position in range(3 * SAMPLES)]
    epochs = [walk[begin : begin + SAMPLES] for begin in range(0, len(walk), SAMPLES)]
    assert epochs == [permutation(3, epoch, SAMPLES).tolist() for epoch in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(sorted(epoch) == list(range(SAMPLES)) for epoch in epochs)


def test_a_position_is_found_without_walking_the_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[int] = []

    def counted(seed: int, epoch: int, length: int) -> np.ndarray:
        walked.append(epoch)
        return permutation(seed, epoch, length)

    monkeypatch.setattr(sampling, "permutation", counted)
    found = order()
    assert found.index(SAMPLES * 10**9 + 2) == permutation(3, 10**9, SAMPLES)[2]
    assert found.index(SAMPLES * 10**9 + 3) == permutation(3, 10**9, SAMPLES)[3]
    assert walked == [10**9]


def test_positions_may_be_asked_for_in_any_sequence() -> None:
    asked, expected = list(range(4 * SAMPLES)), order()
    walk = {position: expected.index(position) for position in asked}
    random.Random(0).shuffle(asked)
    found = order()
    assert {position: found.index(position) for position in asked} == walk


def test_without_shuffling_the_samples_come_in_their_own_order() -> None:
    found = order(shuffle=False)
    assert [found.index(position) for position in (0, 4, 5, 12)] == [0, 4, 0, 2]


def test_the_order_goes_on_for_ever_from_position_0() -> None:
    walk = list(itertools.islice(order(), 2 * SAMPLES + 1))
    assert walk == [order().index(position) for position in range(2 * SAMPLES + 1)]
    assert len(order()) == SAMPLES


def test_no_seed_is_seed_0_and_every_seed_has_its_own_order() -> None:
    walks = {seed: list(itertools.islice(order(seed), 4 * SAMPLES)) for seed in (None, 0, 1)}
    assert walks[None] == walks[0] != walks[1]


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(TrainingError, match="The training data set is empty"):
        PositionOrder([])
    assert PositionOrder([0]).index(3) == 0


# --- ranks and micro-batches -----------------------------------------------------------------------------


@pytest.mark.parametrize("iteration", [0, 1, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize(("effective", "world_size"), [(4, 1), (4, 2), (5, 2), (7, 3), (3, 3)])
def test_the_shares_of_the_ranks_are_one_global_batch(
    iteration: int, size: int, effective: int, world_size: int
) -> None:
    ranks = [batches(rank, world_size, size=size, effective=effective) for rank in range(world_size)]
    shares = [list(itertools.chain(*positions(rank, iteration))) for rank in ranks]
    assert list(itertools.chain(*shares)) == list(range(iteration * effective, (iteration + 1) * effective))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("rank", "size", "expected"),
    [
        (0, 1, [[0], [1], [2]]),
        (0, 2, [[0, 1], [2]]),
        (0, 3, [[0], [1, 2]]),
        (0, 4, [[0, 1, 2]]),
        (1, 1, [[3], [4], [5], [6]]),
        (1, 3, [[3, 4, 5], [6]]),
        (1, 9, [[3, 4, 5, 6]]),
    ],
)
def test_a_share_is_cut_into_micro_batches(rank: int, size: int, expected: list[list[int]]) -> None:
    found = batches(rank, 2, size=size, effective=7)
    assert positions(found, 0) == expected
    assert found.micro_batches == len(expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("effective", "world_size"), [(3, 2), (5, 2), (7, 2), (4, 3), (8, 3), (16, 2)])
def test_all_ranks_make_the_same_number_of_passes_where_images_allow_it(
    effective: int, world_size: int, size: int
) -> None:
    ranks = [batches(rank, world_size, size=size, effective=effective) for rank in range(world_size)]
    passes, least = max(rank.micro_batches for rank in ranks), effective // world_size
    for rank in ranks:
        sizes = [len(part) for part in positions(rank, 0)]
        assert len(sizes) == (passes if sum(sizes) >= passes else sum(sizes))
        assert max(sizes) <= size
    assert ({rank.micro_batches for rank in ranks} == {passes}) is (passes <= least)


def test_a_draw_is_the_sample_and_the_seed_of_its_position() -> None:
    assert batches().draws(1, 1) == [
        Draw(6, 1, seeding.derive(seeding.SAMPLE, 3, 6)),
        Draw(7, 2, seeding.derive(seeding.SAMPLE, 3, 7)),
    ]


def test_a_sample_s_seed_is_the_same_on_any_rank_and_in_any_micro_batch() -> None:
    def seeds(*splits: PositionBatches) -> list[int]:
        return [
            draw.seed
            for split in splits
            for micro in range(split.micro_batches)
            for draw in split.draws(2, micro)
        ]

    whole = seeds(batches(size=4))
    assert len(set(whole)) == 4
    assert whole == seeds(batches(size=1)) == seeds(batches(0, 2), batches(1, 2))


@pytest.mark.parametrize("start", [0, 1, 8000])
def test_a_resume_begins_with_the_iteration_that_follows(start: int) -> None:
    found = batches(1, 2, size=1)
    assert next(iter(found))[0].position == 2, "a run begins with the first"
    found.start_iteration = start
    taken = [[draw.position for draw in item] for item in itertools.islice(found, 6)]
    assert taken == [[4 * iteration + offset] for iteration in range(start, start + 3) for offset in (2, 3)]


@pytest.mark.parametrize(("size", "effective", "length"), [(2, 4, 2), (4, 4, 2), (5, 5, 1), (1, 3, 2)])
def test_its_length_is_the_iterations_of_an_epoch_however_they_are_split(
    size: int, effective: int, length: int
) -> None:
    assert len(batches(size=size, effective=effective)) == length


def test_a_batch_of_fewer_images_than_ranks_is_refused() -> None:
    assert positions(batches(1, 2, effective=2), 0) == [[1]]
    with pytest.raises(TrainingError, match="A batch of 2 images cannot be split over 3 ranks"):
        batches(0, 3, effective=2)


def test_rank_and_world_size_come_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert positions(PositionBatches(order(), 4, 4), 0) == [[0, 1, 2, 3]]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert positions(PositionBatches(order(), 4, 4), 0) == [[2, 3]]


# --- samples ---------------------------------------------------------------------------------------------


class Drawing:
    """A data set whose samples draw from every generator; those in ``damaged`` cannot be loaded."""

    damaged: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[float, ...]:
        if index in self.damaged:
            raise ValueError("damaged")
        return index, random.random(), float(np.random.random()), float(torch.rand(()))


@pytest.fixture
def _generators_as_before() -> Iterator[None]:
    with seeding.preserved_generators():
        yield


@pytest.mark.usefixtures("_generators_as_before")
def test_a_sample_is_drawn_from_its_seed_alone_and_leaves_no_trace() -> None:
    dataset = PositionalDataset(Drawing())
    first = dataset[Draw(0, 1, seed=11)]
    seeding.seed_sample(1)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert dataset[Draw(9, 1, seed=11)] == first
    assert dataset[Draw(9, 1, seed=12)] != first
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == state


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_data_workers_change_no_sample() -> None:
    def taken(workers: int) -> list[Any]:
        loader = DataLoader(
            PositionalDataset(Drawing()), batch_sampler=batches(), num_workers=workers, collate_fn=list
        )
        return list(itertools.islice(loader, 5))

    assert taken(0) == taken(2)


def test_what_takes_a_damaged_sample_s_place_follows_from_the_position(
    monkeypatch: pytest.MonkeyPatch, warned: Any
) -> None:
    monkeypatch.setattr(Drawing, "damaged", frozenset({0, 1}))
    dataset = PositionalDataset(Drawing(), on_bad_image="skip")
    found = [[dataset[Draw(seed, 0, seed=seed)][0] for seed in range(20)] for _ in range(2)]
    expected = []
    for seed in range(20):
        tried = (seeding.derive("substitute", seed, attempt) % SAMPLES for attempt in itertools.count())
        expected.append(next(index for index in tried if index not in {0, 1}))
    assert found == [expected] * 2
    assert set(expected) == {2, 3, 4}
    assert {item["position"] for item in warned()} == set(range(20))


# --- labels ----------------------------------------------------------------------------------------------


class Masks:
    """Samples whose masks hold the labels that are given."""

    reduce_zero_label = False

    def __init__(self, *labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"img_path": f"images/{index}.png", "seg_map_path": f"masks/{index}.png"}

    def __getitem__(self, index: int) -> dict[str, Any]:
        truth = SimpleNamespace(data=torch.tensor([[self.labels[index]]]))
        return {"inputs": torch.zeros(3), "data_samples": SimpleNamespace(gt_sem_seg=truth)}


@pytest.mark.parametrize("labels", [[0, 7], [0, 255], [255, 255], [3, 255, 7], []])
def test_labels_that_are_classes_or_ignored_pass(labels: list[int]) -> None:
    found = PositionalDataset(Masks(labels), num_classes=8)[Draw(0, 0, 1)]
    assert found["data_samples"].gt_sem_seg.data.flatten().tolist() == labels


@pytest.mark.parametrize(("labels", "label"), [([0, 8], 8), ([255, 3, 9, 0], 9), ([-1, 2], -1), ([254], 254)])
@pytest.mark.parametrize("choice", ["fail", "skip"])
def test_a_label_beyond_the_classes_is_refused_by_the_mask_s_name(
    labels: list[int], label: int, choice: str
) -> None:
    dataset = PositionalDataset(Masks([0], labels), on_bad_image=choice, num_classes=8)
    with pytest.raises(TrainingError) as caught:
        dataset[Draw(5, 1, 1)]
    assert str(caught.value).startswith(
        f"The mask masks/1.png holds the label {label}; with num_classes = 8, labels are 0 to 7, and 255 is "
        "ignored. reduce_zero_label is False."
    )
    assert failure_kind(caught.value, has_trained=True) == "refused"


def test_labels_to_validate_on_are_checked_as_those_to_train_on() -> None:
    dataset = ReadableDataset(Masks([0, 7, 255], [7, 8]), num_classes=8)
    assert dataset[0]["data_samples"].gt_sem_seg.data.flatten().tolist() == [0, 7, 255]
    with pytest.raises(TrainingError, match=r"^The mask masks/1\.png holds the label 8; "):
        dataset[1]


def test_a_data_worker_s_refusal_of_a_label_is_one_line() -> None:
    dataset = PositionalDataset(Masks([9]), num_classes=8)
    split = PositionBatches(PositionOrder(dataset), 1, 1, rank=0, world_size=1)
    loader = DataLoader(dataset, batch_sampler=split, num_workers=1, collate_fn=list)
    with pytest.raises(TrainingError) as caught:
        next(iter(loader))
    assert failure_message(caught.value).startswith(
        "The mask masks/0.png holds the label 9; with num_classes"
    )


def test_the_label_that_losses_leave_out_and_what_reduces_zero_are_the_config_s() -> None:
    masks = Masks([0, 3])
    masks.reduce_zero_label = True

    assert PositionalDataset(masks, num_classes=2, ignore_index=3)[Draw(0, 0, 1)]

    class Repeated(Masks):
        dataset = masks

    with pytest.raises(TrainingError, match="reduce_zero_label is True"):
        PositionalDataset(Repeated([0, 3]), num_classes=2)[Draw(0, 0, 1)]


@pytest.mark.parametrize("sample", [{"inputs": 1}, {"data_samples": SimpleNamespace()}, 7])
def test_a_sample_without_a_mask_is_nothing_to_check(sample: Any) -> None:
    assert PositionalDataset([sample], num_classes=2)[Draw(0, 0, 1)] == sample
