"""Transforms that own a generator: seeded by position where that can be, and named where not."""

from __future__ import annotations

import itertools
import os
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from mapsage_kaggle.engine import drawing, sampling, seeding, session
from mapsage_kaggle.engine.drawing import own_generators, what_differs
from mapsage_kaggle.engine.reading import EVENTS_VARIABLE
from mapsage_kaggle.engine.sampling import Draw, PositionalDataset

OF_THE_MODULE = np.random.default_rng()


class Images(Dataset[Any]):
    """Samples made of their index alone, and what transforms make of them."""

    def __init__(self, pipeline: list[type]) -> None:
        self.pipeline = SimpleNamespace(transforms=[kind() for kind in pipeline])

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        results: dict[str, Any] = {"img": np.full((2, 2), index, np.float64)}
        for transform in self.pipeline.transforms:
            results = transform(results)
        return results


class Transform:
    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        return {**results, type(self).__name__: self.draw()}

    def draw(self) -> float:
        return 0.0


class Stock(Transform):
    def draw(self) -> float:
        return random.random() + np.random.random() + float(torch.rand(()))


class OpenCV(Transform):
    def draw(self) -> float:
        import cv2

        values = np.zeros((1, 1))
        cv2.randu(values, 0.0, 1.0)
        return float(values[0, 0])


class Rng(Transform):
    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def draw(self) -> float:
        return float(self.rng.random())


class OldRng(Rng):
    def __init__(self) -> None:
        self.rng = np.random.RandomState()


class PythonRng(Rng):
    def __init__(self) -> None:
        self.rng = random.Random()


class TorchRng(Rng):
    def __init__(self) -> None:
        self.rng = torch.Generator()
        self.rng.seed()

    def draw(self) -> float:
        return float(torch.rand((), generator=self.rng))


class LikeAlbumentations(Transform):
    """Two transforms below one that share its generators, as albumentations' do."""

    def __init__(self) -> None:
        self.aug = SimpleNamespace(random_generator=np.random.default_rng(), py_random=random.Random())
        self.aug.transforms = [SimpleNamespace(**vars(self.aug)) for _ in range(2)]

    def draw(self) -> float:
        return sum(
            float(item.random_generator.random()) + item.py_random.random() for item in self.aug.transforms
        )


class Replaces(Rng):
    """Puts another generator in the place of its own after each sample."""

    def draw(self) -> float:
        value = super().draw()
        self.rng = np.random.default_rng()
        return value


class OutOfReach(Transform):
    def draw(self) -> float:
        return float(OF_THE_MODULE.random())


class AtTheStart(Transform):
    def __init__(self) -> None:
        self.angle = int.from_bytes(os.urandom(4), "little")

    def draw(self) -> float:
        return float(self.angle)


class ByHistory(Transform):
    def __init__(self) -> None:
        self.calls = 0

    def draw(self) -> float:
        self.calls += 1
        return float(self.calls)


class FromTheSystem(Rng):
    def __init__(self) -> None:
        self.rng = random.SystemRandom()


class Fails(Transform):
    def draw(self) -> float:
        raise ValueError("no such image")


def positional(*pipeline: type) -> dict[str, Any]:
    return {"type": "MapsagePositional", "dataset": {"type": Images, "pipeline": list(pipeline)}}


DRAWS = [Draw(position, position % 5, seeding.derive("sample", 3, position)) for position in range(6)]
SEEDABLE = [Stock, OpenCV, Rng, OldRng, PythonRng, TorchRng, LikeAlbumentations, Replaces]


@pytest.mark.parametrize("kind", SEEDABLE)
def test_a_sample_follows_from_its_position_whoever_owns_the_generator(kind: type) -> None:
    first, second = PositionalDataset(Images([kind])), PositionalDataset(Images([kind]))
    forth = [first[draw][kind.__name__] for draw in DRAWS]
    back = [second[draw][kind.__name__] for draw in reversed(DRAWS)]
    assert forth == back[::-1]
    assert len(set(forth)) == len(DRAWS)


def test_two_generators_of_one_transform_draw_different_streams() -> None:
    class Two(Transform):
        def __init__(self) -> None:
            self.rngs = [np.random.default_rng() for _ in range(2)]

        def draw(self) -> float:
            return float(self.rngs[0].random() - self.rngs[1].random())

    assert PositionalDataset(Images([Two]))[DRAWS[0]]["Two"] != 0.0


