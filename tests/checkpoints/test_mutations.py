"""Mutations of what is read from outside: no traceback, no hang, and no difference from torch.

``make slow`` tries 5,000 of them, ``make soak`` 100,000.
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.hostile import real_bytes, write_zip

from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.checkpoints.manifest import Manifest
from mapsage_kaggle.display.evaluated import evaluation_text, read_evaluations
from mapsage_kaggle.display.findings import class_scores, findings, last_confusion, palette_of
from mapsage_kaggle.display.history import read_sessions
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.report import CONFUSION, CURVES, TIME, TIMELINE, render
from mapsage_kaggle.errors import CheckpointError

NUM_MUTATIONS = {"quick": 20, "slow": 1000, "soak": 20_000}
"""Of each of the five readers."""

EFFORTS = [
    "quick",
    pytest.param("slow", marks=[pytest.mark.slow(scope_s=50), pytest.mark.timeout(1200)]),
    pytest.param("soak", marks=[pytest.mark.soak, pytest.mark.timeout(0)]),
]

STATE: dict[str, Any] = {
    "meta": {"iter": 8, "epoch": 1, "seed": 3},
    "state_dict": {
        "w": torch.arange(4.0).view(2, 2).t(),
        "steps": torch.tensor(7),
        "half": torch.ones(3, dtype=torch.float16),
        "mask": torch.tensor([True, False]),
    },
    "optimizer": {"state": {0: {"m": torch.zeros(2, 2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    "param_schedulers": [{"last_step": 8, "base": [0.1, 0.2]}],
    "message_hub": {"runtime_info": {"iter": 8, "note": "x", "none": None}},
}
WHOLE = real_bytes(STATE)
with zipfile.ZipFile(io.BytesIO(WHOLE)) as archive:
    PICKLE = archive.read("archive/data.pkl")
    STORAGES = {
        name.rpartition("/")[2]: archive.read(name) for name in archive.namelist() if "/data/" in name
    }

OPCODES = bytes(range(0x28, 0x7F)) + bytes(range(0x80, 0x98))
Edit = tuple[int, int, bytes]
edits = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.integers(0, 8),
        st.one_of(
            st.binary(max_size=6),
            st.sampled_from([bytes((code,)) for code in OPCODES]),
            st.sampled_from([PICKLE[at : at + 24] for at in range(0, len(PICKLE), 24)]),
            st.sampled_from([struct.pack("<I", value) for value in (0, 1, 2, 255, 2**16, 2**31, 2**32 - 1)]),
            st.sampled_from([struct.pack(">d", value) for value in (0.0, math.nan, math.inf)]),
        ),
    ),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, changes: list[Edit], *, first: int = 0) -> bytes:
    """Return data with stretches of it replaced, from ``first`` on."""
    for at, size, new in changes:
        place = first + at % (len(data) - first)
        data = data[:place] + new + data[place + size :]
    return data


def same(left: Any, right: Any) -> bool:
    """Compare what two loaders made of a file; a parameter counts as the tensor that it is."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and left.is_conj() == right.is_conj()
            and torch.equal(left, right)
        )
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(type(left) is type(right) and (left == right or (left != left and right != right)))


def judge(path: Path) -> None:
    """Hold one file to the promise: told without a traceback, and what is loaded is what torch loads."""
    found = inspect(path)
    assert found.problems or found.verdict == "resumable"
    try:
        ours = load_checkpoint(path)
    except CheckpointError:
        assert found.verdict == "rejected"
        return
    # A sound file may still be rejected for what it holds: no weights, or those of another model.
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    theirs.get("meta", {}).pop("config", None)
    assert same(ours, theirs)


