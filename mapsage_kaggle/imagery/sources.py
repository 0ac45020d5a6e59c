"""Which images are asked for, and what each is called."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mapsage_kaggle.errors import DataError

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".jp2", ".img"))
"""What is taken from a folder. A file that is named itself may have any name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An image to read.

    Attributes:
        path: Where it lies.
        name: What to call what comes of it: its path below the folder that was given, without suffix.
    """

    path: Path
    name: str


def find_images(given: Sequence[Path]) -> tuple[Source, ...]:
    """Return the images that are named, and those below the folders that are named, in order of path.

    Raises:
        DataError: A path does not exist, a folder holds no image, or two images would have one name.
    """
    found: dict[str, Source] = {}
    for path in given:
        if path.is_dir():
            images = sorted(_below(path))
            if not images:
                raise DataError(
                    f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).", "Give another folder."
                )
            named = [
                Source(path=image, name=str(image.relative_to(path).with_suffix(""))) for image in images
            ]
        elif path.exists():
            named = [Source(path=path, name=path.stem)]
        else:
            raise DataError(f"There is nothing at {path}.", "Give an image, or a folder of images.")
        for source in named:
            other = found.setdefault(source.name, source)
            if other.path != source.path:
                raise DataError(
                    f"{other.path} and {source.path} would both give {source.name}.",
                    "Predict them one after the other, each with its own --out.",
                )
    return tuple(found.values())


def _below(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if Path(name).suffix.casefold() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(base, name)
