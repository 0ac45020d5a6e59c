"""A run that was cut equals the run that was not, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.standin import StandIn, differences

from mapsage_kaggle.records import ACTIVITIES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """Return a run of 24 iterations in one go, without data workers."""
    run = StandIn.with_scenes(tmp_path_factory.mktemp("whole"))
    done = run.train(workers=0)
    assert done.returncode == 0, done.stdout + done.stderr
    config = run.work_dir.config.read_text()
    assert all(
        name in config for name in ("MapsageFastPipeline", "MapsageMixVisionTransformer", "fused=True")
    )
    return run


def test_three_sessions_with_other_numbers_of_workers_equal_one(
    uninterrupted: StandIn, tmp_path: Path
) -> None:
    run = StandIn.with_scenes(tmp_path / "cut")
    for cut, workers in ((7, 2), (16, 0), (None, 3)):
        done = run.train(workers=workers, stop=cut)
        assert done.returncode == 0, done.stdout + done.stderr
        record = run.record()
        assert record.end_iteration == (cut or 24)
        assert record.stop_reason == ("user" if cut else "completed")
        if cut:
            run.hand_over("previous-output" if cut == 7 else "notebooks/alice/mapsage-train")
    assert [item["end_iteration"] for item in run.record().previous] == [7, 16]
    assert differences(uninterrupted.checkpoint(24), run.checkpoint(24)) == []


def test_a_run_that_was_killed_equals_one_that_was_not(uninterrupted: StandIn, tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "killed")
    done = run.train(workers=1, kill=14, once=str(tmp_path / "done"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(run.events("restart")) == 1
    assert [event.iteration for event in run.events("resume")] == [10]
    assert differences(uninterrupted.checkpoint(24), run.checkpoint(24)) == []


def test_a_run_that_began_with_stock_parts_goes_on_with_faster_ones(
    uninterrupted: StandIn, tmp_path: Path
) -> None:
    """The weights then differ by rounding only, however far that grows in the steps that follow."""
    run = StandIn.with_scenes(tmp_path / "mixed")
    for cut, way in ((12, ("--no-fast",)), (None, ())):
        done = run.train(*way, stop=cut)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("MapsageFastPipeline" in run.work_dir.config.read_text()) == (not way)
    record, whole = run.record(), uninterrupted.record()
    assert record.end_iteration == 24
    assert record.run_id == record.previous[0]["run_id"]
    assert record.fingerprint == whole.fingerprint
    # Dropout of the attention is on here and drawn otherwise by the stock part, so losses are only near.
    ends = [each.events("iteration")[-1].data["loss"] for each in (run, uninterrupted)]
    assert abs(ends[0] - ends[1]) < 0.25 * ends[1]


def test_the_times_of_a_session_add_up_to_its_wall_time(uninterrupted: StandIn) -> None:
    record = uninterrupted.record()
    times = record.timings_s
    assert set(times) == {*ACTIVITIES, "other", "session"}
    assert all(times[name] > 0.0 for name in times)
    # Had a second been counted twice, there would be more of them than the session had.
    assert sum(times[name] for name in (*ACTIVITIES, "other")) == pytest.approx(times["session"], abs=0.01)
    assert record.ended_s is not None
    assert times["session"] == pytest.approx(record.ended_s - record.started_s, abs=0.5)
    began, stopped = uninterrupted.events("training")[0].time_s, uninterrupted.events("stop")[0].time_s
    assert times["start_up"] >= began - record.started_s - 0.5  # and the data workers' start
    steps = times["forward_backward"] + times["optimizer"]
    told = sum(times[name] for name in ("waiting_for_data", "saving", "validation")) + steps
    assert told <= stopped - began + 0.5
