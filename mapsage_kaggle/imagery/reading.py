"""Read images into 8-bit RGB and a map of where there is data.

PNG, JPEG, BMP and WebP, recognised by their content, not by their name, are decoded by Pillow. TIFF is read
by rasterio, which also gives the georeference; so is what is too large to hold in memory, line by line, and
what has sidecar files (world files, ``.aux.xml``, ``.msk``). What cannot be read without guessing (more than
8 bits a sample, bands whose meaning nothing tells) is refused by name, with the option that would say it.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mapsage_kaggle.errors import DataError, MachineError
from mapsage_kaggle.imagery.bands import COLOURS, choose_bands
from mapsage_kaggle.imagery.sources import archive_of, gdal_name
from mapsage_kaggle.messages import Message

Bytes = NDArray[np.uint8]

HOLD_AT_MOST_PIXELS = 64_000_000
"""A larger image is read line by line instead of being decoded whole (192 MB in RGB)."""

_PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
_GDAL_DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",  # BigTIFF
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP": "JP2OpenJPEG",
    b"EHFA_HEADER_TAG": "HFA",
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"BM": "BMP",
    b"RIFF": "WEBP",
}
"""GDAL's driver by how a file begins. GDAL itself would also try formats that refer to other files or to the
network."""
_GEO_TAGS = (33550, 33922, 34264, 34735, 50844)  # pixel scale, tie points, transformation, keys, RPCs
_GDAL_CACHE_BYTES = 64_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How to read a file that does not say it itself.

    Attributes:
        bands: Which three bands are red, green and blue, counted from 1; or one for grey. None: as the file
            says.
        value_range: The values that become 0 and 255, for samples of more than 8 bits.
        is_named: Whether a person has named the file, which may then be anything that GDAL reads.
    """

    bands: tuple[int, ...] | None = None
    value_range: tuple[float, float] | None = None
    is_named: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """Part of an image.

    Attributes:
        rgb: uint8 of shape ``(height, width, 3)``; 0 where there is no data.
        valid: bool of shape ``(height, width)``, False where there is no data; None where there is data
            everywhere.
        samples: What the model sees instead, of shape ``(height, width, channels)``; None where that is
            ``rgb`` in the order BGR.
    """

    rgb: Bytes
    valid: NDArray[np.bool_] | None
    samples: NDArray[Any] | None = None

    def as_read(self) -> NDArray[Any]:
        """Return what the model's pipeline sees, of shape ``(height, width, channels)``."""
        return self.rgb[..., ::-1] if self.samples is None else self.samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Georeference:
    """Where on Earth an image lies: rasterio's ``crs``, ``transform``, ``gcps`` and ``rpcs``."""

    crs: Any
    transform: Any
    gcps: Any = ((), None)
    rpcs: Any = None

    @property
    def is_warped(self) -> bool:
        """Whether ground control points or RPCs alone say it, instead of a transform."""
        return bool(self.transform.is_identity and (self.gcps[0] or self.rpcs is not None))


class Picture(Protocol):
    """An opened image."""

    path: Path
    width: int
    height: int
    is_tiff: bool
    georeference: Georeference | None
    notices: tuple[Message, ...]
    """What to warn a person of."""

    def read(self, top: int, bottom: int) -> Pixels:
        """Return the lines ``top`` to ``bottom``, exclusive; raises DataError where they are damaged."""
        ...


