"""What is drawn depends on the seed and the position alone, and never on what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from mapsage_kaggle.engine import seeding

BITS_64 = (1 << 64) - 1


def draws() -> tuple[float, float, float]:
    """Return a number of Python's generator, of NumPy's and of torch's."""
    return random.random(), float(np.random.random()), float(torch.rand((), dtype=torch.float64))


@pytest.fixture(autouse=True)
def _generators_as_before() -> Iterator[None]:
    with seeding.preserved_generators():
        yield


# A run that is resumed by a later version goes on with these streams: they must never change.
@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("order", 0), 828227132408611792),
        (("order", 304, 12), 17700131712324215365),
        (("sample", 7, 3), 2082461961845530417),
        (("step", 1, 2, 0, 1), 2480508538256192809),
    ],
)
def test_a_derived_value_is_the_same_for_ever(arguments: tuple[str, int], value: int) -> None:
    assert seeding.derive(*arguments) == value


def test_any_other_domain_seed_or_position_gives_another_value() -> None:
    asked = [
        (domain, seed, *position)
        for domain in ("order", "sample", "step", "init", "substitute")
        for seed in (0, 1, 11)
        for position in ((), (0,), (1,), (11,), (0, 0), (1, 1), (0, 1), (1, 0))
    ]
    assert len({seeding.derive(*item) for item in asked}) == len(asked)


def test_no_two_uses_share_a_domain() -> None:
    domains = [seeding.ORDER, seeding.SAMPLE, seeding.STEP, seeding.INIT, seeding.SUBSTITUTE]
    assert domains == ["order", "sample", "step", "init", "substitute"]


def test_numbers_of_numpy_and_torch_are_positions_too() -> None:
    plain = seeding.derive("sample", 7, 3)
    assert seeding.derive("sample", np.int64(7), np.int32(3)) == plain
    assert seeding.derive("sample", 7, torch.tensor(3)) == plain  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [seeding.seed_sample, lambda value: seeding.seed_step(value, 5, 1, 2)])
@pytest.mark.parametrize("value", [0, 1 << 31, 1 << 32, 1 << 63, BITS_64])
def test_every_generator_starts_again_from_a_seed(seed: Callable[[int], None], value: int) -> None:
    seed(value)
    first = draws()
    draws()
    seed(value)
    assert draws() == first


@pytest.mark.parametrize(
    ("bit", "generators"),
    [(0, (0, 1, 2)), (31, (0, 1, 2)), (32, (0,)), (63, (0,))],
    ids=["lowest", "NumPy's and torch's highest", "beyond theirs", "Python's highest"],
)
def test_each_generator_takes_all_bits_that_it_can(bit: int, generators: tuple[int, ...]) -> None:
    seeding.seed_sample(5)
    first = draws()
    seeding.seed_sample(5 ^ 1 << bit)
    second = draws()
    assert tuple(index for index in range(3) if first[index] != second[index]) == generators


def test_torch_is_given_63_bits_which_the_generator_of_a_gpu_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "derive", lambda *_: BITS_64)
    seeding.seed_sample(BITS_64)
    assert torch.initial_seed() == (1 << 63) - 1
    torch.manual_seed(0)
    seeding.seed_step(3, 7, 1, 2)
    assert torch.initial_seed() == (1 << 63) - 1


def test_every_step_rank_and_micro_batch_draws_its_own_numbers() -> None:
    seen = set()
    for place in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)):
        seeding.seed_step(*place)
        seen |= set(draws())
    assert len(seen) == 3 * 5


def test_a_step_draws_what_a_sample_of_the_derived_value_draws() -> None:
    seeding.seed_step(3, 7, 1, 2)
    step = draws()
    seeding.seed_sample(seeding.derive(seeding.STEP, 3, 7, 1, 2))
    assert draws() == step


def test_generators_are_put_back_as_they_were_whatever_happens() -> None:
    seeding.seed_sample(1)
    expected = draws()
    seeding.seed_sample(1)
    with pytest.raises(KeyError), seeding.preserved_generators():
        seeding.seed_sample(2)
        raise KeyError
    assert draws() == expected
