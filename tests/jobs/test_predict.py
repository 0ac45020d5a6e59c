"""Predicting gives mmsegmentation's masks, large scenes in bounded memory, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from mmengine.config import Config
from mmseg.apis import MMSegInferencer
from PIL import Image
from rasterio.transform import from_origin
from support import warm
from support.disks import limited_files, small_disk, used_bytes

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.checkpoints.lock import WorkDirLock
from mapsage_kaggle.cli import main
from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.data.scenes import draw_scene, generate_scenes
from mapsage_kaggle.engine.jobs import predict as engine
from mapsage_kaggle.engine.jobs import preparing
from mapsage_kaggle.engine.jobs.inference import TrainedModel, build_model, load_model
from mapsage_kaggle.engine.jobs.preparing import TestPipeline
from mapsage_kaggle.errors import EXIT_DONE, EXIT_MACHINE, EXIT_USAGE, ConfigError, MachineError, UsageError
from mapsage_kaggle.imagery import outputs
from mapsage_kaggle.imagery.parts import Parts
from mapsage_kaggle.imagery.sources import JOURNAL, LOCK, find_images
from mapsage_kaggle.imagery.writing import Labels, WriteFailed

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "configs" / "demo.py"
TRANSFORM = from_origin(500_000.0, 3_400_000.0, 0.3, 0.3)
SMALL = ["model.backbone.embed_dims=8", "model.decode_head.in_channels=[8,16,32,48]"]


def config(*overrides: str) -> Config:
    cfg = for_inference(read_config(DEMO, [*SMALL, *overrides]), {})
    cfg.model.decode_head.loss_decode.avg_non_ignore = True  # else mmsegmentation warns
    return cfg


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint whose model tells classes apart, if wrongly."""
    torch.manual_seed(3)
    net = build_model(config())
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape) * 0.2)
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    # No class may drown the others: each gets the same mean over a scene.
    image = torch.from_numpy(scene(256, 256).transpose(2, 0, 1).copy()).float()
    with torch.inference_mode():
        normal = net.eval().data_preprocessor({"inputs": [image]}, False)["inputs"]
        logits = net.encode_decode(normal, [{"img_shape": normal.shape[2:]}])
    net.decode_head.conv_seg.bias.data -= logits.mean((0, 2, 3))
    path = tmp_path_factory.mktemp("weights") / "best_mIoU_iter_8.pth"
    meta = {"iter": 8, "dataset_meta": {"classes": EARTHVQA_CLASSES, "palette": EARTHVQA_PALETTE}}
    torch.save({"meta": meta, "state_dict": net.state_dict(), "message_hub": {}}, path)
    return path


@pytest.fixture(scope="module")
def model(weights: Path) -> TrainedModel:
    return load_model(config(), weights, device="cpu", fast=True)


def scene(height: int, width: int, seed: int = 0) -> Any:
    side = max(height, width)
    return draw_scene(side, (seed,))[0][:height, :width]


def save_tiff(path: Path, rgb: Any, **profile: Any) -> Path:
    bands = np.moveaxis(rgb, -1, 0)
    options = {"crs": "EPSG:32650", "transform": TRANSFORM, "photometric": "RGB"} | profile
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=rgb.shape[0], width=rgb.shape[1], dtype="uint8", **options
    ) as target:
        target.write(bands)
    return path


def predict(model: TrainedModel, out: Path, *images: Path, **options: Any) -> dict[str, Any]:
    """Predict in this process, as the child does it."""
    task = engine.Task(out=out, sources=find_images(images), **options)
    return engine.Predictor(config(), model, task, "0" * 64, lambda event, **data: None).run()


