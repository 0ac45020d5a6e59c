"""A session's children, one after another, and what ends it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.clocks import HOUR_S, Time

from mapsage_kaggle.clock import SessionClock, boot_time_s
from mapsage_kaggle.events import EventLog
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import SessionRecord
from mapsage_kaggle.spec import ask_stop
from mapsage_kaggle.training import session
from mapsage_kaggle.training.fallback import MemoryFallback, Outcome
from mapsage_kaggle.training.session import SessionRun, _wait
from mapsage_kaggle.training.supervisor import Launch, Supervisor


def clock() -> SessionClock:
    return SessionClock(started_s=boot_time_s(), limit_s=HOUR_S, reserve_s=0.0)


class Told(Supervisor):
    """A supervisor whose children end as it was told."""

    def __init__(self, folder: Path, clock: SessionClock, *outcomes: Outcome) -> None:
        super().__init__(folder, clock)
        self.outcomes = list(outcomes)

    def run(self, launch: Launch) -> Outcome:
        return self.outcomes.pop(0)


@pytest.fixture(autouse=True)
def starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Any = object()
    monkeypatch.setattr(session, "first_spec", lambda prepared, record, learning: spec)
    monkeypatch.setattr(session, "launch_of", lambda prepared, spec, tracking: spec)


def session_of(supervisor: Supervisor, folder: Path, clock: SessionClock) -> Any:
    """Return a session that only starts children and waits between them."""
    session: Any = object.__new__(SessionRun)
    session.prepared = SimpleNamespace(
        start_iteration=0,
        patch=SimpleNamespace(max_iters=100, chose_half=False),
        discovery=SimpleNamespace(
            cfg={},
            choice=SimpleNamespace(inspection=None),
            shapes=SimpleNamespace(can_recompute=lambda: True),
        ),
        options=SimpleNamespace(on_memory="adapt", extend_to=None, track=""),
        clock=clock,
    )
    session.supervisor, session.files = supervisor, WorkDir(folder)
    session._log = EventLog(session.files.events)
    session.record = SessionRecord(run_id="r", fingerprint="f")
    session.learning = SimpleNamespace(
        ladder=MemoryFallback(micro_batch=4), steps=[], pace={}, has_trained=lambda: None
    )
    session._next_spec = lambda: None
    return session


CRASH = Outcome(kind="crashed", message="Bang.", iteration=9, proven=8)
DONE = Outcome(kind="done", reason="completed", iteration=100)


def test_after_a_crash_another_child_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_wait", lambda seconds, supervisor: None)
    supervisor = Told(tmp_path, clock(), CRASH, DONE)
    assert session_of(supervisor, tmp_path, clock()).run_children()[0] == DONE


def stopped_early(folder: Path, *outcomes: Outcome) -> Any:
    """Return a session whose checkpoint says that something has ended the run at 40 of 100."""
    made = session_of(Told(folder, clock(), *outcomes), folder, clock())
    made.prepared.start_iteration = 40
    made.prepared.discovery.choice = SimpleNamespace(
        action="resume", inspection=SimpleNamespace(owed_validation=None, stopped_by="MyHook: enough")
    )
    return made


def test_a_run_that_was_stopped_early_is_not_trained_on(tmp_path: Path) -> None:
    outcome, message = stopped_early(tmp_path).run_children()
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "early", 40)
    assert message == "Stopped early at 40 of 100 by MyHook: enough."


def test_a_later_end_takes_up_a_run_that_was_stopped_early(tmp_path: Path) -> None:
    made = stopped_early(tmp_path, DONE)
    made.prepared.options.extend_to = 100
    assert made.run_children()[0] == DONE


def test_the_validation_that_an_early_stop_owes_is_made_up_for(tmp_path: Path) -> None:
    made = stopped_early(tmp_path, DONE)
    made.prepared.discovery.choice.inspection.owed_validation = 40
    assert made.run_children()[0] == DONE


@pytest.mark.parametrize("how", ["button", "file", "twice Ctrl-C"])
def test_a_stop_that_is_asked_for_between_two_children_ends_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    supervisor = Told(tmp_path, clock(), CRASH)
    ask = {
        "button": supervisor.request_stop,
        "file": lambda: ask_stop(WorkDir(tmp_path)),
        "twice Ctrl-C": supervisor.kill,
    }[how]
    monkeypatch.setattr(session, "_wait", lambda seconds, supervisor: ask())
    outcome, message = session_of(supervisor, tmp_path, clock()).run_children()
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "user", 8)
    assert message == "Bang. Stopped on request before it was tried again."


def test_a_stop_ends_the_wait_between_two_children(tmp_path: Path) -> None:
    supervisor, begin = Supervisor(tmp_path, clock()), time.monotonic()
    threading.Timer(0.2, ask_stop, [WorkDir(tmp_path)]).start()
    _wait(60.0, supervisor)
    assert time.monotonic() - begin < 30.0


def test_a_stop_that_is_asked_for_before_the_first_child_starts_none(tmp_path: Path) -> None:
    supervisor = Told(tmp_path, clock())
    supervisor.request_stop()
    outcome, message = session_of(supervisor, tmp_path, clock()).run_children()
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "user", 0)
    assert "before training began" in message


def test_a_child_that_crashes_although_it_was_to_stop_has_failed_for_good(
    tmp_path: Path,
) -> None:
    supervisor = Told(tmp_path, clock())

    def crash(launch: Launch) -> Outcome:
        supervisor.request_stop()
        return CRASH

    supervisor.run = crash  # type: ignore[method-assign]
    assert session_of(supervisor, tmp_path, clock()).run_children() == (CRASH, "Bang.")


def test_a_session_whose_time_is_up_starts_no_child_and_ends_at_the_deadline(tmp_path: Path) -> None:
    over = SessionClock(started_s=boot_time_s() - 2 * HOUR_S, limit_s=HOUR_S, reserve_s=0.0)
    outcome, message = session_of(Told(tmp_path, over), tmp_path, over).run_children()
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "deadline", 0)
    assert message == "The session's time was up before training began."


def test_out_of_memory_when_time_is_up_ends_at_the_deadline(tmp_path: Path) -> None:
    time_s = Time()
    supervisor = Told(tmp_path, time_s.clock)

    def run_out(launch: Launch) -> Outcome:
        time_s.is_over()
        return Outcome(kind="memory", message="Out.", iteration=9, proven=8)

    supervisor.run = run_out  # type: ignore[method-assign]
    outcome, message = session_of(supervisor, tmp_path, time_s.clock).run_children()
    assert (outcome.kind, outcome.reason, outcome.iteration) == ("done", "deadline", 8)
    assert message == "Out. The session's time was up before it was tried again."
