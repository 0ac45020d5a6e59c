"""Vectorize masks into a GeoPackage, with a style by which QGIS shows it in the classes' colours."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from mapsage_kaggle.imagery.areas import on_map, plane_below
from mapsage_kaggle.imagery.reading import UNPLACED, Bytes, Georeference, missing_extra, without_warning
from mapsage_kaggle.imagery.writing import Labels, replacing
from mapsage_kaggle.messages import Message

BLOCK_PIXELS = 2048 * 2048
"""How many pixels are vectorized at a time, at most. The pieces of an area that crosses from one block of
lines to the next are kept until it ends, and then joined."""

LAYER = "classes"
GEOMETRY = "geom"
VERSION = "1.2"
"""Of GeoPackage: later ones add nothing that is needed here, and older programs warn about them."""
_NONE = -1
_ROWS_AT_A_TIME = 10_000

Geometries = NDArray[np.object_]


def block_lines(width: int) -> int:
    """Return how many lines of a map are vectorized at a time."""
    return max(1, BLOCK_PIXELS // width)


def write_polygons(
    path: Path,
    blocks: Iterable[tuple[int, Bytes]],
    labels: Labels,
    georeference: Georeference | None,
    *,
    min_area: float = 0.0,
) -> int:
    """Write a polygon for each 4-connected area of a class.

    Its fields are ``value``, ``class``, ``pixels`` and, where it can be measured, ``area_m2``.

    Args:
        path: The GeoPackage.
        blocks: First line and mask, of shape ``(lines, width)``, of each block, from top to bottom.
        labels: What the values mean. What has no data gets no polygon.
        georeference: Turns pixels into coordinates. None: coordinates are pixels, y downwards.
        min_area: Smaller ones are left out. In square metres; in pixels where there is no ``area_m2``.

    Returns:
        The number of polygons.

    Raises:
        MachineError: rasterio, shapely or pyogrio is missing.
        WriteFailed: See :func:`replacing`.
    """
    try:
        import pyogrio.raw
        import rasterio.features  # noqa: F401
        import shapely
    except ImportError as error:
        package = error.name or "rasterio, shapely, pyogrio"
        raise missing_extra("geo", package, Message("to write polygons")) from error

    transform = georeference.transform if georeference is not None else None
    crs = georeference.crs.to_wkt() if georeference is not None and georeference.crs is not None else None
    plane = plane_below(georeference)
    name_of = dict(zip(labels.numbers, labels.classes, strict=True))
    total = 0
    style = _qml(labels)
    rows = _Rows(style)
    with replacing(path, rows.read_back) as temporary:
        temporary.unlink(missing_ok=True)
        for shapes, values in _whole(blocks, labels.no_data):
            pixels = np.rint(shapely.area(shapes)).astype(np.int64)
            areas = pixels.astype(np.float64)
            if transform is not None:
                shapes = shapely.transform(shapes, lambda points: on_map(transform, points))
            if plane is not None:
                areas = shapely.area(shapely.transform(shapes, plane))
            kept = areas >= min_area
            if not kept.any() and total:
                continue
            shapes, values = shapes[kept], values[kept]
            names = np.array([name_of[value] for value in values.tolist()], dtype=object)
            fields: dict[str, Any] = {"value": values, "class": names, "pixels": pixels[kept]}
            if plane is not None:
                fields["area_m2"] = areas[kept]
            # Of an image without a georeference, where that is meant.
            with without_warning("'crs' was not provided"):
                geometries = shapely.to_wkb(shapes)
                rows.add(geometries, list(fields.values()))
                pyogrio.raw.write(
                    temporary, geometries, list(fields.values()), list(fields), layer=LAYER,
                    driver="GPKG", geometry_type="Polygon", crs=crs, append=total > 0,
                    layer_options={"GEOMETRY_NAME": GEOMETRY}, dataset_options={"VERSION": VERSION},
                )  # fmt: skip
            total += len(shapes)
        _add_style(temporary, style)
    return total


def _whole(
    blocks: Iterable[tuple[int, Bytes]], no_data: int
) -> Iterator[tuple[Geometries, NDArray[np.int32]]]:
    """Yield polygons and values of the areas that end in each block of lines.

    Their coordinates are pixels: whole numbers, so that pieces fit without a gap.
    """
    import shapely
    from rasterio.features import shapes as areas_of
    from rasterio.transform import Affine

    cut = _Cut()
    for top, mask in blocks:
        # rasterio sets warning filters itself meanwhile: no other thread may do so.
        with without_warning(UNPLACED):
            found = areas_of(mask, mask=mask != no_data, transform=Affine.translation(0, top))
            # Converted one by one: all dictionaries of a block together would take far more memory.
            pairs = [(shapely.geometry.shape(shape), int(value)) for shape, value in found]
        shapes = np.array([shape for shape, _ in pairs], dtype=object)
        values = np.array([value for _, value in pairs], dtype=np.int32)
        bottom = top + len(mask)
        bounds = shapely.bounds(shapes).reshape(-1, 4)
        reaching = (bounds[:, 3] == bottom) | ((bounds[:, 1] == top) & (top > 0))
        joined = cut.join(shapes[reaching], values[reaching], top, bottom, mask.shape[1])
        yield np.concatenate([shapes[~reaching], joined[0]]), np.concatenate([values[~reaching], joined[1]])
    yield cut.rest()


class _Cut:
    """Areas that reach the lowest line so far, each with all its pieces."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[Any]] = {}
        self._values: dict[int, int] = {}
        self._lowest: NDArray[np.int64] | None = None
        self._count = 0

    def join(
        self, shapes: Geometries, values: NDArray[np.int32], top: int, bottom: int, width: int
    ) -> tuple[Geometries, NDArray[np.int32]]:
        """Add the pieces that reach the top or bottom of the next block; return the areas that end in it."""
        names = np.arange(self._count, self._count + len(shapes))
        self._count += len(shapes)
        for name, shape, value in zip(names.tolist(), shapes, values.tolist(), strict=True):
            self._pieces[name], self._values[name] = [shape], value
        parents = {name: name for name in self._pieces}

        def area(name: int) -> int:
            while parents[name] != name:
                parents[name] = name = parents[parents[name]]
            return name

        if self._lowest is not None:
            touching = np.stack([self._lowest, _along(shapes, names, top, width)])
            touching = np.unique(touching[:, (touching != _NONE).all(0)], axis=1)
            for one, other in touching.T.tolist():
                one, other = sorted((area(one), area(other)), key=lambda name: len(self._pieces[name]))
                if one != other and self._values[one] == self._values[other]:
                    self._pieces[other] += self._pieces.pop(one)
                    del self._values[one]
                    parents[one] = other
        found, places = np.unique(_along(shapes, names, bottom, width), return_inverse=True)
        found = np.array([name if name == _NONE else area(name) for name in found.tolist()], np.int64)
        self._lowest = found[places]
        return self._end(self._pieces.keys() - set(found.tolist()))

    def rest(self) -> tuple[Geometries, NDArray[np.int32]]:
        """Return the areas that reach the lowest line of all."""
        return self._end(self._pieces.keys())

    def _end(self, names: Iterable[int]) -> tuple[Geometries, NDArray[np.int32]]:
        import shapely

        order = sorted(names)
        shapes = np.empty(len(order), dtype=object)
        shapes[:] = [shapely.union_all(self._pieces.pop(name)) for name in order]
        return shapes, np.array([self._values.pop(name) for name in order], np.int32)


