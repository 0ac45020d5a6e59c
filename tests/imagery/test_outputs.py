"""What GDAL's own tools say of every output."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rasterio import CRS
from rasterio.transform import from_origin

from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.imagery.outputs import NO_PROBABILITY, SCALE, ImageShape, ImageWriter
from mapsage_kaggle.imagery.reading import Georeference
from mapsage_kaggle.imagery.writing import Labels

LABELS = Labels(classes=EARTHVQA_CLASSES, palette=EARTHVQA_PALETTE, numbers=tuple(range(1, 9)), no_data=0)
HEIGHT, WIDTH = 96, 128
PLACES = {
    "metres": Georeference(crs=CRS.from_epsg(32650), transform=from_origin(5e5, 3.4e6, 0.5, 0.5)),
    "degrees": Georeference(crs=CRS.from_epsg(4326), transform=from_origin(10.0, 50.0, 1e-5, 1e-5)),
    "none": None,
}


def gdal(tool: str, *arguments: str | Path) -> str:
    """Return what a tool says; nothing may be amiss."""
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.skipif(shutil.which("gdalinfo") is None, reason="GDAL's own tools (gdal-bin) are not installed")
def test_gdals_own_tools_read_every_output(tmp_path: Path, place: str) -> None:
    georeference = PLACES[place]
    is_tiff = georeference is not None
    mask = np.random.RandomState(0).randint(1, 9, (HEIGHT, WIDTH)).astype(np.uint8)
    mask[:20] = 0
    bands = np.where(np.arange(1, 9)[:, None, None] == mask, SCALE, 0).astype(np.uint8)
    bands[:, :20] = NO_PROBABILITY
    shape = ImageShape(width=WIDTH, height=HEIGHT, is_tiff=is_tiff, georeference=georeference)
    write = ImageWriter(tmp_path, "tile", shape, LABELS)
    write.mask(iter([mask]))
    write.picture(iter([LABELS.colours()[mask]]))
    write.probabilities(iter([bands]))
    write.polygons(iter([(0, mask)]), 0.0)

    suffix = ".tif" if is_tiff else ".png"
    rasters = [f"masks/tile{suffix}", f"overlays/tile{suffix}", "probabilities/tile.tif"]
    told = [gdal("gdalinfo", "-checksum", tmp_path / name) for name in rasters]
    layers = gdal("ogrinfo", "-al", "-geom=SUMMARY", tmp_path / "polygons" / "tile.gpkg")

    masked, _, shared = told
    assert f"Color Table (RGB with {256 if is_tiff else 9} entries)" in masked
    assert "Categories:\n      0: no data\n      1: background\n      2: building" in masked
    assert "NoData Value=0" in masked and "    2: 255,0,0,255" in masked
    assert shared.count("NoData Value=255") == shared.count("Offset: 0,   Scale:0.004") == 8
    assert all(f"Description = {name}" in shared for name in EARTHVQA_CLASSES)
    assert "Layer name: classes" in layers and "Layer name: layer_styles" in layers
    assert ("area_m2 (Real) = " in layers) == is_tiff
    number = "" if georeference is None else str(georeference.crs.to_epsg())
    assert all((f'ID["EPSG",{number}' in text) == is_tiff for text in told)
