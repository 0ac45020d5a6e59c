"""The training transforms in one pass against mmsegmentation's own, one after another: every bit."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS, DefaultScope
from mmseg.datasets.transforms import RandomCrop
from PIL import Image

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.config import replacements
from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.engine import seeding
from mapsage_kaggle.engine.fast import cache as cache_module
from mapsage_kaggle.engine.fast import resize as resize_module
from mapsage_kaggle.engine.fast.loading import MapsageLoadImage, MapsageLoadLabels
from mapsage_kaggle.engine.fast.resize import (
    Box,
    NearestWindows,
    nearest_is_exact,
    resize_window,
    window_resize_is_exact,
)
from mapsage_kaggle.engine.fast.transforms import MapsageFastPipeline, count_values, is_varied

LOAD: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
RESIZE = {"type": "RandomResize", "scale": (96, 96), "ratio_range": (0.5, 2.0), "keep_ratio": True}
CROP = {"type": "RandomCrop", "crop_size": (48, 48), "cat_max_ratio": 0.75}
FLIP = {"type": "RandomFlip", "prob": 0.5}
DISTORT = {"type": "PhotoMetricDistortion"}
PACK = {"type": "PackSegInputs"}
WHOLE = [*LOAD, RESIZE, CROP, FLIP, DISTORT, PACK]

PIPELINES: dict[str, list[dict[str, Any]]] = {
    "loading": LOAD,
    "resize": [*LOAD, RESIZE],
    "crop": [*LOAD, CROP],
    "flip": [*LOAD, FLIP],
    "distortion": [*LOAD, DISTORT],
    "packing": [*LOAD, PACK],
    "without packing": WHOLE[:-1],
    "whole": WHOLE,
    "two scales": [*LOAD, {**RESIZE, "scale": [(64, 80), (150, 100)], "ratio_range": None}, CROP, PACK],
    "ratio not kept": [*LOAD, {**RESIZE, "keep_ratio": False, "scale": (131, 67)}, CROP, PACK],
    "crop larger than the image": [*LOAD, RESIZE, {**CROP, "crop_size": (160, 120)}, FLIP, PACK],
    "crop by halves": [*LOAD, {**RESIZE, "ratio_range": (0.5, 0.5)}, {**CROP, "crop_size": 24}, PACK],
    "size as it is": [*LOAD, {**RESIZE, "ratio_range": (1.0, 1.0)}, CROP, PACK],
    "any crop": [*LOAD, RESIZE, {"type": "RandomCrop", "crop_size": (31, 57)}, PACK],
    "no crop is varied enough": [*LOAD, {**CROP, "cat_max_ratio": 0.01}, PACK],
    "another ignored label": [*LOAD, {**CROP, "ignore_index": 0}, PACK],
    "every way to flip": [
        *LOAD,
        {"type": "RandomFlip", "prob": [0.3] * 3, "direction": ["horizontal", "vertical", "diagonal"]},
        DISTORT, PACK,
    ],
    "strong distortion": [
        *LOAD,
        {**DISTORT, "brightness_delta": 200, "contrast_range": (0.0, 9.0), "saturation_range": (0.0, 9.0),
         "hue_delta": 90},
        PACK,
    ],
    "other decoders": [
        {"type": "LoadImageFromFile", "imdecode_backend": "pillow"},
        {"type": "LoadAnnotations", "imdecode_backend": "cv2"}, *WHOLE[2:],
    ],
    "other keys": [*WHOLE[:-1], {"type": "PackSegInputs", "meta_keys": ("scale", "img_shape")}],
}  # fmt: skip

NOT_FORESEEN: dict[str, list[dict[str, Any]]] = {
    "float images": [{**LOAD[0], "to_float32": True}, *WHOLE[1:]],
    "grey images": [{**LOAD[0], "color_type": "grayscale"}, LOAD[1], RESIZE, CROP, PACK],
    "labels that swap": [*LOAD, {**FLIP, "swap_seg_labels": [(1, 2)]}, PACK],
    "another interpolation": [*LOAD, {**RESIZE, "interpolation": "bicubic"}, CROP, PACK],
    "another order": [*LOAD, FLIP, RESIZE, CROP, PACK],
    "another transform": [*LOAD, {"type": "RandomRotate", "prob": 0.5, "degree": 20.0}, CROP, PACK],
}


@pytest.fixture(autouse=True)
def _scope(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Scenes that have just been generated would not be kept.
    monkeypatch.setattr(cache_module, "now_s", lambda: time.time() + 60.0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what the data set would give for three generated scenes."""
    root = tmp_path_factory.mktemp("scenes")
    generate_scenes(root, train=3, val=1, size=96, seed=0)
    return [entry(root / "Train", str(number)) for number in range(3)]