def _along(shapes: Geometries, names: NDArray[np.int64], line: int, width: int) -> NDArray[np.int64]:
    """Return the name of the shape that borders a horizontal line in each column; -1 for none."""
    import shapely

    found = np.full(width, _NONE)
    points, of = shapely.get_coordinates(shapely.get_exterior_ring(shapes), return_index=True)
    edges = (points[:-1, 1] == line) & (points[1:, 1] == line) & (of[:-1] == of[1:])
    ends = np.sort(np.stack([points[:-1, 0], points[1:, 0]])[:, edges], axis=0).astype(np.int64)
    for begin, end, name in zip(*ends.tolist(), names[of[:-1][edges]].tolist(), strict=True):
        found[begin:end] = name
    return found


class _Rows:
    """Digests of a layer's columns, and its style, to compare what was written with what is read back."""

    def __init__(self, style: str) -> None:
        self._style = style
        self._columns: defaultdict[int, Any] = defaultdict(hashlib.sha256)
        self._count = 0

    def add(self, geometries: Sequence[bytes], fields: Sequence[Any]) -> None:
        self._count += len(geometries)
        self._columns[0].update(b"".join(geometries))
        for column, values in enumerate(fields, start=1):
            self._columns[column].update("".join(f"{value};" for value in values).encode())

    def read_back(self, file: Path) -> bool:
        """Whether a GeoPackage is intact and holds these rows."""
        import pyogrio.raw

        with closing(sqlite3.connect(file)) as database:
            if database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                return False
            if database.execute("SELECT styleQML FROM layer_styles").fetchall() != [(self._style,)]:
                return False
        found = _Rows(self._style)
        for begin in range(0, max(self._count, 1), _ROWS_AT_A_TIME):
            _, _, geometries, fields = pyogrio.raw.read(
                file, layer=LAYER, skip_features=begin, max_features=_ROWS_AT_A_TIME
            )
            found.add(geometries, fields)
        return found.digests() == self.digests()

    def digests(self) -> list[bytes]:
        return [self._columns[column].digest() for column in sorted(self._columns)]


