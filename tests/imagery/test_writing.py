"""A map gets its name when it lies on the disk as it was meant."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import CRS, Affine
from rasterio.control import GroundControlPoint
from rasterio.transform import from_gcps, from_origin
from support.disks import limited_files

from mapsage_kaggle.errors import DataError, MachineError
from mapsage_kaggle.imagery.reading import Georeference
from mapsage_kaggle.imagery.writing import Labels, WriteFailed, replacing, write_names, write_png, write_tiff

PIXELS = np.random.default_rng(0).integers(0, 9, (3, 900, 700), np.uint8)

LABELS = Labels(classes=("a & b", "roof"), palette=((1, 2, 3), (255, 0, 0)), numbers=(1, 2), no_data=0)


def strips() -> Iterator[Any]:
    for top in range(0, 900, 130):
        yield PIXELS[:, top : top + 130]


def write(path: Path, **options: Any) -> None:
    given = {"height": 900, "width": 700, "num_bands": 3, "georeference": None} | options
    write_tiff(path, strips(), **given)


def given(folder: Path, kind: str) -> Path:
    path = folder / f"map.{kind}"
    if kind == "tif":
        write(path)
    elif kind == "png":
        write_png(path, PIXELS[0])
    else:
        write_names(path, LABELS)
    return path


def damaged(path: Path, at: float) -> None:
    with path.open("r+b") as stream:
        stream.seek(int(at * path.stat().st_size))
        stream.write(b"\xff" * 64)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["png", "tif", "xml"])
def test_what_reads_back_otherwise_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, at: float
) -> None:
    fsync = os.fsync

    def losing(descriptor: int) -> None:
        fsync(descriptor)
        damaged(Path(f"/proc/self/fd/{descriptor}").resolve(), at)

    monkeypatch.setattr(os, "fsync", losing)
    with pytest.raises(WriteFailed, match=r"map\.\w+ could not be written: it reads back otherwise"):
        given(tmp_path, kind)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("kind", ["png", "tif", "xml"])
def test_a_file_that_ends_too_early_gets_no_name_and_its_disk_is_named(
    tmp_path: Path, kind: str, share: float
) -> None:
    size = given(tmp_path / "whole", kind).stat().st_size

    with pytest.raises(MachineError) as caught, limited_files(int(share * size)):
        given(tmp_path / "short", kind)

    disk = next(folder for folder in tmp_path.parents if folder.is_mount())
    assert f"The disk at {disk} has " in str(caught.value)
    assert not list((tmp_path / "short").iterdir())


@pytest.mark.parametrize(("colour", "no_data"), [(4, 0), (3, 2)], ids=["a colour", "no data"])
def test_a_mask_that_shows_otherwise_than_its_classes_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour: int, no_data: int
) -> None:
    def showing_otherwise(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}").resolve()
        with Image.open(file) as image:
            image.putpalette([0, 0, 0, 1, 2, colour, 255, 0, 0])
            image.save(file, transparency=no_data)

    monkeypatch.setattr(os, "fsync", showing_otherwise)
    with pytest.raises(WriteFailed, match="reads back otherwise"):
        write_png(tmp_path / "map.png", PIXELS[0] % 3, LABELS)

    assert not list(tmp_path.iterdir())


def test_what_is_there_already_stays_where_the_new_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    write_png(path, PIXELS[1])

    with pytest.raises(WriteFailed), limited_files(100):
        write_png(path, PIXELS[0])

    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), PIXELS[1])


def test_an_error_of_what_is_written_is_not_the_disks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of the image"), replacing(tmp_path / "map.png"):
        raise ValueError("of the image")


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_name_as_long_as_the_disk_takes_is_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"{'市' * 83}.{kind}"

    write_png(path, PIXELS[0]) if kind == "png" else write(path)

    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("name", ["a" * 255 + ".", "folder.", "file/map."])
def test_a_name_that_the_disk_does_not_take_is_no_fault_of_the_disks(
    tmp_path: Path, name: str, kind: str
) -> None:
    (tmp_path / f"folder.{kind}" / "below").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x")
    path = tmp_path / (name + kind)

    with pytest.raises(DataError, match=r"could not be written: .*Rename the image"):
        write_png(path, PIXELS[0]) if kind == "png" else write(path)


GCPS = [
    GroundControlPoint(row=y, col=x, x=100.5 + x / 1e5, y=30.1 - y / 1e5)
    for x, y in ((0, 0), (700, 0), (0, 900))
]


@pytest.mark.parametrize(
    "place",
    [
        Georeference(crs="EPSG:32650", transform=from_origin(500_000.3, 3_400_000.7, 0.3, 0.3)),
        Georeference(crs="EPSG:4326", transform=from_origin(100.123456789, 30.987654321, 1e-5, 1.1e-5)),
        Georeference(crs="EPSG:3857", transform=from_gcps(GCPS) @ Affine.rotation(17)),
        Georeference(crs=None, transform=from_origin(1.0, 2.0, 0.1, 0.1)),
        Georeference(crs=None, transform=Affine.identity(), gcps=(GCPS, CRS.from_epsg(4326))),
    ],
    ids=["metres", "degrees", "turned", "without a CRS", "by GCPs"],
)  # fmt: skip
def test_every_kind_of_place_reads_back(tmp_path: Path, place: Georeference) -> None:
    write(tmp_path / "map.tif", georeference=place, no_data=0, descriptions=("a", "b", "c"))

    with rasterio.open(tmp_path / "map.tif") as found:
        np.testing.assert_array_equal(found.read(), PIXELS)
        assert found.descriptions == ("a", "b", "c")
