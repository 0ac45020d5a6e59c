"""The audit: what is a chain, what a session equals, and what is not shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mapsage_kaggle.checkpoints.manifest import Manifest
from mapsage_kaggle.cli import main
from mapsage_kaggle.display.audit import audit_folders, audit_text
from mapsage_kaggle.display.report import write_report
from mapsage_kaggle.events import Event, EventLog
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import CheckpointRef, Exactness, SessionRecord

EXACT = Exactness(
    bitwise=True, grade="bitwise", reasons=(), ranks=1, micro_batch=4, split=(), device="CPU",
    precision="float32", torch="2.10.0", threads=2, repeatable=True, difference=0.0,
)  # fmt: skip
VERSIONS = {"kit": "a" * 64, "kit_commit": "b" * 40, "python": "3.12.11", "torch": "2.10.0", "numpy": "2.2.6"}
DATA = {"count": 5, "digest": "c" * 64, "read": 3, "sizes": "d" * 64}


def bytes_of(iteration: int) -> bytes:
    return f"the state after {iteration}".encode()


def ref(iteration: int, content: bytes | None = None) -> CheckpointRef:
    content = bytes_of(iteration) if content is None else content
    return CheckpointRef(
        file=f"iter_{iteration}.pth",
        iteration=iteration,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
    )


def record(index: int, **changes: Any) -> SessionRecord:
    """Return a session of 100 iterations, each begun where the one before ended."""
    start = 100 * (index - 1)
    values: dict[str, Any] = {
        "run_id": "0123456789ab",
        "fingerprint": "fedcba9876543210",
        "session_index": index,
        "start_iteration": start,
        "end_iteration": start + 100,
        "max_iters": 300,
        "stop_reason": "deadline",
        "exit_code": 0,
        "checkpoint": ref(start + 100),
        "started_from": ref(start) if start else None,
        "data": DATA,
        "versions": VERSIONS,
        "exactness": EXACT,
        "started_s": 1_790_000_000.0 + index,
        "ended_s": 1_790_000_090.0 + index,
        **changes,
    }
    return SessionRecord(**values)


def chain(**changes_of_second: Any) -> list[SessionRecord]:
    return [record(1), record(2, **changes_of_second), record(3)]


def exactly(**changes: Any) -> Exactness:
    return replace(EXACT, **changes)


def write_run(folder: Path, records: Sequence[SessionRecord]) -> Path:
    """Write the last session's work dir, with the records before in its history."""
    files = WorkDir(folder)
    files.history.mkdir(parents=True)
    *earlier, last = records
    for number, item in enumerate(earlier):
        item.write(files.history / f"session_{number:03d}.json")
    last.write(files.session)
    assert last.checkpoint is not None
    (folder / last.checkpoint.file).write_bytes(bytes_of(last.end_iteration))
    Manifest().with_file(last.checkpoint).write(files.manifest)
    return folder


