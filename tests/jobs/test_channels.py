"""Models of other channels than three are evaluated, make maps and are handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from mmengine.config import Config
from PIL import Image
from rasterio.transform import from_origin
from support.fields import CLASSES, PIPELINE, any_image, lay_out, save
from support.models import DEMO, write_model

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.engine.jobs import evaluate, export
from mapsage_kaggle.engine.jobs import predict as engine
from mapsage_kaggle.engine.jobs.inference import TrainedModel, load_model
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.imagery.reading import ReadOptions
from mapsage_kaggle.imagery.sources import find_images

NAMES = [f"class {index}" for index in range(len(CLASSES))]


def config(place: Path, channels: int = 4) -> Config:
    """Return the config of a model of some channels, whose images are read as they are."""
    cfg = read_config(DEMO, ["model.decode_head.num_classes=4", f"model.backbone.in_channels={channels}"])
    cfg.model.data_preprocessor.mean, cfg.model.data_preprocessor.std = [127.5], [127.5]
    cfg.model.decode_head.loss_decode.avg_non_ignore = True  # else mmsegmentation warns
    pipeline = [{**PIPELINE[0], "color_type": "unchanged"}, PIPELINE[1], PIPELINE[3]]
    for name, split in (("train", "train"), ("val", "val"), ("test", "val")):
        cfg[f"{name}_dataloader"].dataset = {
            "type": "BaseSegDataset", "data_root": str(place), "metainfo": {"classes": CLASSES},
            "data_prefix": {"img_path": f"img/{split}", "seg_map_path": f"ann/{split}"},
            "img_suffix": ".png", "pipeline": pipeline, "test_mode": True,
        }  # fmt: skip
    return for_inference(cfg, {})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("fields"), image=lambda number: any_image(number, 4))


@pytest.fixture(scope="module")
def weights(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(config(place), tmp_path_factory.mktemp("weights") / "iter_8.pth", 1)


@pytest.fixture(scope="module")
def model(place: Path, weights: Path) -> TrainedModel:
    return load_model(config(place), weights, device="cpu")


def save_bands(path: Path, samples: np.ndarray, **profile: Any) -> Path:
    options = {"crs": "EPSG:32650", "transform": from_origin(5e5, 3.4e6, 0.3, 0.3), **profile}
    height, width, count = samples.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=samples.dtype,
        photometric="MINISBLACK", **options,
    ) as target:  # fmt: skip
        target.write(np.moveaxis(samples, -1, 0))
    return path


def predict(cfg: Config, model: TrainedModel, out: Path, *images: Path, **options: Any) -> dict[str, Any]:
    task = engine.Task(out=out, sources=find_images(images), **options)
    return engine.Predictor(cfg, model, task, "0" * 64, lambda event, **data: None).run()


def mask(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def expected(model: TrainedModel, path: Path) -> np.ndarray:
    """Return the classes of a PNG as mmsegmentation's own loader reads it."""
    image = torch.from_numpy(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)).permute(2, 0, 1)
    return model.labels(model.logits(image[None], windows=None))[0].numpy()


def test_png_and_bands_of_four_channels_become_one_map_in_its_place(
    place: Path, model: TrainedModel, tmp_path: Path
) -> None:
    samples = any_image(9, 4)
    save(tmp_path / "picture.png", samples)
    save_bands(tmp_path / "bands.tif", samples)
    found = predict(config(place), model, tmp_path / "out", tmp_path, overlay=True)
    assert found["refused"] == []
    wanted = expected(model, tmp_path / "picture.png")
    assert len(np.unique(wanted)) > 1
    np.testing.assert_array_equal(mask(tmp_path / "out" / "masks" / "picture.png"), wanted)
    with rasterio.open(tmp_path / "out" / "masks" / "bands.tif") as written:
        np.testing.assert_array_equal(written.read(1), wanted)
        assert written.crs.to_epsg() == 32650
    assert mask(tmp_path / "out" / "overlays" / "picture.png").shape == (64, 64, 3)


def test_a_scene_of_four_bands_is_looked_at_through_windows(
    place: Path, model: TrainedModel, tmp_path: Path
) -> None:
    samples = np.tile(any_image(3, 4), (5, 3, 1))
    samples[:64, :64] = 7
    file = save_bands(tmp_path / "scene.tif", samples, nodata=7)
    predict(config(place), model, tmp_path / "out", file, window=128, overlap=32)
    with rasterio.open(tmp_path / "out" / "masks" / "scene.tif") as written:
        found = written.read(1)
    # The last window lies alone at its corner.
    corner = np.ascontiguousarray(samples[-128:, -128:, [2, 1, 0, 3]].transpose(2, 0, 1))
    logits = model.logits(torch.from_numpy(corner)[None], windows=None)
    np.testing.assert_array_equal(found[-64:, -64:], model.labels(logits)[0, -64:, -64:].numpy())
    assert (found[:64, :64] == 255).all() and (found[64:] != 255).all()


