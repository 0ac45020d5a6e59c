"""Polygons are those of the whole mask, measure what its CRS says, and carry its classes' colours."""

from __future__ import annotations

import os
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine, from_origin

from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.imagery import polygons
from mapsage_kaggle.imagery.polygons import _whole, write_polygons
from mapsage_kaggle.imagery.reading import Georeference
from mapsage_kaggle.imagery.writing import Labels, WriteFailed

LABELS = Labels(classes=EARTHVQA_CLASSES, palette=EARTHVQA_PALETTE, numbers=tuple(range(1, 9)), no_data=0)
UTM = Georeference(crs=rasterio.CRS.from_epsg(32650), transform=from_origin(5e5, 3.4e6, 0.5, 0.5))


def in_blocks(mask: Any, lines: int) -> Iterator[tuple[int, Any]]:
    return ((top, mask[top : top + lines]) for top in range(0, len(mask), lines))


def areas(mask: Any, lines: int) -> list[tuple[int, Any]]:
    found = [
        pair
        for shapes, values in _whole(in_blocks(mask, lines), 0)
        for pair in zip(values, shapes, strict=True)
    ]
    return sorted(((int(value), shape) for value, shape in found), key=lambda pair: pair[1].bounds)


def table(path: Path) -> dict[str, Any]:
    meta, _, geometries, fields = pyogrio.raw.read(path, layer="classes")
    return {**dict(zip(meta["fields"], fields, strict=True)), "shape": shapely.from_wkb(geometries)}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), height=st.integers(2, 24), width=st.integers(1, 24), lines=st.integers(1, 9)
)
def test_polygons_in_blocks_are_those_of_the_whole_mask(
    seed: int, height: int, width: int, lines: int
) -> None:
    mask = np.random.RandomState(seed).randint(0, 3, (height, width)).astype(np.uint8)
    cut, whole = areas(mask, lines), areas(mask, height)

    assert sorted(value for value, _ in cut) == sorted(value for value, _ in whole)
    assert all(shape.geom_type == "Polygon" and shape.is_valid for _, shape in cut)
    tree = shapely.STRtree([shape for _, shape in cut])
    for value, shape in whole:
        same = [cut[at] for at in tree.query(shape.representative_point(), "within")]
        assert [(found, other.equals(shape)) for found, other in same] == [(value, True)]


def test_of_areas_that_have_ended_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = polygons._Cut()
    monkeypatch.setattr(polygons, "_Cut", lambda: cut)

    areas(np.random.RandomState(0).randint(0, 3, (60, 10)).astype(np.uint8), 4)

    assert (cut._pieces, cut._values) == ({}, {})


def test_an_area_over_three_blocks_is_one_polygon_with_its_hole(tmp_path: Path) -> None:
    mask = np.zeros((60, 50), np.uint8)
    mask[5:55, 5:30] = 2
    mask[15:45, 10:12] = 4  # a hole in the building, over two borders
    mask[30:, 40:] = 7

    count = write_polygons(tmp_path / "map.gpkg", in_blocks(mask, 20), LABELS, UTM)

    found = table(tmp_path / "map.gpkg")
    order = np.argsort(found["value"])
    assert count == 3
    assert found["class"][order].tolist() == ["building", "water", "agriculture"]
    assert found["pixels"][order].tolist() == [50 * 25 - 60, 60, 300]
    assert found["area_m2"][order].tolist() == pytest.approx([0.25 * 1190, 15.0, 75.0])
    assert len(found["shape"][order][0].interiors) == 1
    assert found["shape"][order][0].bounds == (500002.5, 3.4e6 - 27.5, 500015.0, 3.4e6 - 2.5)


def test_smaller_areas_are_left_out_by_square_metres_of_the_whole_area(tmp_path: Path) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[18:22, 4:8] = 2  # 4 square metres, 2 in either block
    mask[30:33, 4:8] = 4  # 3

    assert write_polygons(tmp_path / "map.gpkg", in_blocks(mask, 20), LABELS, UTM, min_area=3.5) == 1
    assert table(tmp_path / "map.gpkg")["class"].tolist() == ["building"]


@pytest.mark.parametrize(
    "georeference", [None, Georeference(crs=UTM.crs, transform=Affine.identity())], ids=["none", "CRS alone"]
)
def test_of_an_image_without_a_place_areas_are_pixels(
    tmp_path: Path, georeference: Georeference | None
) -> None:
    mask = np.zeros((10, 10), np.uint8)
    mask[2:4, 2:4], mask[6:9, 6:9] = 1, 2

    write_polygons(tmp_path / "map.gpkg", in_blocks(mask, 10), LABELS, georeference, min_area=5)

    found = table(tmp_path / "map.gpkg")
    assert (found["value"].tolist(), found["pixels"].tolist()) == ([2], [9])
    assert "area_m2" not in found


def test_where_nothing_is_left_there_is_an_empty_layer(tmp_path: Path) -> None:
    write_polygons(tmp_path / "map.gpkg", in_blocks(np.zeros((4, 4), np.uint8), 2), LABELS, UTM)

    assert len(table(tmp_path / "map.gpkg")["shape"]) == 0


def test_the_style_that_qgis_loads_has_each_class_in_its_colour(tmp_path: Path) -> None:
    write_polygons(tmp_path / "map.gpkg", in_blocks(np.full((4, 4), 3, np.uint8), 4), LABELS, UTM)

    with sqlite3.connect(tmp_path / "map.gpkg") as database:
        [(table_name, column, default, text)] = database.execute(
            "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles"
        ).fetchall()
        columns = database.execute("SELECT table_name, column_name FROM gpkg_geometry_columns").fetchall()
    database.close()
    style = ET.fromstring(text)
    assert [(table_name, column)] == columns and default == 1
    colour_of = {
        symbol.get("name"): prop.get("v")
        for symbol in style.iter("symbol")
        for prop in symbol.iter("prop")
        if prop.get("k") == "color"
    }
    assert [
        (int(item.get("value", "")), item.get("label"), colour_of[item.get("symbol")])
        for item in style.iter("category")
    ] == [
        (value, name, ",".join(map(str, (*colour, 255))))
        for value, name, colour in zip(LABELS.numbers, LABELS.classes, LABELS.palette, strict=True)
    ]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE classes SET geom = (SELECT geom FROM classes WHERE fid = 2) WHERE fid = 1",
        "UPDATE classes SET area_m2 = area_m2 + 1e-9",
        "UPDATE classes SET class = 'road'",
        "DELETE FROM classes WHERE fid = 2",
        "UPDATE layer_styles SET styleQML = ''",
    ],
    ids=["a geometry", "an area", "a class", "a row less", "the style"],
)
def test_what_reads_back_otherwise_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def changing(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        with closing(sqlite3.connect(file)) as database, database:
            # They call what GDAL alone has.
            for (name,) in database.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall():
                database.execute(f'DROP TRIGGER "{name}"')
            assert database.execute(change).rowcount > 0

    mask = np.repeat(np.array([[1, 2]], np.uint8), 4, axis=0)
    monkeypatch.setattr(os, "fsync", changing)
    with pytest.raises(WriteFailed, match="reads back otherwise"):
        write_polygons(tmp_path / "map.gpkg", in_blocks(mask, 2), LABELS, UTM)

    assert not list(tmp_path.iterdir())
