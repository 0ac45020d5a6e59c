"""A run of three sessions, one of them killed, is one curve in a tracker, each step once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.curves import tensorboard_curves, wandb_curves
from support.standin import StandIn, none_left

from mapsage_kaggle.checkpoints.load import load_checkpoint

KEY = "0123456789abcdef0123456789abcdef01234567"
TRACKED = """
default_hooks["logger"]["interval"] = 1
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="SegLocalVisualizer", vis_backends=vis_backends, name="visualizer")
"""
KILLED = """
import os, signal, time
from pathlib import Path
import at_iteration

def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
    if runner.iter == 13:
        while "iter_10.pth" not in Path(runner.work_dir, "manifest.json").read_text():
            time.sleep(0.05)
        os.kill(int(os.environ["MAPSAGE_SUPERVISOR_PID"]), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

at_iteration.AtIteration.after_train_iter = after_train_iter
"""

pytestmark = pytest.mark.slow(scope_s=60)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """Return a run that was stopped at 7, killed at 13 beyond its checkpoint at 10, and then finished."""
    root = tmp_path_factory.mktemp("run") / "kaggle"
    environ = {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}
    run = StandIn.with_scenes(root, max_iters=18, val_interval=10, extra=TRACKED, environ=environ)
    first = run.train("--track", "wandb", stop=7)
    assert first.returncode == 0, first.stdout + first.stderr
    run.hand_over()
    (run.root / "code" / "killed.py").write_text(KILLED)
    imports = "custom_imports = dict(imports=['at_iteration', 'killed'], allow_failed_imports=False)"
    killed = run.train("--track", "wandb", config_extra=imports)
    assert killed.returncode == -9, killed.stdout + killed.stderr
    assert none_left(root)
    run.hand_over()
    last = run.train("--track", "wandb", "--expect-iteration", "10")
    assert last.returncode == 0, last.stdout + last.stderr
    return run


@pytest.mark.parametrize("read", [tensorboard_curves, wandb_curves])
def test_the_curve_has_each_step_once(
    finished: StandIn, read: Callable[[Path], dict[str, list[int]]]
) -> None:
    curves = read(finished.work_dir.path / "trackers")
    assert curves["loss"] == list(range(1, 19))
    assert curves["mIoU"] == [10, 18]


def test_no_tracker_has_failed(finished: StandIn) -> None:
    assert [event for event in finished.events("warning") if event.data.get("kind") == "tracker"] == []


def test_the_key_is_written_nowhere(finished: StandIn) -> None:
    files = [path for path in finished.root.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_tracker_leaves_no_link_in_the_output(finished: StandIn) -> None:
    assert [path for path in finished.work_dir.path.rglob("*") if path.is_symlink()] == []


def test_what_is_stored_names_mmengines_own_backend(finished: StandIn) -> None:
    stored = (finished.work_dir.path / "config.py").read_text()
    assert "TensorboardVisBackend" in stored and "MapsageTracker" not in stored
    checkpoint = load_checkpoint(finished.work_dir.path / "iter_18.pth")
    assert "MapsageTracker" not in checkpoint["message_hub"]["runtime_info"]["cfg"]
    assert "MapsageTracker" not in checkpoint["meta"]["cfg"]