def mask(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


# --- images of ordinary size -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (150, 333)])
@pytest.mark.filterwarnings("ignore:Failed to add.*LocalVisBackend:UserWarning")
@pytest.mark.filterwarnings("ignore:.*does not have a `test_pipeline`.*:UserWarning")
def test_a_mask_is_mmsegmentations_own_in_the_data_sets_label_values(
    tmp_path: Path, weights: Path, size: tuple[int, int]
) -> None:
    cfg = config("test_pipeline=[]")
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
    image = tmp_path / "image.png"
    Image.fromarray(scene(*size)).save(image)
    stock = MMSegInferencer(cfg, str(weights), device="cpu", show_progress=False)
    expected = stock(str(image))["predictions"]

    # As the test pipeline resizes it, and the same said as a factor.
    for factor in (None, 256 / max(size)):
        model = load_model(cfg, weights, device="cpu")
        found = predict(model, tmp_path / "out", image, fast=False, factor=factor)
        assert found["num_done"] == 1
        assert len(np.unique(expected)) > 2
        np.testing.assert_array_equal(mask(tmp_path / "out" / "masks" / "image.png"), expected + 1)


def test_labels_follow_the_data_sets_way_with_zero(model: TrainedModel) -> None:
    cfg = config()

    ours = engine.labels_of(cfg, model)
    cfg.train_dataloader.dataset = {"type": "ADE20KDataset"}
    reduced = engine.labels_of(cfg, model)
    cfg.train_dataloader.dataset = {"type": "PascalVOCDataset"}
    plain = engine.labels_of(cfg, model)

    assert [(found.numbers[0], found.no_data) for found in (ours, reduced, plain)] == [
        (1, 0),
        (1, 0),
        (0, 255),
    ]
    assert isinstance(ours, Labels) and ours.classes == EARTHVQA_CLASSES


def test_a_pipeline_that_makes_several_images_of_one_is_refused() -> None:
    cfg = config()
    cfg.test_dataloader.dataset.pipeline = [{"type": "LoadImageFromFile"}, {"type": "TestTimeAug"}]

    with pytest.raises(ConfigError, match="LoadImageFromFile, TestTimeAug"):
        TestPipeline(cfg)


def test_probabilities_overlay_and_polygons_fit_the_mask(tmp_path: Path, model: TrainedModel) -> None:
    rgb = scene(96, 128)
    rgb[:20] = 0
    image = save_tiff(tmp_path / "tile.tif", rgb, nodata=0)

    predict(model, tmp_path / "out", image, probabilities=True, overlay=True, polygons=True)

    out = tmp_path / "out"
    with rasterio.open(out / "masks" / "tile.tif") as found:
        labels = found.read(1)
        assert (found.crs.to_epsg(), found.transform, found.nodata) == (32650, TRANSFORM, 0)
    with rasterio.open(out / "probabilities" / "tile.tif") as found:
        bands = found.read()
        assert found.descriptions == EARTHVQA_CLASSES
        assert (found.nodata, found.scales) == (255, (0.004,) * 8)
    assert (labels[:20] == 0).all() and (labels[20:] > 0).all()
    assert (bands[:, :20] == 255).all()
    highest = np.take_along_axis(bands, labels[None].astype(int).clip(1) - 1, 0)[0]
    assert (highest[20:] == bands.max(0)[20:]).all()
    assert (bands[:, 20:].sum(0, dtype=int) == 250).all()
    with rasterio.open(out / "overlays" / "tile.tif") as found:
        assert (found.read()[:, :20] == 0).all()
    fields = pyogrio.raw.read(out / "polygons" / "tile.gpkg", layer="classes")
    table = dict(zip(fields[0]["fields"], fields[3], strict=True))
    for value in np.unique(labels[20:]):
        assert table["pixels"][table["value"] == value].sum() == np.count_nonzero(labels == value)


def test_what_cannot_be_read_is_refused_by_name_and_the_others_are_done(
    tmp_path: Path, model: TrainedModel
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        Image.fromarray(scene(64, 64, number)).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:500])
    (folder / "5.png").write_bytes(b"no image")

    found = predict(model, tmp_path / "out", folder)

    assert [Path(item["path"]).name for item in found["refused"]] == ["3.png", "5.png"]
    assert found["num_done"] == 5
    made = sorted(path.stem for path in (tmp_path / "out" / "masks").glob("*.png"))
    assert made == ["0", "1", "2", "4", "6"]


