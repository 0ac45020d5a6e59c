"""Whatever happens to a session, what it had is there, and the next one goes on from it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest
from support.standin import StandIn, differences, none_left, processes_of, workers_alive

from mapsage_kaggle.events import Event

pytestmark = pytest.mark.slow(scope_s=190)


def wait_for_event(run: StandIn, kind: str, at_least: int = 0, timeout_s: float = 120.0) -> Event:
    """Return the first event of a kind, as soon as there is one."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        for event in run.events(kind):
            if event.iteration >= at_least:
                return event
        time.sleep(0.05)
    raise AssertionError(f"no {kind} event within {timeout_s} s: {run.events()}")


def test_ctrl_c_once_saves_and_exits_130(tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=4000, val_interval=4000, cold=True)
    process = run.start()
    wait_for_event(run, "iteration", at_least=3)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    record = run.record()
    assert record.stop_reason == "user"
    assert record.checkpoint is not None
    assert record.checkpoint.iteration == record.end_iteration >= 3
    assert run.run("verify", run.work_dir.path / record.checkpoint.file).returncode == 0
    assert workers_alive(run.work_dir.path) == []


def test_ctrl_c_twice_ends_at_once_with_the_checkpoint_intact_and_no_process_left(
    tmp_path: Path,
) -> None:
    # The iteration after the checkpoint at 4 takes so long that the first Ctrl-C cannot have ended it.
    slow = (
        "import time, at_iteration\n"
        "from pathlib import Path\n"
        "def before_train_iter(self, runner, batch_idx, data_batch=None):\n"
        "    if runner.iter >= 4:\n"
        "        Path(__file__).with_name('slow_begins').touch()\n"
        "        time.sleep(3600)\n"
        "at_iteration.AtIteration.before_train_iter = before_train_iter\n"
    )
    imports = "custom_imports = dict(imports=['at_iteration', 'slow'], allow_failed_imports=False)"
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=4000, val_interval=4, extra=imports, cold=True)
    run.config()
    (run.root / "code" / "slow.py").write_text(slow)
    process = run.start(workers=1)
    end = time.monotonic() + 120
    while not (run.root / "code" / "slow_begins").exists():
        assert time.monotonic() < end, run.events()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(2.0)
    assert process.poll() is None, "it waits for the checkpoint that one Ctrl-C asks for"
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - begin < 30.0
    assert process.returncode == 130, output
    assert processes_of(run.root) == []
    record = run.record()
    assert (record.stop_reason, record.end_iteration) == ("user", 4)
    assert record.checkpoint is not None
    assert record.checkpoint.iteration == 4
    assert run.run("verify", run.work_dir.path / record.checkpoint.file).returncode == 0
    assert not run.work_dir.stop_request.exists()


def test_sigterm_ends_in_good_order_with_0(tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=4000, val_interval=4000, cold=True)
    process = run.start()
    wait_for_event(run, "iteration", at_least=3)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert run.record().stop_reason == "user"


def children_of(parents: set[int], found: list[int]) -> set[int]:
    """Return the processes among ``found`` that one of ``parents`` has started."""
    stat = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in found}
    return {pid for pid, fields in stat.items() if int(fields[1]) in parents}


def running_with_data_workers(tmp_path: Path, *, ranks: int) -> tuple[StandIn, Popen[str], set[int]]:
    """Return a run whose ranks have a data worker each, its supervisor, and the ranks' processes."""
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=4000, val_interval=4000, cold=True)
    process = run.start("--cpu-ranks", str(ranks), workers=1)
    wait_for_event(run, "iteration", at_least=3)
    pids = {int(event.data["pid"]) for event in run.events("start")}
    found = processes_of(run.root)
    assert len(pids) == ranks
    assert {process.pid, *pids} < set(found)
    assert len(children_of(pids, found)) >= ranks, "each rank has a data worker"
    return run, process, pids


