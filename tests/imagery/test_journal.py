"""A line of the journal counts for the image that it was written for."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from mapsage_kaggle.imagery.journal import Journal, Stamp
from mapsage_kaggle.imagery.sources import Source


def noted(out: Path, image: str) -> Path:
    """Note an image called x in a folder's journal; return the folder."""
    (out / "masks").mkdir(parents=True, exist_ok=True)
    (out / "masks" / "x.png").write_bytes(b"x")
    source = Source(path=Path(image), name="x")
    stamp = Stamp.of(source.path, checkpoint_sha256="0", options="0")
    Journal(out).add(source, stamp, [out / "masks" / "x.png"], {})
    return out


def other(out: Path, image: str) -> Path | None:
    return Journal(out).other_image(Source(path=Path(image), name="x"))


@pytest.fixture(autouse=True)
def _images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for month in ("jan", "feb"):
        (tmp_path / month).mkdir()
        (tmp_path / month / "x.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path / "jan")


def test_an_image_of_the_name_of_another_is_told_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = noted(tmp_path / "out", "x.png")

    monkeypatch.chdir(tmp_path / "feb")

    assert other(out, "x.png") == tmp_path / "jan" / "x.png"
    assert other(out, "../jan/x.png") is None


def test_an_image_that_has_moved_is_no_other(tmp_path: Path) -> None:
    out = noted(tmp_path / "out", "x.png")

    (tmp_path / "jan" / "x.png").rename(tmp_path / "jan" / "y.png")

    assert other(out, "y.png") is None


def test_two_images_of_one_archive_are_told_apart(tmp_path: Path) -> None:
    with zipfile.ZipFile("scenes.zip", "w") as archive:
        archive.writestr("a/x.png", b"x")
    out = noted(tmp_path / "out", "/vsizip/scenes.zip/a/x.png")

    assert other(out, f"/vsizip/{tmp_path}/jan/scenes.zip/a/x.png") is None
    assert other(out, "/vsizip/scenes.zip/b/x.png") is not None


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "a\u2028b", "a\u0085b", "a\nb"], ids=ascii)
def test_an_unusual_file_name_is_read_back(tmp_path: Path, name: str) -> None:
    image = Source(path=Path(f"{name}.png"), name=name)
    image.path.write_bytes(b"x")
    stamp = Stamp.of(image.path, checkpoint_sha256="0", options="0")

    Journal(tmp_path).add(image, stamp, [], {})

    assert Journal(tmp_path).finished(image, stamp) is not None
    assert Journal(tmp_path).other_image(image) is None
