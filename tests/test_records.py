"""The record of a session: written whole or not at all, and read by sessions a year apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mapsage_kaggle.paths import replace_file
from mapsage_kaggle.records import (
    ACTIVITIES,
    STOP_REASONS,
    CheckpointRef,
    Exactness,
    Learned,
    SessionRecord,
    complete_timings,
    new_run_id,
    record_beside,
    share_of_steps,
)

CONTRACT = {
    "schema",
    "run_id",
    "fingerprint",
    "session_index",
    "start_iteration",
    "end_iteration",
    "max_iters",
    "stop_reason",
    "exit_code",
    "checkpoint",
    "best",
    "owed_validation",
    "data",
    "versions",
    "config_sha256",
    "changes",
    "learned",
    "exactness",
    "timings_s",
    "previous",
}


def record(**changes: object) -> SessionRecord:
    values: dict[str, object] = {
        "run_id": "0123456789ab",
        "fingerprint": "fedcba9876543210",
        "session_index": 2,
        "start_iteration": 8,
        "end_iteration": 16,
        "max_iters": 40,
        "stop_reason": "deadline",
        "exit_code": 0,
        "checkpoint": CheckpointRef(file="iter_16.pth", iteration=16, sha256="a" * 64, size_bytes=123),
        "best": CheckpointRef(
            file="best_mIoU_iter_8.pth",
            iteration=8,
            sha256="b" * 64,
            size_bytes=45,
            metric="mIoU",
            value=61.5,
        ),
        "owed_validation": 16,
        "config_sha256": "c" * 64,
        "changes": ("-lr = 1", "+lr = 2"),
        "learned": Learned(threads=2, ladder=("Out of memory",)),
        "exactness": Exactness(bitwise=True, reasons=()),
        "timings_s": {"session": 12.5},
        "previous": ({"session_index": 1, "end_iteration": 8},),
        "message": "Die Zeit ist um. 时间到了。",
        "started_s": 1000.0,
        "ended_s": 1012.5,
    }
    return SessionRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    record().write(path)
    assert SessionRecord.read(path) == record()


def test_the_file_has_the_contract_s_names(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    record().write(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert set(document) >= CONTRACT
    assert set(document["checkpoint"]) == {"file", "iteration", "sha256", "size_bytes"}
    assert set(document["best"]) == {"file", "iteration", "sha256", "size_bytes", "metric", "value"}


def test_a_record_with_nothing_yet_is_read_back_too(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    first = SessionRecord(run_id="a", fingerprint="b")
    first.write(path)
    assert SessionRecord.read(path) == first
    assert first.stop_reason == "running"
    assert first.exit_code is None


@pytest.mark.parametrize("reason", STOP_REASONS)
def test_each_stop_reason_of_the_contract_is_taken(reason: str) -> None:
    assert record(stop_reason=reason).stop_reason == reason


def test_another_stop_reason_is_not() -> None:
    with pytest.raises(ValueError, match="'bored'"):
        record(stop_reason="bored")


def test_names_of_a_later_version_are_ignored() -> None:
    document = record().to_json()
    document["mood"] = "good"
    document["checkpoint"]["colour"] = "blue"
    assert SessionRecord.from_json(document) == record()


def test_names_that_an_earlier_version_did_not_write_have_defaults() -> None:
    found = SessionRecord.from_json({"run_id": "a", "fingerprint": "b", "previous": None, "changes": None})
    assert found == SessionRecord(run_id="a", fingerprint="b")


def test_a_schema_that_is_too_new_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="schema 99, this version of the kit reads up to 1"):
        SessionRecord.from_json({**record().to_json(), "schema": 99})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"run_id": "a"}',
        '{"run_id": "a", "fingerprint": "b", "checkpoint": 3}',
        '{"run_id": "a", "fingerprint": "b", "best": {"file": "x"}}',
        '{"run_id": "a", "fingerprint": "b", "stop_reason": "?"}',
        '{"run_id": "a", "fingerprint": "b", "schema": "new"}',
        "\xff",
        '{"run_id": 3, "fingerprint": "b"}',
        '{"run_id": "a", "fingerprint": "b", "end_iteration": "8"}',
        '{"run_id": "a", "fingerprint": "b", "learned": []}',
        '{"run_id": "a", "fingerprint": "b", "previous": "x"}',
        '{"run_id": "a", "fingerprint": "b", "previous": 3}',
        '{"run_id": "a", "fingerprint": "b", "schema": null}',
    ],
)
def test_what_is_no_record_is_told_with_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "session.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=str(path)):
        SessionRecord.read(path)
    assert record_beside(tmp_path / "iter_8.pth") is None


def test_the_record_beside_a_checkpoint_is_found(tmp_path: Path) -> None:
    assert record_beside(tmp_path / "iter_16.pth") is None
    record().write(tmp_path / "session.json")
    assert record_beside(tmp_path / "iter_16.pth") == record()


def test_a_score_that_is_no_number_is_null(tmp_path: Path) -> None:
    best = CheckpointRef(file="x", iteration=1, sha256="0" * 64, size_bytes=1, metric="mIoU", value=math.nan)
    path = tmp_path / "session.json"
    record(best=best, timings_s={"session": math.inf}).write(path)
    assert "NaN" not in path.read_text()
    found = SessionRecord.read(path)
    assert found.best is not None
    assert found.best.value is None
    assert found.timings_s == {"session": None}


def test_a_lineage_holds_every_session_once_and_none_within_another() -> None:
    first = record(session_index=1, previous=())
    second = record(session_index=2, previous=first.lineage())
    third = record(session_index=3, previous=second.lineage())
    assert [item["session_index"] for item in third.lineage()] == [1, 2, 3]
    assert all(item["previous"] == [] for item in third.lineage())


def test_a_lineage_survives_being_written(tmp_path: Path) -> None:
    later = record(session_index=3, previous=record().lineage())
    later.write(tmp_path / "session.json")
    assert SessionRecord.read(tmp_path / "session.json").lineage() == later.lineage()


def test_run_ids_differ() -> None:
    assert len({new_run_id() for _ in range(100)}) == 100


# --- replacing a file ------------------------------------------------------------------------------------


def test_a_replacement_that_fails_leaves_the_old_record_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "session.json"
    record(end_iteration=1).write(path)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(Path, "replace", fail)
        record(end_iteration=2).write(path)
    assert SessionRecord.read(path).end_iteration == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_of_the_old_file_keeps_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    replace_file(path, "old")
    with path.open() as stream:
        replace_file(path, "new and longer")
        assert stream.read() == "old"
    assert path.read_text() == "new and longer"


def test_a_replaced_file_can_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "session.json"
    replace_file(path, b"x")
    assert path.stat().st_mode & 0o777 == 0o644


def test_writing_into_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        record().write(tmp_path / "nowhere" / "session.json")


def test_a_record_without_an_end_is_closed_by_the_last_word_and_others_are_left(tmp_path: Path) -> None:
    cut = record(stop_reason="running", exit_code=None, started_s=1000.0, timings_s={"saving": 2.0})
    closed = cut.closed(1600.0)
    assert (closed.stop_reason, closed.exit_code, closed.ended_s) == ("failed", 5, 1600.0)
    assert (closed.timings_s["saving"], closed.timings_s["other"], closed.timings_s["session"]) == (
        2.0,
        598.0,
        600.0,
    )
    assert cut.closed(None).timings_s["session"] == 0.0
    assert closed.closed(9999.0) is closed


# --- where the time went -----------------------------------------------------------------------------------


def test_a_session_s_times_add_up_to_the_whole() -> None:
    timed = {
        "start_up": 10.0,
        "forward_backward": 70.0,
        "optimizer": 5.0,
        "saving": 1.0,
        "training_step": 9.0,
    }
    found = complete_timings(timed, 100.0)
    assert found["other"] == 14.0
    assert found["session"] == sum(found[name] for name in (*ACTIVITIES, "other")) == 100.0


@pytest.mark.parametrize(
    ("timings_s", "share"),
    [
        ({"session": 120.0, "validation": 20.0, "forward_backward": 90.0, "optimizer": 5.0}, 0.95),
        ({"session": 120.0, "validation": 20.0, "training_step": 80.0}, 0.8),
        ({"session": 20.0, "validation": 20.0}, None),
        ({"session": None, "forward_backward": 3.0}, None),
        ({}, None),
    ],
    ids=["a session", "one of version 0.1", "validation only", "a damaged record", "one that runs"],
)
def test_the_share_of_steps_leaves_validation_aside(timings_s: dict[str, Any], share: float | None) -> None:
    assert share_of_steps(timings_s) == share


@pytest.mark.parametrize(
    "written",
    [
        {},
        {"threads": 2, "ladder": [], "pace": {}},
        {"micro_batch": 1, "with_cp": True, "machine": {"device": "CPU"}, "validation_rung": 2},
        {"micro_batch": 1, "colour": "green", "threads": "two", "with_cp": None},
    ],
)
def test_what_was_learned_is_written_as_it_was_read(written: dict[str, Any]) -> None:
    assert Learned.from_json(written).to_json() == written


def test_what_another_version_learned_is_kept_and_not_made_use_of() -> None:
    learned = Learned.from_json({"micro_batch": "two", "colour": "green"})
    assert learned.micro_batch is None
    assert learned.other == {"micro_batch": "two", "colour": "green"}


def test_exactness_is_written_as_it_was_read() -> None:
    written = {"bitwise": False, "reasons": ["Why."], "ranks": 2, "micro_batch": 1, "split": [], "more": 1}
    found = Exactness.from_json(written)
    assert (found.bitwise, found.reasons, found.split) == (False, ("Why.",), ())
    assert found.to_json() == written


def test_memory_that_is_said_nothing_of_is_no_longer_said_anything_of() -> None:
    before = Learned(threads=1, micro_batch=2, with_cp=True, machine={"device": "CPU"})
    assert before.with_memory(Learned(micro_batch=1)) == Learned(threads=1, micro_batch=1)


# --- what may come from a stranger


def hostile(**changes: Any) -> dict[str, Any]:
    """Return a sound record's document with one thing changed; dots lead into objects."""
    best = {"file": "best_mIoU_iter_8.pth", "iteration": 8, "sha256": "a" * 64, "size_bytes": 9}
    document: dict[str, Any] = {
        "run_id": "abc", "fingerprint": "f" * 16, "session_index": 2, "schema": 1, "end_iteration": 8,
        "best": {**best, "metric": "mIoU", "value": 50.0}, "checkpoint": dict(best, file="iter_8.pth"),
        "learned": {"threads": 2, "micro_batch": 2, "pace": {"iteration_s": 0.5}},
        "timings_s": {"session": 9.0},
    }  # fmt: skip
    for key, value in changes.items():
        *above, last = key.split("__")
        target = document
        for name in above:
            target = target[name]
        target[last] = value
    return document


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"best__file": "../../secret.pth"}, "file: '../../secret.pth' is not the plain name of a file"),
        ({"best__file": "/etc/passwd"}, "plain name"),
        ({"best__file": ".hidden"}, "plain name"),
        ({"best__file": "a\x1b[31m.pth"}, "plain name"),
        ({"checkpoint__file": "a" * 300}, "plain name"),
        ({"best__sha256": ""}, "sha256: '' is not 64 hexadecimal digits"),
        ({"best__sha256": "A" * 64}, "64 hexadecimal"),
        ({"best__value": 1e9}, "mIoU: 1000000000.0 is not a number from 0 to 100"),
        ({"best__value": float("inf")}, "mIoU"),
        ({"best__iteration": 10**12}, "iteration: 1000000000000 is not a whole number"),
        ({"best__iteration": True}, "iteration"),
        ({"best__size_bytes": -1}, "size_bytes"),
        ({"learned__threads": 100_000}, "threads: 100000 is not a whole number from 1 to 256"),
        ({"learned__micro_batch": -1}, "micro_batch: -1 is not"),
        ({"learned__pace": {"iteration_s": -1.0}}, "pace.iteration_s"),
        ({"learned__pace": {"iteration_s": "x"}}, "pace.iteration_s"),
        ({"run_id": "x" * 100}, "run_id"),
        ({"session_index": 0}, "session_index"),
        ({"end_iteration": -5}, "end_iteration"),
        ({"timings_s": {"session": "long"}}, "timings_s.session"),
        ({"started_s": 1e300}, "started_s"),
        ({"data": {"count": -1}}, "data.count: -1 is not a whole number"),
        ({"data": {"digest": "x"}}, "data.digest"),
        ({"data": []}, "data"),
        ({"exactness": {"difference": -1.0}}, "difference: -1.0 is not a number"),
        ({"exactness": {"difference": float("nan")}}, "difference"),
        ({"exactness": {"grade": "perfect"}}, "grade: 'perfect' is not one of bitwise, rounding"),
        ({"versions": {"kit": 3}}, "versions.kit: 3 is not a text"),
        ({"versions": "x"}, "versions"),
        ({"previous": ["x"]}, "previous"),
    ],
)
def test_what_no_session_would_write_is_no_record(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match="not a session record") as caught:
        SessionRecord.from_json(hostile(**changes))
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_record_that_these_are_made_of_is_sound() -> None:
    assert SessionRecord.from_json(hostile()).best is not None
