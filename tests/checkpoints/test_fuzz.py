"""2,000 damaged checkpoints: none is accepted that differs in content, none crashes or hangs.

A damaged file may be accepted where the damage does not reach its content. What then counts is
judged by torch's own loader, not by the code under test. These are the bits of a file that are
ignored, as ``test_the_bits_that_are_ignored_are_these`` measures one by one:

- the padding between an entry's header and its data (torch writes it to align the data);
- in the directory: the "version made by" and the attributes of each entry;
- in the archive's end: the two version numbers of the zip64 record.

All else is covered: data by its checksum; checksums, sizes, names and times by being there twice;
offsets and counts by the rule that the entries lie one behind the other and fill the file.
"""

from __future__ import annotations

import io
import random
import shutil
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.real_checkpoints import real_checkpoints

from mapsage_kaggle.checkpoints.archive import DamagedError, Source
from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.errors import CheckpointError

NUM_FILES = 2000
ROUND = 250

Damage = Callable[[bytearray, random.Random], bytes]


def truncated(data: bytearray, dice: random.Random) -> bytes:
    return bytes(data[: dice.randrange(len(data))])


def one_bit(data: bytearray, dice: random.Random) -> bytes:
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


def one_bit_outside_of_the_data(data: bytearray, dice: random.Random) -> bytes:
    places = structure(bytes(data))
    data[dice.choice(places)] ^= 1 << dice.randrange(8)
    return bytes(data)


def many_bytes(data: bytearray, dice: random.Random) -> bytes:
    for _ in range(dice.randrange(2, 40)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data)


def zeroed_page(data: bytearray, dice: random.Random) -> bytes:
    size = dice.choice((512, 4096, 65536))
    start = dice.randrange(0, len(data), 512)
    stop = min(start + size, len(data))
    data[start:stop] = bytes(stop - start)
    return bytes(data)


