"""The files that are made of one image: their names, and how each is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mapsage_kaggle.imagery.polygons import write_polygons
from mapsage_kaggle.imagery.reading import HOLD_AT_MOST_PIXELS, Bytes, Georeference, Picture
from mapsage_kaggle.imagery.writing import Labels, write_names, write_png, write_tiff

SCALE = 250
"""What the bands of a probability map add up to: a unit is 0.4 %, as the file's scale states."""
NO_PROBABILITY = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageShape:
    """What must be known of an image to write its files."""

    width: int
    height: int
    is_tiff: bool
    georeference: Georeference | None

    @classmethod
    def of(cls, picture: Picture) -> ImageShape:
        return cls(
            width=picture.width,
            height=picture.height,
            # A PNG is written from the whole map in memory.
            is_tiff=picture.is_tiff or picture.height * picture.width > HOLD_AT_MOST_PIXELS,
            georeference=picture.georeference,
        )


class ImageWriter:
    """Writes the files of one image, each from top to bottom, and lists them."""

    def __init__(self, out: Path, name: str, shape: ImageShape, labels: Labels) -> None:
        self._out, self._name, self._shape, self._labels = out, name, shape, labels
        self.files: list[Path] = []

    def mask(self, strips: Iterator[Bytes]) -> None:
        """Write the mask, from strips ``(lines, width)``."""
        if not self._shape.is_tiff:
            file = self._file("masks", ".png")
            write_png(file, np.concatenate(list(strips)), self._labels)
        else:
            file = self._file("masks", ".tif")
            self._tiff(
                file,
                (strip[None] for strip in strips),
                num_bands=1,
                no_data=self._labels.no_data,
                palette=self._labels.colours(),
            )
        write_names(self._file("masks", f"{file.suffix}.aux.xml"), self._labels)

    def picture(self, strips: Iterator[Bytes]) -> None:
        """Write the overlay, from RGB strips ``(lines, width, 3)``."""
        if self._shape.is_tiff:
            moved = (np.moveaxis(strip, -1, 0) for strip in strips)
            self._tiff(self._file("overlays", ".tif"), moved, num_bands=3)
        else:
            write_png(self._file("overlays", ".png"), np.concatenate(list(strips)))

    def probabilities(self, strips: Iterator[Bytes]) -> None:
        """Write the probability map, in units of 1/``SCALE``, from strips ``(classes, lines, width)``."""
        first = next(strips)
        names = self._labels.classes if len(first) == len(self._labels.classes) else ()
        self._tiff(
            self._file("probabilities", ".tif"),
            chain([first], strips),
            num_bands=len(first),
            no_data=NO_PROBABILITY,
            scale=1 / SCALE,
            descriptions=names,
        )

    def polygons(self, blocks: Iterator[tuple[int, Bytes]], min_area: float) -> None:
        """Write the polygons; see :func:`write_polygons`."""
        file = self._file("polygons", ".gpkg")
        write_polygons(file, blocks, self._labels, self._shape.georeference, min_area=min_area)

    def _tiff(self, file: Path, strips: Iterator[Bytes], **options: Any) -> None:
        shape = self._shape
        write_tiff(
            file, strips, height=shape.height, width=shape.width, georeference=shape.georeference, **options
        )

    def _file(self, kind: str, suffix: str) -> Path:
        file = self._out / kind / f"{self._name}{suffix}"
        self.files.append(file)
        return file
