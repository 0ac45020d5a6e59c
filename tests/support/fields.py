"""A data set that the kit knows only by its config, and sessions on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from support.standin import StandIn

CLASSES = ("soil", "wheat", "maize", "path")
EXTRA = """
pipeline = {pipeline!r}
for name, split in (("train_dataloader", "train"), ("val_dataloader", "val")):
    dataset = dict(
        type="BaseSegDataset", data_root="data/fields", metainfo=dict(classes={classes!r}),
        data_prefix=dict(img_path="img/" + split, seg_map_path="ann/" + split),
        img_suffix=".png", seg_map_suffix=".png", pipeline=pipeline, _delete_=True,
    )
    dataset.update({dataset!r})
    globals()[name]["dataset"] = dataset
model["decode_head"]["num_classes"] = {num_classes}
del name, split, dataset
"""
PIPELINE = (
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "Resize", "scale": (64, 64)},
    {"type": "PackSegInputs"},
)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def any_image(number: int, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(number).randint(0, 256, (64, 64, channels)).astype(np.uint8)


def any_mask(number: int) -> np.ndarray:
    """Return a mask in which every class occurs."""
    return (np.arange(64 * 64).reshape(64, 64) // 32 + number).astype(np.uint8) % len(CLASSES)


def lay_out(
    place: Path,
    *,
    image: Callable[[int], np.ndarray] = any_image,
    mask: Callable[[int], np.ndarray | None] = any_mask,
    suffix: str = ".png",
    mask_suffix: str = ".png",
) -> Path:
    """Write 4 images to train and 2 to validate on, with their masks.

    Args:
        place: Where to.
        image: Makes the pixels of one.
        mask: Makes its mask; None for none.
        suffix: Of the images.
        mask_suffix: Of the masks.
    """
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        for number in numbers:
            save(place / "img" / split / f"{number}{suffix}", image(number))
            found = mask(number)
            if found is not None:
                save(place / "ann" / split / f"{number}{mask_suffix}", found)
    return place


def fields(
    root: Path,
    *,
    pipeline: tuple[Mapping[str, Any], ...] = PIPELINE,
    classes: tuple[str, ...] = CLASSES,
    extra: str = "",
    dataset: Mapping[str, Any] | None = None,
    **files: Any,
) -> StandIn:
    """Return a stand-in with such a data set.

    Args:
        root: Where it lies.
        pipeline: Of both data sets.
        classes: Their names.
        extra: More of the config.
        dataset: Options of both data sets.
        **files: Of :func:`lay_out`.
    """
    for name in ("input", "working", "temp"):
        (root / name).mkdir(parents=True)
    lay_out(root / "input" / "some-fields" / "fields", **files)
    text = EXTRA.format(
        pipeline=list(map(dict, pipeline)),
        classes=classes,
        dataset=dict(dataset or {}),
        num_classes=len(classes),
    )
    return StandIn(root=root, max_iters=6, val_interval=6, extra=text + extra)
