"""Rasters that have one property each, and what must come of each."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import rasterio
import torch
from mmengine.registry import init_default_scope
from mmseg.models.data_preprocessor import SegDataPreProcessor
from PIL import Image
from rasterio.transform import Affine
from support.models import DEMO
from support.rasters import (
    CRS,
    GCPS,
    GRID,
    PLACE,
    RPCS,
    WORLD,
    aux_beside,
    described,
    gcps_of,
    mask_beside,
    palette,
    rpcs_of,
    write_raster,
)

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.engine.jobs import predict as engine
from mapsage_kaggle.engine.jobs.inference import TrainedModel
from mapsage_kaggle.imagery.sources import find_images

# The tests' own writing, of what has no place on Earth.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

MASK = np.repeat(np.repeat([[1, 2, 3]], 8, 1), 12, 0).astype(np.uint8)
"""What must come of a raster whose thirds are red, green and blue: the values of the first three classes."""
BANDS = np.where(np.arange(1, 4)[:, None, None] == MASK, 200, 40).astype(np.uint8)


class Colours(torch.nn.Module):
    """Tells red, green and blue apart."""

    out_channels = len(EARTHVQA_CLASSES)
    align_corners = False

    def __init__(self) -> None:
        super().__init__()
        self.test_cfg: dict[str, Any] = {}
        self.data_preprocessor = SegDataPreProcessor()

    def encode_decode(self, inputs: torch.Tensor, metas: Any) -> torch.Tensor:
        others = inputs.new_zeros(len(inputs), self.out_channels - 3, *inputs.shape[2:])
        return torch.cat([inputs.flip(1), others], 1)  # blue comes first


@pytest.fixture(scope="module")
def cfg() -> Any:
    found = for_inference(read_config(DEMO), {})
    found.test_dataloader.dataset.pipeline[1].scale = (24, 24)
    return found


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    net: Any = Colours()
    return TrainedModel(
        net, classes=EARTHVQA_CLASSES, palette=EARTHVQA_PALETTE, device=torch.device("cpu"), meta={}
    )


# --- making rasters


def tiff(folder: Path, bands: Any = BANDS, **more: Any) -> Path:
    return write_raster(folder / "a.tif", bands, **more)


def picture(folder: Path, suffix: str, bands: Any = BANDS, **more: Any) -> Path:
    path = folder / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(np.moveaxis(bands, 0, -1))).save(path, **more)
    return path


def png(folder: Path, bands: Any = BANDS) -> Path:
    return picture(folder, "png", bands)


def contradicting(folder: Path) -> Path:
    colours = ("red", "green", "blue")
    return tiff(folder, names=colours, colours=colours[::-1], photometric="MINISBLACK")


def turned_jpeg(folder: Path) -> Path:
    """Write a JPEG that lies on its side, and says so."""
    exif = Image.Exif()
    exif[274] = 6
    return picture(folder, "jpg", np.rot90(BANDS, axes=(1, 2)), quality=100, subsampling=0, exif=exif)


def deep_png(folder: Path) -> Path:
    """Write a PNG of 16 bits, whose upper half is transparent."""
    cv2.imwrite(str(folder / "a.png"), np.moveaxis(10 * with_alpha()[[2, 1, 0, 3]].astype(np.uint16), 0, -1))
    return folder / "a.png"


def palette_png(folder: Path) -> Path:
    image = Image.fromarray(MASK).convert("P")
    image.putpalette([0, 0, 0, 200, 40, 40, 40, 200, 40, 40, 40, 200])
    image.save(folder / "a.png")
    return folder / "a.png"


def with_alpha() -> Any:
    alpha = np.full((1, 12, 24), 255, np.uint8)
    alpha[:, :6] = 0
    return np.concatenate([BANDS, alpha])


def upper_half(value: float, bands: Any = BANDS) -> Any:
    """Return bands whose upper half has one value."""
    return np.where(np.arange(12)[:, None] < 6, value, bands).astype(bands.dtype)


def beside(make: Callable[[Path], Path], name: str, content: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        path = make(folder)
        if name == ".aux.xml":
            aux_beside(path, content)
        else:
            (folder / name).write_text(content)
        return path

    return made


def masked(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Put a mask beside a raster: its upper half is no data."""

    def made(folder: Path) -> Path:
        path = make(folder)
        mask_beside(path, 12, 24)
        return path

    return made


