"""What earlier sessions have left travels along, and nothing else does."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from mapsage_kaggle.display.history import read_sessions
from mapsage_kaggle.events import Event
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import MAX_MEMBER_BYTES, PACKED, SessionRecord, read_packed
from mapsage_kaggle.training import history
from mapsage_kaggle.training.history import MAX_CARRIED, MAX_OWN_FILES, carry_history, pack_history


@pytest.fixture
def source(tmp_path: Path) -> WorkDir:
    files = WorkDir(tmp_path / "input")
    files.history.mkdir(parents=True)
    record(3).write(files.session)
    files.events.write_text("")
    return files


@pytest.fixture
def target(tmp_path: Path) -> WorkDir:
    files = WorkDir(tmp_path / "working")
    files.path.mkdir()
    return files


def record(index: int) -> SessionRecord:
    return SessionRecord(run_id="abc", fingerprint="f" * 16, session_index=index, stop_reason="user")


def names(files: WorkDir) -> set[str]:
    return {path.name for path in files.history.iterdir()}


def test_earlier_sessions_and_the_last_one_travel_along(source: WorkDir, target: WorkDir) -> None:
    for index in (1, 2):
        record(index).write(source.history / f"session_{index:03d}.json")
        (source.history / f"events_{index:03d}.jsonl").write_text("")
    carry_history(target, source.path, None)
    assert {"session_001.json", "events_001.jsonl", "session_002.json", "session_003.json"} <= names(target)


def test_files_of_other_names_and_links_stay_behind(source: WorkDir, target: WorkDir, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    (source.history / "session_001.json").symlink_to(secret)
    (source.history / "run_me.py").write_text("x")
    (source.history / "sitecustomize.py").write_text("x")
    os.mkfifo(source.history / "events_001.jsonl")
    source.predictions.mkdir()
    (source.predictions / "a_truth.png").write_bytes(b"x")
    (source.predictions / "b.sh").write_bytes(b"x")
    carry_history(target, source.path, None)
    assert names(target) == {"session_003.json", "events_003.jsonl"}
    assert [path.name for path in target.predictions.iterdir()] == ["a_truth.png"]


def test_no_more_files_or_bytes_travel_than_there_is_room_for(
    source: WorkDir, target: WorkDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_CARRIED_BYTES", 5_000)
    for index in range(100, 100 + 2 * MAX_CARRIED):
        (source.history / f"config_{index}.py").write_text("x" * 10)
    (source.history / "events_099.jsonl").write_text("x" * 6_000)
    carry_history(target, source.path, None)
    carried = [path for path in target.history.iterdir() if path.name.startswith("config")]
    packed = dict(read_packed(target.history / PACKED))
    assert len(carried) + len(packed) <= MAX_CARRIED
    assert "events_099.jsonl" not in names(target) | set(packed)


def test_a_thousand_sessions_stay_few_files(target: WorkDir) -> None:
    target.history.mkdir()
    for index in range(1, 1001):
        record(index).write(target.history / f"session_{index:03d}.json")
        if index % 100 == 0:
            pack_history(target.history)
    pack_history(target.history)
    assert len(names(target)) == MAX_OWN_FILES + 1
    packed = dict(read_packed(target.history / PACKED))
    assert {f"session_{index:03d}.json" for index in range(1, 1001 - MAX_OWN_FILES)} <= set(packed)
    assert b'"session_index": 7' in packed["session_007.json"]


def test_a_run_that_goes_on_in_its_own_work_dir_stays_few_files_too(target: WorkDir) -> None:
    for index in range(1, MAX_OWN_FILES + 6):
        target.events.touch()
        carry_history(target, None, record(index))
    assert len(names(target)) == 2 * MAX_OWN_FILES + 1
    assert {"session_001.json", "events_005.jsonl"} <= set(dict(read_packed(target.history / PACKED)))


def test_the_report_reads_the_sessions_that_were_packed(target: WorkDir) -> None:
    target.history.mkdir()
    for index in range(1, MAX_OWN_FILES + 3):
        record(index).write(target.history / f"session_{index:03d}.json")
        event = Event(event="iteration", iteration=index, data={"loss": 1.0})
        (target.history / f"events_{index:03d}.jsonl").write_text(event.to_line() + "no event\n")
    record(MAX_OWN_FILES + 3).write(target.session)
    pack_history(target.history)
    sessions = read_sessions([target.path])
    assert [item.record.session_index for item in sessions] == list(range(1, MAX_OWN_FILES + 4))
    assert [event.iteration for event in sessions[0].events] == [1]
    assert sessions[0].num_left_out == 1


def test_where_room_ends_the_oldest_sessions_are_left_out(
    target: WorkDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_CARRIED_BYTES", 40_000)
    target.history.mkdir()
    for index in range(1, MAX_OWN_FILES + 31):
        (target.history / f"events_{index:03d}.jsonl").write_bytes(os.urandom(1000))
    pack_history(target.history)
    packed = sorted(name for name, _ in read_packed(target.history / PACKED))
    assert packed[-1] == "events_030.jsonl"
    assert 15 <= len(packed) <= 20


def test_an_archive_that_cannot_be_read_is_kept_and_not_written_over(target: WorkDir) -> None:
    target.history.mkdir()
    for index in range(1, MAX_OWN_FILES + 3):
        record(index).write(target.history / f"session_{index:03d}.json")
    record(MAX_OWN_FILES + 3).write(target.session)
    (target.history / PACKED).write_bytes(b"PK torn")
    assert len(read_sessions([target.path])) == MAX_OWN_FILES + 3
    pack_history(target.history)
    assert (target.history / f"{PACKED}.unreadable").read_bytes() == b"PK torn"
    assert len(list(read_packed(target.history / PACKED))) == 2


def test_what_is_packed_to_fill_memory_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / PACKED
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("session_001.json", b"0" * (MAX_MEMBER_BYTES + 1))
        packed.writestr("session_002.json", b"{}")
    assert list(read_packed(path)) == [("session_002.json", b"{}")]
    path.write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=f"{PACKED} cannot be read"):
        list(read_packed(path))
    assert list(read_packed(tmp_path / "none.zip")) == []


def test_a_packed_file_of_a_method_that_is_never_written_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / PACKED
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("session_001.json", b"{}" * 500)
    path.write_bytes(path.read_bytes().replace(b"\x5d\x00\x00", b"\xff\xff\xff", 1))
    assert list(read_packed(path)) == []