@pytest.fixture(scope="module")
def oblong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return an image of odd sides whose pixels and labels are all noise."""
    root = tmp_path_factory.mktemp("noise")
    draws = np.random.RandomState(0)
    for kind, shape in (("images_png", (77, 113, 3)), ("masks_png", (77, 113))):
        (root / kind).mkdir()
        values = draws.randint(0, 256, shape) if len(shape) == 3 else draws.choice([0, 1, 2, 255], shape)
        Image.fromarray(values.astype(np.uint8)).save(root / kind / "0.png")
    return entry(root, "0")


def entry(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    return {
        "img_path": str(folder / "images_png" / f"{name}.png"),
        "seg_map_path": str(folder / "masks_png" / f"{name}.png"),
        "label_map": None,
        "reduce_zero_label": True,
        "seg_fields": [],
        **changes,
    }


def sample(transforms: Sequence[Any], info: dict[str, Any], seed: int) -> tuple[Any, list[float]]:
    """Return a sample and what the generators would draw next."""
    results: Any = copy.deepcopy(info)
    seeding.seed_sample(seed)
    for item in transforms:
        results = item(results)
    return results, [random.random(), np.random.rand(), float(torch.rand(1))]


def assert_equal(found: Any, expected: Any) -> None:
    """Assert that two samples hold the same, of the same type, everywhere."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert np.array_equal(found, expected)
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.is_contiguous()
        assert torch.equal(found, expected)
    elif hasattr(expected, "metainfo"):
        assert_equal(found.metainfo, expected.metainfo)
        assert set(found.keys()) == set(expected.keys())
        for key in expected.keys():  # noqa: SIM118 - a data element is no mapping
            assert_equal(found.get(key), expected.get(key))
    else:
        assert found == expected


def assert_same_samples(
    pipeline: Sequence[dict[str, Any]], infos: Sequence[dict[str, Any]], seeds: range, cache: Path | None
) -> MapsageFastPipeline:
    stock = [TRANSFORMS.build(item) for item in pipeline]
    fast = MapsageFastPipeline(pipeline, cache)
    for seed in seeds:
        for info in infos:
            expected, expected_draws = sample(stock, info, seed)
            found, found_draws = sample([fast], info, seed)
            assert found_draws == expected_draws
            assert_equal(found, expected)
    return fast


# --- the whole and its parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "decoded"])
def test_samples_are_the_stock_transforms_bit_for_bit(
    name: str, cached: bool, scenes: list[dict[str, Any]], oblong: dict[str, Any], tmp_path: Path
) -> None:
    infos = [*scenes, oblong]
    fast = assert_same_samples(
        PIPELINES[name], infos, range(12 if cached else 2), tmp_path if cached else None
    )
    assert fast._steps is not None


@pytest.mark.parametrize("name", NOT_FORESEEN)
def test_what_is_not_foreseen_runs_as_it_is(name: str, scenes: list[dict[str, Any]], tmp_path: Path) -> None:
    fast = assert_same_samples(NOT_FORESEEN[name], scenes, range(4), tmp_path)
    assert fast._steps is None or name == "grey images"


@pytest.mark.parametrize(
    "changes", [{"reduce_zero_label": False}, {"label_map": {0: 3, 1: 1, 2: 0}}], ids=["unreduced", "mapped"]
)
def test_labels_are_those_of_the_data_set(
    changes: dict[str, Any], scenes: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert_same_samples(WHOLE, scenes, range(2), tmp_path)  # the same files, other labels, the same cache
    assert_same_samples(WHOLE, [{**info, **changes} for info in scenes], range(4), tmp_path)


VALIDATION = [LOAD[0], {"type": "Resize", "scale": (96, 96), "keep_ratio": True}, LOAD[1], PACK]


@pytest.mark.parametrize(
    "options", [{}, {"imdecode_backend": "cv2"}, {"to_float32": True}, {"ignore_empty": True}]
)
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "decoded"])
def test_loaders_by_themselves_give_what_the_stock_ones_give(
    cached: bool, options: dict[str, Any], scenes: list[dict[str, Any]], tmp_path: Path
) -> None:
    stock = [TRANSFORMS.build(item) for item in [{**VALIDATION[0], **options}, *VALIDATION[1:]]]
    cache = {"cache_dir": tmp_path / "c" if cached else None}
    fast = [
        TRANSFORMS.build(
            {**item, **(cache | options if item is LOAD[0] else cache if item is LOAD[1] else {}),
             "type": replacements.FASTER_LOADERS.get(item["type"], item["type"])}
        )
        for item in VALIDATION
    ]  # fmt: skip
    for _ in range(2):
        for info in scenes:
            assert_equal(sample(fast, info, 0)[0], sample(stock, info, 0)[0])


