"""Writes what a model says: masks, overlays, probability maps; PNG or GeoTIFF as the image was.

Everything is written beside its final name and renamed when it is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapsage_kaggle.errors import DataError
from mapsage_kaggle.imagery.reading import Bytes, Georeference, missing_extra

OVERLAY_OPACITY = 0.5
_BLOCK = 512
_GDAL_CACHE_BYTES = 64_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """How a data set writes its classes into masks.

    Attributes:
        classes: Their names.
        palette: A colour for each, RGB.
        numbers: The mask value of each class.
        no_data: The mask value of what belongs to no class.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    numbers: tuple[int, ...]
    no_data: int

    def __post_init__(self) -> None:
        numbers = {*self.numbers, self.no_data}
        counts = {len(self.classes), len(self.palette), len(self.numbers), len(numbers) - 1}
        if len(counts) > 1 or not all(0 <= number <= 255 for number in numbers):
            raise DataError(
                f"{len(self.classes)} classes, {len(self.palette)} colours, the values {self.numbers} and "
                f"{self.no_data} for no data do not make a mask of 8 bits."
            )

    def values(self, classes: Bytes, valid: NDArray[np.bool_] | None) -> Bytes:
        """Return a mask for class numbers from 0; where there is no data, ``no_data``."""
        mask: Bytes = np.asarray(self.numbers, np.uint8)[classes]
        if valid is not None:
            mask[~valid] = self.no_data
        return mask

    def colours(self) -> Bytes:
        """Return a colour for each mask value, of shape (256, 3); black for what is no class."""
        table: Bytes = np.zeros((256, 3), np.uint8)
        table[list(self.numbers)] = self.palette
        return table


def overlay(rgb: Bytes, mask: Bytes, labels: Labels) -> Bytes:
    """Return an image with each class's colour laid over it; what has no data stays as it is."""
    blended = labels.colours()[mask]
    kept = np.uint16(256 * (1 - OVERLAY_OPACITY))
    mixed: Bytes = ((rgb * kept + blended * (256 - kept)) >> 8).astype(np.uint8)
    none = mask == labels.no_data
    mixed[none] = rgb[none]
    return mixed


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside ``path`` to write to; rename it when the block ends well, remove it when not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.unfinished{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_png(path: Path, pixels: Bytes) -> None:
    """Write a mask (two dimensions) or a picture (three) as PNG."""
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, compress_level=1 if pixels.ndim == 3 else 4)


def write_tiff(
    path: Path,
    strips: Iterable[NDArray[Any]],
    *,
    height: int,
    width: int,
    num_bands: int,
    georeference: Georeference | None,
    no_data: float | None = None,
    palette: Bytes | None = None,
    descriptions: Sequence[str] = (),
) -> None:
    """Write a tiled, compressed GeoTIFF from strips of lines, of which few are held at a time.

    Args:
        path: Where to.
        strips: From top to bottom, uint8 of shape ``(bands, lines, width)``; any number of lines each.
        height: Of the whole.
        width: Of the whole.
        num_bands: Bands of the whole.
        georeference: Where it lies; None for none.
        no_data: The value that means *no data*.
        palette: A colour for each value, of shape (256, 3), for one band.
        descriptions: A name for each band.

    Raises:
        MachineError: rasterio is missing.
    """
    import warnings

    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
        from rasterio.windows import Window
    except ImportError as error:
        raise missing_extra("geo", "rasterio", f"to write {path}") from error
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": "uint8", "width": width, "height": height, "count": num_bands,
        "nodata": no_data, "compress": "deflate", "zlevel": 4, "bigtiff": "if_safer", "tiled": True,
        "blockxsize": _BLOCK, "blockysize": _BLOCK,
    }  # fmt: skip
    if num_bands == 3 and not descriptions:
        profile["photometric"] = "RGB"
    if georeference is not None:
        profile |= {"crs": georeference.crs, "transform": georeference.transform}
    with (
        replacing(path) as temporary,
        warnings.catch_warnings(),
        rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES, GDAL_PAM_ENABLED=False),
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(temporary, "w", **profile) as target:
            if georeference is not None and georeference.gcps[0]:
                target.gcps = georeference.gcps
            if palette is not None:
                target.write_colormap(1, {value: (*map(int, rgb), 255) for value, rgb in enumerate(palette)})
            for band, description in enumerate(descriptions, start=1):
                target.set_band_description(band, description)
            top = 0
            # Whole rows of blocks: a block that is written twice takes its place in the file twice.
            for strip in aligned(strips, _BLOCK):
                target.write(strip, window=Window(0, top, width, strip.shape[1]))
                top += strip.shape[1]


def aligned(strips: Iterable[NDArray[Any]], lines: int) -> Iterator[NDArray[Any]]:
    """Regroup strips into ones of ``lines`` lines; the last may be shorter."""
    held: list[NDArray[Any]] = []
    count = 0
    for strip in strips:
        while strip.shape[1]:
            part = strip[:, : lines - count]
            strip = strip[:, part.shape[1] :]
            held.append(part)
            count += part.shape[1]
            if count == lines:
                yield np.concatenate(held, axis=1)
                held, count = [], 0
    if count:
        yield np.concatenate(held, axis=1)
