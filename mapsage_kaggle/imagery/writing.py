"""Write masks, overlays and probability maps, as PNG or GeoTIFF like the image.

Everything is written beside its final name, flushed to the disk, read back and compared, and only then
renamed: GDAL and SQLite may not report a full disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mapsage_kaggle.errors import DataError, MachineError, MapsageError
from mapsage_kaggle.imagery.reading import UNPLACED, Bytes, Georeference, missing_extra, without_warning
from mapsage_kaggle.messages import Message

OVERLAY_OPACITY = 0.5
_BLOCK = 512
_OF_THE_NAME = frozenset((errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST))
"""Errors that are not the disk's: it would have accepted another name."""
_GDAL_CACHE_BYTES = 64_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """How a data set writes its classes into masks.

    Attributes:
        classes: Their names.
        palette: An RGB colour for each.
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
                Message(
                    "{classes} classes, {colours} colours, the values {values} and {no_data} for no data do "
                    "not make a mask of 8 bits.",
                    len(self.classes), len(self.palette), self.numbers, self.no_data,
                )
            )  # fmt: skip

    def values(self, classes: Bytes, valid: NDArray[np.bool_] | None) -> Bytes:
        """Return the mask of class indices from 0; ``no_data`` where there is no data."""
        mask: Bytes = np.asarray(self.numbers, np.uint8)[classes]
        if valid is not None:
            mask[~valid] = self.no_data
        return mask

    def colours(self) -> Bytes:
        """Return an RGB colour for each mask value, of shape ``(256, 3)``; black for what is no class."""
        table: Bytes = np.zeros((256, 3), np.uint8)
        table[list(self.numbers)] = self.palette
        return table


def overlay(rgb: Bytes, mask: Bytes, labels: Labels) -> Bytes:
    """Return an image with the classes' colours blended in; what has no data stays as it is."""
    blended = labels.colours()[mask]
    kept = np.uint16(256 * (1 - OVERLAY_OPACITY))
    mixed: Bytes = ((rgb * kept + blended * (256 - kept)) >> 8).astype(np.uint8)
    none = mask == labels.no_data
    mixed[none] = rgb[none]
    return mixed


class WriteFailed(MachineError):
    """The disk does not take the files of any image, not only of one."""

    @classmethod
    def of(cls, path: Path, why: object) -> WriteFailed:
        """Return the error for a file, with its disk named."""
        disk = next(folder for folder in path.absolute().parents if folder.is_mount())
        free_bytes = shutil.disk_usage(disk).free
        return cls(
            Message(
                "{path} could not be written: {why}. The disk at {disk} has {free} MB free.",
                path,
                why,
                disk,
                f"{free_bytes / 1e6:.1f}",
            ),
            "Make room there, or mend it; the same command then goes on where it stopped.",
        )


