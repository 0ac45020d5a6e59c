"""Checkpoints that stock mmengine made go on with all that can be kept, and what cannot is said."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.standin import StandIn

from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE

pytestmark = pytest.mark.slow

SEED, STOCK_ITERATIONS, MAX_ITERS = 1234, 6, 12

# A person's own config, of which the kit knows nothing: mmsegmentation's plain data set, its own hook.
OWN_DATA = f"""
randomness = dict(seed=None)
model["decode_head"]["norm_cfg"] = dict(type="BN")
train_dataloader["dataset"].update(
    _delete_=True, type="BaseSegDataset", data_root="scenes", img_suffix=".png", seg_map_suffix=".png",
    reduce_zero_label=True, metainfo=dict(classes={EARTHVQA_CLASSES!r}, palette={EARTHVQA_PALETTE!r}),
    data_prefix=dict(img_path="Train/images_png", seg_map_path="Train/masks_png"),
)
val_dataloader["dataset"] = dict(
    train_dataloader["dataset"],
    data_prefix=dict(img_path="Val/images_png", seg_map_path="Val/masks_png"),
    pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")],
)
test_dataloader = val_dataloader
custom_imports["imports"].append("keeps_count")
custom_hooks.append(dict(type="KeepsCount"))
default_hooks["checkpoint"]["interval"] = {STOCK_ITERATIONS}
"""
HOOK = '''
"""Counts iterations, and keeps its count in both places that mmengine offers."""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class KeepsCount(Hook):
    count = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.count += 1
        hub = runner.message_hub
        hub.update_info("own_count", hub.get_info("own_count", 0) + 1)

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint["own_hook"] = dict(count=self.count, last=runner.model.decode_head.conv_seg.bias.clone())

    def after_load_checkpoint(self, runner, checkpoint):
        self.count = checkpoint["own_hook"]["count"]
'''
STOCK = """
import sys, torch, cv2
torch.set_num_threads(1); cv2.setNumThreads(0)
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

class Ends(Hook):
    priority = "LOWEST"  # after the checkpoint hook
    def after_train_iter(self, runner, **_):
        runner.train_loop.stop_training = runner.iter + 1 == int(sys.argv[3])