def piece_removed(data: bytearray, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    del data[start : start + dice.randrange(1, 2000)]
    return bytes(data)


def piece_repeated(data: bytearray, dice: random.Random) -> bytes:
    start = dice.randrange(len(data))
    return bytes(data[:start] + data[start : start + 512] + data[start:])


def entries_exchanged(data: bytearray, dice: random.Random) -> bytes:
    """Exchange the data of two storages in place, where their sizes allow it."""
    spans = [span for name, span in contents(bytes(data)).items() if "/data/" in name and span[1] > 4]
    for _ in range(200):
        (first, size), (second, other) = dice.sample(spans, 2)
        if size == other and data[first : first + size] != data[second : second + size]:
            data[first : first + size], data[second : second + size] = (
                data[second : second + size],
                data[first : first + size],
            )
            return bytes(data)
    return bytes(data[:-1])


def entries_renamed(data: bytearray, dice: random.Random) -> bytes:
    """Exchange two names in the directory, so that each storage is taken for the other."""
    start = data.index(b"PK\x01\x02")
    one, two = dice.sample(range(10, 30), 2)
    tail = bytes(data[start:])
    tail = tail.replace(b"/data/%dPK" % one, b"/data/@@PK").replace(b"/data/%dPK" % two, b"/data/%dPK" % one)
    return bytes(data[:start]) + tail.replace(b"/data/@@PK", b"/data/%dPK" % two)


def repacked_as_another_zip(data: bytearray, dice: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return stream.getvalue()


def bomb(data: bytearray, dice: random.Random) -> bytes:
    stream = io.BytesIO(bytes(data))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/bomb", bytes(2**20 * dice.randrange(1, 8)))
    return stream.getvalue()


def sizes_overstated(data: bytearray, dice: random.Random) -> bytes:
    """Claim gigabytes in one entry of the directory, or for the directory itself."""
    if dice.random() < 0.3:
        data[-10:-6] = struct.pack("<L", dice.randrange(2**31, 2**32))
        return bytes(data)
    spots = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    at = dice.choice(spots)
    struct.pack_into("<2L", data, at + 20, *([dice.randrange(2**30, 2**32)] * 2))
    return bytes(data)


def storages_exchanged_by_a_zip_tool(data: bytearray, dice: random.Random) -> bytes:
    """Pack the file anew with two storages exchanged and right checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        entries = {name: old.read(name) for name in old.namelist()}
        storages = [name for name in entries if "/data/" in name]
        pairs = [
            (one, two)
            for one in storages
            for two in storages
            if len(entries[one]) == len(entries[two]) and entries[one] != entries[two]
        ]
        one, two = dice.choice(pairs)
        entries[one], entries[two] = entries[two], entries[one]
        for name, content in entries.items():
            new.writestr(name, content)
    return stream.getvalue()


def nearly_nothing(data: bytearray, dice: random.Random) -> bytes:
    return dice.choice((b"", b"\0", b"PK", bytes(len(data)), b"PK\x05\x06" + bytes(18), dice.randbytes(300)))


DAMAGES: tuple[Damage, ...] = (
    truncated,
    one_bit,
    one_bit,
    one_bit_outside_of_the_data,
    one_bit_outside_of_the_data,
    many_bytes,
    zeroed_page,
    piece_removed,
    piece_repeated,
    entries_exchanged,
    entries_renamed,
    storages_exchanged_by_a_zip_tool,
    repacked_as_another_zip,
    bomb,
    sizes_overstated,
    nearly_nothing,
)


def contents(data: bytes) -> dict[str, tuple[int, int]]:
    """Return where each entry's content begins and how long it is."""
    spans: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            num_name, num_extra = struct.unpack_from("<2H", data, info.header_offset + 26)
            spans[info.filename] = (info.header_offset + 30 + num_name + num_extra, info.file_size)
    return spans


def structure(data: bytes) -> list[int]:
    """Return the places of all bytes that are not the content of an entry."""
    inside = bytearray(len(data))
    for start, size in contents(data).values():
        inside[start : start + size] = b"\1" * size
    return [at for at, flag in enumerate(inside) if not flag]


def same(left: Any, right: Any) -> bool:
    """Compare what torch loaded from two files."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return (
            left.dtype == right.dtype
            and torch.equal(left.view(-1), right.view(-1))
            and left.shape == right.shape
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if type(left).__name__ == "HistoryBuffer":
        return all((one == two).all() for one, two in zip(left.data, right.data, strict=True))
    return bool(left == right)


@pytest.fixture(scope="module")
def original() -> bytes:
    """Return a true checkpoint with optimizer, schedulers, averaged weights and histories."""
    import mmengine.logging  # noqa: F401 - torch.load needs it for the histories

    return (real_checkpoints() / "tiny" / "iter_8.pth").read_bytes()


@pytest.mark.slow(scope_s=50)
@pytest.mark.parametrize("first", range(0, NUM_FILES, ROUND))
def test_no_damaged_file_is_accepted_that_differs(original: bytes, first: int, tmp_path: Path) -> None:
    path = tmp_path / "iter_8.pth"
    truth = torch.load(io.BytesIO(original), weights_only=False)
    accepted: Counter[str] = Counter()
    for seed in range(first, first + ROUND):
        damage = DAMAGES[seed % len(DAMAGES)]
        data = damage(bytearray(original), random.Random(seed))
        path.write_bytes(data)
        found = inspect(path)  # raises nothing, whatever the bytes are
        if found.verdict == "rejected":
            assert found.problems, f"{damage.__name__}, seed {seed}: rejected without a reason"
            with pytest.raises(CheckpointError):
                load_checkpoint(path)
            continue
        accepted[damage.__name__] += 1
        assert same(torch.load(path, weights_only=False), truth), f"{damage.__name__}, seed {seed}"
        assert same(load_checkpoint(path), truth), f"{damage.__name__}, seed {seed}"
    assert set(accepted) <= {"one_bit", "one_bit_outside_of_the_data", "many_bytes", "zeroed_page"}


def test_a_sample_of_damaged_files_is_rejected_or_unharmed(original: bytes, tmp_path: Path) -> None:
    truth = torch.load(io.BytesIO(original), weights_only=False)
    path = tmp_path / "iter_8.pth"
    for seed, damage in enumerate(DAMAGES):
        path.write_bytes(damage(bytearray(original), random.Random(10_000 + seed)))
        if inspect(path).verdict != "rejected":
            assert same(torch.load(path, weights_only=False), truth), damage.__name__


def test_a_renamed_file_is_rejected(tmp_path: Path) -> None:
    source = real_checkpoints() / "tiny" / "iter_8.pth"
    for iteration in (0, 7, 9, 80, 8000):
        path = Path(shutil.copy(source, tmp_path / f"iter_{iteration}.pth"))
        assert inspect(path).verdict == "rejected"


def ignored_kind(data: bytes, at: int) -> str:
    """Name the part of the format that a byte outside of the entries' content belongs to."""
    ends = sorted((start, start + size) for start, size in contents(data).values())
    directory = data.index(b"PK\x01\x02")
    if at < directory:
        start = max((end for _, end in ends if end <= at), default=0)
        header = data.index(b"PK\x03\x04", start)
        num_name = struct.unpack_from("<H", data, header + 26)[0]
        return "padding" if at >= header + 30 + num_name else f"header byte {at - header}"
    record = data.rfind(b"PK\x01\x02", 0, at + 1)
    end64 = data.index(b"PK\x06\x06", directory)
    if at >= end64:
        return f"end, byte {at - end64}"
    return f"directory, byte {at - record}"


@pytest.mark.soak
def test_the_bits_that_are_ignored_are_these(original: bytes, tmp_path: Path) -> None:
    """Flip every single bit outside of the entries' content, in a file with few entries."""
    stream = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(8.0), "b": torch.ones(3)}}, stream)
    data = stream.getvalue()
    path = tmp_path / "weights.pth"
    kinds: Counter[str] = Counter()
    for at in structure(data):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            if inspect(path).verdict != "rejected":
                kinds[ignored_kind(data, at)] += 1
    assert {kind for kind in kinds if not kind.startswith(("directory", "end"))} == {"padding"}
    in_directory = {kind for kind in kinds if kind.startswith("directory")}
    version_made_by, attributes = {4, 5}, set(range(36, 42))
    assert in_directory == {f"directory, byte {at}" for at in version_made_by | attributes}
    assert {kind for kind in kinds if kind.startswith("end")} == {f"end, byte {at}" for at in range(12, 16)}


@pytest.mark.parametrize("size", [0, 1, 21, 22, 100])
def test_a_source_never_reads_beyond_its_end(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    with Source(path) as source, pytest.raises(DamagedError, match="refers to bytes"):
        source.read(size - 5, 10) if size >= 5 else source.read(-5, 10)