@contextmanager
def open_picture(path: Path, options: ReadOptions = ReadOptions()) -> Iterator[Picture]:
    """Open an image.

    Raises:
        DataError: It cannot be read, or not without guessing; the message names the file and says why.
        MachineError: It needs rasterio, which is missing.
    """
    file = archive_of(path) or path
    try:
        size_bytes = file.stat().st_size
    except OSError as error:
        raise DataError(Message("{name} cannot be read: {why}.", path, error.strerror or error)) from error
    if not file.is_file():
        raise DataError(Message("{path} is no file.", path), "Give an image, or a folder of images.")
    if size_bytes == 0:
        raise DataError(Message("{path} is empty (0 bytes).", path), "Copy the image again.")
    header, beside = _header(path), _beside(path)
    is_small = header is not None and header.num_pixels <= HOLD_AT_MOST_PIXELS
    if header is not None and is_small and not header.is_tiff and not beside:
        yield _decode(path, options)
        return
    try:
        import rasterio  # noqa: F401
    except ImportError as error:
        if header is None:
            raise _unreadable(path, _UNKNOWN) from None
        if header.is_georeferenced or not is_small:
            raise missing_extra("geo", "rasterio", Message("to read {path}", path)) from error
        picture = _decode(path, options)
        if beside:
            picture.notices = (Message("{path} is not read: rasterio is not installed.", beside[0]),)
        yield picture
        return
    with _opened(path, options.is_named) as dataset:
        yield _Lines(path, dataset, options)


def _beside(path: Path) -> list[Path]:
    """Return the sidecar files that say where an image lies, or what of it is data.

    GDAL reads them itself; none count in formats that it does not read here.
    """
    if _driver_of(path) is None:
        return []
    suffix = path.suffix.removeprefix(".")
    worlds = (f"{suffix[:1]}{suffix[-1:]}w", f"{suffix}w", "wld") if suffix else ("wld",)
    names = [path.with_suffix(f".{world}") for word in worlds for world in (word, word.upper())]
    names += [path.with_name(path.name + more) for more in (".aux.xml", ".msk")]
    return [name for name in names if name.is_file()]


def stamp_beside(path: Path) -> str:
    """Return names, sizes and modification times of an image's sidecar files."""
    found = ((name.name, name.stat()) for name in _beside(path))
    return " ".join(f"{name}:{stat.st_size}:{stat.st_mtime_ns}" for name, stat in found)


def missing_extra(extra: str, package: str, purpose: Message) -> MachineError:
    """Return the error that says which of the kit's extras to install."""
    return MachineError(
        Message("{package} is needed {purpose}, and is not installed.", package, purpose),
        Message("Install it: pip install 'mapsage-kaggle[{extra}]'", extra),
    )


UNPLACED = "Dataset has no geotransform|The given matrix is equal to Affine.identity"
"""rasterio's warnings about an image without a georeference, as a regular expression."""
_filtering = threading.Lock()


@contextmanager
def without_warning(beginning: str) -> Iterator[None]:
    """Silence a warning, by a regular expression; one thread at a time, as all share the filters."""
    with _filtering, warnings.catch_warnings():
        warnings.filterwarnings("ignore", beginning)
        yield


def check_grid(picture: Picture) -> None:
    """Check that an image's transform turns its lines and columns into coordinates.

    Raises:
        DataError: Ground control points or RPCs alone say where it lies.
    """
    if picture.georeference is not None and picture.georeference.is_warped:
        kind = Message("ground control points") if picture.georeference.gcps[0] else "RPCs"
        raise DataError(
            Message(
                "{path} is placed by {kind} alone: its polygons would lie beside the ground.",
                picture.path,
                kind,
            ),
            "Warp it first, such as with gdalwarp; or leave --polygons out: rasters carry them along.",
        )


# --- pictures that are held whole ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    num_pixels: int
    is_tiff: bool
    is_georeferenced: bool


def _header(path: Path) -> _Header | None:
    """Return what Pillow reads from the header; None if it does not know the format."""
    try:
        with Image.open(path, formats=_PILLOW_FORMATS) as picture:
            tags = getattr(picture, "tag_v2", {})
            return _Header(
                num_pixels=picture.width * picture.height,
                is_tiff=picture.format == "TIFF",
                is_georeferenced=any(tag in tags for tag in _GEO_TAGS),
            )
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the latter if made an error
        return _Header(num_pixels=HOLD_AT_MOST_PIXELS + 1, is_tiff=False, is_georeferenced=False)
    except (OSError, SyntaxError, ValueError):
        return None


