"""Rasters that have one property each, and what must come of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from mmengine.registry import init_default_scope
from mmseg.models.data_preprocessor import SegDataPreProcessor
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import Affine
from support.models import DEMO

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.engine.jobs import predict as engine
from mapsage_kaggle.engine.jobs.inference import TrainedModel
from mapsage_kaggle.imagery.sources import find_images

# The tests' own writing, of what has no place on Earth.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

GRID, CRS = Affine(0.5, 0, 500_000, 0, -0.5, 3_400_000), "EPSG:32650"
WORLD = "0.5\n0\n0\n-0.5\n500000.25\n3399999.75\n"
GCPS = [GroundControlPoint(row, col, 100 + col / 1e3, 30 - row / 1e3) for row in (0, 12) for col in (0, 24)]
RPCS = RPC(
    height_off=1.0, height_scale=2.0, lat_off=30.0, lat_scale=0.1, line_off=6.0, line_scale=6.0,
    long_off=100.0, long_scale=0.1, samp_off=12.0, samp_scale=12.0,
    line_num_coeff=[0.0, 0.0, 1.0, *[0.0] * 17], line_den_coeff=[1.0, *[0.0] * 19],
    samp_num_coeff=[0.0, 1.0, *[0.0] * 18], samp_den_coeff=[1.0, *[0.0] * 19],
)  # fmt: skip
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
def model() -> TrainedModel:
    net: Any = Colours()
    return TrainedModel(
        net, classes=EARTHVQA_CLASSES, palette=EARTHVQA_PALETTE, device=torch.device("cpu"), meta={}
    )


# --- making rasters


def tiff(
    folder: Path, bands: Any = BANDS, names: Any = (), colours: Any = (), gcps: Any = None, **more: Any
) -> Path:
    count, height, width = bands.shape
    path = folder / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, **more
    ) as target:
        target.write(bands)
        for band, name in enumerate(names, start=1):
            target.set_band_description(band, name)
        if colours:
            target.colorinterp = [ColorInterp[name] for name in colours]
        if gcps:
            target.gcps = (gcps, "EPSG:4326")
    return path


def picture(folder: Path, suffix: str, **more: Any) -> Path:
    path = folder / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(np.moveaxis(BANDS, 0, -1))).save(path, **more)
    return path


def beside(make: Callable[[Path], Path], name: str, content: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        path = make(folder)
        (folder / name).write_text(content)
        return path

    return made


def masked(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Put a mask beside a raster: its upper half is no data."""

    def made(folder: Path) -> Path:
        path = make(folder)
        mask = np.full((1, 12, 24), 255, np.uint8)
        mask[:, :6] = 0
        with rasterio.open(
            f"{path}.msk", "w", driver="GTiff", count=1, height=12, width=24, dtype="uint8"
        ) as target:
            target.write(mask)
            target.update_tags(INTERNAL_MASK_FLAGS_1="2")
        return path

    return made


def palette(folder: Path) -> Path:
    """Write a palette of three colours, of which blue is transparent."""
    path = tiff(folder, MASK[None])
    with rasterio.open(path, "r+") as target:
        colours = {1: (200, 40, 40, 255), 2: (40, 200, 40, 255), 3: (40, 40, 200, 0)}
        target.write_colormap(1, colours)
    # GeoTIFF keeps no opacity; a file beside it does.
    entries = "".join(
        '<Entry c1="{}" c2="{}" c3="{}" c4="{}"/>'.format(*colours.get(value, (0, 0, 0, 255)))
        for value in range(256)
    )
    table = f"<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable>"
    (folder / "a.tif.aux.xml").write_text(pam(f'<PAMRasterBand band="1">{table}</PAMRasterBand>'))
    return path


def pam(content: str) -> str:
    return f"<PAMDataset>{content}</PAMDataset>"


def described(*names: str) -> str:
    bands = enumerate(names, start=1)
    return pam(
        "".join(
            f'<PAMRasterBand band="{band}"><Description>{name}</Description></PAMRasterBand>'
            for band, name in bands
        )
    )


