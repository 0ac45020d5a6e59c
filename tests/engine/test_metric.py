"""The IoU metric of whole numbers: mmsegmentation's figures, the same over any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from mmseg.evaluation import IoUMetric

from mapsage_kaggle.config.patch import PatchContext, plan_patch
from mapsage_kaggle.engine import metric
from mapsage_kaggle.engine.metric import IntegerIoUMetric, confusion_matrix
from mapsage_kaggle.errors import DataError

CLASSES = ("background", "building", "road", "water", "never")
IMAGES = 5


def sample(index: int) -> dict[str, Any]:
    """Return one image's prediction and label: with ignored pixels, and values that are no class."""
    generator = torch.Generator().manual_seed(index)
    label = torch.randint(0, 4, (40, 30), generator=generator)
    prediction = torch.where(torch.rand(40, 30, generator=generator) < 0.7, label, (label + index + 1) % 4)
    label[:3] = 255
    label[3, :5] = 9
    return {
        "pred_sem_seg": {"data": prediction[None]},
        "gt_sem_seg": {"data": label[None].to(torch.uint8)},
        "img_path": f"/images/{index}.png",
    }


def run(made: IoUMetric, *, batch_size: int = 1) -> dict[str, float]:
    made.dataset_meta = {"classes": CLASSES}
    for begin in range(0, IMAGES, batch_size):
        made.process({}, [sample(index) for index in range(begin, min(begin + batch_size, IMAGES))])
    return dict(made.evaluate(IMAGES))


@pytest.mark.parametrize(
    "options",
    [{}, {"iou_metrics": ["mIoU", "mDice", "mFscore"]}, {"nan_to_num": 0, "prefix": "val"}, {"beta": 2}],
    ids=["default", "all", "nan_to_num", "beta"],
)
def test_its_figures_are_those_of_the_stock_metric(options: dict[str, Any]) -> None:
    expected = run(IoUMetric(**options))
    for batch_size in (1, 2):
        assert run(IntegerIoUMetric(**options), batch_size=batch_size) == pytest.approx(
            expected, abs=0.0051, nan_ok=True
        )


@pytest.mark.parametrize("size", [(30, 40), (20, 30)], ids=["as many pixels", "fewer pixels"])
def test_a_mask_of_another_size_is_refused_by_its_image(size: tuple[int, int]) -> None:
    made, given = IntegerIoUMetric(), sample(3)
    made.dataset_meta = {"classes": CLASSES}
    given["gt_sem_seg"]["data"] = torch.zeros(1, *size, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"mask of /images/3\.png has .* its prediction \(40, 30\)"):
        made.process({}, [given])


def test_it_says_what_each_class_reached_and_none_where_a_class_does_not_occur() -> None:
    made = IntegerIoUMetric()
    run(made)
    first = made.per_class["building"]
    pairs = [
        (item["gt_sem_seg"]["data"], item["pred_sem_seg"]["data"]) for item in map(sample, range(IMAGES))
    ]
    label = torch.cat([truth[truth != 255].long() for truth, _ in pairs])
    predicted = torch.cat([guess[truth != 255] for truth, guess in pairs])
    both = int(((label == 1) & (predicted == 1)).sum())
    assert first["Acc"] == both / int((label == 1).sum())
    assert first["IoU"] == both / int(((label == 1) | (predicted == 1)).sum())
    assert made.per_class["never"] == {"IoU": None, "Acc": None}
    json.dumps(metric.scores_by_class([made]))


def test_it_counts_exactly_where_float32_does_not() -> None:
    made = IntegerIoUMetric()
    made.dataset_meta = {"classes": ("a", "b")}
    big = torch.tensor([[2**24, 1, 0], [0, 1, 0], [0, 0, 0]])
    made.results += [big, torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 0]])]
    made.evaluate(2)
    assert made.confusion is not None
    assert int(made.confusion[0, 0]) == 2**24 + 1


def test_a_second_evaluation_starts_from_nothing() -> None:
    made = IntegerIoUMetric()
    first = run(made)
    assert run(made) == pytest.approx(first, nan_ok=True)
    assert made.confusion is not None
    assert int(made.confusion.sum()) == IMAGES * 37 * 30


def test_the_matrix_has_labels_in_rows_and_what_is_no_class_last() -> None:
    label = torch.tensor([0, 0, 1, 255, 7])
    prediction = torch.tensor([0, 1, 1, 0, 0])
    assert confusion_matrix(prediction, label, 2, 255).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("ignore_index", [255, 1, -100, 300])
@pytest.mark.parametrize("values", [(0, 4), (0, 256), (-2, 300)])
def test_every_pair_is_counted_in_its_place(
    values: tuple[int, int], ignore_index: int, dtype: torch.dtype
) -> None:
    draws = torch.Generator().manual_seed(0)
    lowest, end = (max(values[0], 0), min(values[1], 256)) if dtype == torch.uint8 else values
    label, prediction = (
        torch.randint(lowest, end, (23, 31), generator=draws).to(dtype)[:, 1:] for _ in range(2)
    )
    expected = torch.zeros(6, 6, dtype=torch.int64)
    for row, column in zip(label.flatten().tolist(), prediction.flatten().tolist(), strict=True):
        if row != ignore_index:
            expected[row if 0 <= row < 5 else 5, column if 0 <= column < 5 else 5] += 1
    assert torch.equal(confusion_matrix(prediction, label, 5, ignore_index), expected)


def test_an_image_of_more_pixels_than_float32_counts_is_counted_exactly() -> None:
    label = torch.zeros(4097, 4097, dtype=torch.uint8)
    label[0, 0] = 1
    matrix = confusion_matrix(label, label, 2, 255)
    assert matrix.tolist() == [[4097 * 4097 - 1, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("evaluator", "key"),
    [
        ({"type": "mmseg.IoUMetric", "iou_metrics": ["mIoU"]}, "val_evaluator.type"),
        ([{"type": "Other"}, {"type": "IoUMetric"}], "val_evaluator.1.type"),
    ],
)
def test_the_plan_puts_it_in_the_place_of_the_stock_metric(evaluator: Any, key: str, tmp_path: Path) -> None:
    cfg = {
        "model": {},
        "optim_wrapper": {},
        "train_dataloader": {"batch_size": 2, "sampler": {"type": "InfiniteSampler"}, "dataset": {}},
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 1},
        "val_evaluator": evaluator,
    }
    planned = plan_patch(cfg, Path("small.py"), PatchContext(work_dir=tmp_path))
    assert {change.key: change.new for change in planned.changes}[key] == "MapsageIoUMetric"


def _rank(rank: int, folder: str) -> None:
    """Process what mmengine's sampler deals to one of two ranks; the last one gets a repeated image."""
    from mmengine.dataset import DefaultSampler

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    made = IntegerIoUMetric()
    made.dataset_meta = {"classes": CLASSES}
    dealt = list(DefaultSampler(range(IMAGES), shuffle=False))
    for index in dealt:
        made.process({}, [sample(index)])
    metrics = made.evaluate(IMAGES)
    assert made.confusion is not None
    document = {"dealt": dealt, "metrics": metrics, "confusion": made.confusion.tolist()}
    Path(folder, f"{rank}.json").write_text(json.dumps(document, default=float))
    torch.distributed.destroy_process_group()


@pytest.mark.slow(scope_s=5)
def test_two_ranks_count_what_one_counts_and_a_repeated_image_once(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [len(item["dealt"]) for item in seen] == [3, 3]
    made = IntegerIoUMetric()
    run(made)
    assert made.confusion is not None
    for item in seen:
        assert item["confusion"] == made.confusion.tolist()