class _Held:
    """A decoded image."""

    def __init__(self, path: Path, pixels: Pixels) -> None:
        self.path = path
        self.is_tiff = False
        self.georeference: Georeference | None = None
        self.notices: tuple[Message, ...] = ()
        self._pixels = pixels
        self.height, self.width = pixels.rgb.shape[:2]

    def hide(self, valid: NDArray[np.bool_]) -> None:
        """Make what is not valid *no data*."""
        rgb, samples = self._pixels.rgb.copy(), self._pixels.samples
        rgb[~valid] = 0
        if samples is not None:
            samples = samples.copy()
            samples[~valid] = 0  # one NaN would spread over all that the model sees around it
        self._pixels = Pixels(rgb=rgb, valid=valid, samples=samples)

    def read(self, top: int, bottom: int) -> Pixels:
        valid, samples = self._pixels.valid, self._pixels.samples
        return Pixels(
            rgb=self._pixels.rgb[top:bottom],
            valid=valid[top:bottom] if valid is not None else None,
            samples=samples[top:bottom] if samples is not None else None,
        )


def _decode(path: Path, options: ReadOptions) -> _Held:
    try:
        with Image.open(path, formats=_PILLOW_FORMATS) as picture:
            # As mmcv reads it: by its EXIF orientation.
            deep = _deep_samples(picture)
            if deep is None:
                picture.load()
                return _Held(path, _from_pillow(path, ImageOps.exif_transpose(picture), options))
    # Pillow's readers raise SyntaxError and ValueError too, on broken chunks and headers.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    deep = deep.reshape(*deep.shape[:2], -1)
    colours = {1: ("gray",), 2: ("gray",), 3: COLOURS, 4: COLOURS}.get(deep.shape[2])
    if colours is None:
        raise _unreadable(path, Message("{count} channels of more than 8 bits", deep.shape[2]))
    valid = deep[..., -1] > 0 if deep.shape[2] > len(colours) else None
    names = colours if valid is None else (*colours, "alpha")
    deep = deep[..., _places(path, names, options)]
    held = _Held(path, Pixels(rgb=_as_rgb(_to_bytes(deep, path, options)), valid=None))
    if valid is not None and not valid.all():
        held.hide(valid)
    return held