@pytest.mark.parametrize("ranks", [1, 2])
def test_when_the_supervisor_is_killed_all_ranks_save_and_end_with_their_workers(
    tmp_path: Path, ranks: int
) -> None:
    run, process, _ = running_with_data_workers(tmp_path, ranks=ranks)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert none_left(run.root)
    record = run.record()
    assert (record.stop_reason, record.exit_code) == ("user", 0)
    assert "is gone" in record.message
    assert record.timings_s["session"] > record.timings_s["forward_backward"] > 0
    assert record.checkpoint is not None
    saved = record.checkpoint.iteration
    assert saved >= 3
    run.hand_over()
    run.cold = False
    done = run.train("--resume", "require", "--expect-iteration", str(saved), stop=saved + 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.record().start_iteration == saved


def test_data_workers_end_where_all_others_were_killed_at_once(tmp_path: Path) -> None:
    run, process, pids = running_with_data_workers(tmp_path, ranks=2)
    found = processes_of(run.root)
    workers = children_of(pids, found)
    for pid in sorted(set(found) - workers):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert none_left(run.root)


def test_where_torchrun_is_killed_its_workers_save_and_training_goes_on(tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=60, val_interval=60, cold=True)
    process = run.start("--cpu-ranks", "2")
    wait_for_event(run, "iteration", at_least=3)
    found = processes_of(run.root)
    (torchrun,) = children_of({process.pid}, found)
    os.killpg(torchrun, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert [event.data["kind"] for event in run.events("restart")] == ["crashed"]
    record = run.record()
    assert (record.stop_reason, record.end_iteration) == ("completed", 60)
    assert run.events("resume")[0].iteration >= 3


def test_out_of_memory_halves_the_micro_batch_and_the_next_session_starts_there(
    tmp_path: Path,
) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle")
    done = run.train(memory=12, stop=16, once=str(tmp_path / "done"))
    assert done.returncode == 0, done.stdout + done.stderr
    restart = run.events("restart")[0]
    assert restart.data["kind"] == "memory"
    assert run.events("resume")[0].iteration == 10
    record = run.record()
    assert record.learned.micro_batch == 2
    assert record.end_iteration == 16
    run.hand_over()
    done = run.train()
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.record().learned.micro_batch == 2
    assert run.record().end_iteration == 24


def test_weights_that_became_nan_are_never_saved(tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle")
    done = run.train(poison=14)
    assert done.returncode == 5, done.stdout + done.stderr
    record = run.record()
    assert record.stop_reason == "failed"
    assert record.checkpoint is not None
    assert record.checkpoint.iteration == 10
    assert "in iteration 14" in record.message
    assert not (run.work_dir.path / "iter_14.pth").exists()


def test_a_child_that_says_nothing_is_explained_and_started_again(tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=10, val_interval=4, cold=True)
    (run.config().parent / "hang_once.py").write_text(
        "import os, time, at_iteration\n"
        "from pathlib import Path\n"
        f"marker = Path({str(tmp_path / 'hung')!r})\n"
        "def hangs(self, runner):\n"
        "    if os.environ['RANK'] == '1' and not marker.exists():\n"
        "        marker.touch()\n"
        "        time.sleep(3600)\n"
        "at_iteration.AtIteration.after_val = hangs\n"
    )
    imports = "custom_imports = dict(imports=['at_iteration', 'hang_once'], allow_failed_imports=False)"
    done = run.train("--hang-after", "30s", "--cpu-ranks", "2", config_extra=imports)
    assert done.returncode == 0, done.stdout + done.stderr
    [restart] = run.events("restart")
    assert restart.data["kind"] == "hung"
    assert "rank 0 waited for other ranks in " in restart.data["message"]
    assert "; rank 1 was in hangs (hang_once.py:7). The stacks of all" in restart.data["message"]
    assert "in hangs\n" in run.work_dir.log.read_text()
    assert run.record().end_iteration == 10


def test_data_workers_killed_for_shared_memory_are_started_again_as_fewer(tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=6, val_interval=6)
    (run.config().parent / "killed_once.py").write_text(
        "import os, signal, at_iteration\n"
        "from pathlib import Path\n"
        "from mmcv.transforms import LoadImageFromFile as Loading\n"
        "from torch.utils.data import get_worker_info\n"
        f"marker, load = Path({str(tmp_path / 'killed')!r}), Loading.transform\n"
        "def transform(self, results):\n"
        "    info = get_worker_info()\n"
        "    if info is not None and info.num_workers == 2 and not marker.exists():\n"
        "        marker.touch()\n"
        "        os.kill(os.getpid(), signal.SIGBUS)\n"
        "    return load(self, results)\n"
        "Loading.transform = transform\n"
    )
    imports = "custom_imports = dict(imports=['at_iteration', 'killed_once'], allow_failed_imports=False)"
    done = run.train("--no-fast", workers=2, config_extra=imports)
    assert done.returncode == 0, done.stdout + done.stderr
    [restart] = run.events("restart")
    assert restart.data["kind"] == "shared_memory"
    assert "The data workers need more of /dev/shm than its " in restart.data["message"]
    assert restart.data["message"].endswith("Going on with 1 data worker(s) a rank.")
    assert "num_workers=1" in run.work_dir.config.read_text()
    assert run.record().end_iteration == 6


@pytest.fixture
def with_a_damaged_image(tmp_path: Path) -> StandIn:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=6, val_interval=6)
    image = sorted((run.root / "input" / "scenes" / "Train" / "images_png").iterdir())[2]
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 3] + bytes(len(whole) - len(whole) // 3))
    return run


def test_a_damaged_image_is_named_before_training(with_a_damaged_image: StandIn) -> None:
    done = with_a_damaged_image.train()
    assert done.returncode == 2
    assert "images_png" in done.stderr
    record = with_a_damaged_image.record()
    assert (record.stop_reason, record.exit_code) == ("refused", 2)


def test_a_damaged_image_is_skipped_where_that_is_asked_for(with_a_damaged_image: StandIn) -> None:
    done = with_a_damaged_image.train("--on-bad-image", "skip", workers=1)
    assert done.returncode == 0, done.stdout + done.stderr
    warnings = with_a_damaged_image.events("warning")
    assert [event for event in warnings if event.data.get("kind") == "bad_image"]
    first = with_a_damaged_image.checkpoint(6)
    again = with_a_damaged_image.train("--on-bad-image", "skip", "--resume", "never", workers=0)
    assert again.returncode == 0, again.stdout + again.stderr
    assert differences(first, with_a_damaged_image.checkpoint(6)) == []


def test_a_damaged_validation_image_is_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=6, val_interval=6)
    image = sorted((run.root / "input" / "scenes" / "Val" / "images_png").iterdir())[0]
    image.write_bytes(image.read_bytes()[:300])
    done = run.train("--on-bad-image", "skip", workers=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [event.iteration for event in run.events("validation")] == [6]
    told = {event.data["file"] for event in run.events("warning") if event.data.get("kind") == "bad_image"}
    assert told == {str(image)}


@pytest.fixture(scope="module")
def uncut_schedules(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the schedulers at the end of a run that was to have 20 iterations from the start."""
    whole = StandIn.with_scenes(tmp_path_factory.mktemp("whole") / "kaggle", max_iters=20, val_interval=10)
    assert whole.train().returncode == 0
    return whole.checkpoint(20)["param_schedulers"]


@pytest.mark.parametrize("cut", [None, 7], ids=["finished", "running"])
def test_extending_a_run_lays_the_schedule_out_anew(
    tmp_path: Path, uncut_schedules: Any, cut: int | None
) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=10, val_interval=10)
    assert run.train(stop=cut).returncode == 0
    run.hand_over()
    if cut is None:
        run.max_iters = 20
        refused = run.train()
        assert refused.returncode == 2
        assert "--extend-to 20" in refused.stderr
        run.max_iters = 10
    done = run.train("--extend-to", "20", stop=None if cut is None else 14)
    assert done.returncode == 0, done.stdout + done.stderr
    if cut is not None:
        # Said once, it holds: the sessions that follow are begun as all others.
        run.hand_over()
        done = run.train()
        assert done.returncode == 0, done.stdout + done.stderr
    start = 10 if cut is None else 14
    assert (run.record().start_iteration, run.record().end_iteration) == (start, 20)
    assert run.checkpoint(20)["param_schedulers"] == uncut_schedules
    first = run.events("iteration")[0]
    # Warm-up until 5, then mmengine's straight line, which is at 0 in its last step.
    assert first.data["lr"] == pytest.approx(3e-3 * (1 - (first.iteration - 5) / (20 - 5 - 1)))


def test_ema_and_its_state_survive_the_cut(tmp_path: Path) -> None:
    ema = "custom_hooks.append(dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1))"
    whole = StandIn.with_scenes(tmp_path / "whole", max_iters=12, val_interval=6, extra=ema)
    assert whole.train().returncode == 0
    cut = StandIn.with_scenes(tmp_path / "cut", max_iters=12, val_interval=6, extra=ema)
    assert cut.train(stop=8).returncode == 0
    cut.hand_over()
    done = cut.train(workers=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ema_state_dict" in whole.checkpoint(12)
    assert differences(whole.checkpoint(12), cut.checkpoint(12)) == []