def test_training_and_validation_share_what_is_decoded(scenes: list[dict[str, Any]], tmp_path: Path) -> None:
    sample([MapsageFastPipeline(WHOLE, tmp_path)], scenes[0], 0)
    before = sorted(tmp_path.rglob("*.raw"))
    found, _ = sample(
        [MapsageLoadImage(cache_dir=tmp_path), MapsageLoadLabels(cache_dir=tmp_path)], scenes[0], 0
    )
    assert len(before) == 2
    assert sorted(tmp_path.rglob("*.raw")) == before
    found["img"][...] = found["gt_seg_map"][...] = 0  # both may be written to


def test_a_sample_may_be_written_to(scenes: list[dict[str, Any]], tmp_path: Path) -> None:
    for pipeline in (LOAD, WHOLE):
        fast = MapsageFastPipeline(pipeline, tmp_path)
        for _ in range(2):
            found, _ = sample([fast], scenes[0], 0)
            arrays = [found["img"], found["gt_seg_map"]] if "img" in found else [found["inputs"].numpy()]
            for item in arrays:
                item[...] = 7


def test_a_damaged_image_raises_what_the_stock_transforms_raise(tmp_path: Path) -> None:
    generate_scenes(tmp_path, train=1, val=1, size=64, seed=0)
    info = entry(tmp_path / "Train", "0")
    image = Path(info["img_path"])
    image.write_bytes(image.read_bytes()[:40])
    problems = []
    for transforms in (
        [TRANSFORMS.build(item) for item in WHOLE],
        [MapsageFastPipeline(WHOLE, tmp_path / "c")],
    ):
        with pytest.raises(Exception) as raised:
            sample(transforms, info, 0)
        problems.append((type(raised.value), str(raised.value)))
    assert problems[0] == problems[1]


def test_labels_of_another_size_than_their_image_run_through_the_stock_transforms(tmp_path: Path) -> None:
    generate_scenes(tmp_path, train=1, val=1, size=64, seed=0)
    info = entry(tmp_path / "Train", "0")
    Image.open(info["seg_map_path"]).resize((64, 32)).save(info["seg_map_path"])
    assert_same_samples([*LOAD, RESIZE, {**CROP, "crop_size": 16}, PACK], [info], range(3), tmp_path / "c")


