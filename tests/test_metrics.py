"""Scores are the textbook's, and an interval tells a gain from noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mapsage_kaggle.metrics import add, miou_interval, open_tally, paired_interval, read_tally, score

if TYPE_CHECKING:
    from mapsage_kaggle.metrics import Counts

NAMES = ("land", "water")


def matrix(*rows: tuple[int, int, int]) -> Counts:
    return np.array(rows, dtype=np.int64)


def images(num: int, share: float, spread: float, *, seed: int = 0) -> Counts:
    """Return counts of images of 1,000 pixels a class, of which about ``share`` are right."""
    generator = np.random.default_rng(seed)
    right = np.clip(generator.normal(share, spread, (num, 2)) * 1000, 0, 1000).astype(np.int64)
    found = np.zeros((num, 3, 3), np.int64)
    found[:, 0, 0], found[:, 0, 1] = right[:, 0], 1000 - right[:, 0]
    found[:, 1, 1], found[:, 1, 0] = right[:, 1], 1000 - right[:, 1]
    return found


def test_scores_of_a_matrix_worked_out_by_hand() -> None:
    found = score(matrix((6, 2, 0), (1, 3, 0), (0, 0, 0)), NAMES, num_images=1)

    land, water = found.classes
    assert (land.iou, land.precision, land.recall, land.f1) == pytest.approx((6 / 9, 6 / 7, 6 / 8, 12 / 15))
    assert (water.iou, water.precision, water.recall, water.f1) == pytest.approx((3 / 6, 3 / 5, 3 / 4, 6 / 9))
    assert found.miou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert found.fwiou == pytest.approx((8 * 6 / 9 + 4 * 3 / 6) / 12)
    assert found.accuracy == pytest.approx(9 / 12)
    assert found.mean_accuracy == pytest.approx(3 / 4)


def test_a_class_that_never_occurs_has_no_score_and_does_not_count() -> None:
    found = score(matrix((6, 0, 0), (0, 0, 0), (0, 0, 0)), NAMES, num_images=1)

    assert found.classes[1].iou is None
    assert found.miou == 1.0


def test_nothing_counted_has_no_scores_and_no_interval() -> None:
    nothing = np.zeros((1, 3, 3), np.int64)

    assert score(nothing[0], NAMES, num_images=1).miou is None
    assert miou_interval(nothing) is None


def test_the_interval_is_about_that_of_the_mean_where_images_weigh_the_same() -> None:
    # With equal images and small errors, IoU = x / (2 - x) of the share that is right.
    found = images(400, 0.8, 0.05)

    interval = miou_interval(found)

    assert interval is not None
    slope = 2 / (2 - 0.8) ** 2
    expected = 1.96 * 0.05 * slope / np.sqrt(400 * 2)
    assert (interval.high - interval.low) / 2 == pytest.approx(expected, rel=0.25)
    assert interval.low < interval.value < interval.high


def test_more_images_make_it_narrower() -> None:
    few, many = miou_interval(images(50, 0.8, 0.1)), miou_interval(images(800, 0.8, 0.1))

    assert few is not None
    assert many is not None
    assert (few.high - few.low) > 3 * (many.high - many.low)


def test_an_interval_is_the_same_whenever_it_is_asked_for() -> None:
    assert miou_interval(images(30, 0.7, 0.1)) == miou_interval(images(30, 0.7, 0.1))


def test_of_two_equally_good_models_neither_is_called_better() -> None:
    # By its definition an interval of 95 % is wrong in about one of twenty such pairs.
    wrong = 0
    for seed in range(40):
        gain = paired_interval(
            images(60, 0.8, 0.1, seed=seed), images(60, 0.8, 0.1, seed=1000 + seed), resamples=400
        )
        assert gain is not None
        wrong += gain.settled
    assert wrong <= 6


def test_a_small_gain_on_every_image_is_seen_through_the_images_differing_much() -> None:
    weaker = images(100, 0.6, 0.1)
    better = weaker.copy()
    better[:, 0, 0] += 3
    better[:, 0, 1] -= 3

    gain, alone = paired_interval(better, weaker), miou_interval(better)

    assert gain is not None
    assert alone is not None
    assert gain.settled
    assert gain.low > 0
    assert alone.high - alone.low > 10 * (gain.high - gain.low)


def test_models_of_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not of the same images"):
        paired_interval(images(3, 0.5, 0.1), images(4, 0.5, 0.1))


def test_a_tally_that_was_cut_off_is_read_up_to_there_and_added_to(tmp_path: Path) -> None:
    file = tmp_path / "tally.jsonl"
    with open_tally(file) as stream:
        add(stream, "one", [[1, 2], [3, 4]])
        add(stream, "two", [[5, 6], [7, 8]])
    file.write_bytes(file.read_bytes()[:-9])

    assert read_tally(file) == {"one": [[1, 2], [3, 4]]}
    with open_tally(file) as stream:
        add(stream, "two", [[5, 6], [7, 8]])
    assert read_tally(file) == {"one": [[1, 2], [3, 4]], "two": [[5, 6], [7, 8]]}


def test_there_may_be_no_tally_yet(tmp_path: Path) -> None:
    assert read_tally(tmp_path / "none.jsonl") == {}
