"""How much of a data set the cache of decoded images may keep, foreseen from sizes and room."""

from __future__ import annotations

import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS
from PIL import Image

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.config import replacements
from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine.fast import cache as cache_module
from mapsage_kaggle.engine.fast.cache import DecodedCache
from mapsage_kaggle.engine.fast.plan import CachePlan, plan_cache

GB = 10**9
SIZE, NUM = 64, 40
PIXELS = SIZE * SIZE * NUM
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "RandomCrop", "crop_size": (32, 32)},
    {"type": "PackSegInputs"},
]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    generate_scenes(folder, train=NUM, val=4, size=SIZE, seed=0)
    return folder


def data_set(root: Path, cache_dir: Path | None, split: str = "Train") -> Any:
    pipeline: Any = PIPELINE
    if cache_dir is not None:
        found = replacements.faster_pipeline(PIPELINE, cache_dir=str(cache_dir), scope="mmseg")
        assert found is not None
        pipeline = found[0]
    with DefaultScope.overwrite_default_scope("mmseg"):
        return DATASETS.build(
            {"type": "EarthVQADataset", "data_root": str(root), "split": split, "pipeline": pipeline}
        )


def limit(
    monkeypatch: pytest.MonkeyPatch, *, disk: int, memory: int | None = 1000 * GB, kind: str = "ext4"
) -> None:
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda _: Usage(disk, 0, disk))
    monkeypatch.setattr(cache_module, "_available_memory_bytes", lambda: memory)
    monkeypatch.setattr(cache_module, "_file_system", lambda _: kind)


@pytest.mark.parametrize(
    ("disk", "memory", "kind", "expected"),
    [
        (50 * GB, 100 * GB, "ext4", (46 * GB, "disk")),
        (50 * GB, None, "ext4", (46 * GB, "disk")),
        (50 * GB, 30 * GB, "ext4", (26 * GB, "memory")),
        (50 * GB, 6 * GB, "ext4", (3 * GB, "memory")),
        (3 * GB, 30 * GB, "ext4", (0, "disk")),
        (20 * GB, 20 * GB, "tmpfs", (16 * GB, "disk")),
        (60 * GB, 20 * GB, "tmpfs", (16 * GB, "memory")),
    ],
)
def test_the_room_is_what_disk_and_memory_both_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: int, memory: int | None, kind: str, expected: Any
) -> None:
    limit(monkeypatch, disk=disk, memory=memory, kind=kind)
    assert DecodedCache(tmp_path / "decoded").room() == expected


@pytest.mark.parametrize(("kind", "memory"), [("ext4", "memory"), ("tmpfs", "memory")])
def test_what_the_cache_holds_counts_as_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, memory: str
) -> None:
    held = DecodedCache(tmp_path / "decoded").entries / "ab" / "cd.raw"
    held.parent.mkdir(parents=True)
    held.write_bytes(bytes(5000))
    limit(monkeypatch, disk=10 * GB, kind=kind)
    assert DecodedCache(tmp_path / "decoded").room() == (6 * GB + 5000, "disk")
    limit(monkeypatch, disk=100 * GB, memory=10 * GB, kind=kind)
    # Pages of a file on a disk are given back when programs need them; a disk in memory does not do that.
    assert DecodedCache(tmp_path / "decoded").room() == (6 * GB + 5000 * (kind == "tmpfs"), memory)


def test_what_another_version_has_left_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "decoded" / "v1-0123456789abcdef" / "ab" / "cd.raw"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(5000))
    limit(monkeypatch, disk=10 * GB)
    assert DecodedCache(tmp_path / "decoded").room() == (6 * GB, "disk")
    assert list((tmp_path / "decoded").iterdir()) == []


@pytest.mark.parametrize(
    ("usage", "stat"),
    [
        ("memory.current", "anon 5\nactive_file 100\ninactive_file 200\n"),
        ("memory/memory.usage_in_bytes", "active_file 1\ntotal_active_file 100\ntotal_inactive_file 200\n"),
        (None, ""),
    ],
)
def test_what_a_container_holds_already_is_not_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usage: str | None, stat: str
) -> None:
    monkeypatch.setattr(cache_module, "_CGROUP", tmp_path)
    monkeypatch.setattr(cache_module, "ram_bytes", lambda: 1000)
    if usage is not None:
        file = tmp_path / usage
        file.parent.mkdir(exist_ok=True)
        file.write_text("700\n")
        file.with_name("memory.stat").write_text(stat)
    assert cache_module._available_memory_bytes() == (600 if usage else 1000)


