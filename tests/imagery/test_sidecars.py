"""What lies beside an image counts: where it is on Earth, and what of it is data."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import IDENTITY
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
    of_band,
    rpcs_of,
    write_raster,
)

from mapsage_kaggle.errors import DataError
from mapsage_kaggle.imagery.journal import Stamp
from mapsage_kaggle.imagery.reading import Picture, check_grid, open_loaded, open_picture
from mapsage_kaggle.imagery.writing import write_tiff

# The tests' own writing, of what has no place on Earth.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def image(path: Path) -> Path:
    pixels = np.random.RandomState(0).randint(1, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "world"),
    [("a.png", "a.pgw"), ("a.png", "a.wld"), ("a.png", "a.pngw"), ("a.jpg", "a.jgw"), ("a.tif", "a.tfw"),
     ("a.bmp", "a.bpw"), ("A.PNG", "A.PGW")],
)  # fmt: skip
def test_a_world_file_says_where_an_image_lies(tmp_path: Path, name: str, world: str) -> None:
    path = image(tmp_path / name)
    (tmp_path / world).write_text(WORLD)
    with open_picture(path) as picture:
        assert picture.georeference is not None
        assert (picture.georeference.transform, picture.georeference.crs) == (GRID, None)
        assert picture.is_tiff
        if not name.endswith("jpg"):
            with Image.open(path) as stored:
                np.testing.assert_array_equal(picture.read(0, 8).rgb, np.asarray(stored))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_an_aux_xml_says_where_an_image_lies(tmp_path: Path, suffix: str) -> None:
    path = image(tmp_path / f"a.{suffix}")
    aux_beside(path, PLACE)
    before = sorted(tmp_path.iterdir())
    with open_picture(path) as picture:
        assert picture.georeference is not None
        assert (picture.georeference.transform, picture.georeference.crs.to_epsg()) == (GRID, 32650)
        picture.read(0, 8)
    assert sorted(tmp_path.iterdir()) == before


def test_an_aux_xml_that_holds_statistics_alone_changes_nothing(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    aux_beside(path, of_band('<Metadata><MDI key="STATISTICS_MEAN">9</MDI></Metadata>'))
    with open_picture(path) as picture:
        assert (picture.georeference, picture.is_tiff, picture.read(0, 8).valid) == (None, False, None)


def test_a_no_data_value_beside_an_image_is_no_data(tmp_path: Path) -> None:
    pixels = np.full((8, 8), 9, np.uint8)
    pixels[:3] = 7
    Image.fromarray(pixels).save(tmp_path / "a.png")
    aux_beside(tmp_path / "a.png", of_band("<NoDataValue>7</NoDataValue>"))
    with open_picture(tmp_path / "a.png") as picture:
        valid = picture.read(0, 8).valid
    assert valid is not None
    np.testing.assert_array_equal(valid, pixels == 9)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_mask_beside_an_image_says_what_is_data(tmp_path: Path, suffix: str, is_loaded: bool) -> None:
    path = image(tmp_path / f"a.{suffix}")
    mask_beside(path, 8, 8)
    samples = np.ones((8, 8, 4), np.uint8)
    with open_loaded(path, samples, blue_first=True) if is_loaded else open_picture(path) as picture:
        valid = picture.read(0, 8).valid
    assert valid is not None
    assert not valid[:4].any()
    assert valid[4:].all()


def test_samples_that_are_not_finite_are_no_data_and_reach_no_model(tmp_path: Path) -> None:
    samples = np.full((8, 8, 4), 0.5, np.float32)
    samples[2, 3, 1], samples[5, 6, 0] = np.nan, np.inf
    with open_loaded(image(tmp_path / "a.png"), samples, blue_first=True) as picture:
        found = picture.read(0, 8)
    assert found.valid is not None
    assert np.argwhere(~found.valid).tolist() == [[2, 3], [5, 6]]
    np.testing.assert_array_equal(found.as_read(), np.where(found.valid[..., None], samples, 0))
    assert np.isnan(samples[2, 3, 1])  # they may be the loader's own


def test_a_mask_within_an_image_that_a_pipeline_has_read_says_what_is_data(tmp_path: Path) -> None:
    valid = np.arange(64).reshape(8, 8) % 5 > 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(placed(tmp_path / "a.tif", shape=(4, 8, 8)), "r+") as target,
    ):
        target.write_mask(valid)
    with open_loaded(tmp_path / "a.tif", np.ones((8, 8, 4), np.uint8), blue_first=True) as picture:
        np.testing.assert_array_equal(picture.read(0, 8).valid, valid)


@pytest.mark.parametrize("name", ["a.pgw", "a.png.aux.xml", "a.png.msk"])
def test_an_image_is_another_when_what_lies_beside_it_is(tmp_path: Path, name: str) -> None:
    path, stamps = image(tmp_path / "a.png"), []
    for content in (None, "", WORLD):
        if content is not None:
            (tmp_path / name).write_text(content)
        stamps.append(Stamp.of(path, checkpoint_sha256="0", options="0"))
    assert len(set(stamps)) == 3
    assert Stamp.of(path, checkpoint_sha256="0", options="0") == stamps[-1]


def test_overviews_beside_an_image_are_not_what_is_read(tmp_path: Path) -> None:
    path = image(tmp_path / "a.tif")
    with rasterio.open(path) as source:
        expected = source.read()
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as source:
        source.build_overviews([2])
    assert path.with_name("a.tif.ovr").is_file()
    with open_picture(path) as picture:
        np.testing.assert_array_equal(picture.read(0, 8).rgb, np.moveaxis(expected, 0, -1))


def test_bands_described_beside_an_image_are_turned_and_told(tmp_path: Path) -> None:
    path = image(tmp_path / "a.png")
    aux_beside(path, described("blue", "green", "red"))
    with open_picture(path) as picture, Image.open(path) as stored:
        np.testing.assert_array_equal(picture.read(0, 8).rgb, np.asarray(stored)[..., ::-1])
        (notice,) = picture.notices
    assert "a.png has bands described as blue, green, red" in notice


def test_what_a_file_beside_an_image_leads_to_on_the_network_is_not_asked(tmp_path: Path) -> None:
    # More than 8 bits are looked at in small first, where GDAL would take an overview.
    path, asked = placed(tmp_path / "a.tif", shape=(3, 1200, 1200), dtype="uint16"), []

    class Far(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD

        def log_message(self, format: str, *arguments: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Far) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        far = f"/vsicurl/http://127.0.0.1:{server.server_port}/far.tif"
        aux_beside(
            path, f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{far}</MDI></Metadata>{PLACE}'
        )
        with pytest.raises(DataError, match="holds uint16 samples"), open_picture(path):
            pass
        server.shutdown()
    assert asked == []


def test_without_rasterio_a_person_is_told_what_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image(tmp_path / "a.png")
    (tmp_path / "a.pgw").write_text(WORLD)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with open_picture(path) as picture:
        assert picture.notices == (f"{tmp_path / 'a.pgw'} is not read: rasterio is not installed.",)


# --- control points and RPCs


def placed(
    path: Path, *, shape: tuple[int, int, int] = (3, 8, 8), dtype: str = "uint8", **profile: Any
) -> Path:
    return write_raster(path, np.random.RandomState(0).randint(0, 256, shape).astype(dtype), **profile)


def copied(picture: Picture, path: Path) -> Any:
    write_tiff(
        path, iter([np.ones((1, 8, 8), np.uint8)]), height=8, width=8, num_bands=1,
        georeference=picture.georeference,
    )  # fmt: skip
    return rasterio.open(path)


@pytest.mark.parametrize(
    ("profile", "fact"),
    [({"gcps": GCPS}, gcps_of), ({"rpcs": RPCS}, rpcs_of)],
    ids=["gcps", "rpcs"],
)
def test_what_places_a_scene_without_a_grid_is_carried_and_refused_for_polygons(
    tmp_path: Path, profile: dict[str, Any], fact: Callable[[Any], Any]
) -> None:
    path = placed(tmp_path / "scene.tif", **profile)
    with open_picture(path) as picture:
        with rasterio.open(path) as source, copied(picture, tmp_path / "map.tif") as found:
            assert fact(found) == fact(source)
        with pytest.raises(DataError, match=r"scene.tif is placed by .* alone"):
            check_grid(picture)


@pytest.mark.parametrize("profile", [{"transform": GRID, "crs": CRS, "rpcs": RPCS}, {"transform": GRID}])
def test_a_scene_with_a_grid_is_taken_for_polygons(tmp_path: Path, profile: dict[str, Any]) -> None:
    with open_picture(placed(tmp_path / "scene.tif", **profile)) as picture:
        assert picture.georeference is not None
        assert picture.georeference.transform != IDENTITY
        check_grid(picture)
