"""The scan: both mount layouts, and trees broken in one way each with the exact message."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from mapsage_kaggle.checkpoints.scan import Rejected, scan


def put(root: Path, name: str, data: bytes = b"x") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def reasons(root: Path) -> dict[str, str]:
    return {str(item.path.relative_to(root)): item.reason for item in scan(root).rejected}


@pytest.mark.parametrize(
    ("name", "kind", "iteration"),
    [
        ("iter_8000.pth", "iter", 8000),
        ("best_mIoU_iter_4000.pth", "best", 4000),
        ("best_mFscore_class_1_iter_20.pth", "best", 20),
        ("latest.pth", "latest", None),
        ("epoch_12.pth", "epoch", None),
        ("best_mIoU_epoch_12.pth", "epoch", None),
    ],
)
def test_each_kind_is_told_by_its_name(tmp_path: Path, name: str, kind: str, iteration: int | None) -> None:
    put(tmp_path, name)
    (found,) = scan(tmp_path).files
    assert (found.kind, found.iteration, found.size_bytes) == (kind, iteration, 1)


@pytest.mark.parametrize(
    "name",
    [
        "iter_.pth",
        "iter_8000.pth.tmp",
        "my_iter_8000.pth",
        "iter_-1.pth",
        "iter_8k.pth",
        "mit_b2.pth",
        "iter_1.PTH",
    ],
)
def test_other_names_are_passed_over(tmp_path: Path, name: str) -> None:
    put(tmp_path, name)
    report = scan(tmp_path)
    assert report.files == ()
    assert report.rejected == ()


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("my-dataset", "my-dataset"),
        ("my-dataset/a/b", "my-dataset"),
        ("notebooks/alice/mapsage-train/work_dirs/x", "alice/mapsage-train"),
        ("datasets/bob/points", "bob/points"),
        ("models/bob/segformer/pytorch/b2/1", "bob/segformer/pytorch/b2/1"),
        ("competitions/landcover", "landcover"),
        ("datasets", "datasets"),
    ],
)
def test_the_source_is_named_in_both_mount_layouts(tmp_path: Path, folder: str, source: str) -> None:
    put(tmp_path / "input", f"{folder}/iter_1.pth")
    assert scan(tmp_path / "input").files[0].source == source


def test_the_source_is_the_same_when_only_a_part_of_the_input_is_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path))
    put(tmp_path, "input/notebooks/alice/train/work_dirs/x/iter_1.pth")
    assert scan(tmp_path / "input/notebooks/alice/train/work_dirs").files[0].source == "alice/train"


def test_a_file_directly_in_the_root_has_the_roots_name(tmp_path: Path) -> None:
    put(tmp_path, "iter_1.pth")
    assert scan(tmp_path).files[0].source == tmp_path.name


def test_the_same_iteration_in_two_sources_is_reported_twice(tmp_path: Path) -> None:
    put(tmp_path, "one/iter_8.pth")
    put(tmp_path, "two/iter_8.pth")
    assert [(item.source, item.iteration) for item in scan(tmp_path).files] == [("one", 8), ("two", 8)]


def test_names_with_spaces_and_other_scripts(tmp_path: Path) -> None:
    put(tmp_path, "我的 训练/工作 dir/iter_8.pth")
    (found,) = scan(tmp_path).files
    assert found.source == "我的 训练"


def test_last_checkpoint_leads_to_the_file_beside_it_not_to_the_other_machine(tmp_path: Path) -> None:
    target = put(tmp_path, "run/iter_8000.pth", b"12345")
    text = put(tmp_path, "run/last_checkpoint", b"/kaggle/working/work_dirs/run/iter_8000.pth")
    (found,) = [item for item in scan(tmp_path).files if item.kind == "last_checkpoint"]
    assert (found.path, found.target, found.iteration, found.size_bytes) == (text, target, 8000, 5)


def test_last_checkpoint_of_another_system_is_understood(tmp_path: Path) -> None:
    put(tmp_path, "iter_3.pth")
    put(tmp_path, "last_checkpoint", b"C:\\work\\iter_3.pth\r\n")
    assert {item.kind for item in scan(tmp_path).files} == {"iter", "last_checkpoint"}


def test_a_stale_last_checkpoint_is_rejected(tmp_path: Path) -> None:
    put(tmp_path, "last_checkpoint", b"/old/iter_9.pth")
    assert reasons(tmp_path) == {"last_checkpoint": "it leads nowhere: there is no iter_9.pth beside it"}


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"..", b"/", b"a\nb", b"\xff\xfe", b"x" * 5000, b"\0" * 64], ids=repr
)
def test_a_last_checkpoint_with_nonsense_is_rejected(tmp_path: Path, data: bytes) -> None:
    put(tmp_path, "last_checkpoint", data)
    assert reasons(tmp_path) == {"last_checkpoint": "it does not hold the name of a checkpoint"}


def test_a_last_checkpoint_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    put(tmp_path, "iter_1.pth")
    put(tmp_path, "run/last_checkpoint", b"../iter_1.pth")
    assert [item.kind for item in scan(tmp_path).files] == ["iter"]


def test_latest_as_a_link_has_the_iteration_of_its_target(tmp_path: Path) -> None:
    put(tmp_path, "iter_40.pth")
    (tmp_path / "latest.pth").symlink_to("iter_40.pth")
    (found,) = [item for item in scan(tmp_path).files if item.kind == "latest"]
    assert (found.iteration, found.target) == (40, tmp_path / "iter_40.pth")


def test_oddities_are_each_reported_and_none_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "iter_1.pth").mkdir()
    put(tmp_path, "iter_2.pth", b"")
    (tmp_path / "iter_3.pth").symlink_to("gone.pth")
    (tmp_path / "iter_4.pth").symlink_to("iter_4.pth")
    os.mkfifo(tmp_path / "iter_5.pth")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the path of a socket may have 107 bytes only
        try:
            server.bind("iter_6.pth")
        finally:
            os.chdir(here)
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "folder").mkdir()
    (tmp_path / "latest.pth").symlink_to("folder")
    os.mkfifo(tmp_path / "last_checkpoint")
    put(tmp_path, "iter_7.pth")
    report = scan(tmp_path)
    assert [item.path.name for item in report.files] == ["iter_7.pth"]
    assert {item.path.name: item.reason for item in report.rejected} == {
        "iter_1.pth": "it is a directory, expected a file",
        "iter_2.pth": "it is empty",
        "iter_3.pth": "it is a link to gone.pth, which does not exist",
        "iter_4.pth": "it is a link to iter_4.pth, which leads back to itself",
        "iter_5.pth": "it is not a regular file",
        "iter_6.pth": "it is not a regular file",
        "latest.pth": "it is a link to a directory, expected a file",
        "last_checkpoint": "it is not a regular file",
    }


def test_a_missing_root_is_reported(tmp_path: Path) -> None:
    assert scan(tmp_path / "none").rejected == (
        Rejected(path=tmp_path / "none", reason="there is no such folder"),
    )


def test_a_file_for_a_root_is_reported(tmp_path: Path) -> None:
    path = put(tmp_path, "iter_1.pth")
    assert scan(path).rejected == (Rejected(path=path, reason="it is not a folder"),)


def test_the_json_is_the_contracts(tmp_path: Path) -> None:
    path = put(tmp_path, "in/iter_8.pth")
    empty = put(tmp_path, "in/iter_9.pth", b"")
    assert json.loads(json.dumps(scan(tmp_path).to_json())) == {
        "files": [{"path": str(path), "kind": "iter", "iteration": 8, "size_bytes": 1, "source": "in"}],
        "rejected": [{"path": str(empty), "reason": "it is empty"}],
    }


class Mounting:
    """A clock whose sleeps bring the mount up at last."""

    def __init__(self, bring_up: object = None, after: int = 3) -> None:
        self.time_s = 0.0
        self.sleeps: list[float] = []
        self.told: list[str] = []
        self._bring_up, self._after = bring_up, after

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds
        self.sleeps.append(seconds)
        if callable(self._bring_up) and len(self.sleeps) == self._after:
            self._bring_up()

    def now(self) -> float:
        return self.time_s


def test_an_empty_mount_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "input/my-run").mkdir(parents=True)
    clock = Mounting(lambda: put(tmp_path, "input/my-run/iter_8.pth"))
    report = scan(tmp_path / "input", wait_s=60, on_wait=clock.told.append, sleep=clock.sleep, now=clock.now)
    assert len(report.files) == 1
    assert clock.told[0] == f"Waiting for {tmp_path}/input/my-run to be mounted: still empty, 60 s left."


@pytest.mark.parametrize("mount", ["notebooks/alice/train", "datasets/bob/points", "competitions/landcover"])
def test_an_empty_mount_is_waited_for_in_the_deeper_layout(tmp_path: Path, mount: str) -> None:
    put(tmp_path, "notebooks/carol/run/iter_8.pth")
    (tmp_path / mount).mkdir(parents=True)
    clock = Mounting(lambda: put(tmp_path, f"{mount}/iter_8.pth"))
    assert len(scan(tmp_path, wait_s=60, sleep=clock.sleep, now=clock.now).files) == 2


def test_a_missing_mount_is_waited_for(tmp_path: Path) -> None:
    clock = Mounting(lambda: put(tmp_path, "input/my-run/iter_8.pth"))
    report = scan(tmp_path / "input", wait_s=60, sleep=clock.sleep, now=clock.now)
    assert len(report.files) == 1


def test_the_wait_is_bounded(tmp_path: Path) -> None:
    clock = Mounting()
    assert scan(tmp_path, wait_s=30, sleep=clock.sleep, now=clock.now).files == ()
    assert clock.time_s == 30


def test_nothing_is_waited_for_when_all_is_there(tmp_path: Path) -> None:
    put(tmp_path, "my-run/iter_8.pth")
    (tmp_path / "my-run/empty").mkdir(parents=True)
    clock = Mounting()
    scan(tmp_path, wait_s=30, sleep=clock.sleep, now=clock.now)
    assert clock.sleeps == []


def test_a_file_for_a_root_is_not_waited_for(tmp_path: Path) -> None:
    clock = Mounting()
    scan(put(tmp_path, "file"), wait_s=30, sleep=clock.sleep, now=clock.now)
    assert clock.sleeps == []