cfg = Config.fromfile(sys.argv[1])
cfg.work_dir = sys.argv[2]
runner = Runner.from_cfg(cfg)
runner.register_hook(Ends())
runner.train()
assert not [name for name in sys.modules if name.startswith("mapsage_kaggle")]
"""


def stand_in(root: Path) -> StandIn:
    return StandIn.with_scenes(root, max_iters=MAX_ITERS, val_interval=STOCK_ITERATIONS, extra=OWN_DATA)


def with_hook(run: StandIn) -> Path:
    config = run.config()
    (config.parent / "keeps_count.py").write_text(HOOK)
    return config


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the work dir of mmengine's own Runner after 6 of 12 iterations."""
    run = stand_in(tmp_path_factory.mktemp("stock") / "kaggle")
    config = with_hook(run)
    text = config.read_text().replace("seed=None", f"seed={SEED}")
    config.write_text(text)
    env = {**os.environ, "PYTHONPATH": str(config.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    target = run.root / "working" / "their_work_dir"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOCK, str(config), str(target), str(STOCK_ITERATIONS)],
        cwd=run.root / "input", env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def attach(run: StandIn, file: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Put one of their checkpoints below the inputs, changed where that is asked for."""
    folder = run.root / "input" / "old-run"
    folder.mkdir()
    if change is None:
        shutil.copy(file, folder)
        return
    state = torch.load(file, weights_only=False)
    change(state)
    torch.save(state, folder / file.name)


def newest(stock: Path) -> Path:
    return stock / f"iter_{STOCK_ITERATIONS}.pth"


def effective_seed(run: StandIn) -> int:
    found = re.search(r"randomness = dict\((?:.*, )?seed=(\d+)", run.work_dir.config.read_text())
    assert found is not None
    return int(found[1])


def test_a_stock_checkpoint_goes_on_with_its_seed_optimizer_schedule_and_hooks(
    stock: Path, tmp_path: Path
) -> None:
    run = stand_in(tmp_path / "kaggle")
    with_hook(run)
    attach(run, newest(stock))
    done = run.train("--resume", "require", "--expect-iteration", str(STOCK_ITERATIONS))
    assert done.returncode == 0, done.stdout + done.stderr
    record = run.record()
    assert (record.start_iteration, record.end_iteration) == (STOCK_ITERATIONS, MAX_ITERS)
    assert effective_seed(run) == SEED
    assert record.exactness["bitwise"] is False
    assert "stock mmengine" in " ".join(record.exactness["reasons"])

    resumed = run.events("resume")[0]
    assert f"iteration {STOCK_ITERATIONS}, optimizer state of" in resumed.data["verdict"]
    theirs = torch.load(newest(stock), weights_only=False)
    ours = run.checkpoint(MAX_ITERS)
    steps = {int(state["step"]) for state in ours["optimizer"]["state"].values()}
    assert steps == {MAX_ITERS}
    first = run.events("iteration")[0]
    # From 0.003 at iteration 5 down by equal steps; mmengine's PolyLR is at its end one step early.
    rates = [0.003 * (1 - step / (MAX_ITERS - 5 - 1)) for step in (1, 2)]
    assert theirs["optimizer"]["param_groups"][0]["lr"] == pytest.approx(rates[0])
    assert first.iteration == STOCK_ITERATIONS + 1
    assert first.data["lr"] == pytest.approx(rates[1])

    assert theirs["own_hook"]["count"] == STOCK_ITERATIONS
    assert ours["own_hook"]["count"] == MAX_ITERS
    assert ours["message_hub"]["runtime_info"]["own_count"] == MAX_ITERS
    assert torch.equal(ours["own_hook"]["last"], ours["state_dict"]["decode_head.conv_seg.bias"])


def test_a_stock_checkpoint_with_the_least_meta_goes_on_all_the_same(stock: Path, tmp_path: Path) -> None:
    def least(state: dict[str, Any]) -> None:
        state["meta"] = {name: state["meta"][name] for name in ("epoch", "iter")}
        state["message_hub"]["runtime_info"] = {}

    run = stand_in(tmp_path / "kaggle")
    with_hook(run)
    attach(run, newest(stock), least)
    done = run.train("--resume", "require")
    assert done.returncode == 0, done.stdout + done.stderr
    record = run.record()
    assert (record.start_iteration, record.end_iteration) == (STOCK_ITERATIONS, MAX_ITERS)
    assert effective_seed(run) == 0
    reasons = " ".join(record.exactness["reasons"])
    assert "stock mmengine" in reasons
    assert "does not say its seed" in reasons


def test_a_best_file_alone_is_refused(stock: Path, tmp_path: Path) -> None:
    run = stand_in(tmp_path / "kaggle")
    with_hook(run)
    attach(run, next(stock.glob("best_mIoU_iter_*.pth")))
    refused = run.train()
    assert refused.returncode == 3, refused.stdout + refused.stderr
    assert "--allow-weights-only" in refused.stderr


def test_a_best_file_alone_gives_its_weights_where_that_is_allowed_and_says_so(
    stock: Path, tmp_path: Path
) -> None:
    run = stand_in(tmp_path / "kaggle")
    with_hook(run)
    attach(run, next(stock.glob("best_mIoU_iter_*.pth")))
    done = run.train("--allow-weights-only", stop=2)
    assert done.returncode == 0, done.stdout + done.stderr
    record = run.record()
    assert (record.start_iteration, record.end_iteration) == (0, 2)
    assert run.events("resume") == []
    assert "weights" in done.stdout
    told = " ".join(event.data["message"] for event in run.events("warning"))
    assert "Weights only from" in told
    steps = {int(state["step"]) for state in run.checkpoint(2)["optimizer"]["state"].values()}
    assert steps == {2}