@pytest.mark.parametrize("window", [None, 64])
def test_an_image_that_the_model_cannot_take_is_refused_by_name_and_the_others_are_done(
    tmp_path: Path, model: TrainedModel, window: int | None
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for width, height in ((64, 64), (1, 200), (300, 2), (65, 65)):
        Image.fromarray(scene(height, width)).save(folder / f"{width}x{height}.png")

    found = predict(model, tmp_path / "out", folder, window=window)

    assert [Path(item["path"]).name for item in found["refused"]] == ["1x200.png", "300x2.png"]
    assert all(item["problem"].startswith(f"{item['path']}: ") for item in found["refused"])
    assert found["num_done"] == 2


def test_an_image_does_not_replace_the_map_of_another_of_its_name(
    tmp_path: Path, model: TrainedModel
) -> None:
    jan, feb = tmp_path / "jan" / "x.png", tmp_path / "feb" / "x.png"
    for number, image in enumerate((jan, feb, tmp_path / "feb" / "y.png")):
        image.parent.mkdir(exist_ok=True)
        Image.fromarray(scene(64, 64, number)).save(image)
    predict(model, tmp_path / "out", jan)
    before = (tmp_path / "out" / "masks" / "x.png").read_bytes()

    found = predict(model, tmp_path / "out", feb, feb.with_name("y.png"))

    assert found["num_done"] == 1
    assert [item["problem"] for item in found["refused"]] == [
        f"{feb}: Its maps would replace those of {jan}, which is called x as well. Give another --out."
    ]
    assert (tmp_path / "out" / "masks" / "x.png").read_bytes() == before
    assert predict(model, tmp_path / "out", jan)["num_before"] == 1


def test_names_that_are_odd_long_or_taken_do_not_end_a_batch(tmp_path: Path, model: TrainedModel) -> None:
    names = ["a", os.fsdecode(b"caf\xe9"), "城" * 80, "taken"]
    (tmp_path / "out" / "masks" / "taken.png").mkdir(parents=True)
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(scene(64, 64, number)).save(folder / f"{name}.png")

    found = predict(model, tmp_path / "out", folder)
    again = predict(model, tmp_path / "out", folder)

    assert (found["num_done"], again["num_before"]) == (3, 3)
    for refused in (found["refused"], again["refused"]):
        assert [Path(item["path"]).stem for item in refused] == ["taken"]
        assert "Is a directory. Rename the image" in refused[0]["problem"]


def test_what_writing_one_image_raises_is_that_images_failure(
    tmp_path: Path, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        Image.fromarray(scene(64, 64, number)).save(tmp_path / f"{number}.png")
    write_png = outputs.write_png

    def writing(path: Path, *arguments: Any) -> None:
        if path.stem == "1":
            raise KeyError("planted")
        write_png(path, *arguments)

    monkeypatch.setattr(outputs, "write_png", writing)
    found = predict(model, tmp_path / "out", tmp_path)

    assert [item["problem"] for item in found["refused"]] == [f"{tmp_path / '1.png'}: KeyError: 'planted'"]
    assert found["num_done"] == 2


def test_an_error_of_the_command_is_no_images(tmp_path: Path, model: TrainedModel) -> None:
    Image.fromarray(scene(200, 64)).save(tmp_path / "image.png")

    with pytest.raises(UsageError, match="cannot overlap"):
        predict(model, tmp_path / "out", tmp_path / "image.png", window=64, overlap=60)


def test_reading_computing_and_writing_overlap(
    tmp_path: Path, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(scene(64, 64, number)).save(folder / f"{number}.png")
    read_third, computed_second = threading.Event(), threading.Event()
    overlaps: dict[str, bool] = {}
    ask, open_picture, write_png = model.logits_of_inputs, preparing.open_picture, outputs.write_png

    def computing(*arguments: Any, **options: Any) -> torch.Tensor:
        if "reading" not in overlaps:  # the first one ends only when the third has been opened
            overlaps["reading"] = read_third.wait(20)
        else:
            computed_second.set()
        return ask(*arguments, **options)

    def reading(path: Path, *arguments: Any) -> Any:
        if path.stem == "2":
            read_third.set()
        return open_picture(path, *arguments)

    def writing(*arguments: Any) -> None:
        if "writing" not in overlaps:  # the first mask is written only when the second is computed
            overlaps["writing"] = computed_second.wait(20)
        write_png(*arguments)

    monkeypatch.setattr(model, "logits_of_inputs", computing)
    monkeypatch.setattr(preparing, "open_picture", reading)
    monkeypatch.setattr(outputs, "write_png", writing)
    predict(model, tmp_path / "out", folder)

    assert overlaps == {"reading": True, "writing": True}


# --- large scenes ----------------------------------------------------------------------------------------


def test_a_scene_is_blended_from_windows_and_its_georeference_and_no_data_are_kept(
    tmp_path: Path, model: TrainedModel
) -> None:
    rgb = scene(300, 340)
    rgb[100:250, 40:200] = 0
    image = save_tiff(tmp_path / "scene.tif", rgb, nodata=0)

    predict(model, tmp_path / "out", image, window=96, overlap=32)

    with rasterio.open(tmp_path / "out" / "masks" / "scene.tif") as found:
        labels = found.read(1)
        assert (found.crs.to_epsg(), found.transform, found.nodata) == (32650, TRANSFORM, 0)
    valid = rgb.any(-1)
    assert (labels[~valid] == 0).all()
    assert (labels[valid] > 0).all()
    # The middle of a window that no other reaches is what the model says about that window alone.
    crop = torch.from_numpy(np.ascontiguousarray(rgb[:96, :96, ::-1].transpose(2, 0, 1)))
    alone = model.labels(model.logits(crop[None], windows=None))[0].numpy() + 1
    np.testing.assert_array_equal(labels[:50, :50], alone[:50, :50])
    assert not (tmp_path / "out" / "unfinished").exists()


def test_windows_without_data_are_not_computed(
    tmp_path: Path, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = np.zeros((384, 384, 3), np.uint8)
    rgb[:64, :64] = scene(64, 64) | 1
    image = save_tiff(tmp_path / "scene.tif", rgb, nodata=0)
    asked: list[int] = []
    ask = model.logits

    def counting(images: torch.Tensor, **options: Any) -> torch.Tensor:
        asked.append(len(images))
        return ask(images, **options)

    monkeypatch.setattr(model, "logits", counting)
    predict(model, tmp_path / "out", image, window=96, overlap=0)

    assert sum(asked) == 1


def test_no_more_than_one_row_waits_to_be_written(
    tmp_path: Path, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = save_tiff(tmp_path / "scene.tif", scene(500, 100))
    lock, waiting, most = threading.Lock(), 0, 0
    write, blend = Parts.write, engine.Blender.row

    def computing(blender: Any, index: int, logits: Any) -> Any:
        nonlocal waiting, most
        yield from blend(blender, index, logits)
        with lock:
            waiting += 1
            most = max(most, waiting)

    def writing(*arguments: Any) -> None:
        nonlocal waiting
        time.sleep(0.1)  # slower than the model
        write(*arguments)
        with lock:
            waiting -= 1

    monkeypatch.setattr(engine.Blender, "row", computing)
    monkeypatch.setattr(Parts, "write", writing)
    predict(model, tmp_path / "out", image, window=64)

    assert most <= 2  # the one that is written, and the one that is next


def test_a_large_plain_image_becomes_a_png_of_its_size(tmp_path: Path, model: TrainedModel) -> None:
    Image.fromarray(scene(200, 130)).save(tmp_path / "large.png")

    predict(model, tmp_path / "out", tmp_path / "large.png", window=64, overlay=True, polygons=True)

    assert mask(tmp_path / "out" / "masks" / "large.png").shape == (200, 130)
    assert mask(tmp_path / "out" / "overlays" / "large.png").shape == (200, 130, 3)


def test_a_scene_that_is_damaged_further_down_is_refused_and_leaves_nothing(
    tmp_path: Path, model: TrainedModel
) -> None:
    image = save_tiff(tmp_path / "scene.tif", scene(600, 200), compress="deflate", blockysize=16)
    content = image.read_bytes()
    image.write_bytes(content[: len(content) * 3 // 4])

    found = predict(model, tmp_path / "out", image, window=64)

    assert len(found["refused"]) == 1
    assert "scene.tif" in found["refused"][0]["problem"]
    assert not list((tmp_path / "out").rglob("*.tif"))
    assert not (tmp_path / "out" / "unfinished").exists()


# --- going on --------------------------------------------------------------------------------------------


class Stop(BaseException):
    """Planted; as an exception it would be the image's."""


def stop_after(num_rows: int) -> Callable[..., None]:
    rows: list[float] = []

    def tell(event: str, /, **data: Any) -> None:
        if data.get("name"):
            rows.append(data["done"])
            if len(rows) == num_rows:
                raise Stop

    return tell


def contents(folder: Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(folder)): rows(path) if path.suffix == ".gpkg" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (JOURNAL, LOCK)
    }


def rows(path: Path) -> bytes:
    """Return what is in a GeoPackage, which notes when it was written."""
    _, _, geometries, fields = pyogrio.raw.read(path, layer="classes")
    return b"".join(geometries) + repr([list(values) for values in fields]).encode()


EVERYTHING: dict[str, Any] = {"window": 64, "probabilities": True, "overlay": True, "polygons": True}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, model: TrainedModel) -> Path:
    """Return a folder with three images, and all that comes of them on a large disk."""
    folder = tmp_path_factory.mktemp("everything")
    (folder / "images").mkdir()
    save_tiff(folder / "images" / "scene.tif", scene(200, 150))
    for number in range(2):
        Image.fromarray(scene(64, 64, number)).save(folder / "images" / f"{number}.png")
    found = predict(model, folder / "whole", folder / "images", **EVERYTHING)
    assert not found["refused"]
    return folder


@pytest.mark.parametrize("num_rows", [1, 3, 6])
def test_a_scene_that_was_cut_off_ends_as_if_it_had_not_been(
    tmp_path: Path, model: TrainedModel, num_rows: int
) -> None:
    rgb = scene(400, 150)
    rgb[90:200, :70] = 0
    image = save_tiff(tmp_path / "scene.tif", rgb, nodata=0)
    options: dict[str, Any] = {"window": 64, "overlap": 30, "probabilities": True, "overlay": True}
    predict(model, tmp_path / "whole", image, **options)

    task = engine.Task(out=tmp_path / "cut", sources=find_images([image]), **options)
    with pytest.raises(Stop):
        engine.Predictor(config(), model, task, "0" * 64, stop_after(num_rows)).run()
    kept = list((tmp_path / "cut" / "unfinished").glob("*/row_*.mask"))
    found = predict(model, tmp_path / "cut", image, **options)

    assert len(kept) >= num_rows - 1
    assert found["num_done"] == 1
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("tenth", range(10))
def test_a_disk_that_fills_ends_with_its_name_and_the_same_command_finishes(
    tmp_path: Path, model: TrainedModel, everything: Path, tenth: int
) -> None:
    images, whole, out = everything / "images", everything / "whole", tmp_path / "out"

    with (
        pytest.raises(WriteFailed, match=r"could not be written: .* The disk at /"),
        small_disk(out, used_bytes(whole) * tenth // 10),
    ):
        predict(model, out, images, **EVERYTHING)
    named = {path: data for path, data in contents(out).items() if not path.startswith("unfinished/")}
    assert named.items() <= contents(whole).items()
    found = predict(model, out, images, **EVERYTHING)

    assert found["num_done"] + found["num_before"] == 3
    assert contents(out) == contents(whole)


def test_a_scene_leaves_the_rows_of_one_in_a_folder_of_its_name(tmp_path: Path, model: TrainedModel) -> None:
    (tmp_path / "in" / "city").mkdir(parents=True)
    save_tiff(tmp_path / "in" / "city" / "north.tif", scene(400, 150))
    images = find_images([tmp_path / "in"])
    task = engine.Task(out=tmp_path / "out", sources=images, window=64)
    with pytest.raises(Stop):
        engine.Predictor(config(), model, task, "0" * 64, stop_after(5)).run()
    kept = {file for file in (tmp_path / "out").rglob("row_*") if file.stat().st_size}

    above = save_tiff(tmp_path / "in" / "city.tif", scene(100, 100))
    found = predict(model, tmp_path / "out", above, window=64)

    assert found["num_done"] == 1 and len(kept) >= 4
    assert all(file.is_file() for file in kept)


def test_a_row_that_was_torn_is_computed_again(tmp_path: Path, model: TrainedModel) -> None:
    image = save_tiff(tmp_path / "scene.tif", scene(400, 150))
    predict(model, tmp_path / "whole", image, window=64)
    task = engine.Task(out=tmp_path / "cut", sources=find_images([image]), window=64)
    with pytest.raises(Stop):
        engine.Predictor(config(), model, task, "0" * 64, stop_after(5)).run()
    (row,) = (tmp_path / "cut" / "unfinished").glob("*/row_0001.mask")
    row.write_bytes(row.read_bytes()[:-20])

    predict(model, tmp_path / "cut", image, window=64)

    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_rows_of_other_options_are_not_gone_on_with(tmp_path: Path, model: TrainedModel) -> None:
    image = save_tiff(tmp_path / "scene.tif", scene(300, 150))
    task = engine.Task(out=tmp_path / "out", sources=find_images([image]), window=64, overlap=0)
    with pytest.raises(Stop):
        engine.Predictor(config(), model, task, "0" * 64, stop_after(4)).run()

    predict(model, tmp_path / "out", image, window=64, overlap=30)
    predict(model, tmp_path / "fresh", image, window=64, overlap=30)

    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_an_image_is_done_again_only_when_something_changed(tmp_path: Path, model: TrainedModel) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(scene(64, 64, number)).save(folder / f"{number}.png")

    first = predict(model, out, folder)
    again = predict(model, out, folder)
    Image.fromarray(scene(64, 80)).save(folder / "1.png")
    changed = predict(model, out, folder)
    (out / "masks" / "2.png").unlink()
    lost = predict(model, out, folder)
    other = predict(model, out, folder, overlay=True)

    done = [(found["num_done"], found["num_before"]) for found in (first, again, changed, lost, other)]
    assert done == [(3, 0), (0, 3), (1, 2), (1, 2), (3, 0)]
    assert sorted(again["files"]) == ["0", "1", "2"]


def test_a_journal_that_ends_in_the_middle_of_a_line_is_gone_on_with(
    tmp_path: Path, model: TrainedModel
) -> None:
    folder, out = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(scene(64, 64, number)).save(folder / f"{number}.png")
    predict(model, out, folder)
    content = (out / JOURNAL).read_bytes()
    (out / JOURNAL).write_bytes(content[:-40])

    torn = predict(model, out, folder)
    after = predict(model, out, folder)

    assert (torn["num_done"], torn["num_before"]) == (1, 2)
    assert (after["num_done"], after["num_before"]) == (0, 3)


def test_annotations_where_maps_would_go_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        Image.fromarray(scene(64, 64)).save(tmp_path / kind / "0001.png")
    before = contents(tmp_path)

    code = main(["predict", str(DEMO), "none.pth", str(tmp_path / "images"), "--out", str(tmp_path)])

    assert code == EXIT_USAGE
    assert f"{tmp_path}/masks holds files that are no maps" in capsys.readouterr().err
    assert contents(tmp_path) == before and not (tmp_path / LOCK).exists()


def test_two_do_not_write_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LOCK_WAIT_S", 0.0)
    first = WorkDirLock(tmp_path / "out", file=tmp_path / "out" / LOCK)
    first.take(wait_s=0.0)
    job = {"config": str(written_config(tmp_path)), "out": str(tmp_path / "out"), "images": []}
    names = ("overlay", "probabilities", "polygons", "min_area", "window", "overlap", "fast")
    job |= dict.fromkeys(("bands", "value_range", *names))

    with pytest.raises(MachineError, match=f"in use by process {os.getpid()}.*--out"):
        engine.run(job, lambda event, **data: None)

    first.release()


# --- the command, in a process of its own ----------------------------------------------------------------


def written_config(folder: Path) -> Path:
    path = folder / "small.py"
    path.write_text(config().pretty_text, encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kaggle"
    for name in ("input", "working", "temp"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(folder))
    return folder


@pytest.mark.slow(scope_s=45)
def test_a_submission_holds_each_test_image_in_values_of_the_benchmark(
    tmp_path: Path, root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_scenes(root / "input" / "scenes", train=1, val=1, size=128, seed=1, test=5)
    command = ["predict", str(written_config(tmp_path)), str(weights), "--submission", "--device", "cpu"]

    code = main([*command, "--out", str(tmp_path / "out")])

    assert code == EXIT_DONE, capsys.readouterr().err
    assert "submission.zip: complete" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert archive.namelist() == [f"{number}.png" for number in range(5)]
        with archive.open("0.png") as stream:
            values = np.unique(np.asarray(Image.open(stream)))
    assert values.min() >= 1 and values.max() <= 8

    images = root / "input" / "scenes" / "Test" / "images_png"
    (images / "2.png").write_bytes(b"damaged")
    code = main([*command, "--out", str(tmp_path / "out")])

    assert code == EXIT_USAGE
    assert "2.png: missing" in capsys.readouterr().err
    assert not (tmp_path / "out" / "submission.zip").exists()


@pytest.mark.slow
def test_json_says_what_was_done_refused_and_left_out(
    tmp_path: Path, root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9")  # no UTF-8
    Image.fromarray(scene(64, 64)).save(folder / f"{name}.png")
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    given = [written_config(tmp_path), weights, folder, "--out", folder / "maps", "--device", "cpu", "--json"]

    code = main(["predict", *map(str, given)])

    found = json.loads(capsys.readouterr().out)
    assert code == EXIT_USAGE
    assert found["files"] == {name: str(folder / "maps" / "masks" / f"{name}.png")}
    assert (found["num_done"], found["num_pixels"]) == (1, 64 * 64)
    assert [item["path"] for item in found["refused"]] == [str(folder / "bad.png")]
    assert found["skipped"] == [f"Of {folder}, files of other kinds were left out: .txt (1)."]


@pytest.mark.slow
def test_a_full_disk_ends_the_command_with_4_and_the_same_command_finishes(
    tmp_path: Path, root: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (256, 256, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    given = [
        written_config(tmp_path),
        weights,
        tmp_path / "image.png",
        "--out",
        tmp_path / "maps",
        "--overlay",
    ]
    command = ["predict", *map(str, given), "--device", "cpu"]

    with limited_files(100_000):  # of which the overlay is the only one
        full = main(command)
    said = capsys.readouterr().err

    assert full == EXIT_MACHINE
    assert f"{tmp_path}/maps/overlays/image.png could not be written: File too large. The disk at /" in said
    assert main(command) == EXIT_DONE
    assert mask(tmp_path / "maps" / "overlays" / "image.png").shape == (256, 256, 3)


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    tmp_path: Path, root: Path, weights: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(scene(256, 256, number)).save(folder / f"a{number}.png")
    save_tiff(folder / "scene.tif", np.tile(scene(512, 512), (4, 1, 1)), nodata=0)
    config_file = written_config(tmp_path)

    def command(out: Path, python: str = sys.executable) -> list[str]:
        given = ["predict", config_file, weights, folder, "--out", out, "--window", "256", "--device", "cpu"]
        given += ["--threads", "1"]
        return [python, "-m", "mapsage_kaggle", *map(str, given)]

    subprocess.run(command(tmp_path / "whole", warm.python()), check=True, capture_output=True)
    cut = tmp_path / "cut"
    for least in (0, 3):
        process = subprocess.Popen(command(cut), start_new_session=True, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(cut.glob("unfinished/*/row_*.mask"))) <= least and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (cut / "masks" / "scene.tif").exists()
    subprocess.run(command(cut, warm.python()), check=True, capture_output=True)

    assert contents(cut) == contents(tmp_path / "whole")
    names = [json.loads(line)["name"] for line in (cut / JOURNAL).read_text().splitlines()]
    assert sorted(names) == ["a0", "a1", "a2", "a3", "scene"]


@pytest.mark.slow
def test_memory_does_not_grow_with_a_scenes_height(tmp_path: Path, root: Path, weights: Path) -> None:
    # Mostly without data, which costs no model. The smaller one fills GDAL's cache, 64 MB, as well.
    strip = np.zeros((12_000, 600, 3), np.uint8)
    strip[:600] = scene(600, 600)
    peaks = []
    for times in (3, 6):
        rgb = np.tile(strip, (times, 1, 1))
        image = save_tiff(tmp_path / f"{times}.tif", rgb, compress="deflate", nodata=0)
        code = (
            "import sys; from pathlib import Path; from mapsage_kaggle.jobs.subject import ModelOptions; "
            "from mapsage_kaggle.jobs.predict import PredictOptions, predict; "
            "a = list(map(Path, sys.argv[1:])); "
            "m = ModelOptions(config=a[0], checkpoint=a[1], device='cpu', threads=1); "
            "o = PredictOptions(out=a[3], images=(a[2],), window=256, overlay=True); "
            "print(predict(m, o).peak_memory_bytes)"
        )
        given = [written_config(tmp_path), weights, image, tmp_path / f"out_{times}"]
        answer = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *map(str, given)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        peaks.append(int(answer.stdout.split()[-1]))

    # Held whole, 36,000 more lines of RGB, overlay and mask would take 151 MB.
    assert peaks[1] - peaks[0] < 50e6
