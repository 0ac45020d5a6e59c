"""Rasters for tests, and what lies beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import Affine

GRID, CRS = Affine(0.5, 0, 500_000, 0, -0.5, 3_400_000), "EPSG:32650"
WORLD = "0.5\n0\n0\n-0.5\n500000.25\n3399999.75\n"
PLACE = f"<SRS>{CRS}</SRS><GeoTransform>500000, 0.5, 0, 3400000, 0, -0.5</GeoTransform>"
GCPS = [GroundControlPoint(row, col, 100 + col / 1e3, 30 - row / 1e3) for row in (0, 8) for col in (0, 8)]
RPCS = RPC(
    height_off=1.0, height_scale=2.0, lat_off=30.0, lat_scale=0.1, line_off=4.0, line_scale=4.0,
    long_off=100.0, long_scale=0.1, samp_off=4.0, samp_scale=4.0,
    line_num_coeff=[0.0, 0.0, 1.0, *[0.0] * 17], line_den_coeff=[1.0, *[0.0] * 19],
    samp_num_coeff=[0.0, 1.0, *[0.0] * 18], samp_den_coeff=[1.0, *[0.0] * 19],
)  # fmt: skip


def write_raster(
    path: Path,
    bands: Any,
    *,
    driver: str = "GTiff",
    names: Any = (),
    colours: Any = (),
    gcps: Any = None,
    **profile: Any,
) -> Path:
    """Write bands of shape ``(bands, height, width)``, with their descriptions and colour interpretation."""
    count, height, width = bands.shape
    with rasterio.open(
        path, "w", driver=driver, count=count, height=height, width=width, dtype=bands.dtype, **profile
    ) as target:
        target.write(bands)
        for band, name in enumerate(names, start=1):
            target.set_band_description(band, name)
        if colours:
            target.colorinterp = [ColorInterp[name] for name in colours]
        if gcps is not None:
            target.gcps = (gcps, "EPSG:4326")
    return path


def aux_beside(path: Path, content: str) -> None:
    path.with_name(f"{path.name}.aux.xml").write_text(f"<PAMDataset>{content}</PAMDataset>")


def of_band(content: str, band: int = 1) -> str:
    return f'<PAMRasterBand band="{band}">{content}</PAMRasterBand>'


def described(*names: str) -> str:
    bands = enumerate(names, start=1)
    return "".join(of_band(f"<Description>{name}</Description>", band) for band, name in bands)


def palette(*colours: tuple[int, int, int, int]) -> str:
    """Return the palette of a file's only band, the only way in which a GeoTIFF keeps its opacity."""
    entries = "".join('<Entry c1="{}" c2="{}" c3="{}" c4="{}"/>'.format(*colour) for colour in colours)
    return of_band(f"<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable>")


def mask_beside(path: Path, height: int, width: int) -> None:
    """Write what ``gdal`` calls an external mask: the upper half is no data."""
    mask = np.full((1, height, width), 255, np.uint8)
    mask[:, : height // 2] = 0
    with rasterio.open(write_raster(path.with_name(f"{path.name}.msk"), mask), "r+") as target:
        target.update_tags(INTERNAL_MASK_FLAGS_1="2")


def gcps_of(dataset: Any) -> Any:
    points, crs = dataset.gcps
    return [(point.row, point.col, point.x, point.y) for point in points], crs.to_epsg()


def rpcs_of(dataset: Any) -> Any:
    return dataset.rpcs.to_dict()
