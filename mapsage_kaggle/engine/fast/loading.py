"""mmsegmentation's loading of images and masks, through the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS
from mmseg.datasets.transforms import LoadAnnotations

from mapsage_kaggle.engine.fast.cache import DecodedCache
from mapsage_kaggle.engine.fast.stock import stands_in_for

_DECODERS = ("cv2", "pillow")


def is_plain_image_loader(loader: LoadImageFromFile) -> bool:
    """Return whether a loader's image depends on nothing but its file and what the cache's key names."""
    return (
        not loader.to_float32
        and not loader.ignore_empty
        and loader.file_client_args is None
        and loader.backend_args is None
        and loader.imdecode_backend in _DECODERS
    )


def is_plain_label_loader(loader: LoadAnnotations) -> bool:
    """Return whether a loader's labels depend on nothing but the file and what the cache's key names."""
    return loader.backend_args is None and loader.imdecode_backend in _DECODERS


def load_image(cache: DecodedCache | None, loader: LoadImageFromFile, results: dict[str, Any]) -> np.ndarray:
    """Return a stock loader's ``img``; read-only where it comes from the cache."""

    def decode() -> np.ndarray:
        return LoadImageFromFile.transform(loader, results)["img"]

    if cache is None:
        return decode()
    manner = f"image {loader.color_type} {loader.imdecode_backend}"
    return cache.get(Path(results["img_path"]), manner, decode)


def load_labels(cache: DecodedCache | None, loader: LoadAnnotations, results: dict[str, Any]) -> np.ndarray:
    """Return a stock loader's ``gt_seg_map``; read-only where it comes from the cache."""

    def decode() -> np.ndarray:
        # The list of fields is the caller's to write, the same for both ways.
        return LoadAnnotations.transform(loader, {**results, "seg_fields": []})["gt_seg_map"]

    reduce, expected = results.get("reduce_zero_label"), loader.reduce_zero_label
    if cache is None or (expected is not None and expected != reduce):
        return decode()
    label_map = results.get("label_map")
    mapping = sorted(label_map.items()) if label_map is not None else None
    manner = f"labels {reduce} {mapping} {loader.imdecode_backend}"
    return cache.get(Path(results["seg_map_path"]), manner, decode)


@stands_in_for(LoadImageFromFile, TRANSFORMS, own_options=("cache_dir",))
class MapsageLoadImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that, with a ``cache_dir``, decodes each file once."""

    def __init__(self, *args: Any, cache_dir: str | Path | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cache = DecodedCache(Path(cache_dir)) if cache_dir is not None else None

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Return ``results`` with a writable ``img``, and its shapes."""
        if not is_plain_image_loader(self):
            return super().transform(results)
        image = np.array(load_image(self.cache, self, results))
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@stands_in_for(LoadAnnotations, TRANSFORMS, own_options=("cache_dir",))
class MapsageLoadLabels(LoadAnnotations):
    """mmsegmentation's ``LoadAnnotations`` that, with a ``cache_dir``, decodes each file once."""

    def __init__(self, *args: Any, cache_dir: str | Path | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cache = DecodedCache(Path(cache_dir)) if cache_dir is not None else None

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``results`` with a writable ``gt_seg_map``."""
        if not is_plain_label_loader(self):
            return super().transform(results)
        results["gt_seg_map"] = np.array(load_labels(self.cache, self, results))
        results["seg_fields"].append("gt_seg_map")
        return results