def _add_style(path: Path, style: str) -> None:
    """Add the table in which QGIS looks for a layer's style."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE TABLE layer_styles (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, "
            "f_table_catalog TEXT, f_table_schema TEXT, f_table_name TEXT, f_geometry_column TEXT, "
            "styleName TEXT, styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, "
            "owner TEXT, ui TEXT, update_time DATETIME)"
        )
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, "
            "styleName, styleQML, styleSLD, useAsDefault, description, owner, update_time) "
            "SELECT '', '', table_name, ?, table_name, ?, '', 1, '', '', last_change "
            "FROM gpkg_contents WHERE table_name = ?",
            (GEOMETRY, style, LAYER),
        )
        database.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier, last_change) "
            "SELECT 'layer_styles', 'attributes', 'layer_styles', last_change "
            "FROM gpkg_contents WHERE table_name = ?",
            (LAYER,),
        )


def _qml(labels: Labels) -> str:
    """Return QGIS's style, a fill for each value, with properties as all of its versions read them."""
    categories, symbols = [], []
    classes = zip(labels.numbers, labels.classes, labels.palette, strict=True)
    for symbol, (value, name, colour) in enumerate(classes):
        red, green, blue = colour
        categories.append(
            f'<category value="{value}" label={quoteattr(name)} symbol="{symbol}" render="true"/>'
        )
        symbols.append(
            f'<symbol name="{symbol}" type="fill" alpha="1" clip_to_extent="1">'
            '<layer class="SimpleFill" enabled="1" locked="0" pass="0">'
            f'<prop k="color" v="{red},{green},{blue},255"/><prop k="style" v="solid"/>'
            '<prop k="outline_style" v="no"/></layer></symbol>'
        )
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>"
        '<qgis version="3.4" styleCategories="Symbology">'
        '<renderer-v2 type="categorizedSymbol" attr="value" enableorderby="0" forceraster="0">'
        f"<categories>{''.join(categories)}</categories><symbols>{''.join(symbols)}</symbols>"
        "</renderer-v2></qgis>"
    )
