"""What pixels measure on the ground, by the CRS of their raster."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine, from_bounds, from_origin
from rasterio.warp import transform

from mapsage_kaggle.imagery.areas import Tally, line_areas_m2, plane_of
from mapsage_kaggle.imagery.reading import Georeference

WGS84_AREA_M2 = 5.10065621724e14
"""Of the whole ellipsoid: that of a sphere of 6371007.1809 m (NIMA TR8350.2, table 3.4)."""


def place(epsg: int, at: Affine) -> Georeference:
    return Georeference(crs=CRS.from_epsg(epsg), transform=at)


def test_pixels_in_degrees_measure_the_whole_ellipsoid_together() -> None:
    lines = line_areas_m2(place(4326, from_bounds(-180, -90, 180, 90, 36, 18)), 18, 36)

    assert lines is not None
    assert 36 * lines.sum() == pytest.approx(WGS84_AREA_M2, rel=1e-9)
    assert 4 * math.pi * 6371007.1809**2 == pytest.approx(WGS84_AREA_M2, rel=1e-9)
    assert lines[9] / lines[0] > 10


def test_a_small_area_in_degrees_is_what_it_is_in_metres() -> None:
    west, south, side = 9.0, 50.0, 0.01
    plane = plane_of(CRS.from_epsg(4326))
    assert plane is not None
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * side + np.array([west, south])
    metres = np.column_stack(transform(CRS.from_epsg(4326), CRS.from_epsg(32632), *corners.T))

    # UTM makes everything smaller by 0.9996 along its middle meridian, which 9 degrees east is.
    assert shoelace(plane(corners)) == pytest.approx(shoelace(metres) / 0.9996**2, rel=1e-5)


@pytest.mark.parametrize("epsg", [3857, 3395, 3994, 3832])
def test_mercator_measures_as_degrees_do_also_beyond_180_degrees(epsg: int) -> None:
    mercator, degrees = plane_of(CRS.from_epsg(epsg)), plane_of(CRS.from_epsg(4326))
    assert mercator is not None and degrees is not None
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * 0.01 + (100.0, 60.0)
    there = np.column_stack(transform(CRS.from_epsg(4326), CRS.from_epsg(epsg), *corners.T))

    assert shoelace(mercator(there)) == pytest.approx(shoelace(degrees(corners)), rel=1e-6)
    around = mercator(there + np.array([4e7, 0.0]))
    assert shoelace(around) == pytest.approx(shoelace(degrees(corners)), rel=1e-6)


def shoelace(points: np.ndarray) -> float:  # type: ignore[type-arg]
    x, y = (points - points[0]).T
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


@pytest.mark.parametrize(
    ("epsg", "unit_m"), [(32650, 1.0), (2263, 1200 / 3937)], ids=["metres", "US survey feet"]
)
def test_pixels_on_a_projection_measure_its_unit(epsg: int, unit_m: float) -> None:
    lines = line_areas_m2(place(epsg, from_origin(300_000, 200_000, 0.5, 2.0)), 3, 4)

    np.testing.assert_allclose(lines, [unit_m**2] * 3, rtol=1e-9)


def test_a_turned_raster_measures_the_same() -> None:
    turned = from_origin(500_000, 3_400_000, 0.5, 0.5) @ Affine.rotation(30)

    np.testing.assert_allclose(line_areas_m2(place(32650, turned), 2, 5), [0.25] * 2, rtol=1e-6)


def test_degrees_and_grads_of_one_place_measure_the_same() -> None:
    degrees, grads = plane_of(CRS.from_epsg(4275)), plane_of(CRS.from_epsg(4807))  # NTF, NTF (Paris)
    assert degrees is not None and grads is not None
    corners = np.array([(0.0, 45.0), (0.009, 45.0), (0.009, 45.009), (0.0, 45.009)])

    assert shoelace(degrees(corners)) == pytest.approx(shoelace(grads(corners / 0.9)), rel=1e-9)


@pytest.mark.parametrize(
    "georeference",
    [None, Georeference(crs=None, transform=from_origin(0, 0, 2, 2)), place(32650, Affine.identity())],
    ids=["none", "no CRS", "no transform"],
)
def test_without_a_place_on_earth_nothing_is_measured(georeference: Georeference | None) -> None:
    tally = Tally(georeference, 2, 3)
    tally.add(np.ones((2, 3), np.uint8))

    assert tally.to_json({"a": 1}) == {"pixels": {"a": 6}}


def test_hectares_stand_beside_pixels_by_class() -> None:
    tally = Tally(place(32650, from_origin(500_000, 3_400_000, 10, 10)), 4, 5)
    tally.add(np.full((1, 5), 7, np.uint8))
    tally.add(np.array([[7, 7, 0, 0, 2]] * 3, np.uint8))

    found = tally.to_json({"field": 7, "house": 2, "lake": 4})

    assert found["pixels"] == {"field": 11, "house": 3, "lake": 0}
    assert found["hectares"] == pytest.approx({"field": 0.11, "house": 0.03, "lake": 0.0})