def _deep_samples(picture: Image.Image) -> NDArray[Any] | None:
    """Return an image's samples where they have more than 8 bits, else None."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return np.asarray(picture)
    # Pillow silently drops the lower byte of 16-bit colours.
    if any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ())):
        import cv2

        picture.load()  # which fails where it is truncated
        data = np.fromfile(picture.filename, np.uint8)  # type: ignore[attr-defined]
        found = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
        if found is None:
            raise ValueError("OpenCV cannot decode its 16-bit samples")
        if picture.mode == "LA":
            return np.asarray(found[..., 2:])
        return np.asarray(found[..., [2, 1, 0, *range(3, found.shape[2])]] if found.ndim == 3 else found)
    return None


def _places(path: Path, names: Sequence[str], options: ReadOptions) -> list[int]:
    """Return the channels that are asked for, counted from 0."""
    return [band - 1 for band in choose_bands(path, names, (), options.bands)[0]]


def _from_pillow(path: Path, picture: Image.Image, options: ReadOptions) -> Pixels:
    has_alpha = "A" in picture.getbands() or "transparency" in picture.info
    if not has_alpha and options.bands is None:
        return Pixels(
            rgb=np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB")), valid=None
        )
    found = np.array(picture.convert("RGBA"))
    valid = found[..., 3] > 0
    places = [0, 1, 2]
    if options.bands is not None:
        is_grey = picture.getbands()[0] in ("1", "L", "P")
        names = ("gray",) if is_grey else COLOURS
        places = _places(path, (*names, "alpha") if "A" in picture.getbands() else names, options)
        if is_grey:  # of which RGBA has three
            places = [3 if place else 0 for place in places] if any(places) else [0, 1, 2]
    rgb = np.array(_as_rgb(found[..., places]))
    rgb[~valid] = 0
    return Pixels(rgb=rgb, valid=None if valid.all() else valid)


def _as_rgb(samples: Bytes) -> Bytes:
    if samples.ndim == 2:
        samples = samples[..., None]
    return np.ascontiguousarray(np.broadcast_to(samples, (*samples.shape[:2], 3)))


def _to_bytes(samples: NDArray[Any], path: Path, options: ReadOptions) -> Bytes:
    """Return samples as 8 bits; the values that become 0 and 255 are never guessed.

    Raises:
        DataError: They are not given.
    """
    if samples.dtype == np.uint8:
        return samples
    if options.value_range is None:
        finite = samples[np.isfinite(samples)] if samples.dtype.kind == "f" else samples
        found: str = ""
        if finite.size:
            found = Message(" from {low} to {high}", f"{finite.min():g}", f"{finite.max():g}")
        raise DataError(
            Message(
                "{path} holds {kind} samples{found}, and the model expects 8 bits.",
                path,
                samples.dtype,
                found,
            ),
            "Say which values become 0 and 255, as in training: --value-range LOW HIGH.",
        )
    low, high = options.value_range
    scaled = (np.nan_to_num(samples.astype(np.float32)) - low) * (255 / (high - low))
    return np.asarray(np.clip(np.rint(scaled), 0, 255), np.uint8)


_UNKNOWN = Message("its content is that of no known image format")


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(
        Message("{path} cannot be read as an image: {why}.", path, reason), "Copy it again, or leave it out."
    )


# --- pictures that something else has read


@contextmanager
def open_loaded(
    path: Path,
    samples: NDArray[Any],
    *,
    blue_first: bool,
    valid: NDArray[np.bool_] | None = None,
    is_named: bool = False,
) -> Iterator[Picture]:
    """Open an image whose samples a config's own pipeline has read, of any number of channels and any type.

    Its georeference and *no data* come from the file itself.

    Args:
        path: The image.
        samples: Of shape ``(height, width, channels)``.
        blue_first: Whether the first three channels are blue, green and red.
        valid: Where there is data, as :func:`read_bands` returns it; None to take it from the file.
        is_named: Whether a person has named the file.
    """
    picture = _Held(path, Pixels(rgb=drawable(samples, blue_first=blue_first), valid=None, samples=samples))
    header, no_data = _header(path), None
    if header is None or header.is_tiff or _beside(path):
        dataset: Any = None
        try:
            with _opened(path, is_named) as dataset:
                picture.georeference, no_data = _georeference_of(dataset), dataset.nodata
                picture.is_tiff = header is None or header.is_tiff or picture.georeference is not None
                if valid is None and dataset.shape == samples.shape[:2]:
                    with _lines_of(path, 0, dataset.height):
                        valid = _valid_of(dataset, dataset.indexes)
        except (ImportError, DataError):
            if valid is not None or dataset is not None:
                raise
            # Of a format that only the pipeline knows.
    if valid is None:
        valid = np.ones(samples.shape[:2], bool)
        if no_data is not None:
            valid = (samples != no_data).any(2)
    valid = valid & _finite(samples, 2)
    if not valid.all():
        picture.hide(valid)
    yield picture


def read_bands(
    path: Path, num: int, options: ReadOptions, *, blue_first: bool
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return bands of an image, by rasterio, as ``(height, width, num)``, and where it has data.

    Args:
        path: The image.
        num: How many the model takes.
        options: Which they are, red, green and blue first; by default all, in the file's order.
        blue_first: Whether the model takes blue, green, red and then the others, as OpenCV reads.

    Raises:
        DataError: It has another number of bands, or cannot be opened.
        MachineError: rasterio is missing.
    """
    try:
        with _opened(path, options.is_named) as dataset:
            bands = list(options.bands or range(1, dataset.count + 1))
            if len(bands) != num or max(bands) > dataset.count:
                raise DataError(
                    Message(
                        "{path} has {count} bands, and the model takes {num} channels.",
                        path,
                        dataset.count,
                        num,
                    ),
                    Message(
                        "Name {num} of them, red, green and blue first, counted from 1: --bands {bands}",
                        num,
                        ",".join(map(str, range(1, num + 1))),
                    ),
                )
            with _lines_of(path, 0, dataset.height):
                samples = np.moveaxis(dataset.read(bands), 0, -1)
                # By the values in the file, before the stretch to 8 bits.
                valid = _valid_of(dataset, bands) & _finite(samples, 2)
    except ImportError as error:
        raise missing_extra("geo", "rasterio", Message("to read {path}", path)) from error
    samples = _to_bytes(samples, path, options)
    return samples[..., [2, 1, 0, *range(3, num)]] if blue_first and num >= 3 else samples, valid


