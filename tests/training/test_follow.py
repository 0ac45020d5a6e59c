"""Following a training that another process supervises, by nothing but its work dir."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.standin import REPOSITORY, StandIn, kill_group

from mapsage_kaggle.checkpoints.lock import holder_of
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.events import Event, EventLog
from mapsage_kaggle.paths import KagglePaths, WorkDir
from mapsage_kaggle.processes import process_start_s
from mapsage_kaggle.records import SessionRecord
from mapsage_kaggle.training.follow import Follower
from mapsage_kaggle.training.options import Options
from mapsage_kaggle.training.prepare import discover


class Heard:
    """A sink that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def handle(self, event: Event) -> None:
        self.events.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.event for event in self.events]


def told(folder: Path, kind: str, **data: object) -> None:
    EventLog(WorkDir(folder).events).append(Event(event=kind, iteration=0, data=data))


def test_a_folder_that_nobody_holds_has_no_holder(tmp_path: Path) -> None:
    assert holder_of(tmp_path) is None
    with CheckpointStore(tmp_path):
        assert holder_of(tmp_path) == str(os.getpid())
    assert holder_of(tmp_path) is None


def test_a_training_is_over_when_its_record_is_final_and_nobody_holds_the_folder(tmp_path: Path) -> None:
    told(tmp_path, "start", supervisor=os.getpid(), supervisor_started_s=process_start_s())
    SessionRecord(run_id="r", fingerprint="f", stop_reason="user").write(WorkDir(tmp_path).session)
    heard = Heard()
    follower = Follower(tmp_path, [heard]).start()
    assert follower.wait(10.0)
    assert heard.kinds == ["start"]
    assert follower.ended_record() == follower.record()


def test_between_two_training_processes_of_a_live_supervisor_it_is_not_over(tmp_path: Path) -> None:
    told(tmp_path, "start", supervisor=os.getpid(), supervisor_started_s=process_start_s())
    SessionRecord(run_id="r", fingerprint="f").write(WorkDir(tmp_path).session)
    follower = Follower(tmp_path).start()
    assert not follower.wait(1.0)
    assert follower.supervised
    SessionRecord(run_id="r", fingerprint="f", stop_reason="failed").write(WorkDir(tmp_path).session)
    assert follower.wait(10.0)


def test_what_a_dead_supervisor_left_is_over_once_the_folder_is_free(tmp_path: Path) -> None:
    told(tmp_path, "start", supervisor=os.getpid(), supervisor_started_s=1.0)  # its number is ours now
    SessionRecord(run_id="r", fingerprint="f").write(WorkDir(tmp_path).session)
    follower = Follower(tmp_path).start()
    assert follower.wait(10.0)
    assert not follower.supervised


class Closed(Heard):
    """A view whose browser is gone."""

    def handle(self, event: Event) -> None:
        super().handle(event)
        raise RuntimeError("no comm")


def test_a_view_that_fails_is_told_no_more_and_the_training_is_followed_to_its_end(tmp_path: Path) -> None:
    told(tmp_path, "start", supervisor=os.getpid(), supervisor_started_s=process_start_s())
    SessionRecord(run_id="r", fingerprint="f").write(WorkDir(tmp_path).session)
    closed, heard = Closed(), Heard()
    follower = Follower(tmp_path, [closed, heard]).start()
    assert not follower.wait(1.0)
    SessionRecord(run_id="r", fingerprint="f", stop_reason="user").write(WorkDir(tmp_path).session)
    assert follower.wait(10.0)
    assert (closed.kinds, heard.kinds) == (["start"], ["start", "warning"])
    assert "no longer shown (RuntimeError: no comm)" in heard.events[1].data["message"]


@pytest.mark.parametrize("state", ["training", "between two children", "cut off"])
def test_a_refusal_leaves_the_record_of_a_session_that_goes_on(tmp_path: Path, state: str) -> None:
    files = WorkDir(tmp_path / "work")
    files.path.mkdir()
    SessionRecord(run_id="r", fingerprint="f").write(files.session)
    supervisor = {"supervisor": os.getpid(), "supervisor_started_s": process_start_s()}
    if state == "between two children":
        EventLog(files.events).append(Event(event="start", iteration=0, data=supervisor))
    config = tmp_path / "odd.py"
    config.write_text(
        f"_base_ = [{str(REPOSITORY / 'configs' / 'demo.py')!r}]\ntrain_cfg = dict(max_iters=0)\n"
    )
    with (CheckpointStore if state == "training" else nullcontext)(files.path), pytest.raises(ConfigError):
        discover(Options(config=config, work_dir=files.path), paths=KagglePaths.below(tmp_path))
    reason = SessionRecord.read(files.session).stop_reason
    assert reason == ("refused" if state == "cut off" else "running")


@pytest.mark.slow(scope_s=15)
def test_a_training_in_a_terminal_is_followed_saved_and_stopped_from_here(tmp_path: Path) -> None:
    stand_in = StandIn.with_scenes(tmp_path, max_iters=4000, val_interval=2000, cold=True)
    process = stand_in.start("--session-limit", "10m", "--reserve", "10s")
    try:
        heard = Heard()
        follower = Follower(stand_in.work_dir.path, [heard])
        _wait(lambda: "iteration" in (follower.read() or heard.kinds))
        assert follower.running
        assert follower.supervised
        follower.start()
        follower.save()
        _wait(lambda: "checkpoint" in heard.kinds)
        assert "stop" not in heard.kinds
        follower.stop()
        assert follower.wait(60.0)
        record = follower.ended_record()
        assert record is not None
        assert (record.stop_reason, record.exit_code) == ("user", 0)
        assert heard.events[-1].event in ("stop", "end")
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            kill_group(process)


def _wait(true: object, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    assert callable(true)
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)
