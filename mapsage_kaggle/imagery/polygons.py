"""Turns masks into polygons, in a GeoPackage that any GIS opens."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from mapsage_kaggle.imagery.reading import Bytes, Georeference, missing_extra, without_warning
from mapsage_kaggle.imagery.writing import Labels, replacing

BLOCK_PIXELS = 4096 * 4096
"""How many pixels are turned at a time, at most. Polygons that cross from one block of lines to the next
are cut there: whole ones would need the whole scene in memory."""

LAYER = "classes"
_ROWS_AT_A_TIME = 10_000


def block_lines(width: int) -> int:
    """Return how many lines of a map are turned at a time."""
    return max(1, BLOCK_PIXELS // width)


def write_polygons(
    path: Path,
    blocks: Iterator[tuple[int, Bytes]],
    labels: Labels,
    georeference: Georeference | None,
    *,
    least_pixels: int = 1,
) -> int:
    """Write a polygon for each connected area of a class, with the fields of :func:`_fields`.

    Args:
        path: The GeoPackage.
        blocks: First line and mask of each block, from top to bottom.
        labels: What the values mean. What has no data gets no polygon.
        georeference: Turns pixels into coordinates. None: coordinates are pixels, y downwards.
        least_pixels: Smaller areas are left out.

    Returns:
        How many polygons there are.

    Raises:
        MachineError: rasterio, shapely or pyogrio is missing.
    """
    try:
        import pyogrio.raw
        import rasterio.features
        import rasterio.windows
        import shapely
        from rasterio.transform import IDENTITY
        from rasterio.windows import Window
    except ImportError as error:
        package = error.name or "rasterio, shapely or pyogrio"
        raise missing_extra("geo", package, "to write polygons") from error

    transform = georeference.transform if georeference is not None else IDENTITY
    crs = georeference.crs.to_wkt() if georeference is not None and georeference.crs is not None else None
    pixel_area = abs(transform.determinant)
    name_of = dict(zip(labels.numbers, labels.classes, strict=True))
    total = 0
    rows = _Rows()
    with replacing(path, rows.read_back) as temporary:
        temporary.unlink(missing_ok=True)
        for top, mask in blocks:
            found = rasterio.features.shapes(
                mask,
                mask=mask != labels.no_data,
                transform=rasterio.windows.transform(Window(0, top, *mask.shape[::-1]), transform),
            )
            # One by one: as the dictionaries that they come as, all of a block would take far more memory.
            pairs = [(shapely.geometry.shape(shape), int(value)) for shape, value in found]
            shapes = np.array([shape for shape, _ in pairs], dtype=object)
            values = np.array([value for _, value in pairs], dtype=np.int32)
            areas = shapely.area(shapes) if len(shapes) else np.zeros(0)
            pixels = np.rint(areas / pixel_area).astype(np.int64)
            kept = pixels >= least_pixels
            shapes, values, areas, pixels = shapes[kept], values[kept], areas[kept], pixels[kept]
            if not len(shapes) and total:
                continue
            names = np.array([name_of[value] for value in values.tolist()], dtype=object)
            fields: dict[str, Any] = {"value": values, "class": names, "pixels": pixels, "area": areas}
            # Of a picture without a georeference, where it is true and meant.
            with without_warning("'crs' was not provided"):
                geometries = shapely.to_wkb(shapes)
                rows.add(geometries, list(fields.values()))
                pyogrio.raw.write(
                    temporary, geometries, list(fields.values()), list(fields), layer=LAYER,
                    driver="GPKG", geometry_type="Polygon", crs=crs, append=total > 0,
                )  # fmt: skip
            total += len(shapes)
    return total


class _Rows:
    """A digest of each column of a layer, to compare what was written with what is read back."""

    def __init__(self) -> None:
        self._columns: defaultdict[int, Any] = defaultdict(hashlib.sha256)
        self._count = 0

    def add(self, geometries: Sequence[bytes], fields: Sequence[Any]) -> None:
        self._count += len(geometries)
        self._columns[0].update(b"".join(geometries))
        for column, values in enumerate(fields, start=1):
            self._columns[column].update("".join(f"{value};" for value in values).encode())

    def read_back(self, file: Path) -> bool:
        """Whether a GeoPackage is whole and holds these rows."""
        import pyogrio.raw

        with closing(sqlite3.connect(file)) as database:
            if database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                return False
        found = _Rows()
        for begin in range(0, max(self._count, 1), _ROWS_AT_A_TIME):
            _, _, geometries, fields = pyogrio.raw.read(
                file, layer=LAYER, skip_features=begin, max_features=_ROWS_AT_A_TIME
            )
            found.add(geometries, fields)
        return found.digests() == self.digests()

    def digests(self) -> list[bytes]:
        return [self._columns[column].digest() for column in sorted(self._columns)]
