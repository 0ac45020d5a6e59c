"""The pictures of validation that the report shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image

from mapsage_kaggle.engine.tiles import MAX_IMAGES, SIDE_PX, PredictionTiles
from mapsage_kaggle.paths import predictions_below

PALETTE = ((255, 255, 255), (255, 0, 0))
IMAGES = 9


def tiles_in(folder: Path) -> PredictionTiles:
    return PredictionTiles(folder, classes=2, palette=PALETTE, num_batches=IMAGES)


def validate(tiles: PredictionTiles, *, predicted: int, side: int = 600, only: int = IMAGES) -> None:
    """Go through a validation that predicts one class everywhere."""
    tiles.before_val(None)
    for index in range(only):
        truth = torch.zeros(1, side, side, dtype=torch.int64)
        truth[:, : side // 2] = 1
        truth[:, :, : side // 3] = 255
        sample = SegDataSample(metainfo={"img_path": f"/data/{index} é.png"})
        sample.gt_sem_seg = PixelData(data=truth)
        sample.pred_sem_seg = PixelData(data=torch.full_like(truth, predicted))
        blue = torch.zeros(3, side, side, dtype=torch.uint8)
        blue[0] = 200  # blue comes first
        tiles.after_val_iter(None, index, {"inputs": [blue]}, [sample])


def shown(path: Path | None) -> Any:
    assert path is not None
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_truth_and_prediction_are_in_the_classes_colours(tmp_path: Path) -> None:
    tiles = tiles_in(tmp_path / "predictions")
    validate(tiles, predicted=1)
    tiles.write(100)

    found = predictions_below(tmp_path / "predictions")

    assert [item.name for item in found] == ["0-", "3-", "6-"]
    truth = shown(found[0].truth)
    assert {tuple(colour) for colour in truth.reshape(-1, 3)} == {(64, 64, 64), *PALETTE}
    assert (shown(found[0].predictions[100]) == PALETTE[1]).all()
    assert (shown(found[0].image) == (0, 0, 200)).all()
    assert max(truth.shape) <= SIDE_PX
    assert shown(found[0].image).shape == truth.shape


def test_the_first_and_the_newest_prediction_are_kept_and_no_more(tmp_path: Path) -> None:
    for iteration in range(100, 1100, 100):
        # A child of its own each time, as after a resume.
        tiles = tiles_in(tmp_path / "predictions")
        validate(tiles, predicted=iteration % 200 == 0)
        tiles.write(iteration)

    found = predictions_below(tmp_path / "predictions")

    assert [sorted(item.predictions) for item in found] == [[100, 1000]] * MAX_IMAGES
    assert len(list((tmp_path / "predictions").iterdir())) == 4 * MAX_IMAGES
    assert sum(path.stat().st_size for path in (tmp_path / "predictions").iterdir()) < 2_000_000


def test_where_training_went_back_later_predictions_go(tmp_path: Path) -> None:
    tiles = tiles_in(tmp_path)
    for iteration in (100, 300, 200):
        validate(tiles, predicted=0)
        tiles.write(iteration)
    assert [sorted(item.predictions) for item in predictions_below(tmp_path)] == [[100, 200]] * MAX_IMAGES


def test_a_validation_that_was_left_leaves_nothing(tmp_path: Path) -> None:
    tiles = tiles_in(tmp_path)
    validate(tiles, predicted=0, only=5)
    tiles.before_val(None)
    tiles.write(100)
    assert list(tmp_path.iterdir()) == []


def test_no_random_number_is_drawn(tmp_path: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    tiles = tiles_in(tmp_path)
    validate(tiles, predicted=1)
    tiles.write(100)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_what_is_no_picture_of_three_colours_is_shown_by_its_classes_alone(tmp_path: Path) -> None:
    tiles = tiles_in(tmp_path)
    sample = SegDataSample(metainfo={"img_path": "many_bands.tif"})
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 8, 8, dtype=torch.int64))
    sample.pred_sem_seg = PixelData(data=torch.ones(1, 8, 8, dtype=torch.int64))
    tiles.after_val_iter(None, 0, {"inputs": [torch.zeros(10, 8, 8)]}, [sample])
    tiles.write(1)
    [found] = predictions_below(tmp_path)
    assert found.image is None
    assert found.truth is not None


@pytest.mark.parametrize("name", ["report_curves.png", "x_iter_.png", "x_iter_1.txt", "image.png"])
def test_other_files_are_no_predictions(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert predictions_below(tmp_path) == []


def test_what_no_picture_can_be_made_of_does_not_end_a_validation(tmp_path: Path) -> None:
    tiles = tiles_in(tmp_path / "predictions")
    tiles.before_val(None)
    sample = SegDataSample(metainfo={"img_path": "a.png"})
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 8, 8, dtype=torch.int64))
    sample.pred_sem_seg = PixelData(data=torch.zeros(2, 8, 8, dtype=torch.int64))  # one map a class
    tiles.after_val_iter(None, 0, {"inputs": [torch.zeros(3, 8, 8, dtype=torch.uint8)]}, [sample])
    assert isinstance(tiles.problem, RuntimeError)
    tiles.write(100)

    validate(tiles, predicted=1)
    assert tiles.problem is None