def drawable(samples: NDArray[Any], *, blue_first: bool) -> Bytes:
    """Return samples of any type as RGB to look at, uint8 of shape ``(height, width, 3)``."""
    shown = samples[..., :3] if samples.shape[2] >= 3 else samples[..., :1]
    shown = shown[..., ::-1] if blue_first else shown
    if shown.dtype != np.uint8:
        values = np.nan_to_num(shown.astype(np.float32))
        # Within 0 to 255 it is 8 bits in another type; else stretched between percentiles.
        is_bytes = values.min() >= 0 and 1 < values.max() <= 255
        low, high = (0, 255) if is_bytes else np.percentile(values[::8, ::8], (2, 98))
        scaled = (values - low) * (255 / max(float(high - low), 1e-6))
        shown = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return _as_rgb(shown)


# --- pictures that are read line by line -----------------------------------------------------------------


@contextmanager
def _opened(path: Path, is_named: bool = False) -> Iterator[Any]:
    """Open an image with rasterio, by the driver that fits its content or, where it is named, by any."""
    import rasterio
    from rasterio.errors import RasterioError

    driver = _driver_of(path)
    if driver is None and not is_named:
        raise _unreadable(path, _UNKNOWN)

    # GDAL's cache would take 5 % of the machine's memory, and a sidecar file may refer to others, even on the
    # network.
    with rasterio.Env(GDAL_CACHEMAX=_GDAL_CACHE_BYTES, CPL_VSIL_CURL_ALLOWED_EXTENSIONS=".none"):
        try:
            with without_warning(UNPLACED):
                dataset = rasterio.open(gdal_name(path), driver=driver)
        except RasterioError as error:
            raise _unreadable(path, str(error).splitlines()[0]) from error
        with dataset:
            yield dataset


@contextmanager
def _lines_of(path: Path, top: int, bottom: int) -> Iterator[None]:
    """Refuse an image of which rasterio cannot read lines."""
    from rasterio.errors import RasterioError

    try:
        yield
    except RasterioError as error:
        why = str(error).splitlines()[0]
        lines = Message("lines {top} to {bottom} are damaged or missing ({why})", top, bottom, why)
        raise _unreadable(path, lines) from error


def _driver_of(path: Path) -> str | None:
    """Return GDAL's driver for a file, by how it begins."""
    with (archive_of(path) or path).open("rb") as stream:
        start = stream.read(16)
    return next((driver for magic, driver in _GDAL_DRIVERS.items() if start.startswith(magic)), None)


def _georeference_of(dataset: Any) -> Georeference | None:
    found = Georeference(crs=dataset.crs, transform=dataset.transform, gcps=dataset.gcps, rpcs=dataset.rpcs)
    return found if found.crs is not None or not found.transform.is_identity or found.is_warped else None


def _masked_bands(dataset: Any, bands: Sequence[int]) -> list[int]:
    """Return the bands whose masks say where there is data; none where there is data everywhere."""
    flags = {band: {flag.name for flag in dataset.mask_flag_enums[band - 1]} for band in bands}
    # A mask of the whole image, in the file or beside it, need not be read for each band.
    whole = [band for band, names in flags.items() if "per_dataset" in names]
    return whole or list(bands if any(names != {"all_valid"} for names in flags.values()) else ())