def test_a_named_file_of_four_bands_keeps_its_place_and_its_no_data(
    place: Path, model: TrainedModel, tmp_path: Path
) -> None:
    samples = any_image(9, 4)
    samples[:8] = 7
    file = save_bands(tmp_path / "scene.tif", samples, nodata=7)
    with rasterio.open(file) as source:
        rasterio.shutil.copy(source, tmp_path / "scene.vrt", driver="VRT")
    assert predict(config(place), model, tmp_path / "out", tmp_path / "scene.vrt")["refused"] == []
    with rasterio.open(tmp_path / "out" / "masks" / "scene.tif") as written:
        assert (written.crs.to_epsg(), written.transform) == (32650, from_origin(5e5, 3.4e6, 0.3, 0.3))
        found = written.read(1)
    assert (found[:8] == 255).all() and (found[8:] != 255).all()


@pytest.mark.parametrize(("kind", "no_data"), [("uint16", 0), ("uint16", 65535), ("float32", np.nan)])
def test_no_data_of_bands_is_told_by_the_values_of_the_file(
    place: Path, model: TrainedModel, tmp_path: Path, kind: str, no_data: float
) -> None:
    samples = np.full((32, 32, 4), 290, kind)  # dark: 0 of 8 bits
    samples[:8] = no_data
    file = save_bands(tmp_path / "deep.tif", samples, nodata=no_data)
    options = ReadOptions(bands=(3, 2, 1, 4), value_range=(300, 3000))
    assert predict(config(place), model, tmp_path / "out", file, read=options)["refused"] == []
    with rasterio.open(tmp_path / "out" / "masks" / "deep.tif") as written:
        found = written.read(1)
    assert (found[:8] == 255).all() and (found[8:] != 255).all()


def test_bands_that_are_too_many_are_taken_by_the_line_of_the_refusal(
    place: Path, model: TrainedModel, tmp_path: Path
) -> None:
    file = save_bands(tmp_path / "five.tif", any_image(9, 5))
    (refused,) = predict(config(place), model, tmp_path / "out", file)["refused"]
    assert "has 5 bands, and the model takes 4 channels" in refused["problem"]
    bands = tuple(map(int, refused["problem"].rpartition("--bands ")[2].split(",")))
    found = predict(config(place), model, tmp_path / "out", file, read=ReadOptions(bands=bands))
    assert (found["num_done"], found["refused"]) == (1, [])


def test_four_bands_are_no_colours_for_a_model_of_three(tmp_path: Path) -> None:
    cfg = for_inference(read_config(DEMO), {})
    cfg.model.decode_head.loss_decode.avg_non_ignore = True
    three = load_model(cfg, write_model(cfg, tmp_path / "w.pth", 1), device="cpu")
    with pytest.raises(UsageError, match="does not name three bands"):
        predict(cfg, three, tmp_path / "out", tmp_path / "w.pth", read=ReadOptions(bands=(1, 2, 3, 4)))


def job(place: Path, weights: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    config(place).dump(tmp_path / "config.py")
    return {
        "config": str(tmp_path / "config.py"), "checkpoint": str(weights), "sha256": None, "device": "cpu",
        "split": "val", "windows": None, "window_batch": 1, "views": [(1.0, "")],
        "tally": str(tmp_path / "tally.jsonl"), **more,
    }  # fmt: skip


@pytest.mark.parametrize("draws", [True, False])
def test_a_picture_that_cannot_be_drawn_costs_no_score(
    place: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draws: bool
) -> None:
    told: list[str] = []
    if not draws:
        monkeypatch.setattr(evaluate, "drawable", lambda samples, blue_first: samples[:0])
    found = evaluate.run(
        job(place, weights, tmp_path),
        lambda event, **data: told.append(data["problem"]) if event == "warning" else None,
    )
    assert len(found["images"]) == 2
    assert len((tmp_path / "tally.jsonl").read_text().splitlines()) >= 2
    assert len(list(tmp_path.glob("tally-*.png"))) == (2 if draws else 0)
    assert len(told) == (0 if draws else 2)
    assert all(line.startswith(f"No picture was drawn of {place}/img/val/") for line in told)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_an_image_of_any_channels_is_drawn(channels: int, kind: torch.dtype) -> None:
    labels = torch.zeros(8, 8, dtype=torch.long)
    inputs = (torch.arange(64 * channels).reshape(channels, 8, 8) * 0.5).to(kind)
    assert evaluate.example({"inputs": inputs}, labels, labels, [(1, 2, 3)]).startswith(b"\x89PNG")


def test_four_channels_are_handed_on_and_said(place: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    found = export.run(
        job(place, weights, tmp_path, out=str(tmp_path / "out"), forms=["safetensors", "torch"], images=[]),
        lambda event, **data: None,
    )
    assert [item["name"] for item in found["files"]] == ["model.safetensors", "model.pt2"], found["failed"]
    assert found["compared_on"] == ["4.png", "5.png"]
    model = load_model(config(place), weights, device="cpu")
    told = export._classes(config(place), model, export.Portable(model.net), 1, None)["input"]
    assert told["num_channels"] == 4
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    image = torch.from_numpy(cv2.imread(str(place / "img/val/4.png"), cv2.IMREAD_UNCHANGED)).permute(2, 0, 1)
    with torch.no_grad():
        labels = program(image[None].float()).argmax(1)[0].numpy()
    assert (labels == expected(model, place / "img/val/4.png")).mean() > 0.99
