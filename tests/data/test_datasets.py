"""Finding and checking the data: every way in which it can be laid out, and be wrong."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapsage_kaggle.config.modules import find_config
from mapsage_kaggle.data import datasets
from mapsage_kaggle.data.datasets import (
    check_data,
    choose_data_root,
    find_data_roots,
    list_pairs,
    read_data_root,
)
from mapsage_kaggle.errors import DataError

MOUNTS = [
    "earthvqa",
    "datasets/someone/earthvqa",
    "earthvqa/EarthVQA/data",
    "notebooks/someone/prepare/out/earthvqa",
]


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def lay_out(
    root: Path,
    *,
    splits: tuple[str, ...] = ("Train", "Val"),
    areas: tuple[str, ...] = ("",),
    images: str = "images_png",
    masks: str = "masks_png",
    count: int = 2,
    side: int = 8,
) -> Path:
    for split in splits:
        for area in areas:
            for number in range(count):
                folder = root / split / area
                write(folder / images / f"{number}.png", np.full((side, side, 3), 5 * number, np.uint8))
                write(folder / masks / f"{number}.png", np.full((side, side), number + 1, np.uint8))
    return root


# --- discovery -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mount", MOUNTS)
def test_earthvqa_is_found_under_any_mount(tmp_path: Path, mount: str) -> None:
    lay_out(tmp_path / mount)
    (tmp_path / mount / "Train_QA.json").write_text("{}")
    (tmp_path / "checkpoints" / "work_dirs").mkdir(parents=True)
    (root,) = find_data_roots(tmp_path)
    assert (root.path, root.layout) == (tmp_path / mount, "earthvqa")
    assert [split.name for split in root.splits] == ["Train", "Val"]


@pytest.mark.parametrize("mount", MOUNTS)
def test_loveda_is_found_by_its_areas(tmp_path: Path, mount: str) -> None:
    lay_out(tmp_path / mount, areas=("Urban", "Rural"))
    (root,) = find_data_roots(tmp_path)
    assert (root.path, root.layout) == (tmp_path / mount, "loveda")
    assert [part.area for part in root.split("Train").parts] == ["Rural", "Urban"]
    assert len(list_pairs(root.split("Val"))) == 4


def test_case_is_not_told_apart(tmp_path: Path) -> None:
    lay_out(tmp_path / "x", splits=("train", "VAL"), images="Images_PNG", masks="MASKS_png")
    (root,) = find_data_roots(tmp_path)
    assert [split.name for split in root.splits] == ["Train", "Val"]
    assert root.trainable


def test_archives_unpacked_into_folders_of_their_own_name_are_seen_through(tmp_path: Path) -> None:
    lay_out(tmp_path / "loveda", splits=("Train/Train", "Val/Val"), areas=("Urban", "Rural"))
    (root,) = find_data_roots(tmp_path)
    assert root.path == tmp_path / "loveda"
    assert root.trainable


def test_the_data_set_may_lie_in_the_searched_folder_itself(tmp_path: Path) -> None:
    lay_out(tmp_path)
    assert find_data_roots(tmp_path) == (read_data_root(tmp_path),)


def test_folders_of_another_shape_are_no_data_set(tmp_path: Path) -> None:
    lay_out(tmp_path / "cats", images="images", masks="labels")
    (tmp_path / "Train").mkdir()
    assert find_data_roots(tmp_path) == ()


def test_a_link_that_leads_back_ends_the_search(tmp_path: Path) -> None:
    lay_out(tmp_path / "data")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert tmp_path / "data" in [root.path for root in find_data_roots(tmp_path)]


def test_what_a_mac_s_archive_leaves_is_no_data_set(tmp_path: Path) -> None:
    lay_out(tmp_path / "upload" / "earthvqa")
    lay_out(tmp_path / "upload" / "__MACOSX" / "earthvqa")
    (root,) = find_data_roots(tmp_path)
    assert root.path == tmp_path / "upload" / "earthvqa"


def test_a_missing_folder_holds_no_data_set(tmp_path: Path) -> None:
    assert find_data_roots(tmp_path / "nothing") == ()


# --- the choice ------------------------------------------------------------------------------------------


def test_nothing_found_says_where_and_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"No data set lies below {tmp_path}")) as caught:
        choose_data_root(find_data_roots(tmp_path), searched=tmp_path)
    assert "Train/images_png" in str(caught.value)
    assert caught.value.exit_code == 2
    assert "Attach" in caught.value.remedy


def test_two_alike_are_named_rather_than_guessed(tmp_path: Path) -> None:
    lay_out(tmp_path / "a")
    lay_out(tmp_path / "b")
    with pytest.raises(DataError, match="2 data sets") as caught:
        choose_data_root(find_data_roots(tmp_path), searched=tmp_path)
    assert str(tmp_path / "a") in str(caught.value)
    assert str(tmp_path / "b") in str(caught.value)


def test_the_layout_decides_between_earthvqa_and_loveda(tmp_path: Path) -> None:
    lay_out(tmp_path / "a")
    lay_out(tmp_path / "b", areas=("Urban", "Rural"))
    roots = find_data_roots(tmp_path)
    assert choose_data_root(roots, searched=tmp_path, layout="loveda").path == tmp_path / "b"
    assert choose_data_root(roots, searched=tmp_path, layout="earthvqa").path == tmp_path / "a"


def test_the_other_layout_alone_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path / "a")
    with pytest.raises(DataError, match=r"Train/Urban/images_png.*earthvqa layout") as error:
        choose_data_root(find_data_roots(tmp_path), searched=tmp_path, layout="loveda")
    config = error.value.remedy.rpartition(": ")[2].removesuffix(".")
    assert find_config(config).name == "train_earthvqa_kaggle.py"


def test_a_whole_data_set_goes_before_a_partial_one(tmp_path: Path) -> None:
    lay_out(tmp_path / "a", splits=("Train",))
    lay_out(tmp_path / "b")
    assert choose_data_root(find_data_roots(tmp_path), searched=tmp_path).path == tmp_path / "b"


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    lay_out(tmp_path, splits=("Train",))
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} has no Val/images_png, only Train.")):
        read_data_root(tmp_path).split("val")


def test_a_data_root_one_level_too_high_is_corrected(tmp_path: Path) -> None:
    lay_out(tmp_path / "inner")
    with pytest.raises(DataError, match="holds inner") as caught:
        read_data_root(tmp_path)
    assert caught.value.remedy.endswith(f"--set data_root={tmp_path / 'inner'}")
    assert read_data_root(tmp_path / "inner").trainable


def test_a_data_root_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'gone'} does not exist")):
        read_data_root(tmp_path / "gone")


def test_pairs_come_in_order_of_name(tmp_path: Path) -> None:
    lay_out(tmp_path, count=12)
    names = [pair.image.name for pair in list_pairs(read_data_root(tmp_path).split("Train"))]
    assert names == sorted(f"{number}.png" for number in range(12))


# --- the check -------------------------------------------------------------------------------------------


def only_problem(root: Path, num_classes: int = 8) -> str:
    report = check_data(root, num_classes)
    assert not report.ok
    (problem,) = report.problems
    with pytest.raises(DataError, match="1 problem:") as caught:
        report.raise_for_problems()
    assert str(problem) in str(caught.value)
    return str(problem)


def test_a_sound_data_set_is_counted(tmp_path: Path) -> None:
    report = check_data(lay_out(tmp_path), 8)
    assert report.ok
    report.raise_for_problems()
    assert report.pairs == {"Train": 2, "Val": 2}
    assert report.decoded == 4
    assert report.pixels == (0, 128, 128, 0, 0, 0, 0, 0, 0)


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    mask = lay_out(tmp_path) / "Train" / "masks_png" / "1.png"
    mask.unlink()
    image = tmp_path / "Train" / "images_png" / "1.png"
    assert only_problem(tmp_path) == f"{image}: no mask, expected {mask}"
    with pytest.raises(DataError, match="no mask"):
        list_pairs(read_data_root(tmp_path).split("Train"))


def test_a_mask_without_image_is_named(tmp_path: Path) -> None:
    image = lay_out(tmp_path) / "Val" / "images_png" / "0.png"
    image.unlink()
    mask = tmp_path / "Val" / "masks_png" / "0.png"
    assert only_problem(tmp_path) == f"{mask}: no image, expected {image}"


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    image = lay_out(tmp_path) / "Train" / "images_png" / "0.png"
    image.write_bytes(b"")
    assert only_problem(tmp_path) == f"{image}: an empty file, expected an image"


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    image = lay_out(tmp_path) / "Train" / "images_png" / "0.png"
    write(image, np.random.RandomState(0).randint(0, 256, (8, 8, 3)).astype(np.uint8))
    image.write_bytes(image.read_bytes()[:-60])
    problem = only_problem(tmp_path)
    assert problem.startswith(f"{image}: cannot be decoded (")
    assert problem.endswith("expected a whole image")


def test_a_page_of_html_instead_of_an_image_is_named(tmp_path: Path) -> None:
    image = lay_out(tmp_path) / "Val" / "images_png" / "1.png"
    image.write_text("<html>Not found</html>")
    assert only_problem(tmp_path).startswith(f"{image}: cannot be decoded (")


def test_mask_values_out_of_range_are_named(tmp_path: Path) -> None:
    mask = lay_out(tmp_path) / "Train" / "masks_png" / "0.png"
    write(mask, np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert only_problem(tmp_path) == f"{mask}: mask values 9, 10, 11, 12, 13 and 50 more, expected 0 to 8"


def test_earthvqa_masks_do_not_fit_seven_classes(tmp_path: Path) -> None:
    mask = lay_out(tmp_path) / "Val" / "masks_png" / "0.png"
    write(mask, np.full((8, 8), 8, np.uint8))
    assert check_data(tmp_path, 8).ok
    assert only_problem(tmp_path, 7) == f"{mask}: mask values 8, expected 0 to 7"


def test_a_coloured_mask_is_named(tmp_path: Path) -> None:
    mask = lay_out(tmp_path) / "Train" / "masks_png" / "0.png"
    write(mask, np.zeros((8, 8, 3), np.uint8))
    assert only_problem(tmp_path).startswith(f"{mask}: a mask in mode RGB")


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    mask = lay_out(tmp_path) / "Train" / "masks_png" / "0.png"
    write(mask, np.ones((4, 8), np.uint8))
    image = tmp_path / "Train" / "images_png" / "0.png"
    assert only_problem(tmp_path) == f"{image}: 8 x 8 pixels, expected the 8 x 4 of its mask"


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    lay_out(tmp_path)
    for file in (tmp_path / "Val").rglob("*.png"):
        file.unlink()
    folder = tmp_path / "Val" / "images_png"
    assert only_problem(tmp_path) == f"{folder}: no image, expected at least one"


def test_images_without_a_folder_of_masks_are_named(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "Val" / "masks_png").rename(tmp_path / "Val" / "elsewhere")
    assert "images without masks" in only_problem(tmp_path)


def test_a_missing_split_is_a_problem(tmp_path: Path) -> None:
    lay_out(tmp_path, splits=("Train",))
    assert only_problem(tmp_path) == f"{tmp_path / 'Val'}: no such folder, expected images_png and masks_png"


def test_many_problems_are_summed_up(tmp_path: Path) -> None:
    lay_out(tmp_path, count=7)
    for mask in (tmp_path / "Train" / "masks_png").iterdir():
        mask.unlink()
    with pytest.raises(DataError) as caught:
        check_data(tmp_path, 8).raise_for_problems()
    text = str(caught.value)
    assert "7 problems" in text
    assert text.count("no mask") == 5
    assert "... and 2 more" in text


def test_names_are_checked_in_full_and_pixels_by_sample(tmp_path: Path) -> None:
    lay_out(tmp_path, count=20)
    report = check_data(tmp_path, 20, sample=6)
    assert report.pairs == {"Train": 20, "Val": 20}
    assert report.decoded == 6
    assert check_data(tmp_path, 20, sample=6).pixels == report.pixels
    assert check_data(tmp_path, 20, sample=None).decoded == 40


def test_test_images_need_no_masks(tmp_path: Path) -> None:
    lay_out(tmp_path)
    write(tmp_path / "Test" / "images_png" / "7.png", np.zeros((8, 8, 3), np.uint8))
    root = read_data_root(tmp_path)
    assert check_data(root, 8).ok
    (pair,) = list_pairs(root.split("Test"))
    assert pair.mask is None


def test_the_real_tiles_are_sound(loveda: Path, tmp_path: Path) -> None:
    for split, tile in (("Train", 0), ("Val", 1)):
        for kind in ("images_png", "masks_png"):
            (tmp_path / split / kind).mkdir(parents=True)
            (tmp_path / split / kind / f"{tile}.png").symlink_to(loveda / kind / f"{tile}.png")
    report = check_data(tmp_path, 7)
    assert report.ok
    assert sum(report.pixels) == 2 * 1024 * 1024


# --- the palette -----------------------------------------------------------------------------------------


def test_every_class_has_a_colour_of_its_own() -> None:
    for classes, palette in (
        (datasets.EARTHVQA_CLASSES, datasets.EARTHVQA_PALETTE),
        (datasets.LOVEDA_CLASSES, datasets.LOVEDA_PALETTE),
    ):
        assert len(classes) == len(palette) == len(set(palette))
        assert (0, 0, 0) not in palette


# Machado, Oliveira and Fernandes (2009), full severity: linear RGB as seen without one kind of cones.
VISION = {
    "all cones": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}


def to_lab(linear: np.ndarray) -> np.ndarray:
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (np.clip(linear, 0, 1) @ matrix.T / (0.9505, 1.0, 1.089)).T
    fx, fy, fz = (np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116) for t in (x, y, z))
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -1)


@pytest.mark.parametrize("vision", VISION)
def test_playground_stands_out_to_every_kind_of_eye(vision: str) -> None:
    colours = np.array([*datasets.EARTHVQA_PALETTE, (0, 0, 0)]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = to_lab(linear @ np.asarray(VISION[vision]).T)
    playground = len(datasets.EARTHVQA_CLASSES) - 1
    distance = np.linalg.norm(np.delete(seen, playground, 0) - seen[playground], axis=1)
    assert distance.min() > 35