@pytest.mark.parametrize(
    "more",
    [
        {"gt_bboxes": np.array([[3.0, 5.0, 40.0, 60.0]], np.float32)},
        {"gt_keypoints": np.array([[[3.0, 5.0, 1.0]]], np.float32)},
        {"seg_fields": ["depth"], "depth": np.arange(96 * 96, dtype=np.float32).reshape(96, 96)},
    ],
    ids=["boxes", "points", "another map"],
)
@pytest.mark.parametrize("pipeline", [WHOLE[:-2], [*LOAD, FLIP]], ids=["whole", "flip"])
def test_what_goes_with_an_image_is_transformed_along_with_it(
    pipeline: list[dict[str, Any]], more: dict[str, Any], scenes: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert_same_samples(pipeline, [{**info, **more} for info in scenes], range(4), tmp_path)


@pytest.mark.parametrize("ignore_index", [None, 255.0, 0.0, True])
def test_whatever_a_crop_ignores_is_ignored(
    ignore_index: Any, scenes: list[dict[str, Any]], tmp_path: Path
) -> None:
    for ratio in (0.75, 0.4):
        crop = {**CROP, "cat_max_ratio": ratio, "ignore_index": ignore_index}
        assert_same_samples([*LOAD, crop], scenes, range(6), tmp_path)


REAL_RESIZE, REAL_CROP = {**RESIZE, "scale": (1024, 1024)}, {**CROP, "crop_size": (512, 512)}
REAL_WHOLE = [*LOAD, REAL_RESIZE, REAL_CROP, FLIP, DISTORT, PACK]


def test_real_tiles_are_the_same_bit_for_bit(loveda: Path, tmp_path: Path) -> None:
    infos = [entry(loveda, name) for name in ("0", "1")]
    assert_same_samples(REAL_WHOLE, infos, range(10), tmp_path)


@pytest.mark.slow(scope_s=20)
@pytest.mark.parametrize(
    ("pipeline", "num_seeds"),
    [
        (LOAD, 1), ([*LOAD, REAL_RESIZE], 20), ([*LOAD, REAL_CROP], 30), ([*LOAD, FLIP], 10),
        ([*LOAD, DISTORT], 30), ([*LOAD, PACK], 1), (REAL_WHOLE, 40),
    ],
    ids=["loading", "resize", "crop", "flip", "distortion", "packing", "whole"],
)  # fmt: skip
def test_real_tiles_are_the_same_over_many_seeds(
    pipeline: list[dict[str, Any]], num_seeds: int, loveda: Path, tmp_path: Path
) -> None:
    infos = [entry(loveda, name) for name in ("0", "1")]
    assert_same_samples(pipeline, infos, range(1000, 1000 + num_seeds), tmp_path)


# --- resizing a window -------------------------------------------------------------------------------------


def test_the_installed_opencv_lets_itself_be_cut_short() -> None:
    assert window_resize_is_exact()
    assert nearest_is_exact()


@pytest.mark.parametrize("seed", range(8))
def test_a_window_has_the_bits_of_the_whole(seed: int) -> None:
    draws = np.random.RandomState(seed)
    for _ in range(12):
        height, width = draws.randint(1, 160, 2)
        size = int(draws.randint(1, 320)), int(draws.randint(1, 320))
        image = draws.randint(0, 256, (height, width, 3)).astype(np.uint8)
        labels = np.ascontiguousarray(image[:, :, 0])
        top, left = draws.randint(0, size[1]), draws.randint(0, size[0])
        box = Box(top, draws.randint(top + 1, size[1] + 1), left, draws.randint(left + 1, size[0] + 1))
        whole = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        expected = whole[box.top : box.bottom, box.left : box.right]
        assert np.array_equal(resize_window(image, size, box), expected)
        whole = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        expected = whole[box.top : box.bottom, box.left : box.right]
        assert np.array_equal(NearestWindows(labels, size).window(box), expected)


def test_an_opencv_that_cannot_be_cut_short_is_noticed_and_resizes_whole(
    scenes: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = resize_module._corner

    def otherwise(*given: Any) -> np.ndarray | None:
        found = exact(*given)
        return None if found is None else found ^ np.uint8(1)

    monkeypatch.setattr(resize_module, "_corner", otherwise)
    monkeypatch.setattr(resize_module, "_nearest", lambda size, length: np.zeros(size, np.intp))
    window_resize_is_exact.cache_clear()
    nearest_is_exact.cache_clear()
    try:
        assert not window_resize_is_exact()
        assert not nearest_is_exact()
        assert_same_samples(WHOLE, scenes, range(4), tmp_path)
    finally:
        window_resize_is_exact.cache_clear()
        nearest_is_exact.cache_clear()


@pytest.mark.parametrize("shape", [(5, 7), (512, 512), (4097, 4097)])
def test_counting_is_exact_for_any_size(shape: tuple[int, int]) -> None:
    labels = (np.arange(shape[0] * shape[1], dtype=np.int64) % 251 % 3).astype(np.uint8).reshape(shape)
    labels[0, 0] = 255
    values, counts = np.unique(labels, return_counts=True)
    found = count_values(labels)
    assert found.shape == (256,)
    assert found[values].tolist() == counts.tolist()
    assert found.sum() == labels.size


def _few_pixels(draw: random.Random) -> np.ndarray:
    """Return labels of few classes in very unequal shares, by blocks, by pixels, or with one odd pixel."""
    height, width = draw.choice([(1, 1), (3, 5), (64, 64), (100, 37)])
    values = draw.sample([0, 1, 2, 3, 7, 200, 255], draw.randint(1, 5))
    weights = np.array([draw.random() ** 4 + 1e-9 for _ in values])
    pixels = np.random.RandomState(draw.randrange(1 << 30))
    labels = pixels.choice(values, (height, width), p=weights / weights.sum()).astype(np.uint8)
    if draw.random() < 0.5:
        labels.sort(axis=draw.randrange(2))
    if draw.random() < 0.3:
        labels[:] = values[0]
        labels[-1, -1] = values[-1]
    return labels


@pytest.mark.parametrize("ignore_index", [255, 0, 7, 1000, -1, None])
def test_a_crop_is_as_varied_as_the_stock_transform_finds_it(ignore_index: int | None) -> None:
    draw, verdicts = random.Random(0), set()
    for ratio in (0.75, 0.5, 1 / 3, 0.01, 0.999):
        crop = RandomCrop(crop_size=8, cat_max_ratio=ratio, ignore_index=ignore_index)
        for _ in range(200):
            labels = _few_pixels(draw)
            values, counts = np.unique(labels, return_counts=True)
            counts = counts[values != ignore_index]
            expected = len(counts) > 1 and counts.max() / counts.sum() < ratio
            assert is_varied(labels, crop) == expected, (labels, ratio)
            verdicts.add(expected)
    assert verdicts == {True, False}


def test_a_share_of_exactly_the_limit_is_too_large() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[:16] = 1
    assert not is_varied(labels, RandomCrop(crop_size=8, cat_max_ratio=0.75))
    labels[16, 0] = 1
    assert is_varied(labels, RandomCrop(crop_size=8, cat_max_ratio=0.75))