def fuzz(effort: str, **strategies: st.SearchStrategy[Any]) -> Any:
    """Return hypothesis' decorator with so many tries, and without a database or a deadline."""
    chosen = settings(
        max_examples=NUM_MUTATIONS[effort],
        deadline=None,
        database=None,
        derandomize=effort != "soak",
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: chosen(given(**strategies)(test))


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_mutated_pickle_is_rejected_or_what_torch_loads(effort: str, tmp_path: Path) -> None:
    @fuzz(effort, changes=edits)
    def check(changes: list[Edit]) -> None:
        judge(write_zip(tmp_path / "iter_8.pth", mutated(PICKLE, changes, first=2), STORAGES))

    check()


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_mutated_zip_file_is_rejected_or_what_torch_loads(effort: str, tmp_path: Path) -> None:
    directory = WHOLE.index(b"PK\x01\x02")

    @fuzz(effort, changes=edits, anywhere=st.booleans())
    def check(changes: list[Edit], anywhere: bool) -> None:
        path = tmp_path / "iter_8.pth"
        path.write_bytes(mutated(WHOLE, changes, first=0 if anywhere else directory))
        judge(path)

    check()


def test_an_entry_that_torch_takes_for_a_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "iter_8.pth"
    place = WHOLE.rindex(b"PK\x01\x02") + 38  # the attributes of the last entry of the directory
    path.write_bytes(WHOLE[:place] + b"\x10" + WHOLE[place + 1 :])
    assert "is marked as a folder" in inspect(path).problems[0]
    judge(path)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["\ud800", "\x1b[2J\n", "$\\frac$", "a" * 5000, "\u202e"]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2),
)

RECORD: dict[str, Any] = {
    "schema": 1, "run_id": "0123456789ab", "fingerprint": "f" * 16, "session_index": 2, "start_iteration": 4,
    "end_iteration": 8, "max_iters": 16, "stop_reason": "deadline", "exit_code": 0, "started_s": 1.79e9,
    "ended_s": 1.79e9 + 60, "message": "m", "changes": ["c"], "skipped_validations": [4],
    "learned": {"micro_batch": 2, "pace": {"iteration_s": 0.5}, "ladder": ["x"]},
    "exactness": {"bitwise": False, "reasons": ["r"]}, "timings_s": {"session": 60.0, "validation": 2.0},
    "checkpoint": {"file": "iter_8.pth", "iteration": 8, "sha256": "ab" * 32, "size_bytes": 100},
    "best": {
        "file": "best_mIoU_iter_8.pth", "iteration": 8, "sha256": "ab" * 32, "size_bytes": 9,
        "metric": "mIoU", "value": 50.0,
    },
    "previous": [{"run_id": "0123456789ab", "fingerprint": "f" * 16, "stop_reason": "deadline"}],
}  # fmt: skip
EVENTS: list[dict[str, Any]] = [
    {"event": "training", "iteration": 4, "time_s": 1.79e9, "max_iters": 16, "palette": {"a": [1, 2, 3]}},
    {"event": "resume", "iteration": 4, "time_s": 1.79e9, "verdict": "v"},
    {"event": "iteration", "iteration": 5, "time_s": 1.79e9 + 1, "loss": 2.0, "lr": 0.1},
    {
        "event": "validation", "iteration": 8, "time_s": 1.79e9 + 9, "metrics": {"mIoU": 50.0, "aAcc": 1.0},
        "per_class": {"a": {"IoU": 0.5}}, "confusion": [[3]], "best": True, "seconds": 2.0,
    },
    {"event": "warning", "iteration": 8, "time_s": 1.79e9 + 9, "message": "w"},
    {"event": "stop", "iteration": 8, "time_s": 1.79e9 + 10, "pace": {"iteration_s": 0.5}},
]  # fmt: skip
INTERVAL = {"low": 0.4, "high": 0.6}
EVALUATION: dict[str, Any] = {
    "checkpoint": "iter_8.pth", "split": "val", "looked": "whole", "num_images": 3, "miou": 0.5,
    "miou_interval": INTERVAL, "fwiou": 0.5, "mean_f1": 0.5, "mean_accuracy": 0.5, "accuracy": 0.5,
    "classes": [{"name": "a", "iou": 0.5, "f1": 0.5, "precision": 0.5, "recall": None, "num_pixels": 3}],
    "areas": {"Urban": {"miou": 0.5, "miou_interval": None, "num_images": 3}},
    "against": {
        "checkpoint": "iter_4.pth", "miou": 0.4, "settled": True,
        "gain": {"value": 0.1, "low": 0.0, "high": 0.2},
    },
    "too_few_images": False, "confusion": [[3]], "palette": [[1, 2, 3]],
}  # fmt: skip