def audited(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["audit", str(folder), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_an_unbroken_chain_is_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = audited(write_run(tmp_path / "run", chain()), capsys)
    assert (code, document["chain"], document["grade"]) == (0, "unbroken", "bitwise")
    assert [item["after"] for item in document["sessions"]] == [None, 1, 2]
    assert [item["reasons"] for item in document["sessions"]] == [[], [], []]
    assert set(document["sessions"][1]["same"].values()) == {True}
    assert [item["verdict"] for item in document["files"]] == ["proven"]


OTHER_SPLIT = exactly(ranks=2, micro_batch=2)
COMPUTED_OTHERWISE: dict[str, tuple[dict[str, Any], str, str]] = {
    "other torch": ({"exactness": exactly(torch="2.9.0")}, "rounding", "the version of torch was"),
    "other threads": ({"exactness": exactly(threads=1)}, "rounding", "the number of CPU threads was"),
    "other precision": ({"exactness": exactly(precision="float16")}, "neither", "the precision was"),
    "other ranks": ({"exactness": OTHER_SPLIT}, "rounding", "equal to rounding"),
    "other ranks, and a model to which it matters": (
        {"exactness": replace(OTHER_SPLIT, split=("batch norm",))}, "neither", "differ by more than rounding",
    ),
    "other kit": ({"versions": {**VERSIONS, "kit": "f" * 64}}, "not shown", "kit was aaaaaaaaaaaa (commit"),
    "other library": ({"versions": {**VERSIONS, "numpy": "1.26.4"}}, "not shown", "numpy was 2.2.6 before"),
    "a reason that weighs little": (
        {"exactness": EXACT.less(["kernels add in another order"], "rounding")}, "rounding", "kernels add",
    ),
    "a reason that weighs much": (
        {"exactness": EXACT.less(["a hook forgets"], "neither")}, "neither", "a hook forgets",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPUTED_OTHERWISE)
def test_what_was_computed_otherwise_breaks_no_chain_and_is_graded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    changes, grade, reason = COMPUTED_OTHERWISE[name]
    code, document = audited(write_run(tmp_path / "run", chain(**changes)), capsys)
    second = document["sessions"][1]
    assert (code, document["chain"], document["grade"], second["grade"]) == (0, "unbroken", grade, grade)
    assert any(reason in line for line in second["reasons"])


OTHER_BYTES = ref(100, b"foreign")
BROKEN: dict[str, tuple[list[SessionRecord], str, str]] = {
    "other bytes": (chain(started_from=OTHER_BYTES), "broken", "other bytes were proven at that iteration"),
    "an unknown file": (
        chain(started_from=replace(ref(50), file="mine.pth"), start_iteration=50), "not shown",
        "of which no session before tells",
    ),
    "another iteration": (chain(start_iteration=90), "broken", "from a checkpoint of iteration 100"),
    "other data": (chain(data={**DATA, "digest": "e" * 64}), "broken", "training data are not those"),
    "other sizes": (
        [record(index, data={**DATA, "read": 5, "sizes": str(index % 2) * 64}) for index in (1, 2)], "broken",
        "training data are not those",
    ),
    "another config": (chain(fingerprint="1" * 16), "broken", "fingerprint is not that of"),
    "no data": (chain(data={}), "not shown", "not recorded which images"),
    "no start": (chain(started_from=None), "not shown", "does not say with which bytes it began"),
    "a missing session": ([record(1), record(3)], "not shown", "session 2 is not among the records"),
    "a missing session that trained nothing": (
        [record(1), record(3, started_from=ref(100), start_iteration=100)], "not shown",
        "session 2 is not among the records",
    ),
    "a missing beginning": ([record(2), record(3)], "not shown", "session 1 is not among the records"),
    "a beginning without a record": (
        [record(1, start_iteration=50, started_from=ref(50))], "not shown", "of which no session before",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_chain_or_is_not_shown_to_be_one_ends_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    records, verdict, reason = BROKEN[name]
    code, document = audited(write_run(tmp_path / "run", records), capsys)
    expected = "neither" if verdict == "broken" else "not shown"
    assert (code, document["chain"], document["grade"]) == (3, verdict, expected)
    assert any(reason in line for item in document["sessions"] for line in item["reasons"])


UNSEEN: dict[str, Any] = {
    "nothing": Exactness(),
    "bit for bit, as version 0.1 said it": Exactness(bitwise=True, reasons=()),
    "not bit for bit, without how far": exactly(bitwise=False, grade=None, reasons=("somehow",)),
    "no measure of the device": exactly(repeatable=None),
    "a contradiction": exactly(reasons=("a hook forgets",)),
    "another contradiction": exactly(repeatable=False),
    "no ranks": exactly(ranks=None),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_what_a_record_does_not_tell_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, document = audited(write_run(tmp_path / "run", chain(exactness=UNSEEN[name])), capsys)
    assert (code, document["grade"]) == (0, "not shown")
    assert document["sessions"][1]["reasons"]


def test_a_chain_of_old_records_without_hashes_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old: dict[str, Any] = {"data": {}, "versions": {}, "exactness": Exactness(bitwise=True, reasons=())}
    records = [record(1, **old), record(2, **old, started_from=None)]
    code, document = audited(write_run(tmp_path / "run", records), capsys)
    assert (code, document["chain"], document["grade"]) == (3, "not shown", "not shown")
    assert document["sessions"][1]["same"] == {
        "fingerprint": True, "data": None, "libraries": None, "ranks": None, "kit": None,
    }  # fmt: skip


def test_the_bytes_that_an_event_tells_of_are_proven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    went_back = record(2, start_iteration=50, started_from=ref(50))
    folder = write_run(tmp_path / "run", [record(1), went_back])
    log = EventLog(folder / "history" / "events_000.jsonl")
    for iteration in (50, 100):
        data = {name: item for name, item in ref(iteration).to_json().items() if name != "iteration"}
        log.append(Event(event="checkpoint", iteration=iteration, data=data))
    code, document = audited(folder, capsys)
    assert (code, document["sessions"][1]["after"]) == (0, 1)


def test_a_record_and_events_that_name_other_bytes_are_no_chain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", [record(1), record(2)])
    data = {name: item for name, item in OTHER_BYTES.to_json().items() if name != "iteration"}
    EventLog(folder / "history" / "events_000.jsonl").append(
        Event(event="checkpoint", iteration=100, data=data)
    )
    code, document = audited(folder, capsys)
    assert (code, document["chain"]) == (3, "broken")


def test_the_manifest_of_an_output_proves_for_the_next_and_not_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = record(2, start_iteration=50, started_from=ref(50))
    for name, listing, code in (("before", 1, 0), ("itself", 2, 3)):
        folders = [
            write_run(tmp_path / name / str(item.session_index), [item]) for item in (record(1), second)
        ]
        folder = folders[listing - 1]
        (folder / "iter_50.pth").write_bytes(bytes_of(50))
        manifest = WorkDir(folder).manifest
        Manifest.read(manifest).with_file(ref(50)).write(manifest)
        assert audited(tmp_path / name, capsys)[0] == code


def test_sessions_that_went_on_from_one_checkpoint_are_both_looked_at(tmp_path: Path) -> None:
    fork = record(
        2, started_s=1_790_000_500.0, exactness=exactly(bitwise=False, grade="neither", reasons=("x",))
    )
    write_run(tmp_path / "one", [record(1), record(2)])
    write_run(tmp_path / "two", [record(1), fork])
    found = audit_folders([tmp_path])
    assert [(item.record.session_index, item.after, item.grade) for item in found.sessions] == [
        (1, None, "bitwise"), (2, 0, "bitwise"), (2, 0, "neither"),
    ]  # fmt: skip


def test_a_session_that_trained_nothing_hands_the_chain_on(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {
        "end_iteration": 100,
        "checkpoint": ref(100),
        "data": {},
        "exactness": Exactness(),
    }
    third = record(
        3, start_iteration=100, end_iteration=200, started_from=ref(100), checkpoint=ref(200),
        exactness=exactly(torch="2.9.0"),
    )  # fmt: skip
    found = audit_folders([write_run(tmp_path, [record(1), record(2, **nothing), third])])
    assert (found.chain, found.grade) == ("unbroken", "rounding")
    assert [item.grade for item in found.sessions] == ["bitwise", None, "rounding"]


def test_a_refusal_is_no_link(tmp_path: Path) -> None:
    refused = record(2, stop_reason="refused", started_from=None, checkpoint=None)
    found = audit_folders([write_run(tmp_path, [record(1), refused, record(2)])])
    assert [item.record.session_index for item in found.sessions] == [1, 2]
    assert found.chain == "unbroken"


@pytest.mark.parametrize("stop_reason", ["deadline", "running"])
def test_checkpoints_are_compared_byte_by_byte(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stop_reason: str
) -> None:
    folder = write_run(tmp_path / "run", [record(1, stop_reason=stop_reason)])
    (folder / "iter_100.pth").write_bytes(b"foreign")
    code, document = audited(folder, capsys)
    assert (code, document["chain"], document["grade"]) == (3, "broken", "neither")
    assert [item["verdict"] for item in document["files"]] == ["other bytes"]


def test_a_file_and_its_manifest_replaced_together_do_not_fit_the_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", [record(1)])
    (folder / "iter_100.pth").write_bytes(b"foreign")
    Manifest().with_file(OTHER_BYTES).write(WorkDir(folder).manifest)
    code, document = audited(folder, capsys)
    assert (code, [item["verdict"] for item in document["files"]]) == (3, ["other bytes"])


def test_files_that_are_gone_or_not_listed_are_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [record(1)])
    (folder / "iter_100.pth").rename(folder / "iter_90.pth")
    found = audit_folders([folder])
    assert [(item.path.name, item.verdict) for item in found.files] == [
        ("iter_100.pth", "not here"), ("iter_90.pth", "not listed"),
    ]  # fmt: skip


HOSTILE: dict[str, dict[str, Any]] = {
    "a hash that is none": {"started_from": {**ref(100).to_json(), "sha256": "\x1b[31m" * 9}},
    "a path": {"started_from": {**ref(100).to_json(), "file": "../../etc/passwd"}},
    "an unknown grade": {"exactness": {**EXACT.to_json(), "grade": "perfect"}},
    "a grade that is none": {"exactness": {**EXACT.to_json(), "grade": ["bitwise"]}},
    "reasons that are none": {"exactness": {**EXACT.to_json(), "reasons": [{}]}},
    "a negative number": {"session_index": -1},
    "a data digest that is none": {"data": {**DATA, "digest": 7}},
    "no versions": {"versions": [1]},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_is_never_fine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = write_run(tmp_path / "run", chain())
    path = folder / "history" / "session_001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **HOSTILE[name]}))
    _, document = audited(folder, capsys)
    assert document["grade"] != "bitwise"


def test_what_a_foreign_record_says_reaches_no_terminal_as_more_than_letters(tmp_path: Path) -> None:
    foreign = EXACT.less(["\x1b]0;owned\x07\n" * 500], "neither")
    text = audit_text(audit_folders([write_run(tmp_path, chain(exactness=foreign))]))
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 1100


def test_a_newest_record_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", chain())
    WorkDir(folder).session.write_text("{")
    code, document = audited(folder, capsys)
    assert (code, document["chain"]) == (3, "not shown")
    assert "session.json cannot be read as a record" in document["problems"][0]


def test_another_run_beside_it_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "other", [record(1, run_id="other", started_s=1_780_000_000.0)])
    found = audit_folders([tmp_path, write_run(tmp_path / "run", [record(1)])])
    assert (found.chain, found.other_runs) == ("unbroken", ("other",))
    assert "not looked at: 1 other run(s), other" in audit_text(found)


def test_no_record_at_all_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(tmp_path)]) == 2
    assert "There is no session.json" in capsys.readouterr().err


def test_the_text_names_the_verdict_and_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(write_run(tmp_path / "run", chain(started_from=OTHER_BYTES)))]) == 3
    text = capsys.readouterr().out
    assert "session 2: it began with iter_100.pth" in text
    assert text.splitlines()[-1].startswith("chain: broken. The run equals no uninterrupted one")


@pytest.mark.parametrize(("language", "words"), [("en", "broken"), ("zh", "断裂")])
def test_the_report_has_it_as_a_section(tmp_path: Path, language: str, words: str) -> None:
    folder = write_run(tmp_path, chain(started_from=OTHER_BYTES))
    page = write_report([folder], language=language).read_text(encoding="utf-8")
    assert f'<b class="bad">{words}</b>' in page