def masked_within(folder: Path) -> Path:
    path = tiff(folder)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        target.write_mask(with_alpha()[3])
    return path


def with_overviews(folder: Path) -> Path:
    path = tiff(folder)
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as target:
        target.build_overviews([2])
    return path


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(tiff(folder), "a.tif")
    return Path("/vsizip", *(folder / "a.zip" / "a.tif").parts[1:])


def cut(make: Callable[[Path], Path], share: float) -> Callable[[Path], Path]:
    """Leave but a share of a file."""

    def made(folder: Path) -> Path:
        path = make(folder)
        os.truncate(path, int(path.stat().st_size * share))
        return path

    return made


COLOURS = ((0, 0, 0, 255), (200, 40, 40, 255), (40, 200, 40, 255), (40, 40, 200, 0))
"""Of a palette; the last one, blue, is transparent."""
BLUE_FIRST = BANDS[::-1]
HALF = upper_half(0, MASK)
DEEP = {"read": engine.ReadOptions(value_range=(0, 2550))}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A raster, and what must come of it."""

    make: Callable[[Path], Path]
    options: dict[str, Any] = field(default_factory=dict)
    mask: Any = field(default_factory=lambda: MASK)
    transform: Any = None
    crs: str | None = None
    fact: Callable[[Any], Any] | None = None  # which the map must share with the raster
    is_tiff: bool = True
    told: str = ""
    refused: str = ""


TABLE: dict[str, Row] = {
    "PNG": Row(make=png, is_tiff=False),
    "PNG, world file": Row(make=beside(png, "a.pgw", WORLD), transform=GRID),
    "JPEG, world file": Row(
        make=beside(lambda at: picture(at, "jpg", quality=100, subsampling=0), "a.jgw", WORLD), transform=GRID
    ),
    "TIFF, world file": Row(make=beside(tiff, "a.tfw", WORLD), transform=GRID),
    "PNG, aux.xml": Row(make=beside(png, ".aux.xml", PLACE), transform=GRID, crs=CRS),
    "TIFF, aux.xml": Row(make=beside(tiff, ".aux.xml", PLACE), transform=GRID, crs=CRS),
    "PNG, aux.xml of statistics": Row(make=beside(png, ".aux.xml", ""), is_tiff=False),
    "PNG, mask beside": Row(make=masked(png), mask=HALF, is_tiff=False),
    "TIFF, mask beside": Row(make=masked(tiff), mask=HALF),
    "palette, a transparent colour": Row(
        make=beside(lambda at: tiff(at, MASK[None]), ".aux.xml", palette(*COLOURS)),
        mask=np.where(MASK == 3, 0, MASK),
    ),
    "described blue, green, red": Row(
        make=lambda at: tiff(at, BLUE_FIRST, names=("blue", "green", "red")), told="3,2,1 are read as red"
    ),
    "described B02, B03, B04": Row(
        make=lambda at: tiff(at, BLUE_FIRST, names=("B02", "B03", "B04"), photometric="MINISBLACK"),
        told="described as B02, B03, B04",
    ),
    "described B02, B03, B04, B08": Row(
        make=lambda at: tiff(
            at, BANDS[[2, 1, 0, 0]], names=("B02", "B03", "B04", "B08"), photometric="MINISBLACK"
        ),
        told="3,2,1 are read as red",
    ),
    "PNG, described beside": Row(
        make=beside(png, ".aux.xml", described("red", "blue", "green")),
        mask=np.array([0, 1, 3, 2])[MASK],
        told="1,3,2 are read as red",
        is_tiff=False,
    ),
    "interpreted blue, green, red": Row(
        make=lambda at: tiff(at, BLUE_FIRST, colours=("blue", "green", "red"), photometric="MINISBLACK")
    ),
    "described and interpreted otherwise": Row(
        make=contradicting, refused="which are red, green and blue?"
    ),
    "described and interpreted otherwise, named": Row(
        make=contradicting,
        options={"read": engine.ReadOptions(bands=(1, 2, 3))},
    ),
    "control points": Row(make=lambda at: tiff(at, gcps=GCPS), fact=gcps_of),
    "control points, polygons": Row(
        make=lambda at: tiff(at, gcps=GCPS), options={"polygons": True}, refused="ground control points alone"
    ),
    "RPCs": Row(make=lambda at: tiff(at, rpcs=RPCS), fact=rpcs_of),
    "RPCs, polygons": Row(
        make=lambda at: tiff(at, rpcs=RPCS), options={"polygons": True}, refused="RPCs alone"
    ),
    "RPCs beside a grid, polygons": Row(
        make=lambda at: tiff(at, rpcs=RPCS, transform=GRID, crs=CRS), options={"polygons": True},
        transform=GRID, crs=CRS, fact=rpcs_of,
    ),
    "BMP": Row(make=lambda at: picture(at, "bmp"), is_tiff=False),
    "WebP": Row(make=lambda at: picture(at, "webp", lossless=True), is_tiff=False),
    "JPEG, to be turned": Row(make=turned_jpeg, is_tiff=False),
    "PNG, palette": Row(make=palette_png, is_tiff=False),
    "PNG, transparent": Row(make=lambda at: png(at, with_alpha()), mask=HALF, is_tiff=False),
    "PNG of 16 bits, transparent": Row(make=deep_png, options=DEEP, mask=HALF, is_tiff=False),
    "PNG, cut off": Row(make=cut(png, 0.6), refused="cannot be read as an image"),
    "PNG, empty": Row(make=cut(png, 0), refused="is empty (0 bytes)"),
    "TIFF, cut off": Row(make=cut(tiff, 0.6), refused="are damaged or missing"),
    "JPEG 2000": Row(
        make=lambda at: write_raster(
            at / "a.jp2", BANDS, driver="JP2OpenJPEG", quality=100, reversible=True, transform=GRID, crs=CRS
        ),
        transform=GRID, crs=CRS,
    ),
    "Imagine": Row(
        make=lambda at: write_raster(at / "a.img", BANDS, driver="HFA", transform=GRID, crs=CRS),
        transform=GRID, crs=CRS,
    ),
    "ENVI": Row(
        make=lambda at: write_raster(at / "a.dat", BANDS, driver="ENVI", transform=GRID, crs=CRS),
        transform=GRID, crs=CRS,
    ),
    "in a zip": Row(make=zipped),
    "tiles, deflated": Row(
        make=lambda at: tiff(at, tiled=True, blockxsize=16, blockysize=16, compress="deflate", predictor=2)
    ),
    "JPEG within": Row(make=lambda at: tiff(at, compress="jpeg", jpeg_quality=100, photometric="YCBCR")),
    "band after band": Row(make=lambda at: tiff(at, interleave="band")),
    "BigTIFF": Row(make=lambda at: tiff(at, BIGTIFF="YES")),
    "big-endian": Row(make=lambda at: tiff(at, ENDIANNESS="BIG")),
    "overviews beside": Row(make=with_overviews),
    "alpha": Row(
        make=lambda at: tiff(at, with_alpha(), photometric="RGB", alpha="yes"), mask=HALF
    ),
    "no-data value": Row(make=lambda at: tiff(at, upper_half(7), nodata=7), mask=HALF),
    "mask within": Row(make=masked_within, mask=HALF),
    "16 bits": Row(
        make=lambda at: tiff(at, 10 * BANDS.astype(np.uint16), photometric="RGB"), options=DEEP
    ),
    "16 bits, no range": Row(
        make=lambda at: tiff(at, 10 * BANDS.astype(np.uint16), photometric="RGB"),
        refused="holds uint16 samples from 400 to 2000",
    ),
    "signed 16 bits": Row(
        make=lambda at: tiff(at, 10 * BANDS.astype(np.int16) - 1000, photometric="RGB"),
        options={"read": engine.ReadOptions(value_range=(-1000, 1550))},
    ),
    "floats, NaN": Row(
        make=lambda at: tiff(at, upper_half(np.nan, 10 * BANDS.astype(np.float32)), photometric="RGB"),
        options=DEEP, mask=HALF,
    ),
    "palette of 16 bits": Row(
        make=beside(
            lambda at: tiff(at, MASK[None].astype(np.uint16)), ".aux.xml", palette(*COLOURS)
        ),
        mask=np.where(MASK == 3, 0, MASK),
    ),
    "four bands": Row(
        make=lambda at: tiff(at, BANDS[[2, 1, 0, 0]], photometric="MINISBLACK"),
        refused="nothing says which are red, green and blue",
    ),
    "four bands, named": Row(
        make=lambda at: tiff(at, BANDS[[2, 1, 0, 0]], photometric="MINISBLACK"),
        options={"read": engine.ReadOptions(bands=(3, 2, 1))},
    ),
    "a rotated grid": Row(
        make=lambda at: tiff(at, transform=GRID @ Affine.rotation(30), crs=CRS),
        transform=GRID @ Affine.rotation(30), crs=CRS,
    ),
    "south above": Row(
        make=lambda at: tiff(at, transform=Affine(0.5, 0, 5e5, 0, 0.5, 3.4e6), crs=CRS),
        transform=Affine(0.5, 0, 5e5, 0, 0.5, 3.4e6), crs=CRS,
    ),
    "degrees": Row(
        make=lambda at: tiff(at, transform=Affine(1e-5, 0, 114.3, 0, -1e-5, 30.5), crs="EPSG:4326"),
        transform=Affine(1e-5, 0, 114.3, 0, -1e-5, 30.5), crs="EPSG:4326",
    ),
    "as it is": Row(make=tiff, options={"factor": 1.0}),
    "twice its size": Row(make=tiff, options={"factor": 2.0}),
    "windows": Row(make=tiff, options={"window": 8, "overlap": 2}),
    "windows, four times its size": Row(make=tiff, options={"window": 32, "factor": 4.0}),
    "a window larger than it": Row(make=tiff, options={"window": 500}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_a_raster_of_one_property_becomes_the_map_that_it_must(
    tmp_path: Path, model: TrainedModel, cfg: Any, name: str
) -> None:
    init_default_scope("mmseg")
    row = TABLE[name]
    path = row.make(tmp_path)
    task = engine.Task(out=tmp_path / "out", sources=find_images([path]), **row.options)
    said: list[str] = []
    found = engine.Predictor(
        cfg, model, task, "0" * 64, lambda event, **data: said.append(str(data.get("message", "")))
    ).run()

    if row.refused:
        ((problem,),) = ([item["problem"] for item in found["refused"]],)
        assert row.refused in problem
        return
    assert found["refused"] == []
    assert any(row.told in line for line in said)
    assert row.told or not any("are read as" in line for line in said)
    with rasterio.open(tmp_path / "out" / "masks" / ("a.tif" if row.is_tiff else "a.png")) as written:
        np.testing.assert_array_equal(written.read(1), row.mask)
        assert written.transform == (row.transform or Affine.identity())
        assert written.crs == row.crs
        if row.fact is not None:
            with rasterio.open(path) as source:
                assert row.fact(written) == row.fact(source)
