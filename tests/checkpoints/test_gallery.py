"""Files, folders and records of somebody who means harm: each is told with its reason, within its bounds.

Time is never asserted: what a file costs is asserted as memory, as steps and as the length of what is
said of it. A time-out catches what hangs.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import socket
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.hostile import (
    ORDERED,
    call,
    checkpoint_with,
    mapping,
    raw_zip,
    real_bytes,
    sizes,
    storage,
    tensor,
    text,
    tree,
    whole,
    write_legacy,
    write_zip,
)

from mapsage_kaggle.checkpoints import finite, unpickle
from mapsage_kaggle.checkpoints.inspect import Inspection, inspect
from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.checkpoints.manifest import Manifest, manifest_sha256
from mapsage_kaggle.checkpoints.scan import scan
from mapsage_kaggle.display.evaluated import read_evaluations
from mapsage_kaggle.display.history import read_sessions
from mapsage_kaggle.display.report import write_report
from mapsage_kaggle.display.text import inspection_text, scan_text
from mapsage_kaggle.errors import CheckpointError
from mapsage_kaggle.events import EventTail
from mapsage_kaggle.records import SessionRecord, read_record

pytestmark = pytest.mark.timeout(300)

BASE_BYTES = 64 * 2**20
MEMO = b"r" + struct.pack("<I", 70_000)
RECALL = b"j" + struct.pack("<I", 70_000)


def bounded(path: Path, pickle_bytes: int) -> Inspection:
    """Inspect a file, and hold it to its bounds in memory and in words."""
    inspect(path, full=False)  # what is imported on the way is not of the file
    tracemalloc.start()
    try:
        found = inspect(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= BASE_BYTES + 4 * pickle_bytes, f"{peak / 2**20:.0f} MB for {pickle_bytes} bytes"
    assert all(len(problem) < 2000 for problem in found.problems)
    assert inspection_text(found).replace("\n", "").isprintable()
    return found


def many(count: int, *opcodes: bytes) -> bytes:
    return b"".join(opcodes) * count


LIST = b"](" + b"N" * 100_000 + b"e" + MEMO + b"0"
FILLS_MEMORY = "it would fill the memory"

PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a list made a set again and again": (
        lambda: b"](](" + b"K\x01" * 100_000 + b"e" + MEMO
        + many(20_000, b"cbuiltins\nset\n(" + RECALL + b"tR") + b"e",
        FILLS_MEMORY,
    ),
    "pairs made an OrderedDict again and again": (
        lambda: b"](](" + many(50_000, b"K\x01K\x02\x86") + b"e" + MEMO
        + many(20_000, b"ccollections\nOrderedDict\n(" + RECALL + b"tR") + b"e",
        FILLS_MEMORY,
    ),
    "a table counted again and again": (
        lambda: b"](}(" + b"".join(whole(i) + b"K\x01" for i in range(20_000)) + b"u" + MEMO
        + many(20_000, b"ccollections\nCounter\n(" + RECALL + b"tR") + b"e",
        FILLS_MEMORY,
    ),
    "a table copied again and again": (
        lambda: b"](}(" + b"".join(whole(i) + b"K\x01" for i in range(20_000)) + b"u" + MEMO
        + many(20_000, b"cmmengine.config.config\nConfigDict\n(" + RECALL + b"tR") + b"e",
        FILLS_MEMORY,
    ),
    "a text encoded again and again": (
        lambda: b"](" + text("x" * 1_000_000) + MEMO
        + many(3_000, b"c_codecs\nencode\n(" + RECALL + text("latin1") + b"tR") + b"e",
        FILLS_MEMORY,
    ),
    "a million notes": (
        lambda: b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(10**6)), FILLS_MEMORY,
    ),
    "a million marks": (lambda: b"(" * 2_000_000, FILLS_MEMORY),
    "a million dictionaries": (lambda: b"](" + b"}" * 1_000_000 + b"e", FILLS_MEMORY),
    "a million lists": (lambda: b"](" + b"]" * 2_000_000 + b"e", FILLS_MEMORY),
    "a million sets": (lambda: b"](" + b"\x8f" * 1_000_000 + b"e", FILLS_MEMORY),
    "a million nested tuples": (lambda: b")" + b"\x85" * 2_000_000, FILLS_MEMORY),
    "ten million numbers": (lambda: b"](" + b"M\xff\xff" * 4_000_000 + b"e", FILLS_MEMORY),
    "texts of one letter beyond all others": (
        lambda: b"](" + many(20, text("x" * 1_000_000 + "\U0001f600")) + b"e", "meta.iter",
    ),
    "a hundred thousand tensors": (
        lambda: b"](" + tensor() + MEMO + many(200_000, call("torch", "Size", sizes(1))) + b"e", FILLS_MEMORY,
    ),
    "a module of 50 MB": (lambda: b"c" + b"x" * 50_000_000 + b"\ny\n", "more than 200 bytes"),
    "a module without an end": (lambda: b"c" + b"x" * 5_000_000, "more than 200 bytes"),
    "a name with escapes": (lambda: b"cos\nsys\x1b[2J\x07tem\n", "os.sys\\x1b[2J\\x07tem"),
    "a name that hides its direction": (lambda: "cos\n\u202emetsys\n".encode(), "os.\\u202emetsys"),
    "an unknown device": (lambda: call("torch", "device", text("evil")), "torch.device is called"),
    "device 4095": (lambda: call("torch", "device", text("cuda"), whole(4095)), "torch.device is called"),
    "protocol 4 within": (lambda: b"\x80\x04N", "pickle protocol 4"),
    "SHORT_BINUNICODE": (lambda: b"\x8c\x01x", "opcode 0x8c"),
    "BINUNICODE8": (lambda: b"\x8d" + struct.pack("<Q", 2**60) + b"x", "opcode 0x8d"),
    "MEMOIZE": (lambda: b"N\x94", "opcode 0x94"),
    "FRAME": (lambda: b"\x95" + bytes(8) + b"N", "opcode 0x95"),
    "STACK_GLOBAL": (lambda: text("torch") + text("Size") + b"\x93", "STACK_GLOBAL"),
    "BINBYTES": (lambda: b"B" + struct.pack("<I", 1) + b"x", "opcode 0x42"),
    "BYTEARRAY8": (lambda: b"\x96" + struct.pack("<Q", 1) + b"x", "opcode 0x96"),
    "DUP": (lambda: b"N2\x86", "opcode 0x32"),
    "POP": (lambda: b"NN0", "opcode 0x30"),
    "EXT1": (lambda: b"\x82\x01", "opcode 0x82"),
    "ADDITEMS": (lambda: b"\x8f(K\x01\x90", "opcode 0x90"),
    "LONG4": (lambda: b"\x8b" + struct.pack("<i", 2**30), "opcode 0x8b"),
    "an array of objects": (
        lambda: call("numpy", "dtype", text("O8"), b"\x89", b"\x88"), "numpy.dtype is called with",
    ),
    "an array of 33 dimensions": (lambda: call("torch", "Size", sizes(*[1] * 33)), "torch.Size is called"),
    "an OrderedDict with another method": (
        lambda: ORDERED + b"}" + text("popitem") + b"NsbN\x86", "beyond its _metadata",
    ),
    "a history with another method": (
        lambda: b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}" + text("statistics") + b"Nsb",
        "the state of a HistoryBuffer",
    ),
    "a history of no arrays": (
        lambda: b"cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81"
        + mapping(_log_history=b"N", _count_history=b"N", max_length=b"K\x01") + b"b",
        "the state of a HistoryBuffer",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow(scope_s=30) if reason == FILLS_MEMORY else ())
        for name, (_, reason) in PICKLES.items()
    ],
)
def test_a_pickle_is_refused_within_its_bounds(name: str, tmp_path: Path) -> None:
    make, reason = PICKLES[name]
    payload = make()
    found = bounded(checkpoint_with(payload, tmp_path / "iter_8.pth"), len(payload))
    assert found.verdict != "resumable"
    assert reason in " ".join(found.problems)


TENSORS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a gradient for integers": (
        lambda: tensor(storage(kind="IntStorage"), grad=True), "wants a gradient for int32",
    ),
    "a parameter of integers": (
        lambda: call(
            "torch._utils", "_rebuild_parameter", tensor(storage(kind="IntStorage")), b"\x88", ORDERED
        ),
        "wants a gradient for int32",
    ),
    "metadata that turns signs": (lambda: tensor(more=mapping(neg=b"\x88")), "is called with"),
    "hooks": (lambda: tensor(hooks=mapping(hook=b"K\x01")), "is called with"),
    "hooks that are no dictionary": (lambda: tensor(hooks=b"K\x01"), "is called with"),
    "a storage of six parts": (lambda: tensor(storage(more=b"N")), "expected a tensor storage"),
    "a storage on an unknown device": (lambda: tensor(storage(location="evil")), "expected a tensor storage"),
    "a storage on no device": (lambda: tensor(storage(location="meta")), "expected a tensor storage"),
    "a storage in another folder": (lambda: tensor(storage("../0")), "expected a tensor storage"),
    "a storage of digits of another script": (lambda: tensor(storage("\uff10")), "expected a tensor storage"),
    "a storage that is described twice": (
        lambda: b"}(" + text("a") + tensor() + text("b") + tensor(storage(count=1), shape=(1,)) + b"u",
        "described in two ways",
    ),
    "a window beyond its storage": (lambda: tensor(shape=(3,)), "reaches beyond its storage"),
    "a window beyond its storage by its stride": (lambda: tensor(stride=(2,)), "reaches beyond its storage"),
    "a window from behind the end": (lambda: tensor(offset=1), "reaches beyond its storage"),
    "a window that repeats": (
        lambda: tensor(shape=(1000, 1000), stride=(0, 0)), "repeats its elements",
    ),
    "a negative size": (lambda: tensor(shape=(-1,)), "is called with"),
    "sizes without strides": (lambda: tensor(stride=()), "is called with"),
    "a storage that is not there": (lambda: tensor(storage("7")), "is not in the archive"),
    "a storage of another size": (lambda: tensor(storage(count=3)), "has 8 bytes, expected 12"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_torch_refuses_is_refused(name: str, tmp_path: Path) -> None:
    make, reason = TENSORS[name]
    payload = tree(weight=make())
    path = write_zip(tmp_path / "iter_8.pth", payload)
    found = bounded(path, len(payload))
    assert found.verdict == "rejected"
    assert reason in found.problems[0]
    with pytest.raises(CheckpointError, match="is rejected"):
        load_checkpoint(path)


def test_a_long_key_over_many_tensors_takes_no_memory_for_each(tmp_path: Path) -> None:
    inner = b"}(" + b"".join(text(str(i)) + tensor(offset=i % 2, shape=(1,)) for i in range(8000)) + b"u"
    payload = tree(meta=mapping(**{"k" * 1_000_000: inner}))
    found = bounded(write_zip(tmp_path / "iter_8.pth", payload), len(payload))
    assert found.verdict == "weights-only"


def test_many_windows_on_a_storage_are_one_look_at_each_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 2_000_000
    windows = b"".join(
        text(str(i)) + tensor(storage(count=size), shape=(size - i,), offset=i) for i in range(2000)
    )
    payload = b"\x80\x02" + mapping(state_dict=b"}(" + windows + b"u") + b"."
    path = write_zip(tmp_path / "w.pth", payload, {"0": np.ones(size, "<f4").tobytes()})
    looked_at: list[int] = []
    real = finite._all_finite
    monkeypatch.setattr(
        finite, "_all_finite", lambda data, pattern: looked_at.append(len(data)) or real(data, pattern)
    )
    assert inspect(path).verdict == "weights-only"
    assert sum(looked_at) == 4 * size


def test_gaps_of_windows_may_hold_anything(tmp_path: Path) -> None:
    values = np.array([1.0, math.nan, 1.0, math.nan], "<f4")
    sparse = tensor(storage(count=4), shape=(2,), stride=(2,))
    path = write_zip(tmp_path / "w.pth", tree(weight=sparse), {"0": values.tobytes()})
    assert inspect(path).verdict == "weights-only"
    path = write_zip(tmp_path / "w.pth", tree(weight=sparse), {"0": values[::-1].tobytes()})
    assert inspect(path).problems[0] == "NaN or Inf in the weights: state_dict.w"


def test_nan_does_not_hide_behind_a_name_that_is_there_twice(tmp_path: Path) -> None:
    good, bad = torch.ones(2), torch.full((2,), math.nan)
    for pair in ({1: good, "1": bad}, {1: bad, "1": good}):
        path = tmp_path / "w.pth"
        path.write_bytes(real_bytes({"state_dict": {"w": good}, "more": pair}))
        assert inspect(path).verdict == "rejected"


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("sound", [True, False])
def test_nan_is_found_in_every_kind_of_float(dtype: str, sound: bool, tmp_path: Path) -> None:
    values = torch.ones(64)
    if not sound:
        values[40] = math.nan
    path = tmp_path / "w.pth"
    path.write_bytes(real_bytes({"state_dict": {"w": values.to(getattr(torch, dtype))}}))
    assert (inspect(path).verdict == "rejected") is not sound


def test_a_weight_that_is_the_optimizers_too_counts_as_a_weight(tmp_path: Path) -> None:
    shared = torch.full((2,), math.inf)
    path = tmp_path / "w.pth"
    path.write_bytes(real_bytes({"optimizer": {"state": {0: {"m": shared}}}, "state_dict": {"w": shared}}))
    assert inspect(path).verdict == "rejected"


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_a_learning_rate_that_is_no_number_is_told(rate: float, tmp_path: Path) -> None:
    state = {"state_dict": {"w": torch.ones(2)}, "optimizer": {"param_groups": [{"lr": rate}]}}
    (tmp_path / "w.pth").write_bytes(real_bytes(state))
    assert "optimizer.param_groups.0.lr" in " ".join(inspect(tmp_path / "w.pth").problems)


def test_a_foreign_key_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    name = "w\n[ok] all is well\x1b[2J\ud800" + "x" * 10_000
    path = write_zip(tmp_path / "w.pth", tree(weight=mapping(**{name: tensor(shape=(1,))})))
    found = inspect(path, shapes={"other": (1,)})
    assert found.verdict == "rejected"
    assert len(inspection_text(found)) < 1500
    assert "\x1b" not in inspection_text(found)


# -- zip files

ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a duplicate among 10,000 entries": (
        lambda: raw_zip([b"a/%d" % i for i in range(10_000)] + [b"a/7"]), "two entries have the name 7",
    ),
    "60,000 entries": (lambda: raw_zip([b"a/%d" % i for i in range(60_000)]), "more than any checkpoint"),
    "two names that torch takes for one": (
        lambda: raw_zip([b"a/data.PKL", b"a/data.pkl"]), "two entries have the name data.pkl",
    ),
    "an encrypted entry": (lambda: raw_zip([b"a/data.pkl"], flags=0x1), "is encrypted"),
    "a strongly encrypted entry": (lambda: raw_zip([b"a/data.pkl"], flags=0x40), "is encrypted"),
    "a patch": (lambda: raw_zip([b"a/data.pkl"], flags=0x20), "is encrypted"),
    "a masked header": (lambda: raw_zip([b"a/data.pkl"], flags=0x2000), "is encrypted"),
    "a compressed entry": (lambda: raw_zip([b"a/data.pkl"], method=8), "is compressed"),
    "an entry of another method": (lambda: raw_zip([b"a/data.pkl"], method=99), "is compressed"),
    "a size that lies in its long form": (
        lambda: raw_zip(
            [b"a/data.pkl"], size=2**32 - 1, extra=struct.pack("<2H2Q", 1, 16, 1, 1)
        ),
        "that it is large, and it is not",
    ),
    "a size without its long form": (lambda: raw_zip([b"a/data.pkl"], size=2**32 - 1), "lacks its sizes"),
    "a size that is cut short": (
        lambda: raw_zip([b"a/data.pkl"], size=2**32 - 1, extra=struct.pack("<2HQ", 1, 8, 2**33)),
        "lacks its sizes",
    ),
    "an entry that reaches too far": (lambda: raw_zip([b"a/data.pkl"], size=2**31), "beyond the end"),
    "a name of 60 kB": (lambda: raw_zip([b"a/" + b"x" * 60_000]), "a name of 60002 bytes"),
    "a name that steers": (lambda: raw_zip([b"a/\x1b[2Jdata.pkl"]), "\\x1b[2Jdata.pkl"),
    "a name that is no text": (lambda: raw_zip([b"a/\xff\xfe"]), "\\xff\\xfe"),
    "two folders": (lambda: raw_zip([b"a/data.pkl", b"b/data.pkl"]), "does not lie in one folder"),
    "no folder": (lambda: raw_zip([b"data.pkl"]), "does not lie in one folder"),
    "entries on one place": (lambda: raw_zip([b"a/data.pkl", b"a/data/0"], offset=1), "damaged"),
    "a directory that is cut off": (
        lambda: raw_zip([b"a/data.pkl"])[:-30], "end of the zip archive is missing",
    ),
    "nothing but an end": (
        lambda: b"PK\x03\x04" + bytes(60) + b"PK\x05\x06" + bytes(18), "not where its end says",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_file_is_refused_within_its_bounds(name: str, tmp_path: Path) -> None:
    make, reason = ZIPS[name]
    path = tmp_path / "iter_8.pth"
    path.write_bytes(make())
    found = bounded(path, 0)
    assert found.verdict == "rejected"
    assert reason in found.problems[0]


def test_an_end_that_lies_in_its_long_form_is_refused(tmp_path: Path) -> None:
    data = bytearray(real_bytes({"w": torch.ones(2)}))
    data[-10:-6] = b"\xff" * 4  # the directory's size: it says to look in the long end
    (tmp_path / "w.pth").write_bytes(data)
    assert "contradict each other" in inspect(tmp_path / "w.pth").problems[0]


def test_what_no_reader_foresees_is_a_rejection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "iter_8.pth", tree())

    def fails(*_: object) -> None:
        raise RecursionError("so deep\x1b[2J")

    monkeypatch.setattr("mapsage_kaggle.checkpoints.inspect.read_pickle", fails)
    assert inspect(path).problems == ("it cannot be read as a checkpoint (RecursionError: so deep\\x1b[2J)",)
    monkeypatch.setattr("mapsage_kaggle.checkpoints.load.read_pickle", fails)
    with pytest.raises(CheckpointError, match="is rejected"):
        load_checkpoint(path)


# -- the old format


def nested(depth: int = 60) -> bytes:
    """Return a small pickle whose ``repr`` would have 2**60 brackets."""
    steps = b"".join(
        b"](h" + bytes((i,)) + b"h" + bytes((i,)) + b"eq" + bytes((i + 1,)) for i in range(depth)
    )
    return b"\x80\x02](]q\x00" + steps + b"e."


LEGACY: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a version of nested lists": (
        lambda path: write_legacy(path, tree(), version=nested()), "another version of the legacy format",
    ),
    "keys of nested lists": (
        lambda path: write_legacy(path, b"\x80\x02}.", [[[]] * 2]), "are not those that its pickle names",
    ),
    "a storage of five parts": (
        lambda path: write_legacy(path, tree(), ["0"]), "expected a tensor storage",
    ),
    "a storage that is not listed": (
        lambda path: write_legacy(path, tree(weight=tensor(storage(more=b"N")))), "are not those",
    ),
    "no end": (lambda path: write_legacy(path, b"\x80\x02}"), "untidy stack"),
}  # fmt: skip


@pytest.mark.parametrize("name", LEGACY)
def test_a_legacy_file_is_refused_within_its_bounds(name: str, tmp_path: Path) -> None:
    make, reason = LEGACY[name]
    path = make(tmp_path / "iter_8.pth")
    found = bounded(path, path.stat().st_size)
    assert found.verdict == "rejected"
    assert reason in found.problems[0]


def test_a_small_legacy_pickle_before_much_data_gets_a_small_budget(tmp_path: Path) -> None:
    legacy = tmp_path / "w.pth"
    torch.save({"w": torch.ones(2**21)}, legacy, _use_new_zipfile_serialization=False)
    found = inspect(legacy)
    assert (found.verdict, found.num_weights) == ("weights-only", 2**21)


# -- a true checkpoint that is large


@pytest.mark.slow
def test_a_true_pickle_of_134_MB_passes(tmp_path: Path) -> None:
    """A message hub of 40 scalars over 160,000 iterations, as mmengine saves it."""
    from mmengine.logging import HistoryBuffer

    dice = np.random.RandomState(0)
    histories = {}
    for number in range(40):
        values = dice.rand(160_000)
        histories[f"train/scalar_{number}"] = HistoryBuffer(values, np.ones(160_000, np.int64))
    state = {
        "meta": {"iter": 160_000, "epoch": 3},
        "state_dict": {"w": torch.ones(2)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "param_schedulers": [],
        "message_hub": {"log_scalars": histories, "runtime_info": {"iter": 160_000}, "resumed_keys": {}},
    }
    path = tmp_path / "iter_160000.pth"
    torch.save(state, path)
    num_bytes = path.stat().st_size
    assert num_bytes > 120_000_000
    found = bounded(path, num_bytes)
    assert (found.verdict, found.problems) == ("resumable", ())
    loaded = load_checkpoint(path)["message_hub"]["log_scalars"]["train/scalar_39"]
    np.testing.assert_array_equal(loaded.data[0], histories["train/scalar_39"].data[0])


def test_each_step_of_the_machine_is_paid_for() -> None:
    """An opcode that makes something for nothing would be the next attack."""
    for code, step in unpickle._STEPS.items():
        machine = unpickle._Machine(b"\x01\x00\x00\x00" * 8, 0, unpickle.Describe(), 5)
        before = machine.left_bytes
        machine.stack = [[], "k", "v"]
        machine.marks = [[[]]]
        machine.memo = dict.fromkeys(range(300), "x")
        free = {
            0x68,
            0x6A,
            0x4B,
            0x4E,
            0x88,
            0x89,
            0x29,
            0x69,
            0x93,
            0x63,
            0x80,
            0x61,
            0x74,
        }  # 0x74: paid for by its mark
        try:
            step(machine)
        except (unpickle.UnsafeError, ValueError, IndexError):
            continue
        assert code in free or machine.left_bytes != before, f"opcode 0x{code:02x}"


# -- folders


def put(path: Path, data: bytes | str = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize(
    "name", ["iter_8.pth", "latest.pth", "last_checkpoint", "iter_8 (1).pth", "iter_8.pt"]
)
@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe", "link to a device"])
def test_what_is_no_regular_file_is_never_opened(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / name
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        place.symlink_to(tmp_path / "pipe")
    else:
        place.symlink_to("/dev/zero")
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened.append(str(path)) or real(path, *rest))
    report = scan(tmp_path)
    assert report.files == ()
    assert [item.path for item in report.rejected] == [place]
    assert inspect(place).verdict == "rejected"
    assert opened == []


@pytest.mark.parametrize("name", ["session.json", "manifest.json", "events.jsonl", "evaluation/x.json"])
def test_a_pipe_in_place_of_a_document_hangs_nobody(name: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    os.mkfifo(tmp_path / name)
    assert read_record(tmp_path / "session.json") is None
    assert manifest_sha256(tmp_path / "iter_8.pth") is None
    assert read_evaluations(tmp_path) == []
    assert read_sessions([tmp_path]) == []
    if name == "events.jsonl":
        with pytest.raises(OSError, match="not a regular file"):
            EventTail(tmp_path / name).read_new()


@pytest.mark.parametrize(
    "name", [b"best_\n[ok] fine_iter_8.pth", b"best_\x1b[2J_iter_8.pth", b"best_\xff\xfe_iter_8.pth"]
)
def test_a_file_name_is_shown_and_not_obeyed(name: bytes, tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(b"")
    said = scan_text(scan(tmp_path))
    assert said.replace("\n", "").isprintable()
    assert "\n[ok]" not in said


def test_a_last_checkpoint_leads_to_no_other_folder(tmp_path: Path) -> None:
    put(tmp_path / "secret.pth")
    put(tmp_path / "run" / "last_checkpoint", "../secret.pth")
    assert scan(tmp_path / "run").files == ()


@pytest.mark.parametrize("content", [b"x" * 10**6, b"\xff\xfe", b"", b"a\nb", b"iter_8.pth\0", b".."])
def test_a_last_checkpoint_that_names_nothing_is_told(content: bytes, tmp_path: Path) -> None:
    put(tmp_path / "last_checkpoint", content)
    report = scan(tmp_path)
    assert (report.files, len(report.rejected)) == ((), 1)
    assert len(scan_text(report)) < 1000


@pytest.mark.parametrize("count", [3000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_many_files_are_told_in_a_few_lines_with_a_count(count: int, tmp_path: Path) -> None:
    for number in range(count):
        os.close(os.open(tmp_path / f"iter_{number}.pth", os.O_CREAT | os.O_WRONLY))
    os.truncate(tmp_path / "iter_1.pth", 1)
    report = scan(tmp_path)
    assert len(report.rejected) == count - 1
    said = scan_text(report)
    assert len(said.splitlines()) < 30
    assert f"{count - 21:,} more" in said


# -- documents

RECORD: dict[str, Any] = {
    "schema": 1, "run_id": "0123456789ab", "fingerprint": "f" * 16, "session_index": 1, "start_iteration": 0,
    "end_iteration": 8, "max_iters": 16, "stop_reason": "deadline", "started_s": 1.79e9,
    "ended_s": 1.79e9 + 60,
    "checkpoint": {"file": "iter_8.pth", "iteration": 8, "sha256": "ab" * 32, "size_bytes": 100},
}  # fmt: skip

DOCUMENTS: dict[str, bytes] = {
    "nested deeply": b"[" * 100_000 + b"]" * 100_000,
    "nested a little too deep": b"[" * 40 + b"]" * 40,
    "nested objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "a number of 100,000 digits": b'{"run_id": ' + b"9" * 100_000 + b"}",
    "NaN": b'{"run_id": NaN}',
    "Infinity": b'{"run_id": -Infinity}',
    "a number beyond all": b'{"run_id": 1e999}',
    "17 MB": b'{"run_id": "' + b"x" * (17 * 2**20) + b'"}',
    "a million values": b"[" + b"1," * 1_000_000 + b"1]",
    "no UTF-8": b'{"run_id": "\xff"}',
    "UTF-16": json.dumps(RECORD).encode("utf-16"),
    "cut off": json.dumps(RECORD).encode()[:-5],
    "a list": b"[]",
    "a text": b'"x"',
    "nothing": b"",
    "a schema that is no number": json.dumps({**RECORD, "schema": "x"}).encode(),
    "a schema of lists": json.dumps({**RECORD, "schema": [1]}).encode(),
    "a checkpoint that is a text": json.dumps({**RECORD, "checkpoint": "x"}).encode(),
    "a checkpoint without a file": json.dumps({**RECORD, "checkpoint": {"iteration": 1}}).encode(),
    "a run that is a list": json.dumps({**RECORD, "run_id": []}).encode(),
    "no end of that kind": json.dumps({**RECORD, "stop_reason": "\x1b[2J"}).encode(),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_that_is_no_record_is_a_value_error(name: str, tmp_path: Path) -> None:
    path = put(tmp_path / "session.json", DOCUMENTS[name])
    for read in (SessionRecord.read, Manifest.read):
        with pytest.raises(ValueError, match=r"session\.json") as caught:
            read(path)
        assert len(str(caught.value)) < 5000
        assert str(caught.value).isprintable()
    assert read_record(path) is None


ODD: tuple[Any, ...] = (
    None, True, -1, 10**18, 1e300, "x", "\ud800\x1b[2J$\\frac", [], [[]], {}, {"a": []}, [1, "x"],
    {"mIoU": "x"},
)  # fmt: skip


@pytest.mark.parametrize("field", [key for key in RECORD if key not in ("schema", "run_id", "fingerprint")])
def test_a_record_with_one_odd_value_still_tells_its_session(field: str, tmp_path: Path) -> None:
    for odd in ODD:
        put(tmp_path / "session.json", json.dumps({**RECORD, field: odd}))
        (session,) = read_sessions([tmp_path])
        assert session.record.run_id == RECORD["run_id"]
        assert getattr(session.record, field) == odd or session.num_left_out == 1 or not odd


LINES = (
    b"{", b"null", b"[]", b'{"event": 1}', b"\xff", b'{"event": "iteration", "iteration": "x", "time_s": 1}',
    b'{"event": "iteration", "iteration": 1, "time_s": NaN}', b"[" * 10_000,
    b'{"event": "iteration", "iteration": 1e99, "time_s": 1}',
    b'{"event": "iteration", "iteration": -1, "time_s": 1}',
    b'{"event": "iteration", "iteration": 1, "time_s": 1e300}',
    b'{"event": "validation", "iteration": 1, "time_s": 1, "metrics": 5}',
    b'{"event": "validation", "iteration": 1, "time_s": 1, "metrics": {"mIoU": "high"}}',
    b'{"event": "validation", "iteration": 1, "time_s": 1, "confusion": [[1], 2]}',
    b'{"event": "validation", "iteration": 1, "time_s": 1, "seconds": "long"}',
    b'{"event": "training", "iteration": 1, "time_s": 1, "palette": {"a": "red"}}',
    b'{"event": "stop", "iteration": 1, "time_s": 1, "pace": 7}',
    b'{"event": "iteration", "iteration": 1, "time_s": 1, "loss": [1]}',
    b'{"event": "warning", "iteration": 1, "time_s": 1, "message": {"a": 1}}',
    b'{"event": "iteration", "iteration": 1, "time_s": 1, "x": "' + b"x" * 2**20 + b'"}',
)  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_an_odd_line_of_events_is_left_out_and_counted(line: bytes, tmp_path: Path) -> None:
    good = b'{"event": "iteration", "iteration": 1, "time_s": 1.0, "loss": 2.0}\n'
    put(tmp_path / "session.json", json.dumps(RECORD))
    put(tmp_path / "events.jsonl", good + line + b"\n" + good)
    (session,) = read_sessions([tmp_path])
    assert (len(session.events), session.num_left_out) == (2, 1)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"checkpoint": 1}', b"[" * 10_000, b'{"a": NaN}'])
def test_an_odd_evaluation_is_left_out_and_counted(content: bytes, tmp_path: Path) -> None:
    put(tmp_path / "session.json", json.dumps(RECORD))
    put(tmp_path / "evaluation" / "x.json", content)
    assert read_evaluations(tmp_path) == []
    assert "1 lines or values of the records could not be read" in write_report([tmp_path]).read_text()


def test_a_line_without_an_end_fills_no_memory(tmp_path: Path) -> None:
    tail = EventTail(put(tmp_path / "events.jsonl", b"x" * 2**22))
    assert tail.read_new() == []
    assert len(tail._rest) < 100


def test_the_pickles_of_the_gallery_are_as_hostile_to_pickle() -> None:
    """Some at least do unpickle: they are refused for what they are, not for a slip in writing them."""
    assert pickle.loads(b"\x80\x02" + PICKLES["DUP"][0]() + b".") == (None, None)
    assert len(pickle.loads(nested())) == 61