PLACE = pam(f"<SRS>{CRS}</SRS><GeoTransform>500000, 0.5, 0, 3400000, 0, -0.5</GeoTransform>")
BLUE_FIRST = BANDS[::-1]
HALF = np.where(np.arange(12)[:, None] < 6, 0, MASK).astype(np.uint8)


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


def gcps_of(dataset: Any) -> Any:
    return [(point.row, point.col, point.x, point.y) for point in dataset.gcps[0]], dataset.gcps[1]


def rpcs_of(dataset: Any) -> Any:
    return dataset.rpcs.to_dict()


TABLE: dict[str, Row] = {
    "PNG": Row(make=lambda at: picture(at, "png"), is_tiff=False),
    "PNG, world file": Row(
        make=beside(lambda at: picture(at, "png"), "a.pgw", WORLD), transform=GRID
    ),
    "JPEG, world file": Row(
        make=beside(lambda at: picture(at, "jpg", quality=100, subsampling=0), "a.jgw", WORLD), transform=GRID
    ),
    "TIFF, world file": Row(make=beside(tiff, "a.tfw", WORLD), transform=GRID),
    "PNG, aux.xml": Row(
        make=beside(lambda at: picture(at, "png"), "a.png.aux.xml", PLACE), transform=GRID, crs=CRS
    ),
    "TIFF, aux.xml": Row(make=beside(tiff, "a.tif.aux.xml", PLACE), transform=GRID, crs=CRS),
    "PNG, aux.xml of statistics": Row(
        make=beside(lambda at: picture(at, "png"), "a.png.aux.xml", pam("")), is_tiff=False
    ),
    "PNG, mask beside": Row(make=masked(lambda at: picture(at, "png")), mask=HALF, is_tiff=False),
    "TIFF, mask beside": Row(make=masked(tiff), mask=HALF),
    "palette, a transparent colour": Row(make=palette, mask=np.where(MASK == 3, 0, MASK)),
    "described blue, green, red": Row(
        make=lambda at: tiff(at, BLUE_FIRST, ("blue", "green", "red")), told="3,2,1 are read as red"
    ),
    "described B02, B03, B04": Row(
        make=lambda at: tiff(at, BLUE_FIRST, ("B02", "B03", "B04"), photometric="MINISBLACK"),
        told="described as B02, B03, B04",
    ),
    "described B02, B03, B04, B08": Row(
        make=lambda at: tiff(
            at, BANDS[[2, 1, 0, 0]], ("B02", "B03", "B04", "B08"), photometric="MINISBLACK"
        ),
        told="3,2,1 are read as red",
    ),
    "PNG, described beside": Row(
        make=beside(lambda at: picture(at, "png"), "a.png.aux.xml", described("red", "blue", "green")),
        mask=np.array([0, 1, 3, 2])[MASK],
        told="1,3,2 are read as red",
        is_tiff=False,
    ),
    "interpreted blue, green, red": Row(
        make=lambda at: tiff(at, BLUE_FIRST, (), ("blue", "green", "red"), photometric="MINISBLACK")
    ),
    "described and interpreted otherwise": Row(
        make=lambda at: tiff(
            at, BANDS, ("red", "green", "blue"), ("blue", "green", "red"), photometric="MINISBLACK"
        ),
        refused="which are red, green and blue?",
    ),
    "described and interpreted otherwise, named": Row(
        make=lambda at: tiff(
            at, BANDS, ("red", "green", "blue"), ("blue", "green", "red"), photometric="MINISBLACK"
        ),
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
    "as it is": Row(make=tiff, options={"factor": 1.0}),
    "twice its size": Row(make=tiff, options={"factor": 2.0}),
    "windows": Row(make=tiff, options={"window": 8, "overlap": 2}),
    "windows, four times its size": Row(make=tiff, options={"window": 32, "factor": 4.0}),
    "a window larger than it": Row(make=tiff, options={"window": 500}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_a_raster_of_one_property_becomes_the_map_that_it_must(
    tmp_path: Path, model: TrainedModel, name: str
) -> None:
    init_default_scope("mmseg")
    row, cfg = TABLE[name], for_inference(read_config(DEMO), {})
    cfg.test_dataloader.dataset.pipeline[1].scale = (24, 24)
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
