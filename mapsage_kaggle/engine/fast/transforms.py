"""mmsegmentation's training transforms in one pass: the same samples, bit for bit, several times as fast.

Images are decoded once (:mod:`.cache`); only what the crop keeps is resized (:mod:`.resize`); labels are
counted, not sorted; brightness, contrast, saturation and hue are looked up in tables of 256 values, which are
made by the stock transform itself; nothing is copied twice.

Random numbers are drawn by the same calls in the same order as by the stock transforms, so that training with
and without this gives the same run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform, LoadImageFromFile, RandomResize
from mmengine.registry import TRANSFORMS
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, PhotoMetricDistortion, RandomCrop
from mmseg.datasets.transforms.transforms import RandomFlip, Resize

from mapsage_kaggle.engine.fast.cache import DecodedCache
from mapsage_kaggle.engine.fast.loading import (
    is_plain_image_loader,
    is_plain_label_loader,
    load_image,
    load_labels,
)
from mapsage_kaggle.engine.fast.resize import Box, NearestWindows, resize_window, window_resize_is_exact
from mapsage_kaggle.engine.fast.warnings import warn_once
from mapsage_kaggle.messages import Message

_CROP_TRIES = 10
_STRIDE = 32
_ALONG = ("gt_bboxes", "gt_keypoints")


class _Steps(NamedTuple):
    """The stock transforms that are done in one pass, in their order; None for those that are lacking."""

    image: LoadImageFromFile
    labels: LoadAnnotations
    resize: RandomResize | None
    crop: RandomCrop | None
    flip: RandomFlip | None
    distort: PhotoMetricDistortion | None
    pack: PackSegInputs | None


_ORDER = (LoadImageFromFile, LoadAnnotations, RandomResize, RandomCrop, RandomFlip, PhotoMetricDistortion,
          PackSegInputs)  # fmt: skip


@TRANSFORMS.register_module()
class MapsageFastPipeline(BaseTransform):
    """Stock transforms, from loading on, in one pass.

    A transform that is not exactly mmsegmentation's own, or has an option that is not handled here, makes it
    run the transforms one after another, as they are. So does an image that is not uint8 with three channels,
    or has labels of another size, and a sample with more to transform along with it, such as boxes.

    Args:
        transforms: The transforms' configs, in this order, the last five each where there is one:
            LoadImageFromFile, LoadAnnotations, RandomResize, RandomCrop, RandomFlip, PhotoMetricDistortion,
            PackSegInputs.
        cache_dir: Where decoded images are kept; None to decode them each time.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]], cache_dir: str | Path | None = None) -> None:
        self.transforms = [TRANSFORMS.build(dict(item)) for item in transforms]
        self.cache = DecodedCache(Path(cache_dir)) if cache_dir is not None else None
        self._steps = _recognise(self.transforms)
        if self._steps is None:
            names = ", ".join(type(item).__name__ for item in self.transforms)
            warn_once(
                f"transforms {names}",
                Message(
                    "The faster pipeline does not know these transforms and runs them as they are: {names}.",
                    names,
                ),
            )
        elif self._steps.resize is not None and not window_resize_is_exact():
            warn_once(
                "resize",
                Message(
                    "OpenCV {version} resizes part of an image otherwise than the whole: images are "
                    "resized whole, which is slower and changes nothing else.",
                    cv2.__version__,
                ),
            )

    def __repr__(self) -> str:
        names = ", ".join(type(item).__name__ for item in self.transforms)
        return f"{type(self).__name__}({names})"

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Return what the transforms, one after another, would return."""
        steps = self._steps
        if steps is None or not _is_known(results):
            return _one_by_one(self.transforms, results)
        image, labels = self._load(results, steps)
        if not _is_plain(image, labels):
            # Stock transforms may write into what they are given; the cache's images are read-only.
            results["img"], results["gt_seg_map"] = np.array(image), np.array(labels)
            return _one_by_one(self.transforms[2:], results)

        size = image.shape[1], image.shape[0]
        if steps.resize is not None:
            size = _draw_size(steps.resize, results, size)
        windows = NearestWindows(labels, size)
        box = Box(0, size[1], 0, size[0])
        if steps.crop is not None:
            box, labels = _draw_crop(steps.crop, windows, size)
        else:
            labels = windows.window(box)
        image = resize_window(image, size, box)
        results["img_shape"] = image.shape[:2]

        if steps.flip is not None:
            image, labels = _flip(steps.flip, results, image, labels)
        if steps.distort is not None:
            image = _distort(steps.distort, image)
        if steps.pack is not None:
            return _pack(steps.pack, results, image, labels)
        results["img"] = image if image.flags.writeable else image.copy()
        results["gt_seg_map"] = labels if labels.flags.writeable else labels.copy()
        return results

    def _load(self, results: dict[str, Any], steps: _Steps) -> tuple[np.ndarray, np.ndarray]:
        """Load image and labels as the stock transforms do, or from the cache of what they gave."""
        image = load_image(self.cache, steps.image, results)
        labels = load_labels(self.cache, steps.labels, results)
        results["img"], results["gt_seg_map"] = image, labels
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        results["seg_fields"].append("gt_seg_map")
        return image, labels


def _recognise(transforms: Sequence[Any]) -> _Steps | None:
    """Return the transforms by what they do; None where one is not handled here."""
    kinds = [type(item) for item in transforms]
    if tuple(kinds[:2]) != _ORDER[:2] or kinds != [kind for kind in _ORDER if kind in kinds]:
        return None
    found: dict[type, Any] = dict(zip(kinds, transforms, strict=True))
    steps = _Steps(*map(found.get, _ORDER))
    image, labels, resize, crop, flip, *_ = steps
    is_known = (
        is_plain_image_loader(image)
        and is_plain_label_loader(labels)
        and (
            resize is None
            or (
                type(resize.resize) is Resize
                and resize.resize.backend == "cv2"
                and resize.resize.interpolation == "bilinear"
            )
        )
        and (crop is None or crop.ignore_index is None or type(crop.ignore_index) is int)
        and (flip is None or flip.swap_seg_labels is None)
    )
    return steps if is_known else None


def _one_by_one(transforms: Sequence[Any], results: dict[str, Any] | None) -> dict[str, Any] | None:
    for item in transforms:
        if results is None:
            return None
        results = item(results)
    return results


def _is_known(results: Mapping[str, Any]) -> bool:
    """Return whether the data set gives files of an image and its labels, and no more that is transformed."""
    return (
        "img_path" in results
        and "seg_map_path" in results
        and not results.get("seg_fields")
        and all(results.get(key) is None for key in _ALONG)
    )


def _is_plain(image: np.ndarray, labels: np.ndarray) -> bool:
    return (
        image.dtype == np.uint8
        and labels.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and labels.shape == image.shape[:2]
    )


# -- the transforms; the names in quotes are the stock ones'


def _draw_size(resize: RandomResize, results: dict[str, Any], size: tuple[int, int]) -> tuple[int, int]:
    """``RandomResize``: return the width and height to which the image would be resized."""
    scale = resize._random_scale()
    keep_ratio = resize.resize.keep_ratio
    new = mmcv.rescale_size(size, scale) if keep_ratio else scale
    results["scale"] = scale
    results["scale_factor"] = new[0] / size[0], new[1] / size[1]
    results["keep_ratio"] = keep_ratio
    return new


def _draw_crop(crop: RandomCrop, windows: NearestWindows, size: tuple[int, int]) -> tuple[Box, np.ndarray]:
    """``RandomCrop``: return the box to keep and its labels."""
    box = _draw_box(crop, size)
    labels = windows.window(box)
    if crop.cat_max_ratio < 1.0:
        for _ in range(_CROP_TRIES):
            if is_varied(labels, crop):
                break
            box = _draw_box(crop, size)
            labels = windows.window(box)
    return box, labels


def _draw_box(crop: RandomCrop, size: tuple[int, int]) -> Box:
    height, width = crop.crop_size
    top = np.random.randint(0, max(size[1] - height, 0) + 1)
    left = np.random.randint(0, max(size[0] - width, 0) + 1)
    return Box(top, top + height, left, left + width).within(size)


def is_varied(labels: np.ndarray, crop: RandomCrop) -> bool:
    """Return whether there are two classes at least, none of which has too large a share.

    The classes that a sample of the pixels shows to be large are counted first: once what is left is too
    small to matter, the others need not be counted.
    """
    ignore = -1 if crop.ignore_index is None else crop.ignore_index
    ignored = np.count_nonzero(labels == ignore) if 0 <= ignore < 256 else 0
    num_valid = labels.size - ignored
    left = num_valid
    few = np.bincount(labels[::_STRIDE, ::_STRIDE].ravel(), minlength=256)
    for value in np.argsort(-few, kind="stable").tolist():
        if num_valid == 0 or few[value] == 0:
            break
        if value == ignore:
            continue
        count = int(np.count_nonzero(labels == value))
        if count / num_valid >= crop.cat_max_ratio:
            return False
        left -= count
        if left / num_valid < crop.cat_max_ratio:
            return True
    counts = count_values(labels)
    if 0 <= ignore < len(counts):
        counts[ignore] = 0
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < crop.cat_max_ratio)


def count_values(labels: np.ndarray) -> np.ndarray:
    """Return how often each of the 256 values occurs, int64 of shape ``(256,)``."""
    if labels.size < 1 << 24:  # OpenCV counts in single precision
        return cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return np.bincount(labels.ravel(), minlength=256)


def _flip(
    flip: RandomFlip, results: dict[str, Any], image: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    direction = flip._choose_direction()
    results["flip"] = direction is not None
    results["flip_direction"] = direction
    if direction is None:
        return image, labels
    results["swap_seg_labels"] = flip.swap_seg_labels
    code = {"horizontal": 1, "vertical": 0, "diagonal": -1}[direction]
    return cv2.flip(image, code), cv2.flip(labels, code)


_ALL_VALUES = np.arange(256, dtype=np.uint8)


def _distort(distort: PhotoMetricDistortion, image: np.ndarray) -> np.ndarray:
    # Each table is what the stock transform makes of the 256 values there are.
    table = distort.brightness(_ALL_VALUES)
    contrast_first = np.random.randint(2) == 1
    if contrast_first:
        table = distort.contrast(table)
    if table is not _ALL_VALUES:
        image = cv2.LUT(image, table)
    if np.random.randint(2):
        factor = np.random.uniform(distort.saturation_lower, distort.saturation_upper)
        image = _in_hsv(image, 1, distort.convert(_ALL_VALUES, alpha=factor))
    if np.random.randint(2):
        shift = np.random.randint(-distort.hue_delta, distort.hue_delta)
        image = _in_hsv(image, 0, ((_ALL_VALUES.astype(int) + shift) % 180).astype(np.uint8))
    if not contrast_first:
        table = distort.contrast(_ALL_VALUES)
        if table is not _ALL_VALUES:
            image = cv2.LUT(image, table)
    return image


def _in_hsv(image: np.ndarray, channel: int, table: np.ndarray) -> np.ndarray:
    """Map one channel of hue, saturation and value through a table."""
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR, dst=hsv)


def _pack(
    pack: PackSegInputs, results: dict[str, Any], image: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """``PackSegInputs``, which itself packs all but the image."""
    planes = np.empty((image.shape[2], *image.shape[:2]), np.uint8)
    for plane, channel in zip(planes, cv2.split(image, list(planes)), strict=True):
        if not np.may_share_memory(channel, plane):
            plane[:] = channel  # this OpenCV has put it elsewhere
    results["gt_seg_map"] = labels
    packed = pack.transform({key: value for key, value in results.items() if key != "img"})
    return {"inputs": torch.from_numpy(planes), **packed}