def _valid_of(dataset: Any, bands: Sequence[int]) -> NDArray[np.bool_]:
    """Return where any of the bands has data; an alpha band among them is a channel like any other."""
    masked = _masked_bands(dataset, bands)
    if any(dataset.colorinterp[band - 1].name == "alpha" for band in bands):
        flags = dataset.mask_flag_enums
        masked = [band for band in masked if all(flag.name != "alpha" for flag in flags[band - 1])]
    if not masked:
        return np.ones(dataset.shape, bool)
    return np.asarray(dataset.read_masks(masked).any(0))


def _finite(samples: NDArray[Any], axis: int) -> NDArray[np.bool_]:
    """Return where all channels, along an axis, are finite."""
    if samples.dtype.kind != "f":
        return np.ones(np.delete(samples.shape, axis), bool)
    return np.asarray(np.isfinite(samples).all(axis))


class _Lines:
    """An image that is read line by line."""

    def __init__(self, path: Path, dataset: Any, options: ReadOptions) -> None:
        self.path = path
        self.width, self.height = dataset.width, dataset.height
        self.georeference = _georeference_of(dataset)
        self.is_tiff = dataset.driver not in _PILLOW_FORMATS or self.georeference is not None
        turned = dataset.tags().get("EXIF_Orientation", "1")  # which GDAL leaves to its caller
        if turned not in ("0", "1") and self.georeference is None:
            raise DataError(
                Message(
                    "{path} is to be turned (EXIF orientation {value}), but read by lines.", path, turned
                ),
                "Turn its pixels first, such as with ImageMagick: mogrify -auto-orient FILE",
            )
        self._dataset, self._options = dataset, options
        names = [interpretation.name for interpretation in dataset.colorinterp]
        self._bands, notice = choose_bands(path, names, dataset.descriptions, options.bands)
        self.notices: tuple[Message, ...] = (notice,) if notice is not None else ()
        self._palette = _palette_of(dataset, self._bands[0]) if len(self._bands) == 1 else None
        kinds = {dataset.dtypes[band - 1] for band in self._bands}
        if self._palette is None and kinds != {"uint8"} and options.value_range is None:
            # Of a thumbnail, so that the refusal states the range of its values.
            scale = max(1, max(self.width, self.height) // 512)
            size = (len(self._bands), max(1, self.height // scale), max(1, self.width // scale))
            with _lines_of(path, 0, self.height):
                thumbnail = dataset.read(self._bands, out_shape=size)
            _to_bytes(thumbnail, path, options)
        # A nodata value (which all bands must have), an alpha band or a mask.
        self._masked = _masked_bands(dataset, self._bands)
        self._has_nan = any(kind.startswith("float") for kind in kinds)

    def read(self, top: int, bottom: int) -> Pixels:
        from rasterio.windows import Window

        window = Window(0, top, self.width, bottom - top)
        valid = None
        with _lines_of(self.path, top, bottom):
            samples = self._dataset.read(self._bands, window=window)
            if self._masked:
                valid = self._dataset.read_masks(self._masked, window=window).any(0)
        if self._has_nan:
            finite = _finite(samples, 0)
            valid = finite if valid is None else valid & finite
        if self._palette is not None:
            found = self._palette[samples[0]]
            rgb = np.ascontiguousarray(found[..., :3])
            if not self._palette[:, 3].all():
                valid = found[..., 3] > 0 if valid is None else valid & (found[..., 3] > 0)
        else:
            rgb = _as_rgb(np.moveaxis(_to_bytes(samples, self.path, self._options), 0, -1))
        if valid is not None and not valid.all():
            rgb[~valid] = 0
        else:
            valid = None
        return Pixels(rgb=rgb, valid=valid)


def _palette_of(dataset: Any, band: int) -> Bytes | None:
    """Return the RGBA colour of each value, of shape ``(values, 4)``; None where there is no palette."""
    num_values = {"uint8": 2**8, "uint16": 2**16}.get(dataset.dtypes[band - 1])
    try:
        colours = dataset.colormap(band)
    except ValueError:
        return None
    if num_values is None:
        return None
    palette = np.full((num_values, 4), (0, 0, 0, 255), np.uint8)
    for value, colour in colours.items():
        palette[value] = colour
    return palette
