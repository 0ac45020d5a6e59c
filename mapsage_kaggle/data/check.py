"""Check a config's data before training starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mapsage_kaggle.config.reading import data_roots_of
from mapsage_kaggle.data import datasets
from mapsage_kaggle.data.find import layout_of, scandir
from mapsage_kaggle.errors import DataError
from mapsage_kaggle.messages import Message


def check_data_of(cfg: Mapping[str, Any], roots: Mapping[str, Path], *, on_bad_image: str) -> tuple[str, ...]:
    """Check the kit's own data sets before training starts; return what is only worth a warning.

    Raises:
        DataError: Files are missing, do not match, cannot be decoded, or hold values out of range.
    """
    warnings: list[str] = []
    kinds = data_roots_of(cfg)
    for name, path in roots.items():
        classes = {
            "EarthVQADataset": datasets.EARTHVQA_CLASSES,
            "LoveDASplitDataset": datasets.LOVEDA_CLASSES,
        }.get(kinds.get(name, ""))
        if classes is None:
            _check_not_empty(cfg, name, path)
            continue
        report = datasets.check_data(path, len(classes))
        if on_bad_image == "fail":
            report.raise_for_problems()
        warnings += [str(problem) for problem in report.problems[:5]]
    return tuple(warnings)


def _check_not_empty(cfg: Mapping[str, Any], root: str, path: Path) -> None:
    """Look for the files of a data set that the kit knows only by its config.

    Raises:
        DataError: A folder that the config reads is missing or has nothing in it.
    """
    for item in layout_of(cfg, root):
        place = path / item
        if not place.exists():
            raise DataError(
                Message("The data root {path} has no {item}, which the config reads.", path, item),
                "Attach the whole data set.",
            )
        if place.is_dir() and not scandir(place):
            raise DataError(
                Message("{place} is empty.", place),
                "Attach the whole data set; if it was attached just now, wait a minute and try again.",
            )
