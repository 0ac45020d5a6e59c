"""Wherever a run is cut, and however many data workers go on with it, it ends as if it had not been."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.children import Children, DirectRun
from support.standin import StandIn, differences

from mapsage_kaggle.clock import boot_time_s

pytestmark = pytest.mark.slow

# Two images are left over in each epoch of six: the epochs end at 1.5, 3, 4.5, ... iterations.
ITERATIONS, VAL_INTERVAL = 8, 3
WORKERS = [(0, False), (1, True), (3, True), (1, False), (3, False)]
CUTS = [(cut, *WORKERS[(cut - 1) % len(WORKERS)]) for cut in range(1, ITERATIONS)]


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as running:
        yield running


def train(children: Children, root: Path, start: Path | None, workers: int, persistent: bool) -> StandIn:
    """Return a run that went to its end, from the start or from a checkpoint, on four cores."""
    run = StandIn.with_scenes(root, max_iters=ITERATIONS, val_interval=VAL_INTERVAL, size=64)
    extra = f"""
train_dataloader["persistent_workers"] = {persistent}
default_hooks["checkpoint"]["interval"] = 1
"""
    config = run.config(workers=workers, extra=extra)
    if start is not None:
        run.work_dir.path.mkdir(parents=True)
        shutil.copy(start, run.work_dir.path)
    code = DirectRun(run, children).train(config, workers_cap=4)
    assert code == 0, run.work_dir.log.read_text()
    effective = run.work_dir.config.read_text()
    assert f"num_workers={workers}" in effective
    assert f"persistent_workers={persistent}" in effective
    return run


@pytest.fixture(scope="module")
def whole(children: Children, tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return train(children, tmp_path_factory.mktemp("whole") / "kaggle", None, workers=0, persistent=False)


@pytest.mark.parametrize(("cut", "workers", "persistent"), CUTS)
def test_a_run_cut_anywhere_equals_the_uncut_one(
    children: Children, whole: StandIn, tmp_path: Path, cut: int, workers: int, persistent: bool
) -> None:
    start = whole.work_dir.path / f"iter_{cut}.pth"
    run = train(children, tmp_path / "kaggle", start, workers, persistent)
    assert [event.iteration for event in run.events("resume")] == [cut]
    assert differences(whole.checkpoint(ITERATIONS), run.checkpoint(ITERATIONS)) == []


@pytest.mark.parametrize("start", [0, 1])
def test_a_child_that_begins_when_time_is_up_trains_nothing_and_ends_at_the_deadline(
    children: Children, whole: StandIn, tmp_path: Path, start: int
) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=ITERATIONS, val_interval=VAL_INTERVAL, size=64)
    config = run.config()
    run.work_dir.path.mkdir(parents=True)
    if start:
        shutil.copy(whole.work_dir.path / f"iter_{start}.pth", run.work_dir.path)
    code = DirectRun(run, children).train(config, clock_started_s=boot_time_s() - 1000.0)
    assert code == 0, run.work_dir.log.read_text()
    assert run.events("iteration") == []
    (stop,) = run.events("stop")
    assert (stop.iteration, stop.data["reason"]) == (start, "deadline")
    assert sorted(path.name for path in run.work_dir.path.glob("iter_*.pth")) == [f"iter_{start}.pth"][:start]
