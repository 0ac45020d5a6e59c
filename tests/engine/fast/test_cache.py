"""The cache of decoded images: whatever happens to it, it never gives a wrong image."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine.fast import cache as cache_module
from mapsage_kaggle.engine.fast.cache import DecodedCache


def picture(seed: int, shape: tuple[int, ...] = (13, 17, 3)) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


class Source:
    """A file whose content is the seed of the picture that it decodes to, and a count of decodings."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.path = path
        self.decoded = 0
        self.replace(seed)

    def replace(self, seed: int) -> None:
        self.path.write_text(str(seed))

    def decode(self) -> np.ndarray:
        self.decoded += 1
        return picture(int(self.path.read_text()))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Have files that a test has just written be a minute old; return what sets another age."""

    def set_age(age_s: float) -> None:
        monkeypatch.setattr(cache_module, "now_s", lambda: time.time() + age_s)

    set_age(60.0)
    return set_age


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "image.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "temp").mkdir()
    return tmp_path / "temp" / "decoded"


def open_cache(folder: Path, reserve_bytes: int = 0) -> DecodedCache:
    return DecodedCache(folder, reserve_bytes=reserve_bytes)


def look(cache: DecodedCache, source: Source, manner: str = "image") -> np.ndarray:
    """Return what the cache gives, after making sure that it is right."""
    found = cache.get(source.path, manner, source.decode)
    assert np.array_equal(found, picture(int(source.path.read_text())))
    return found


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_was_decoded_once_is_not_decoded_again(folder: Path, source: Source) -> None:
    look(open_cache(folder), source)
    cache = open_cache(folder)  # as another worker or a later start
    for _ in range(3):
        found = look(cache, source)
    assert source.decoded == 1
    assert not found.flags.writeable


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (1, 1, 3)])
def test_any_shape_of_image_comes_back(folder: Path, source: Source, shape: tuple[int, ...]) -> None:
    cache = open_cache(folder)
    for _ in range(2):
        assert np.array_equal(cache.get(source.path, "image", lambda: picture(3, shape)), picture(3, shape))


def test_a_view_that_is_not_contiguous_is_kept_as_it_looks(folder: Path, source: Source) -> None:
    cache = open_cache(folder)
    for _ in range(2):
        found = cache.get(source.path, "image", lambda: picture(3)[:, ::-1, ::-1])
        assert np.array_equal(found, picture(3)[:, ::-1, ::-1])


def test_a_file_whose_name_is_not_text_is_kept_too(folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode("影像.png".encode("gbk"))  # as a zip file of an older Windows unpacks
    source = Source(tmp_path / name, 4)
    for _ in range(2):
        look(open_cache(folder), source)
    assert source.decoded == 1


def test_what_is_not_uint8_is_not_kept(folder: Path, source: Source) -> None:
    cache = open_cache(folder)
    for _ in range(2):
        assert cache.get(source.path, "image", lambda: np.ones((2, 2), np.uint16)).dtype == np.uint16
    assert entries(folder) == []


def test_another_manner_of_decoding_has_an_entry_of_its_own(folder: Path, source: Source) -> None:
    cache = open_cache(folder)
    look(cache, source)
    assert np.array_equal(cache.get(source.path, "labels", lambda: picture(8)), picture(8))
    look(cache, source)
    assert source.decoded == 1


def test_an_image_replaced_under_the_same_name_is_noticed(folder: Path, source: Source) -> None:
    cache = open_cache(folder)
    look(cache, source)
    source.replace(1)
    look(cache, source)
    look(cache, source)
    assert source.decoded == 2
    assert len(entries(folder)) == 1


def test_so_is_one_of_the_same_size_with_its_times_set_back(folder: Path, source: Source) -> None:
    cache = open_cache(folder)
    look(cache, source)
    before = source.path.stat()
    source.replace(1)
    os.utime(source.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.path.stat().st_size == before.st_size
    look(cache, source)
    assert source.decoded == 2


def test_an_image_that_has_only_just_changed_is_not_kept(
    folder: Path, source: Source, clock: Callable[[float], None]
) -> None:
    """A file system that tells time by the second would not show one more change."""
    cache = open_cache(folder)
    for age_s, decoded in ((0.0, 1), (1.0, 2), (3.0, 3), (0.0, 3)):
        clock(age_s)
        look(cache, source)
        assert source.decoded == decoded
    clock(0.0)
    os.utime(source.path, (1, 1))  # does not make the inode's time older
    look(cache, source)
    assert source.decoded == 4
    look(cache, source)
    assert source.decoded == 5


def test_times_are_compared_where_a_file_system_tells_one_of_them_only() -> None:
    settled = cache_module._is_settled
    second = 10**9
    assert settled((1, 2, 3, 50 * second, 98 * second), 100.0)
    assert not settled((1, 2, 3, 50 * second, 99 * second), 100.0)
    assert not settled((1, 2, 3, 99 * second, 50 * second), 100.0)
    assert not settled((1, 2, 3, 50 * second, 150 * second), 100.0)  # by another clock
    assert settled((1, 2, 3, 150 * second, 50 * second), 100.0)


def test_an_image_that_changes_while_it_is_decoded_is_not_kept(folder: Path, source: Source) -> None:
    def decode() -> np.ndarray:
        found = source.decode()
        source.replace(1)
        return found

    assert np.array_equal(open_cache(folder).get(source.path, "image", decode), picture(0))
    assert entries(folder) == []


def test_a_missing_image_is_the_decoder_s_to_complain_of(folder: Path, source: Source) -> None:
    cache = open_cache(folder)
    look(cache, source)
    source.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"image\.png"):
        cache.get(source.path, "image", source.decode)


def test_what_the_decoder_raises_is_raised_and_nothing_is_kept(folder: Path, source: Source) -> None:
    def decode() -> np.ndarray:
        raise ValueError("broken PNG")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken PNG"):
            open_cache(folder).get(source.path, "image", decode)
    assert entries(folder) == []


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("keep", [0, 1, 60, 128, 129, 700])
def test_a_torn_entry_is_made_anew(folder: Path, source: Source, keep: int) -> None:
    look(open_cache(folder), source)
    (entry,) = entries(folder)
    entry.write_bytes(entry.read_bytes()[:keep])
    cache = open_cache(folder)
    look(cache, source)
    look(cache, source)
    assert source.decoded == 2


@pytest.mark.parametrize("position", [0, 8, 12, 44, 48, 60, 64, 68, 128, 300, -1])
def test_a_flipped_byte_is_noticed(folder: Path, source: Source, position: int) -> None:
    look(open_cache(folder), source)
    (entry,) = entries(folder)
    flip_byte(entry, position)
    look(open_cache(folder), source)
    assert source.decoded == 2


def test_an_entry_exchanged_while_it_is_in_use_is_proven_again(folder: Path, source: Source) -> None:
    cache = open_cache(folder)
    look(cache, source)
    look(cache, source)
    (entry,) = entries(folder)
    flip_byte(entry, -1)
    look(cache, source)
    assert source.decoded == 2


def test_zeros_where_a_disk_lost_its_blocks_are_noticed(folder: Path, source: Source) -> None:
    look(open_cache(folder), source)
    (entry,) = entries(folder)
    entry.write_bytes(entry.read_bytes()[:128] + bytes(entry.stat().st_size - 128))
    look(open_cache(folder), source)
    assert source.decoded == 2


def made_with(monkeypatch: pytest.MonkeyPatch, folder: Path, **other: Any) -> DecodedCache:
    """Return a cache as another version of the kit, or of the libraries, opens it."""
    with monkeypatch.context() as context:
        for name, value in other.items():
            context.setattr(cache_module, name, value)
        return open_cache(folder)


@pytest.mark.parametrize("other", [{"VERSION": 99}, {"_LIBRARIES": "cv2 5.0"}], ids=["format", "libraries"])
def test_entries_of_another_version_are_made_anew_and_removed(
    folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    look(made_with(monkeypatch, folder, **other), source)
    (old,) = entries(folder)
    look(open_cache(folder), source)
    assert source.decoded == 2
    assert len(entries(folder)) == 1
    assert not old.parent.parent.exists()


def test_what_is_none_of_the_cache_s_stays(folder: Path, source: Source, tmp_path: Path) -> None:
    kept = [
        folder / "notes" / "ab" / "x.raw", folder / "v1-short" / "ab" / "x.raw", folder / "x.raw",
        folder / "v1-00000000000000aa" / "ab" / "mine.txt", tmp_path / "elsewhere" / "x.raw",
    ]  # fmt: skip
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    gone = folder / "v1-00000000000000aa" / "ab" / "x.raw"
    gone.write_bytes(b"entry")
    (folder / "v1-00000000000000bb").symlink_to(tmp_path / "elsewhere")
    (folder / "v1-00000000000000aa" / "cd").symlink_to(tmp_path / "elsewhere")
    look(open_cache(folder), source)
    assert all(path.exists() for path in kept)
    assert not gone.exists()


def test_entries_that_another_version_s_process_is_using_stay(
    folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = made_with(monkeypatch, folder, VERSION=99)
    look(other, source)
    ours = open_cache(folder)
    for _ in range(2):
        look(ours, source)
        look(other, source)
    assert source.decoded == 2
    del other
    look(open_cache(folder), Source(source.path.with_name("other.png"), 1))
    assert [path.parent.parent for path in entries(folder)] == [ours.entries] * 2


def test_whoever_has_opened_a_cache_holds_the_entries(folder: Path, source: Source) -> None:
    cache = open_cache(folder)
    look(cache, source)
    shutil.rmtree(folder)
    look(cache, source)  # made again
    copies = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))]
    for number, item in enumerate(copies):
        look(item, source, f"image {number}")
    held = [Path(f"/proc/self/fd/{item._held}") for item in (cache, *copies)]
    assert len(set(held)) == 3
    assert all(path.samefile(cache.entries) for path in held)
    del item, cache, copies
    assert not any(path.exists() for path in held)


def test_entries_removed_by_another_version_while_they_are_only_read_are_made_anew(
    folder: Path, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(open_cache(folder), source)
    reading = open_cache(folder)
    look(reading, source)  # it has written nothing, and holds nothing
    writing = made_with(monkeypatch, folder, VERSION=99)
    look(writing, Source(tmp_path / "other.png", 1))
    assert not reading.entries.exists()
    for _ in range(2):
        look(reading, source)
    assert source.decoded == 2
    assert len(entries(folder)) == 2


def test_a_folder_that_cannot_be_written_is_told_once_and_bypassed(
    tmp_path: Path, source: Source, warnings: Callable[[], list[str]]
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = open_cache(tmp_path / "file" / "decoded")
    for _ in range(3):
        look(cache, source)
    assert source.decoded == 3
    (message,) = warnings()
    assert message.startswith(
        f"The cache of decoded images in {tmp_path / 'file' / 'decoded'} takes no more: "
    )


def test_without_scratch_space_no_folder_is_made(
    tmp_path: Path, source: Source, warnings: Callable[[], list[str]]
) -> None:
    cache = open_cache(tmp_path / "of another machine" / "decoded")
    for _ in range(2):
        look(cache, source)
    assert not (tmp_path / "of another machine").exists()
    assert len(warnings()) == 1


def test_a_read_only_folder_still_gives_what_it_holds(
    folder: Path,
    tmp_path: Path,
    source: Source,
    warnings: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look(open_cache(folder), source)
    other = Source(tmp_path / "other.png", 5)

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    cache = open_cache(folder)
    with monkeypatch.context() as context:  # root, as which tests may run, may write everywhere
        context.setattr(Path, "mkdir", refuse)
        for _ in range(2):
            look(cache, source)
            look(cache, other)
    assert (source.decoded, other.decoded) == (1, 2)
    assert [message.partition(" takes no more: ")[2].partition(".")[0] for message in warnings()] == [
        "Read-only file system"
    ]


def test_a_disk_without_room_is_left_alone(
    folder: Path, source: Source, warnings: Callable[[], list[str]]
) -> None:
    cache = open_cache(folder, reserve_bytes=1 << 60)
    for _ in range(2):
        look(cache, source)
    assert source.decoded == 2
    assert entries(folder) == []
    (message,) = warnings()
    assert "GB left" in message
    assert Words("zh").translate(message).startswith(f"{folder} 中的影像解码缓存不再写入：磁盘剩余 ")


def test_a_disk_that_fills_up_while_it_writes_leaves_nothing_behind(
    folder: Path, source: Source, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    cache = open_cache(folder)
    for _ in range(2):
        look(cache, source)
    assert entries(folder) == []
    (message,) = warnings()
    assert "No space left on device" in message


def test_what_a_killed_process_left_is_swept_out_when_it_is_old(folder: Path, source: Source) -> None:
    part = open_cache(folder).entries / "ab"
    part.mkdir(parents=True)
    old, new = part / "x.1.2.tmp", part / "y.3.4.tmp"
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (1, 1))
    look(open_cache(folder), source)
    assert not old.exists()
    assert new.exists()  # perhaps being written


def test_what_is_left_of_another_user_s_process_is_in_nobody_s_way(
    folder: Path, source: Source, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = open_cache(folder).entries / "ab"
    part.mkdir(parents=True)
    for name in ("x", "y"):
        (part / f"{name}.1.2.tmp").write_bytes(b"half")
        os.utime(part / f"{name}.1.2.tmp", (1, 1))
    unlink = Path.unlink

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.name.startswith("x."):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    cache = open_cache(folder)
    for _ in range(2):
        look(cache, source)
    assert source.decoded == 1
    assert not (part / "y.1.2.tmp").exists()
    assert warnings() == []


def test_a_folder_that_is_deleted_while_it_is_used_is_made_again(
    folder: Path, tmp_path: Path, source: Source, warnings: Callable[[], list[str]]
) -> None:
    cache = open_cache(folder)
    look(cache, source)
    for number in range(3):
        shutil.rmtree(folder)
        other = Source(tmp_path / f"{number}.png", number)
        for _ in range(2):
            look(cache, other)
        assert other.decoded == 1
    look(cache, source)
    assert source.decoded == 2
    assert warnings() == []


def test_scratch_space_that_is_deleted_while_it_is_used_is_told_once(
    folder: Path, tmp_path: Path, source: Source, warnings: Callable[[], list[str]]
) -> None:
    cache = open_cache(folder)
    look(cache, source)
    shutil.rmtree(folder.parent)
    for number in range(2):
        look(cache, Source(tmp_path / f"{number}.png", number))
    assert not folder.parent.exists()
    (message,) = warnings()
    assert "No such file or directory" in message


def test_too_many_open_files_cost_one_entry_and_no_more(
    folder: Path, source: Source, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    cache = open_cache(folder)
    with monkeypatch.context() as context:
        context.setattr(Path, "open", refuse)
        cache.get(source.path, "image", lambda: picture(0))
    for _ in range(2):
        look(cache, source)
    assert source.decoded == 1
    assert warnings() == []


def _fill(folder: Path, path: Path, ready: multiprocessing.synchronize.Event) -> None:
    def decode() -> np.ndarray:
        return picture(int(path.read_text()), (400, 400, 3))

    (number,) = [0]
    while True:
        cache = open_cache(folder)
        cache.get(path, f"image {number % 7}", decode)
        number += 1
        for entry in folder.rglob("*.raw"):
            if number % 3 == 0:
                entry.unlink(missing_ok=True)
        ready.set()


def test_processes_killed_while_they_write_leave_no_wrong_entry(folder: Path, tmp_path: Path) -> None:
    source = Source(tmp_path / "image.png", 4)
    context = multiprocessing.get_context("fork")
    for _ in range(6):
        ready = context.Event()
        workers = [context.Process(target=_fill, args=(folder, source.path, ready)) for _ in range(2)]
        for worker in workers:
            worker.start()
        assert ready.wait(60)
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
        for number in range(7):
            found = open_cache(folder).get(source.path, f"image {number}", lambda: picture(4, (400, 400, 3)))
            assert np.array_equal(found, picture(4, (400, 400, 3)))