@contextmanager
def replacing(path: Path, reads_back: Callable[[Path], bool] = lambda temporary: True) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; rename it when the block succeeds, else remove it.

    Its name is short ASCII, so that disk and GDAL accept it wherever they accept the final one.
    ``reads_back`` is given the path that was written to, and returns whether it holds what was meant.

    Raises:
        DataError: The disk does not accept the name.
        WriteFailed: It could not be written, or does not read back.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.with_name(f"unfinished-{digest}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        if not _tried(reads_back, temporary):
            full = _refusal(temporary)
            raise WriteFailed.of(
                path, full.strerror if full is not None else "it reads back otherwise than it was written"
            )
        temporary.replace(path)
    except MapsageError:
        raise
    except Exception as error:
        # GDAL and SQLite report a full disk in errors of their own, or raise another one later.
        cause = error if isinstance(error, OSError) and error.strerror else _refusal(temporary)
        if cause is not None and cause.errno in _OF_THE_NAME:
            raise DataError(
                Message("{path} could not be written: {why}.", path, cause.strerror),
                "Rename the image, or what stands in its way there.",
            ) from error
        if cause is not None or isinstance(error, OSError):
            raise WriteFailed.of(path, cause.strerror if cause is not None else error) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    """Flush a file to the disk and drop it from the page cache, so that it is read back from there."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _refusal(file: Path) -> OSError | None:
    """Return the error of appending to a file; None where that works."""
    try:
        with file.open("ab") as stream:
            stream.write(bytes(1 << 20))
    except OSError as error:
        return error
    return None


def _tried(reads_back: Callable[[Path], bool], file: Path) -> bool:
    try:
        return reads_back(file)
    except Exception:  # noqa: BLE001 - readers raise anything on a torn file
        return False


def write_png(path: Path, pixels: Bytes, labels: Labels | None = None) -> None:
    """Write RGB of shape ``(height, width, 3)`` as PNG, or a mask, ``(height, width)``, with its palette.

    Raises:
        WriteFailed: See :func:`replacing`.
    """
    image = Image.fromarray(pixels)
    options: dict[str, Any] = {"compress_level": 1 if pixels.ndim == 3 else 4}
    colours: list[int] = []
    if labels is not None:
        colours = labels.colours()[: max(*labels.numbers, labels.no_data) + 1].ravel().tolist()
        image.putpalette(colours)
        options |= {"bits": 8, "transparency": labels.no_data}

    def reads_back(file: Path) -> bool:
        with Image.open(file) as picture:
            found = (picture.getpalette() or [])[: len(colours)], picture.info.get("transparency")
            return np.array_equal(picture, pixels) and found == (colours, options.get("transparency"))

    with replacing(path, reads_back) as temporary:
        image.save(temporary, **options)


def write_names(path: Path, labels: Labels) -> None:
    """Write the names of a mask's values in GDAL's sidecar file, ``<file>.aux.xml``.

    Raises:
        WriteFailed: See :func:`replacing`.
    """
    name_of = dict(zip(labels.numbers, labels.classes, strict=True)) | {labels.no_data: "no data"}
    names = (escape(name_of.get(value, "")) for value in range(max(name_of) + 1))
    lines = "".join(f"      <Category>{name}</Category>\n" for name in names)
    text = (
        '<PAMDataset>\n  <PAMRasterBand band="1">\n    <CategoryNames>\n'
        f"{lines}    </CategoryNames>\n  </PAMRasterBand>\n</PAMDataset>\n"
    ).encode()
    with replacing(path, lambda file: file.read_bytes() == text) as temporary:
        temporary.write_bytes(text)


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
    scale: float | None = None,
    descriptions: Sequence[str] = (),
) -> None:
    """Write a tiled, compressed GeoTIFF from strips of lines, few of which are held at a time.

    The strips come from top to bottom, uint8 of shape ``(bands, lines, width)``, any number of lines each.
    ``no_data`` is the value that means *no data*, ``palette`` has an RGB colour for each value, of shape
    ``(256, 3)``, for one band, ``scale`` is what a value of 1 stands for; ``descriptions`` name the bands.

    Raises:
        MachineError: rasterio is missing.
        WriteFailed: See :func:`replacing`.
    """
    try:
        import rasterio
        from rasterio.windows import Window
    except ImportError as error:
        raise missing_extra("geo", "rasterio", Message("to write {path}", path)) from error
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": "uint8", "width": width, "height": height, "count": num_bands,
        "nodata": no_data, "compress": "deflate", "zlevel": 4, "bigtiff": "if_safer", "tiled": True,
        "blockxsize": _BLOCK, "blockysize": _BLOCK,
    }  # fmt: skip
    if num_bands == 3 and not descriptions:
        profile["photometric"] = "RGB"
    if georeference is not None:
        profile |= {"crs": georeference.crs, "transform": georeference.transform}
        if georeference.rpcs is not None:
            profile["rpcs"] = georeference.rpcs
    digest, facts = hashlib.sha256(), ()

    def reads_back(file: Path) -> bool:
        found = hashlib.sha256()
        with _quietly(rasterio.open, file) as target:
            for top in range(0, height, _BLOCK):
                found.update(target.read(window=Window(0, top, width, min(_BLOCK, height - top))))
            return found.digest() == digest.digest() and _quietly(_facts, target) == facts

    with (
        rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES, GDAL_PAM_ENABLED=False),
        replacing(path, reads_back) as temporary,
        _quietly(rasterio.open, temporary, "w", **profile) as target,
    ):
        if georeference is not None and georeference.gcps[0]:
            target.gcps = georeference.gcps
        if palette is not None:
            colours = {value: (*map(int, rgb), 255) for value, rgb in enumerate(palette)}
            target.write_colormap(1, colours)
        if scale is not None:
            target.scales = (scale,) * num_bands
        for band, description in enumerate(descriptions, start=1):
            target.set_band_description(band, description)
        top = 0
        # Whole rows of blocks: a block that is written twice takes up space in the file twice.
        for strip in aligned(strips, _BLOCK):
            target.write(strip, window=Window(0, top, width, strip.shape[1]))
            digest.update(np.ascontiguousarray(strip).data)
            top += strip.shape[1]
        facts = _quietly(_facts, target)


def _quietly(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with without_warning(UNPLACED):
        return call(*arguments, **options)


def _facts(dataset: Any) -> tuple[Any, ...]:
    """Return some metadata of a GeoTIFF: its directory is there as a whole or not at all."""
    has_palette = dataset.colorinterp[0].name == "palette"
    colours = [colour[:3] for colour in dataset.colormap(1).values()] if has_palette else None
    named = dataset.descriptions, dataset.scales, colours
    return dataset.transform, dataset.nodata, len(dataset.gcps[0]), *named


def aligned(strips: Iterable[NDArray[Any]], lines: int) -> Iterator[NDArray[Any]]:
    """Regroup strips, of shape ``(bands, lines, width)``, into ones of ``lines``; the last may be shorter."""
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
