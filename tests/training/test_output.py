"""A session's output is counted while it grows, and pictures by the hundred are packed."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import pytest

from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.training import output
from mapsage_kaggle.training.output import OutputWatch


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def watch(tmp_path: Path, told: list[str]) -> OutputWatch:
    (tmp_path / "work").mkdir()
    return OutputWatch(tmp_path / "work", tmp_path, told.append)


def draw(folder: Path, *numbers: int, age_s: float = 60.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = folder / f"image_{number}.png"
        path.write_bytes(b"picture %d" % number)
        os.utime(path, (time.time() - age_s,) * 2)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_of_many_pictures_is_packed_with_one_line(
    watch: OutputWatch, told: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "work" / "20261130_000000" / "vis_data" / "vis_image"
    draw(folder, *range(447))
    (folder / "notes.txt").touch()
    watch.look()
    assert names_in(folder) == ["notes.txt", "pictures_001.zip"]
    with zipfile.ZipFile(folder / "pictures_001.zip") as archive:
        assert archive.testzip() is None
        assert {archive.read(name) for name in archive.namelist()} == {b"picture %d" % n for n in range(447)}
    draw(folder, *range(447, 560))
    watch.look()
    assert names_in(folder) == ["notes.txt", "pictures_001.zip", "pictures_002.zip"]
    (line,) = told
    assert line.startswith(f"{folder} fills with pictures: they are packed into pictures_001.zip")
    assert Words("zh").translate(line) != line


def test_few_pictures_and_the_kit_s_own_stay_as_they_are(
    watch: OutputWatch, told: list[str], tmp_path: Path
) -> None:
    draw(tmp_path / "work" / "few", *range(100))
    draw(tmp_path / "work" / "predictions", *range(120))
    watch.look()
    assert len(names_in(tmp_path / "work" / "few")) == 100
    assert len(names_in(tmp_path / "work" / "predictions")) == 120
    assert told == []


def test_what_is_being_written_is_left_until_the_end(watch: OutputWatch, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "drawn"
    draw(folder, *range(150))
    draw(folder, 150, age_s=0.0)
    watch.look()
    assert names_in(folder) == ["image_150.png", "pictures_001.zip"]
    draw(folder, *range(200, 320), age_s=0.0)
    watch.look()
    assert len(names_in(folder)) == 122
    watch.look(at_the_end=True)
    assert names_in(folder) == ["pictures_001.zip", "pictures_002.zip"]


def test_an_archive_that_a_kill_left_half_is_made_anew(watch: OutputWatch, tmp_path: Path) -> None:
    folder = tmp_path / "work" / "drawn"
    draw(folder, *range(150))
    (folder / "pictures_001.unfinished.zip").write_bytes(b"PK")
    watch.look()
    assert names_in(folder) == ["pictures_001.zip"]


def test_an_archive_is_never_replaced_where_an_earlier_one_was_deleted(
    watch: OutputWatch, tmp_path: Path
) -> None:
    folder = tmp_path / "work" / "drawn"
    for number in (1, 2):
        draw(folder, *range(150 * number, 150 * number + 150))
        watch.look()
    before = (folder / "pictures_002.zip").read_bytes()
    (folder / "pictures_001.zip").unlink()
    draw(folder, *range(500, 650))
    watch.look()
    assert names_in(folder) == ["pictures_002.zip", "pictures_003.zip"]
    assert (folder / "pictures_002.zip").read_bytes() == before


def test_a_full_disk_loses_no_picture(
    watch: OutputWatch, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work" / "drawn"
    draw(folder, *range(150))

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    watch.look()
    assert len(names_in(folder)) == 150
    assert told == [f"The pictures in {folder} could not be packed: No space left on device."]


def test_too_many_files_of_any_kind_are_told_once_with_their_place(
    watch: OutputWatch, told: list[str], tmp_path: Path
) -> None:
    (tmp_path / "arrays").mkdir()
    for number in range(401):
        (tmp_path / "arrays" / f"{number}.npy").touch()
    watch.look()
    watch.look()
    (line,) = told
    assert line.startswith(f"The output holds 401 files, most of them in {tmp_path / 'arrays'}; Kaggle drops")
    assert Words("zh").translate(line) != line


def test_it_is_looked_at_now_and_then(
    watch: OutputWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work" / "drawn"
    draw(folder, *range(150))
    watch.look_now_and_then()
    assert len(names_in(folder)) == 150
    monkeypatch.setattr(output, "LOOK_EVERY_S", 0.0)
    watch.look_now_and_then()
    assert names_in(folder) == ["pictures_001.zip"]
