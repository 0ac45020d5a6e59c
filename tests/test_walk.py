"""The directory walk, on real trees broken in one way each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mapsage_kaggle.walk import WalkProblem, walk


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def is_pth(name: str) -> bool:
    return name.endswith(".pth")


def test_wanted_files_are_found_at_any_depth_and_sorted(tmp_path: Path) -> None:
    make(tmp_path, "b/c/d/e/f/two.pth", "a/one.pth", "a/one.png")
    found = walk(tmp_path, want_file=is_pth)
    assert found.files == (tmp_path / "a/one.pth", tmp_path / "b/c/d/e/f/two.pth")
    assert found.problems == ()


def test_wanted_directories_are_reported_in_the_same_walk(tmp_path: Path) -> None:
    make(tmp_path, "set/images_png/0.png", "set/masks_png/0.png", "run/iter_1.pth")
    found = walk(tmp_path, want_file=is_pth, want_dir=lambda name: name in ("images_png", "masks_png"))
    assert found.dirs == (tmp_path / "set/images_png", tmp_path / "set/masks_png")
    assert found.files == (tmp_path / "run/iter_1.pth",)


def test_each_directory_is_listed_once(tmp_path: Path) -> None:
    make(tmp_path, *(f"images/{index}.png" for index in range(2000)), "run/iter_1.pth")
    assert walk(tmp_path, want_file=is_pth).num_listings == 3


def test_no_file_is_asked_for_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "images/0.png", "run/iter_1.pth")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("stat was called")

    real = os.path.realpath(tmp_path)
    with monkeypatch.context() as patch:
        for name in ("stat", "lstat"):
            patch.setattr(os, name, refuse)
        patch.setattr(os.path, "realpath", lambda path: real)
        assert walk(tmp_path, want_file=is_pth).files == (tmp_path / "run/iter_1.pth",)


def test_a_directory_that_need_not_be_entered_is_not_listed(tmp_path: Path) -> None:
    make(tmp_path, "images/deep/iter_1.pth", "run/iter_2.pth")
    found = walk(tmp_path, want_file=is_pth, enter=lambda name: name != "images")
    assert found.files == (tmp_path / "run/iter_2.pth",)
    assert found.num_listings == 2


def test_names_with_other_endings_are_not_asked_about(tmp_path: Path) -> None:
    make(tmp_path, "a.pth", "b.png")
    asked: list[str] = []
    walk(tmp_path, want_file=asked.append, endings=(".pth",))
    assert asked == ["a.pth"]


def test_a_missing_root_is_a_problem_and_no_exception(tmp_path: Path) -> None:
    found = walk(tmp_path / "nowhere")
    assert found.problems == (WalkProblem(path=tmp_path / "nowhere", reason="there is no such folder"),)


def test_a_file_for_a_root_is_a_problem(tmp_path: Path) -> None:
    make(tmp_path, "file")
    assert walk(tmp_path / "file").problems[0].reason == "it is not a folder"


def test_a_directory_with_a_wanted_name_is_a_problem_and_is_entered(tmp_path: Path) -> None:
    make(tmp_path, "iter_1.pth/iter_2.pth")
    found = walk(tmp_path, want_file=is_pth)
    assert found.files == (tmp_path / "iter_1.pth/iter_2.pth",)
    assert found.problems == (
        WalkProblem(path=tmp_path / "iter_1.pth", reason="it is a directory, expected a file"),
    )


def test_a_link_to_a_folder_outside_is_followed(tmp_path: Path) -> None:
    make(tmp_path / "outside", "iter_1.pth")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/link").symlink_to(tmp_path / "outside")
    assert walk(tmp_path / "tree", want_file=is_pth).files == (tmp_path / "tree/link/iter_1.pth",)


def test_links_that_form_loops_end(tmp_path: Path) -> None:
    make(tmp_path / "outside", "iter_1.pth")
    make(tmp_path / "tree", "run/iter_2.pth")
    (tmp_path / "tree/run/up").symlink_to("..")
    (tmp_path / "tree/out").symlink_to(tmp_path / "outside")
    (tmp_path / "tree/out_again").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/back").symlink_to(tmp_path)
    found = walk(tmp_path / "tree", want_file=is_pth)
    assert len(found.files) == 2
    assert found.problems == ()


def test_a_link_to_itself_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "iter_1.pth").symlink_to("iter_1.pth")
    assert walk(tmp_path, want_file=is_pth).problems[0].reason == (
        "it is a link to iter_1.pth, which leads back to itself"
    )


def test_a_dangling_link_is_a_problem_only_where_its_name_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "iter_1.pth").symlink_to("gone.pth")
    (tmp_path / "photo.png").symlink_to("gone.png")
    found = walk(tmp_path, want_file=is_pth)
    assert [problem.reason for problem in found.problems] == [
        "it is a link to gone.pth, which does not exist"
    ]


def test_a_folder_without_permission_is_a_problem_and_the_rest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "closed/iter_1.pth", "open/iter_2.pth")
    closed = tmp_path / "closed"
    closed.chmod(0)
    if os.access(closed, os.R_OK):  # root may read everything: let the kernel's answer be given by hand
        real = os.scandir

        def scandir(path: str) -> object:
            if path == str(closed):
                raise PermissionError(13, "Permission denied", path)
            return real(path)

        monkeypatch.setattr(os, "scandir", scandir)
    try:
        found = walk(tmp_path, want_file=is_pth)
    finally:
        closed.chmod(0o755)
    assert found.files == (tmp_path / "open/iter_2.pth",)
    assert found.problems == (
        WalkProblem(path=closed, reason="the folder cannot be listed: Permission denied"),
    )


def test_empty_directories_are_told(tmp_path: Path) -> None:
    make(tmp_path, "full/x")
    (tmp_path / "empty").mkdir()
    assert walk(tmp_path).empty_dirs == (tmp_path / "empty",)


def test_names_with_spaces_and_other_scripts_are_found(tmp_path: Path) -> None:
    make(tmp_path, "我的 数据/iter_1.pth", "ünï cödé/iter_2.pth")
    make(tmp_path, os.fsdecode(b"not-utf8-\xff") + "/iter_3.pth")
    assert len(walk(tmp_path, want_file=is_pth).files) == 3


def test_slow_listings_go_on_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen listings that each wait for all others can only end if they overlap."""
    import threading

    make(tmp_path, *(f"dir_{index}/iter_{index}.pth" for index in range(16)))
    together = threading.Barrier(16, timeout=30)
    real = os.scandir
    clock = [0.0]

    def scandir(path: str) -> object:
        if Path(path) == tmp_path:
            clock[0] = 1.0  # the first listing took a second, of which the processor worked none
        else:
            together.wait()
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr("mapsage_kaggle.walk.time.perf_counter", lambda: clock[0])
    assert len(walk(tmp_path, want_file=is_pth).files) == 16


def test_an_error_in_a_callers_function_is_raised(tmp_path: Path) -> None:
    make(tmp_path, "b")

    def broken(name: str) -> bool:
        raise RuntimeError(f"asked for {name}")

    with pytest.raises(RuntimeError, match="asked for b"):
        walk(tmp_path, want_file=broken)