def test_the_global_generators_are_none_that_a_transform_owns() -> None:
    held: list[Any] = [np.random.mtrand._rand, random._inst, torch.default_generator, np.random]  # type: ignore[attr-defined]
    own = np.random.default_rng()
    assert own_generators({"a": held, "b": ({"c": own}, own)}) == [own]


def test_a_data_set_without_generators_is_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def counted(owner: Any) -> list[Any]:
        looked.append(owner)
        return own_generators(owner)

    monkeypatch.setattr(sampling, "own_generators", counted)
    dataset = PositionalDataset(Images([Stock]))
    for draw in DRAWS:
        dataset[draw]
    assert len(looked) == 1


# --- drawn twice -----------------------------------------------------------------------------------------


def test_what_follows_from_the_position_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EVENTS_VARIABLE, "events.jsonl")
    with seeding.preserved_generators():
        seeding.seed_sample(5)
        expected = Stock().draw()
        seeding.seed_sample(5)
        assert what_differs(positional(*SEEDABLE), DRAWS) == ()
        assert Stock().draw() == expected  # of this process nothing is drawn
    assert os.environ[EVENTS_VARIABLE] == "events.jsonl"


@pytest.mark.parametrize("kind", [OutOfReach, AtTheStart, ByHistory, FromTheSystem])
def test_what_still_differs_is_named_and_nothing_that_comes_after_it(kind: type) -> None:
    assert what_differs(positional(Stock, kind, Rng), DRAWS) == (kind.__name__,)


def test_generators_that_are_not_seeded_would_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "seed_own", lambda generators, seed: None)
    assert what_differs(positional(Stock, Rng), DRAWS) == ("Rng",)


def test_a_data_set_without_a_pipeline_is_named_itself() -> None:
    assert what_differs({"type": "MapsagePositional", "dataset": {"type": Bare}}, DRAWS) == ("Bare",)


class Bare(Dataset[Any]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> float:
        return float(OF_THE_MODULE.random())


def test_a_sample_that_cannot_be_drawn_is_an_error_and_not_a_difference() -> None:
    with pytest.raises(Exception, match="no such image"):
        what_differs(positional(Fails), DRAWS)


def test_drawing_ends_once_two_were_compared_where_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 61.0)
    monkeypatch.setattr(drawing, "time", SimpleNamespace(monotonic=clock.__next__))
    assert what_differs(positional(OutOfReach), DRAWS) == ("OutOfReach",)
    assert next(clock) < 61.0 * 5


# --- told ------------------------------------------------------------------------------------------------


def told(*pipeline: type) -> tuple[list[tuple[str, str]], list[str]]:
    """Return what the record's exactness, with its grade, and a person are told before training begins."""
    reasons: list[tuple[str, str]] = []
    warnings: list[str] = []
    batches = SimpleNamespace(draws=lambda iteration, micro_batch: DRAWS[iteration : iteration + 1])
    runner: Any = SimpleNamespace(
        train_dataloader=SimpleNamespace(batch_sampler=batches),
        cfg=SimpleNamespace(train_dataloader=SimpleNamespace(dataset=positional(*pipeline))),
    )

    def not_exact(reason: str, *, grade: str = "neither") -> None:
        reasons.append((reason, grade))

    worker: Any = SimpleNamespace(
        checkpoints=SimpleNamespace(not_exact=not_exact),
        warn=lambda iteration, message: warnings.append(message),
    )
    session._draw_twice(worker, runner, 0)
    return reasons, warnings


def test_nothing_is_said_where_all_follows_from_the_position() -> None:
    assert told(Stock, Rng) == ([], [])


def test_what_still_differs_is_a_reason_and_a_warning() -> None:
    reasons, warnings = told(Stock, OutOfReach)
    assert reasons == [("OutOfReach gives another result each time, whatever is seeded", "neither")]
    assert warnings[0].startswith("OutOfReach gives another result for the same sample each time")


def test_what_could_not_be_drawn_is_not_claimed_to_follow() -> None:
    [(reason, grade)], warnings = told(Fails)
    assert grade == "not shown"
    assert reason.startswith("it was not seen whether samples follow from their positions: ")
    assert "no such image" in reason
    assert warnings == []
