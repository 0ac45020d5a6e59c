"""When a save is due, and how it goes on while training does."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stores import Events, assert_agrees, payload, run_python

from mapsage_kaggle.checkpoints.proving import SaveFailed
from mapsage_kaggle.checkpoints.saver import BackgroundSaver, SaveSchedule
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.records import CheckpointRef


def test_a_background_save_does_not_hold_up_and_one_runs_at_a_time(store: CheckpointStore) -> None:
    go, running = threading.Event(), threading.Event()

    def write(stream: BinaryIO) -> None:
        running.set()
        assert go.wait(60)
        stream.write(b"x")

    with store:
        saver = BackgroundSaver(store)
        assert not saver.busy
        saver.submit("iter_10.pth", write, iteration=10)
        assert running.wait(60)
        assert saver.busy
        threading.Timer(0.05, go.set).start()
        saver.submit("iter_20.pth", payload("20"), iteration=20)
        assert (store.path / "iter_10.pth").exists(), "the second waited for the first"
        assert [ref.iteration for ref in saver.wait()] == [10, 20]
        assert not saver.busy
        assert saver.wait() == ()


def test_a_failed_background_save_is_told_and_raised_when_waited_for(
    store: CheckpointStore, events: Events
) -> None:
    def write(stream: BinaryIO) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with store:
        saver = BackgroundSaver(store)
        saver.submit("iter_10.pth", write, iteration=10)
        with pytest.raises(SaveFailed, match="Input/output error"):
            saver.wait()
        assert saver.wait() == ()
        saver.submit("iter_20.pth", write, iteration=20)
        saver.submit("iter_30.pth", payload("30"), iteration=30)
        assert [ref.iteration for ref in saver.wait()] == [30], "a later save makes up for a failed one"
    assert [event[0] for event in events] == ["warning", "warning", "checkpoint"]


def test_a_record_that_cannot_be_written_on_the_full_disk_does_not_fail_the_save(
    store: CheckpointStore, events: Events
) -> None:
    def refresh(ref: CheckpointRef) -> None:
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"x")

    with store:
        saver = BackgroundSaver(store)
        saver.submit("iter_10.pth", payload("10"), iteration=10, then=refresh)
        assert [ref.iteration for ref in saver.wait()] == [10]
    assert "iter_10.pth is proven, but" in events[-1][2]["message"]


def test_a_bug_in_the_writer_is_not_forgotten(store: CheckpointStore) -> None:
    def write(stream: BinaryIO) -> None:
        raise KeyError("a bug")

    with store:
        saver = BackgroundSaver(store)
        saver.submit("iter_10.pth", write, iteration=10)
        with pytest.raises(KeyError):
            saver.submit("iter_20.pth", payload("20"), iteration=20)


def test_ctrl_c_while_waiting_is_raised_after_the_save_has_ended(store: CheckpointStore) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def waiting() -> bool:
        frame = sys._current_frames()[main]
        while frame is not None and frame.f_code is not BackgroundSaver.join.__code__:
            frame = frame.f_back  # type: ignore[assignment]
        return frame is not None

    def write(stream: BinaryIO) -> None:
        while not waiting():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.2)
        stream.write(b"x")

    with store:
        saver = BackgroundSaver(store)
        saver.submit("iter_10.pth", write, iteration=10)
        with pytest.raises(KeyboardInterrupt):
            saver.wait()
        assert not saver.busy
        assert [ref.iteration for ref in saver.wait()] == [10]
    assert_agrees(store.path)


def test_the_interpreter_does_not_end_before_the_save(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from mapsage_kaggle.checkpoints.saver import BackgroundSaver\n"
        "from mapsage_kaggle.checkpoints.store import CheckpointStore\n"
        "store = CheckpointStore(Path(sys.argv[1])); store.lock(wait_s=0.0)\n"
        "def write(stream): time.sleep(0.3); stream.write(b'x' * 5_000_000)\n"
        "BackgroundSaver(store).submit('iter_10.pth', write, iteration=10)\n"
        "raise SystemExit(3)\n"
    )
    run_python(script, str(tmp_path), check=False)
    assert_agrees(tmp_path)
    assert (tmp_path / "iter_10.pth").stat().st_size == 5_000_000


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_cheap_save_is_due_every_five_minutes() -> None:
    clock = FakeClock()
    schedule = SaveSchedule(now=clock)
    clock.now_s = 299.0
    assert not schedule.due()
    clock.now_s = 300.0
    assert schedule.due()
    schedule.saved(cost_s=0.1)
    assert not schedule.due()
    assert schedule.left_s() == 300.0


@given(st.lists(st.floats(0.0, 9.0), min_size=1, max_size=30))
def test_saving_costs_at_most_half_a_percent(costs_s: list[float]) -> None:
    clock = FakeClock()
    schedule = SaveSchedule(now=clock)
    for cost_s in costs_s:
        schedule.saved(cost_s=cost_s)
    assert 300.0 <= schedule.interval_s <= 1800.0
    window = costs_s[-8:]
    assert sum(window) / len(window) <= 0.005 * schedule.interval_s * (1 + 1e-9)


def test_however_slow_the_disk_half_an_hour_is_the_longest_gap() -> None:
    schedule = SaveSchedule(now=FakeClock())
    schedule.saved(cost_s=1000.0)
    assert schedule.interval_s == 1800.0


@pytest.mark.parametrize(
    "wrong", [{"every_s": 0}, {"max_cost": 0}, {"max_cost": 1.1}, {"every_s": 10, "longest_s": 9}]
)
def test_a_schedule_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no schedule"):
        SaveSchedule(**wrong)
    SaveSchedule(every_s=0.5, max_cost=1, longest_s=0.5)


def test_a_failed_save_is_tried_again_after_the_interval() -> None:
    clock = FakeClock()
    schedule = SaveSchedule(now=clock)
    clock.now_s = 400.0
    schedule.failed()
    assert not schedule.due()
