"""Areas of pixels and polygons on the ground, in square metres, by a raster's CRS.

In a projected CRS that is the area on its plane. In a geographic one it is the area on its ellipsoid:
coordinates are first brought to the cylindrical equal-area projection, where parallels and meridians, and so
the edges of pixels, stay straight: nothing is approximated. So it is in a Mercator one, such as that of web
maps, whose plane makes areas four times as large at 60 degrees.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mapsage_kaggle.imagery.reading import Bytes, Georeference

Coordinates = NDArray[np.float64]
Plane = Callable[[Coordinates], Coordinates]
"""From a CRS's coordinates, of shape ``(N, 2)``, to metres on the plane that areas are measured on."""

HECTARE_M2 = 10_000.0
_MERCATOR = re.compile(r'(?:PROJECTION|METHOD)\["(?:Mercator|Popular Visualisation)')
_ELLIPSOID = re.compile(r'(?:SPHEROID|ELLIPSOID)\["[^"]*",([\d.]+),([\d.]+)')


def plane_of(crs: Any) -> Plane | None:
    """Return how to measure in rasterio's CRS; None where there is none, or its unit is not known."""
    from rasterio.errors import CRSError

    if crs is None:
        return None
    try:
        factor = float(crs.units_factor[1])
    except CRSError:
        return None
    text = crs.to_wkt()
    is_mercator = _MERCATOR.search(text) is not None
    if not crs.is_geographic and not is_mercator:
        return lambda points: points * factor
    found = _ELLIPSOID.search(text)
    if found is None:
        return None
    plane = _equal_area(float(found[1]), float(found[2]), np.pi / 180 if is_mercator else factor)
    return _of_mercator(crs, plane) if is_mercator else plane


def plane_below(georeference: Georeference | None) -> Plane | None:
    """Return how to measure an image's coordinates; None where they are only columns and lines."""
    if georeference is None or georeference.transform.is_identity:
        return None
    return plane_of(georeference.crs)


def _equal_area(radius_m: float, inverse_flattening: float, unit_radians: float) -> Plane:
    """Return the cylindrical equal-area projection of an ellipsoid, with true scale on the equator.

    J. P. Snyder, Map Projections: A Working Manual (USGS Professional Paper 1395, 1987), equations 3-12,
    10-14 and 10-15.
    """
    flattening = 1.0 / inverse_flattening if inverse_flattening else 0.0
    squared = flattening * (2.0 - flattening)
    eccentricity = np.sqrt(squared)

    def project(points: Coordinates) -> Coordinates:
        longitude, latitude = (points * unit_radians).T
        sine = np.sin(latitude)
        q = 2.0 * sine
        if eccentricity:
            q = (1.0 - squared) * (
                sine / (1.0 - squared * sine**2) + np.arctanh(eccentricity * sine) / eccentricity
            )
        return np.column_stack([radius_m * longitude, radius_m * q / 2.0])

    return project


def _of_mercator(crs: Any, plane: Plane) -> Plane:
    """Return how to measure in a Mercator CRS, given how to in degrees."""
    from rasterio.warp import transform

    def degrees(x: Coordinates, y: Coordinates) -> Coordinates:
        return np.column_stack(transform(crs, "EPSG:4326", x, y))

    # Longitude is proportional to x, also beyond 180 degrees, where PROJ wraps around.
    east = np.diff(degrees(np.array([0.0, 1000.0]), np.zeros(2))[:, 0])[0]
    per_unit = ((east + 180.0) % 360.0 - 180.0) / 1000.0

    def project(points: Coordinates) -> Coordinates:
        latitude = degrees(np.zeros(len(points)), points[:, 1])[:, 1]
        return plane(np.column_stack([points[:, 0] * per_unit, latitude]))

    return project


def on_map(transform: Any, points: Coordinates) -> Coordinates:
    """Return columns and lines, of shape ``(N, 2)``, as coordinates of the CRS, by rasterio's transform."""
    a, b, c, d, e, f = transform[:6]
    moved: Coordinates = points @ np.array([[a, d], [b, e]]) + (c, f)
    return moved


def line_areas_m2(georeference: Georeference | None, height: int, width: int) -> Coordinates | None:
    """Return the mean area of a pixel in each line, of shape ``(height,)``; None where it is not known."""
    plane = plane_below(georeference)
    if georeference is None or plane is None:
        return None
    lines = np.arange(height + 1.0)
    left, right = (
        plane(on_map(georeference.transform, np.column_stack([np.full_like(lines, column), lines])))
        for column in (0, width)
    )
    # Half the cross product of the diagonals of what lies between two lines.
    down, up = right[1:] - left[:-1], left[1:] - right[:-1]
    areas: Coordinates = np.abs(down[:, 0] * up[:, 1] - down[:, 1] * up[:, 0]) / (2.0 * width)
    return areas


class Tally:
    """Counts a mask's pixels, and sums up their areas, from top to bottom."""

    def __init__(self, georeference: Georeference | None, height: int, width: int) -> None:
        self._areas = line_areas_m2(georeference, height, width)
        self._top = 0
        self._pixels = np.zeros(256, np.int64)
        self._m2 = np.zeros(256)

    def add(self, mask: Bytes) -> None:
        """Count the next lines, of shape ``(lines, width)``."""
        for line in mask:
            counts = np.bincount(line, minlength=256)
            self._pixels += counts
            if self._areas is not None:
                self._m2 += counts * self._areas[self._top]
            self._top += 1

    def to_json(self, numbers: Mapping[str, int]) -> dict[str, dict[str, float]]:
        """Return ``pixels``, and ``hectares`` where known, by class, given the mask value of each."""
        found: dict[str, dict[str, float]] = {
            "pixels": {name: int(self._pixels[number]) for name, number in numbers.items()}
        }
        if self._areas is not None:
            m2 = {name: float(self._m2[number]) for name, number in numbers.items()}
            found["hectares"] = {name: round(area / HECTARE_M2, 6) for name, area in m2.items()}
        return found
