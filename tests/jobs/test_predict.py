"""Predicting gives mmsegmentation's masks, large scenes in bounded memory, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from mmseg.apis import MMSegInferencer
from PIL import Image
from support.disks import small_disk, used_bytes
from support.small_maps import (
    TRANSFORM,
    config,
    contents,
    mask,
    save_tiff,
    scene,
    write_weights,
    written_config,
)

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.checkpoints.lock import WorkDirLock
from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine.jobs import predict as engine
from mapsage_kaggle.engine.jobs import preparing
from mapsage_kaggle.engine.jobs.inference import TrainedModel, load_model
from mapsage_kaggle.engine.jobs.preparing import TestPipeline
from mapsage_kaggle.errors import ConfigError, MachineError, UsageError
from mapsage_kaggle.imagery import outputs
from mapsage_kaggle.imagery.parts import Parts
from mapsage_kaggle.imagery.sources import JOURNAL, LOCK, find_images
from mapsage_kaggle.imagery.writing import Labels, WriteFailed
from mapsage_kaggle.jobs import predict as command
from mapsage_kaggle.jobs.subject import ModelOptions


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model(weights: Path) -> TrainedModel:
    return load_model(config(), weights, device="cpu", fast=True)


def predict(model: TrainedModel, out: Path, *images: Path, **options: Any) -> dict[str, Any]:
    """Predict in this process, as the child does it."""
    task = engine.Task(out=out, sources=find_images(images), **options)
    return engine.Predictor(config(), model, task, "0" * 64, lambda event, **data: None).run()


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


def test_half_precision_is_near_and_its_maps_are_made_anew(
    tmp_path: Path, weights: Path, model: TrainedModel
) -> None:
    half = load_model(config(), weights, device="cpu", fast=True, half=True)
    pixels = torch.from_numpy(scene(64, 64)).permute(2, 0, 1)[None]
    near, exact = (used.logits(pixels, windows=None) for used in (half, model))
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.25 * exact.abs().max()  # bfloat16 has 8 bits
    image = tmp_path / "image.png"
    Image.fromarray(scene(64, 64)).save(image)
    for used, options, num_done in ((model, {}, 1), (half, {"half": True}, 1), (half, {"half": True}, 0)):
        assert predict(used, tmp_path / "out", image, **options)["num_done"] == num_done


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


def test_why_an_image_was_refused_reaches_a_person_in_the_language_of_the_notebook(
    tmp_path: Path, model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"no image")
    found = predict(model, tmp_path / "out", image.parent)
    monkeypatch.setattr(command, "open_subject", lambda *_: None)
    monkeypatch.setattr(command, "_run", lambda *_: json.loads(json.dumps(found)))

    options = command.PredictOptions(out=tmp_path / "out", images=(image,))
    [(path, problem)] = command.predict(ModelOptions(config=Path("demo.py")), options).refused

    assert path == image
    assert problem.startswith(f"{image} cannot be read as an image: its content is that of no known image")
    assert (
        Words("zh")
        .translate(problem)
        .startswith(f"无法将 {image} 读作图像：其内容不属于任何已知的图像格式。")
    )


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