def places(document: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all values of a document, itself excepted."""
    pairs = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    found: list[tuple[Any, ...]] = []
    for key, value in pairs:
        found += [(*place, key), *places(value, (*place, key))]
    return found


def changed(document: Any, place: tuple[Any, ...], value: Any, *, drop: bool) -> Any:
    """Return a copy with one value replaced, or left out."""
    copy = json.loads(json.dumps(document))
    at = copy
    for key in place[:-1]:
        at = at[key]
    if drop:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return copy


def document_of(data: Any, noise: list[Edit]) -> bytes:
    raw = json.dumps(data).encode()
    return mutated(raw, noise) if noise else raw


def rendered(folder: Path) -> None:
    """Draw all of a report but its pictures, as ``write_report`` does."""
    sessions = read_sessions([folder])
    if not sessions:
        return
    for found in (findings, class_scores, palette_of):
        found(sessions)
    pictures = [CURVES, TIME, TIMELINE, *([CONFUSION] if last_confusion(sessions) else [])]
    render(sessions, dict.fromkeys(pictures, (b"", b"")), Words("zh"))


noises = st.one_of(st.just([]), st.just([]), edits)


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_mutated_record_is_shown_or_left_out(effort: str, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))

    @fuzz(effort, place=st.sampled_from(places(RECORD)), value=ODD, drop=st.booleans(), noise=noises)
    def check(place: tuple[Any, ...], value: Any, drop: bool, noise: list[Edit]) -> None:
        raw = document_of(changed(RECORD, place, value, drop=drop), noise)
        (tmp_path / "session.json").write_bytes(raw)
        (tmp_path / "manifest.json").write_bytes(raw)
        rendered(tmp_path)
        with pytest.raises(ValueError, match=r"manifest\.json"):
            Manifest.read(tmp_path / "manifest.json")

    check()


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_mutated_line_of_events_is_shown_or_left_out(effort: str, tmp_path: Path) -> None:
    (tmp_path / "session.json").write_text(json.dumps(RECORD))

    @fuzz(effort, place=st.sampled_from(places(EVENTS)), value=ODD, drop=st.booleans(), noise=noises)
    def check(place: tuple[Any, ...], value: Any, drop: bool, noise: list[Edit]) -> None:
        events = changed(EVENTS, place, value, drop=drop)
        lines = b"".join(json.dumps(event).encode() + b"\n" for event in events)
        (tmp_path / "events.jsonl").write_bytes(mutated(lines, noise) if noise else lines)
        rendered(tmp_path)

    check()


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_mutated_evaluation_is_shown_or_left_out(effort: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()

    @fuzz(effort, place=st.sampled_from(places(EVALUATION)), value=ODD, drop=st.booleans(), noise=noises)
    def check(place: tuple[Any, ...], value: Any, drop: bool, noise: list[Edit]) -> None:
        raw = document_of(changed(EVALUATION, place, value, drop=drop), noise)
        (tmp_path / "evaluation" / "x.json").write_bytes(raw)
        for document in read_evaluations(tmp_path):
            evaluation_text(document, Words("zh"))

    check()


def test_what_is_mutated_is_sound_before_it(tmp_path: Path) -> None:
    judge(write_zip(tmp_path / "iter_8.pth", PICKLE, STORAGES))
    assert inspect(tmp_path / "iter_8.pth").verdict == "resumable"
    (tmp_path / "session.json").write_text(json.dumps(RECORD))
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "x.json").write_text(json.dumps(EVALUATION))
    sessions = read_sessions([tmp_path])
    assert [item.num_left_out for item in sessions] == [0, 0]
    assert len(sessions[-1].events) == len(EVENTS)
    assert len(read_evaluations(tmp_path)) == 1