def test_a_mount_point_with_a_space_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in memory").mkdir()
    mounts = tmp_path / "mounts"
    escaped = str(tmp_path / "in memory").replace(" ", r"\040")
    mounts.write_text(f"overlay / overlay rw 0 0\ntmpfs {escaped} tmpfs rw 0 0\n")
    monkeypatch.setattr(cache_module, "_MOUNTS", mounts)
    assert cache_module._file_system(tmp_path / "in memory") == "tmpfs"
    assert cache_module._file_system(tmp_path) == "overlay"


def test_without_scratch_space_there_is_no_room(tmp_path: Path) -> None:
    assert DecodedCache(tmp_path / "missing" / "decoded").room() == (0, "disk")


def test_all_fit(scenes: Path, tmp_path: Path) -> None:
    train, val = data_set(scenes, tmp_path / "decoded"), data_set(scenes, tmp_path / "decoded", "Val")
    plan = plan_cache([train, val])
    assert plan is not None
    assert plan.needed_bytes == 4 * (PIXELS + 4 * SIZE * SIZE)
    assert plan.share == 1.0
    assert str(plan).endswith(": all are decoded once.")


def test_images_that_are_repeated_or_joined_count_once(scenes: Path, tmp_path: Path) -> None:
    train = data_set(scenes, tmp_path / "decoded")
    plan = plan_cache([RepeatDataset(train, 3), ConcatDataset([train])])
    assert plan is not None
    assert plan.needed_bytes == 4 * PIXELS


def test_nothing_is_planned_where_nothing_is_cached(scenes: Path) -> None:
    assert plan_cache([data_set(scenes, None), object()]) is None


def test_images_that_cannot_be_read_do_not_end_the_plan(scenes: Path, tmp_path: Path) -> None:
    train = data_set(scenes, tmp_path / "decoded")
    infos = [dict(train.get_data_info(index)) for index in range(len(train))]
    for info in infos:
        info["img_path"] = str(tmp_path / "none.png")
    train.get_data_info = lambda index: infos[index]
    plan = plan_cache([train])
    assert plan is not None
    assert plan.needed_bytes == PIXELS


def test_a_share_is_kept_where_not_all_fit_and_every_sample_is_right(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "now_s", lambda: time.time() + 60.0)  # scenes are kept at once
    limit(monkeypatch, disk=cache_module.RESERVE_BYTES + 2 * PIXELS)
    train = data_set(scenes, tmp_path / "decoded")
    plan = plan_cache([RepeatDataset(train, 2)])
    assert plan is not None
    assert plan.share == 0.5
    limit(monkeypatch, disk=1000 * GB)

    def read(dataset: Any) -> list[str]:
        """Return the names of the entries after every image was read, once those are checked."""
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            loaded = dataset.pipeline.transforms[0]._load(dict(info), dataset.pipeline.transforms[0]._steps)
            assert np.array_equal(loaded[0][..., ::-1], np.asarray(Image.open(info["img_path"])))
        return sorted(path.name for path in (tmp_path / "decoded").rglob("*.raw"))

    kept = read(train)
    assert 0.3 * 2 * NUM < len(kept) < 0.7 * 2 * NUM
    # Another rank, or the next child, keeps the same ones.
    another = data_set(scenes, tmp_path / "decoded")
    limit(monkeypatch, disk=cache_module.RESERVE_BYTES + 2 * PIXELS - sum(
        path.stat().st_size for path in (tmp_path / "decoded").rglob("*.raw")
    ))  # fmt: skip
    again = plan_cache([another])
    assert again is not None
    assert again.share == plan.share
    limit(monkeypatch, disk=1000 * GB)
    assert read(another) == kept


def test_what_does_not_fit_is_told_in_both_languages() -> None:
    plan = CachePlan(folder=Path("/tmp/decoded"), needed_bytes=20 * GB, room_bytes=5 * GB, room_in="memory")
    assert str(plan) == (
        "Decoded, the images take 20.0 GB; /tmp/decoded may hold 5.0 GB, as the memory allows: 25 % are "
        "decoded once, the others each time, which is slower and changes nothing else."
    )
    assert (
        Words("zh")
        .translate(str(plan))
        .startswith("影像解码后共占 20.0 GB；受内存限制，/tmp/decoded 可存放 5.0 GB：25% 的影像只解码一次")
    )
