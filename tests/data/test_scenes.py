"""The generated scenes: deterministic, rightly shaped, and with every class in them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapsage_kaggle.data.datasets import check_data, find_data_roots
from mapsage_kaggle.data.scenes import draw_scene, generate_scenes


def read(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


def test_scenes_are_a_function_of_the_seed(tmp_path: Path) -> None:
    np.random.seed(1)
    generate_scenes(tmp_path / "a", train=2, val=1, size=64, seed=5)
    np.random.seed(2)
    generate_scenes(tmp_path / "b", train=2, val=1, size=64, seed=5)
    first, second = read(tmp_path / "a"), read(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_scenes_leave_the_global_generator_alone() -> None:
    np.random.seed(3)
    expected = np.random.uniform()
    np.random.seed(3)
    draw_scene(64, (0, 0, 0))
    assert np.random.uniform() == expected


def test_no_two_scenes_are_the_same(tmp_path: Path) -> None:
    generate_scenes(tmp_path / "a", train=2, val=2, size=64, seed=5)
    generate_scenes(tmp_path / "b", train=2, val=2, size=64, seed=6)
    pictures = [
        picture.tobytes()
        for folder in ("a", "b")
        for name, picture in read(tmp_path / folder).items()
        if "images_png" in name
    ]
    assert len(set(pictures)) == len(pictures) == 8


def test_a_longer_data_set_begins_like_a_shorter_one(tmp_path: Path) -> None:
    generate_scenes(tmp_path / "short", train=1, val=1, size=64, seed=5)
    generate_scenes(tmp_path / "long", train=3, val=2, size=64, seed=5)
    short, long = read(tmp_path / "short"), read(tmp_path / "long")
    assert len(long) == 10
    assert all(np.array_equal(picture, long[name]) for name, picture in short.items())


@pytest.mark.parametrize("size", [64, 96, 256])
def test_image_and_mask_have_the_size_that_was_asked_for(size: int) -> None:
    image, mask = draw_scene(size, (0, 0, 1))
    assert image.shape == (size, size, 3)
    assert mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8


def test_every_class_and_no_data_occur_in_a_demo_data_set() -> None:
    masks = [draw_scene(128, (0, 0, number))[1] for number in range(24)]
    share = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=9) / (24 * 128**2)
    assert share.size == 9
    assert share[0] > 0.001
    assert share[1:].min() > 0.015, share


def test_no_data_is_black_and_nothing_else_is() -> None:
    for number in range(24):
        image, mask = draw_scene(64, (0, 0, number))
        assert np.array_equal(image.max(-1) == 0, mask == 0)


def test_the_data_set_is_found_and_sound(tmp_path: Path) -> None:
    generate_scenes(tmp_path / "input" / "scenes", train=3, val=2, test=1, size=64, seed=0)
    (root,) = find_data_roots(tmp_path)
    assert root.path == tmp_path / "input" / "scenes"
    assert root.layout == "earthvqa"
    assert root.trainable
    report = check_data(root, 8, sample=None)
    assert report.ok
    assert report.pairs == {"Train": 3, "Val": 2}
    assert not (root.path / "Test" / "masks_png").exists()


def test_scenes_need_neither_torch_nor_opencv() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, cv2=None, mmengine=None, scipy=None)\n"
        "from mapsage_kaggle.data.scenes import draw_scene; draw_scene(64, (0, 0, 0))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
