"""Which images are meant, and that what comes of them is kept apart and never taken for an image."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from mapsage_kaggle.errors import DataError, UsageError
from mapsage_kaggle.imagery.sources import JOURNAL, LOCK, check_out, find_images, gdal_name


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def names(*given: Path, out: Path | None = None) -> dict[str, str]:
    """Return each image's file name by what it is called."""
    return {source.name: source.path.name for source in find_images(given, out=out)}


def told(folder: Path, out: Path | None = None) -> list[str]:
    said: list[str] = []
    find_images([folder], out=out, say=said.append)
    return said


def test_images_of_a_folder_are_named_by_their_place_in_it(tmp_path: Path) -> None:
    for name in ("Urban/1.png", "Rural/2.PNG", "Rural/notes.txt", ".hidden/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    assert [source.name for source in find_images([tmp_path])] == ["Rural/2", "Urban/1"]
    assert [source.name for source in find_images([tmp_path / "Rural" / "notes.txt"])] == ["notes"]


# --- what comes of one image is kept apart from what comes of another


def test_images_of_one_stem_are_kept_apart_by_their_suffixes(tmp_path: Path) -> None:
    files(tmp_path, "1.png", "1.tif", "2.tif", "sub/1.png", "sub/1.TIF")

    assert names(tmp_path) == {
        "1_png": "1.png", "1_tif": "1.tif", "2": "2.tif", "sub/1_TIF": "1.TIF", "sub/1_png": "1.png",
    }  # fmt: skip


def test_named_images_of_one_name_are_kept_apart_by_their_folders(tmp_path: Path) -> None:
    files(tmp_path, "d1/x.tif", "d2/x.tif", "d2/x.png", "y.tif")

    found = names(tmp_path / "d1/x.tif", tmp_path / "d2/x.tif", tmp_path / "d2/x.png", tmp_path / "y.tif")

    assert sorted(found) == ["d1/x", "d2/x_png", "d2/x_tif", "y"]


def test_folders_with_images_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    files(tmp_path, "d1/a/x.tif", "d2/a/x.tif")

    assert sorted(names(tmp_path / "d1", tmp_path / "d2")) == ["d1/a/x", "d2/a/x"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(("x.tif", "../x.tif"), ["jan/x", "x"]), (("x.tif", "../feb/x.tif"), ["feb/x", "jan/x"])],
)
def test_a_name_does_not_lead_upwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], expected: list[str]
) -> None:
    monkeypatch.chdir(files(tmp_path, "x.tif", "jan/x.tif", "feb/x.tif") / "jan")

    assert sorted(names(*map(Path, given))) == expected


def test_an_image_by_two_paths_is_one(tmp_path: Path) -> None:
    files(tmp_path, "a/x.tif", "b/y.tif")

    assert names(tmp_path / "a/x.tif", tmp_path / "b/../a/x.tif") == {"x": "x.tif"}


def test_what_cannot_be_kept_apart_is_refused(tmp_path: Path) -> None:
    files(tmp_path, "x.tif", "x.png", "x_png.tif")

    with pytest.raises(DataError, match="would both give x_png"):
        names(tmp_path)


def test_an_image_that_is_named_twice_is_one(tmp_path: Path) -> None:
    files(tmp_path, "x.tif")

    assert names(tmp_path, tmp_path / "x.tif") == {"x": "x.tif"}


# --- maps are no images


@pytest.mark.parametrize("known_by", [JOURNAL, LOCK])  # a run that was killed early leaves the lock alone
@pytest.mark.parametrize("out", ["maps", "."])
def test_maps_that_were_made_are_no_images(tmp_path: Path, out: str, known_by: str) -> None:
    files(tmp_path, "a.tif", f"{out}/masks/a.tif", f"{out}/overlays/sub/a.tif", f"{out}/{known_by}")

    assert names(tmp_path, out=tmp_path / out) == {"a": "a.tif"}
    assert told(tmp_path, tmp_path / out) == [
        f"{tmp_path / out / kind} was left out: maps that were made before." for kind in ("masks", "overlays")
    ]


def test_maps_of_another_folder_are_no_images_either(tmp_path: Path) -> None:
    files(tmp_path, "a.tif", f"older/{JOURNAL}", "older/masks/a.tif", "masks/b.png")

    assert names(tmp_path, out=tmp_path / "newer") == {"a": "a.tif", "masks/b": "b.png"}


@pytest.mark.parametrize("kind", ["masks", "overlays", "probabilities", "polygons"])
def test_a_folder_with_masks_of_a_persons_own_is_refused(tmp_path: Path, kind: str) -> None:
    files(tmp_path, "images/0001.png", f"{kind}/sub/0001.png")

    with pytest.raises(UsageError, match=f"{tmp_path}/{kind} holds files .* Give another --out"):
        check_out(tmp_path)


@pytest.mark.parametrize("name", [JOURNAL, LOCK])
def test_a_folder_with_maps_of_earlier_runs_is_taken(tmp_path: Path, name: str) -> None:
    files(tmp_path, "masks/a.png", "own/masks/a.png", name)

    check_out(tmp_path)


@pytest.mark.parametrize("given", ["masks", "masks/a.tif"])
def test_a_map_is_not_written_over_an_image(tmp_path: Path, given: str) -> None:
    files(tmp_path, "masks/a.tif")

    with pytest.raises(UsageError, match=r"masks/a\.tif lies where maps are written to"):
        find_images([tmp_path / given], out=tmp_path)


# --- what is left out is told


def test_links_to_folders_and_files_of_other_kinds_are_told(tmp_path: Path) -> None:
    files(
        tmp_path,
        "in/a.tif",
        "in/a.tfw",
        "in/a.tif.aux.xml",
        "in/notes.txt",
        "in/b.txt",
        "in/c.XML",
        "far/z.tif",
    )
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")

    assert told(tmp_path / "in") == [
        f"{tmp_path}/in/link is a link to a folder and was left out; name it to have it.",
        f"Of {tmp_path}/in, files of other kinds were left out: .txt (2), .xml (1).",
    ]
    assert names(tmp_path / "in" / "link") == {"z": "z.tif"}


# --- archives


def test_an_image_in_an_archive_has_gdals_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "scenes.zip", "w") as archive:
        archive.writestr("below/city.tif", b"x")
    monkeypatch.chdir(tmp_path)

    for given in (f"/vsizip/{tmp_path}/scenes.zip/below/city.tif", "/vsizip/scenes.zip/below/city.tif"):
        (source,) = find_images([Path(given)])
        assert source.name == "city"
        assert gdal_name(source.path) == f"/vsizip/{tmp_path}/scenes.zip/below/city.tif"


def test_an_archive_that_is_not_there_is_told() -> None:
    with pytest.raises(DataError, match="nothing at /vsizip/gone"):
        find_images([Path("/vsizip/gone.zip/city.tif")])
