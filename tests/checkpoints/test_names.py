"""What checkpoint files are called."""

from __future__ import annotations

import pytest

from mapsage_kaggle.checkpoints.names import (
    best_name,
    counts_in,
    iteration_name,
    iteration_of,
    kind_of,
    likely_kind_of,
    metric_of,
)


@pytest.mark.parametrize(
    ("name", "kind", "iteration"),
    [
        ("iter_8.pth", "iter", 8),
        ("iter_08.pth", "iter", 8),
        ("iter_999999999999999.pth", "iter", 999_999_999_999_999),
        ("best_mIoU_iter_8.pth", "best", 8),
        ("best_val_iter_3_iter_8.pth", "best", 8),
        ("epoch_8.pth", "epoch", None),
        ("best_mIoU_epoch_8.pth", "epoch", None),
        ("latest.pth", "latest", None),
        ("last_checkpoint", "last_checkpoint", None),
        ("iter_1234567890123456.pth", "other", None),
        ("iter_\uff11\uff12.pth", "other", None),
        ("iter_\u0663.pth", "other", None),
        ("best_mIoU_iter_\uff18.pth", "other", None),
        ("best__iter_8.pth", "other", None),
        ("iter_-8.pth", "other", None),
        ("iter_8.pth\n", "other", None),
        ("my_iter_8.pth", "other", None),
        ("x.pth", "other", None),
    ],
)
def test_a_name_states_its_kind_and_iteration(name: str, kind: str, iteration: int | None) -> None:
    assert kind_of(name) == kind
    assert iteration_of(name) == iteration


@pytest.mark.parametrize("metric", ["mIoU", "val_iter_3", "IoU.water"])
def test_what_is_formatted_is_read_back(metric: str) -> None:
    assert iteration_of(iteration_name(8000)) == 8000
    assert iteration_of(best_name(metric, 8000)) == 8000
    assert metric_of(best_name(metric, 8000)) == metric
    assert metric_of(iteration_name(8000)) is None


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("mine_iter_8.pth", (8, None)),
        ("iter_8.pth", (8, None)),
        ("best_mIoU_epoch_8.pth", (None, 8)),
        ("miter_8.pth", (None, None)),
        ("iter_\uff18.pth", (None, None)),
    ],
)
def test_any_name_that_ends_like_one_states_a_count(name: str, counts: tuple[int | None, int | None]) -> None:
    assert counts_in(name) == counts


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("iter_24 (1).pth", "iter"),
        ("iter_24(1).pth", "iter"),
        ("iter_24 - Copy.pth", "iter"),
        ("iter_24_副本.pth", "iter"),
        ("iter_24副本.pth", "iter"),
        ("iter_24的副本.pth", "iter"),
        ("iter_24のコピー.pth", "iter"),
        ("iter_24.pt", "iter"),
        ("Copy of iter_24.pth", "iter"),
        ("best_mIoU_iter_24 (1).pth", "best"),
        ("epoch_3 (1).pth", "epoch"),
        ("iter_24.pth", "iter"),
        ("iter_8k.pth", "other"),
        ("iter_1234567890123456 (1).pth", "other"),
        ("iter_\uff11\uff12 (1).pth", "other"),
        ("segformer_iter_80000.pth", "other"),
        ("model.pt", "other"),
    ],
)
def test_a_copy_is_known_for_one(name: str, kind: str) -> None:
    assert likely_kind_of(name) == kind
    assert name == "iter_24.pth" or kind_of(name) == "other"
