"""The relay's journal on the disk."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.relay.journal import Attempt, HandOver, Journal, Outcome, held

GOOD = HandOver(
    slug="train", version=1, iteration=8, file="w/iter_8.pth", sha256="a", size_bytes=9, attachable=True
)
OPEN = Journal(owner="alice", slug="train", config="demo.py").intending(Attempt(slug="train", version=1))


def test_a_journal_reads_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    outcome = Outcome(status="complete", verdict="progress", hand_over=GOOD, run_id="r", max_iters=40)
    journal = OPEN.landed(1).closed(outcome).without("self").stored(8)
    journal.write(path)
    assert Journal.read(path) == journal
    assert Journal.read(tmp_path / "none.json") is None


def test_a_name_from_a_later_version_is_ignored_and_a_later_schema_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    document = json.loads(json.dumps(OPEN.to_json()))
    path.write_text(json.dumps({**document, "colour": "blue"}))
    assert Journal.read(path) == OPEN
    path.write_text(json.dumps({**document, "schema": 99}))
    with pytest.raises(UsageError, match="schema 99 is newer"):
        Journal.read(path)


def test_a_journal_of_the_version_before_reads_and_goes_on() -> None:
    attempt = {
        "slug": "train", "version": 1, "token": "ab", "transport": "self", "expect_iteration": 8,
        "limit_s": 43200.0, "intended_s": 1e9, "landed": True, "refusal": "", "status": "complete",
        "verdict": "progress", "end_iteration": 16, "message": "", "exit_code": None,
    }  # fmt: skip
    document = {
        "owner": "alice", "slug": "train", "config": "demo.py", "attempts": [attempt], "earlier": 1,
        "hand_over": dataclasses.asdict(GOOD), "refused": [], "stored_iteration": None,
        "run_id": "r", "max_iters": 40, "learned": {"pace": {"iteration_s": 0.5}}, "forgiven": 0,
        "rejected_pushes": 0, "retry_s": 0.0, "schema": 1,
    }  # fmt: skip
    journal = Journal.from_json(document)
    assert (journal.hand_over, journal.num_sessions, journal.open) == (GOOD, 1, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [("attempts", [{"slug": 3, "version": 1}]), ("hand_over", "iter_8.pth"), ("max_iters", "many"),
     ("refused", ["carrier pigeon"]), ("pace", [1]), ("accounted", {"train": "x"})],
)  # fmt: skip
def test_a_field_of_another_kind_is_refused(name: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.write_text(json.dumps({**OPEN.to_json(), name: value}))
    with pytest.raises(UsageError, match="no readable journal"):
        Journal.read(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 1}', '{"schema": 1, "attempts": 3}'])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="no readable journal"):
        Journal.read(path)
    assert path.read_text() == text


def test_a_version_that_exists_cannot_be_forgotten_and_two_cannot_be_open() -> None:
    with pytest.raises(ValueError, match="cannot be forgotten"):
        OPEN.landed(1).forgotten()
    with pytest.raises(ValueError, match="is open"):
        OPEN.intending(Attempt(slug="train", version=2))


def test_a_checkpoint_that_was_only_carried_along_is_no_progress_but_may_move() -> None:
    journal = replace(OPEN.landed(2), hand_over=GOOD)
    carried = replace(GOOD, version=2)
    moved = journal.closed(Outcome(status="complete", verdict="none", hand_over=carried))
    assert moved.hand_over == carried
    failed = replace(carried, attachable=False)
    assert journal.closed(Outcome(status="error", verdict="none", hand_over=failed)).hand_over == GOOD
    older = replace(carried, iteration=4)
    assert journal.closed(Outcome(status="complete", verdict="none", hand_over=older)).hand_over == GOOD


def test_a_run_begins_with_its_first_checkpoint() -> None:
    failed = OPEN.landed(1).closed(Outcome(status="error", verdict="none", run_id="first"))
    again = failed.intending(Attempt(slug="train", version=2, token="a")).landed(2)
    good = replace(GOOD, version=2)
    journal = again.closed(Outcome(status="complete", verdict="progress", run_id="second", hand_over=good))
    assert (journal.hand_over, journal.run_id) == (good, "second")


def test_a_run_that_was_completed_stays_so_in_whatever_order_its_sessions_are() -> None:
    ended = replace(OPEN.attempts[0], verdict="completed", end_iteration=40, intended_s=5.0)
    journal = replace(OPEN, attempts=(ended, replace(ended, verdict="progress", intended_s=1e15)))
    assert journal.completed
    assert not replace(journal, extend_to=41).completed


def test_a_source_that_was_not_mounted_rules_its_transport_out() -> None:
    journal = Journal(owner="alice", slug="train", config="demo.py").intending(
        Attempt(slug="train", version=2, transport="self")
    )
    outcome = Outcome(status="error", verdict="unmounted")
    assert journal.landed(2).closed(outcome).refused == ("self",)


def test_two_relays_cannot_work_with_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "state" / "journal.json"
    with held(path), pytest.raises(UsageError, match="Another relay"), held(path):
        pass
    with held(path):
        pass
