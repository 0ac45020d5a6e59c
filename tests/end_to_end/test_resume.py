"""A run that is resumed goes on as if it had not been cut: from every cut and with everything that draws."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.children import Children, DirectRun
from support.standin import StandIn, differences

from mapsage_kaggle.clock import boot_time_s
from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.records import ACTIVITIES

# Two images are left over in each epoch of six: the epochs end at 1.5, 3, 4.5, ... iterations.
SHORT, VAL_INTERVAL = 8, 3

OTHER_WORKERS = [(0, False), (1, True), (3, True), (1, False), (3, False)]

CUTS = [(cut, *OTHER_WORKERS[(cut - 1) % len(OTHER_WORKERS)]) for cut in range(1, SHORT)]
TRIED_EACH_TIME = 4
"""Of the cuts; the soak tries the others as well."""

SHORTEST = 6

HALF = 3

# Each generator of each domain decides something that a comparison can see.
DRAWS = '''
"""A transform and a head that draw from every generator."""
import random
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmseg.models.decode_heads import SegformerHead
from mmseg.registry import MODELS, TRANSFORMS

@TRANSFORMS.register_module()
class DrawFromAll(BaseTransform):
    def transform(self, results):
        draws = random.random(), np.random.random(), float(torch.rand(()))
        image = results["img"].astype(np.float32)
        for channel, draw in enumerate(draws):
            image[..., channel] += 20 * draw
        results["img"] = image
        return results

@MODELS.register_module()
class DrawingHead(SegformerHead):
    def forward(self, inputs):
        noise = random.random() + np.random.random()
        return super().forward(inputs) * (1 + 0.1 * noise)
'''

# A generator that nobody seeds runs on from whatever was drawn before.
BROKEN_EACH_TIME = ("nothing", "order", "sample: numpy", "step: torch")
BREAKS = {
    "nothing": "",
    "order": """
sampling.permutation = lambda seed, epoch, length, walk=np.random.RandomState(1): walk.permutation(length)
""",
    "sample: python": "leave_out('seed_sample', random.getstate, random.setstate)",
    "sample: numpy": "leave_out('seed_sample', np.random.get_state, np.random.set_state)",
    "sample: torch": "leave_out('seed_sample', torch.get_rng_state, torch.set_rng_state)",
    "step: python": "leave_out('seed_step', random.getstate, random.setstate)",
    "step: numpy": "leave_out('seed_step', np.random.get_state, np.random.set_state)",
    "step: torch": "leave_out('seed_step', torch.get_rng_state, torch.set_rng_state)",
}

BREAK_ONE = """
import random
import numpy as np
import torch
from mapsage_kaggle.engine import sampling, seeding

def leave_out(name, get, put):
    seed = getattr(seeding, name)
    def seed_all_but_one(*arguments):
        state = get()
        seed(*arguments)
        put(state)
    setattr(seeding, name, seed_all_but_one)

"""

DRAWING_CONFIG = f"""
custom_imports["imports"] += ["draws_from_all", "break_one"]
model["decode_head"]["type"] = "DrawingHead"
train_dataloader["dataset"]["pipeline"].insert(-1, dict(type="DrawFromAll"))
# One worker: in the main process the generators of a step and of a sample would stand in for each other.
train_dataloader["num_workers"] = 1
train_dataloader["persistent_workers"] = True
default_hooks["checkpoint"]["interval"] = {HALF}
"""

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

COUNTING_HOOK = '''
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


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as running:
        yield running


def train_from(children: Children, root: Path, start: Path | None, workers: int, persistent: bool) -> StandIn:
    """Return a run that went to its end, from the start or from a checkpoint, on four cores."""
    run = StandIn.with_scenes(root, max_iters=SHORT, val_interval=VAL_INTERVAL, size=64)
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


def trained(children: Children, root: Path, broken: str, start: Path | None = None) -> StandIn:
    """Return a run that went to the end, from the start or from a checkpoint."""
    run = StandIn.with_scenes(root, max_iters=SHORTEST, val_interval=SHORTEST, size=64)
    config = run.config(extra=DRAWING_CONFIG)
    (config.parent / "draws_from_all.py").write_text(DRAWS)
    (config.parent / "break_one.py").write_text(BREAK_ONE + BREAKS[broken])
    if start is not None:
        run.work_dir.path.mkdir(parents=True)
        shutil.copy(start, run.work_dir.path)
    code = DirectRun(run, children).train(config)
    assert code == 0, run.work_dir.log.read_text()
    return run


def stand_in(root: Path) -> StandIn:
    return StandIn.with_scenes(root, max_iters=MAX_ITERS, val_interval=STOCK_ITERATIONS, extra=OWN_DATA)


def with_hook(run: StandIn) -> Path:
    config = run.config()
    (config.parent / "keeps_count.py").write_text(COUNTING_HOOK)
    return config


def attach_file(run: StandIn, file: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Put one of their checkpoints below the inputs, changed where that is asked for."""
    folder = run.root / "input" / "old-run"
    folder.mkdir()
    if change is None:
        shutil.copy(file, folder)
        return
    state = torch.load(file, weights_only=False)
    change(state)
    torch.save(state, folder / file.name)


def newest_of(stock: Path) -> Path:
    return stock / f"iter_{STOCK_ITERATIONS}.pth"


def effective_seed(run: StandIn) -> int:
    found = re.search(r"randomness = dict\((?:.*, )?seed=(\d+)", run.work_dir.config.read_text())
    assert found is not None
    return int(found[1])


@pytest.fixture(scope="class")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """Return a run of 24 iterations in one go, without data workers."""
    run = StandIn.with_scenes(tmp_path_factory.mktemp("whole"), cold=True)
    done = run.train(workers=0)
    assert done.returncode == 0, done.stdout + done.stderr
    config = run.work_dir.config.read_text()
    assert all(
        name in config for name in ("MapsageFastPipeline", "MapsageMixVisionTransformer", "fused=True")
    )
    return run


@pytest.mark.slow(scope_s=55)
class TestSessions:
    """A run that was cut equals the run that was not, bit for bit."""

    def test_three_sessions_with_other_numbers_of_workers_equal_one(
        self, uninterrupted: StandIn, tmp_path: Path
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

    def test_a_run_that_was_killed_equals_one_that_was_not(
        self, uninterrupted: StandIn, tmp_path: Path
    ) -> None:
        run = StandIn.with_scenes(tmp_path / "killed")
        done = run.train(workers=1, kill=14, once=str(tmp_path / "done"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(run.events("restart")) == 1
        assert [event.iteration for event in run.events("resume")] == [10]
        assert differences(uninterrupted.checkpoint(24), run.checkpoint(24)) == []

    def test_a_run_that_began_with_stock_parts_goes_on_with_faster_ones(
        self, uninterrupted: StandIn, tmp_path: Path
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

    def test_the_times_of_a_session_add_up_to_its_wall_time(self, uninterrupted: StandIn) -> None:
        record = uninterrupted.record()
        times = record.timings_s
        assert set(times) == {*ACTIVITIES, "other", "session"}
        assert all(times[name] > 0.0 for name in times)
        # Had a second been counted twice, there would be more of them than the session had.
        assert sum(times[name] for name in (*ACTIVITIES, "other")) == pytest.approx(
            times["session"], abs=0.01
        )
        assert record.ended_s is not None
        assert times["session"] == pytest.approx(record.ended_s - record.started_s, abs=0.5)
        began, stopped = uninterrupted.events("training")[0].time_s, uninterrupted.events("stop")[0].time_s
        assert times["start_up"] >= began - record.started_s - 0.5  # and the data workers' start
        steps = times["forward_backward"] + times["optimizer"]
        told = sum(times[name] for name in ("waiting_for_data", "saving", "validation")) + steps
        assert told <= stopped - began + 0.5


@pytest.fixture(scope="class")
def whole(children: Children, tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return train_from(
        children, tmp_path_factory.mktemp("whole") / "kaggle", None, workers=0, persistent=False
    )


@pytest.mark.slow(scope_s=35)
class TestCutAnywhere:
    """Wherever a run is cut, and however many data workers go on with it, it ends as if it had not been."""

    @pytest.mark.parametrize(
        ("cut", "workers", "persistent"),
        [
            *CUTS[:TRIED_EACH_TIME],
            *(pytest.param(*cut, marks=pytest.mark.soak) for cut in CUTS[TRIED_EACH_TIME:]),
        ],
    )
    def test_a_run_cut_anywhere_equals_the_uncut_one(
        self, children: Children, whole: StandIn, tmp_path: Path, cut: int, workers: int, persistent: bool
    ) -> None:
        start = whole.work_dir.path / f"iter_{cut}.pth"
        run = train_from(children, tmp_path / "kaggle", start, workers, persistent)
        assert [event.iteration for event in run.events("resume")] == [cut]
        found = differences(whole.checkpoint(SHORT), run.checkpoint(SHORT))
        # The best checkpoint before was not handed over: its score is none to beat.
        assert [line for line in found if not line.startswith(("best_score", "best_ckpt"))] == []

    @pytest.mark.parametrize("start", [0, 1])
    def test_a_child_that_begins_when_time_is_up_trains_nothing(
        self, children: Children, whole: StandIn, tmp_path: Path, start: int
    ) -> None:
        run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=SHORT, val_interval=VAL_INTERVAL, size=64)
        config = run.config()
        run.work_dir.path.mkdir(parents=True)
        if start:
            shutil.copy(whole.work_dir.path / f"iter_{start}.pth", run.work_dir.path)
        code = DirectRun(run, children).train(config, clock_started_s=boot_time_s() - 1000.0)
        assert code == 0, run.work_dir.log.read_text()
        assert run.events("iteration") == []
        (stop,) = run.events("stop")
        assert (stop.iteration, stop.data["reason"]) == (start, "deadline")
        assert (
            sorted(path.name for path in run.work_dir.path.glob("iter_*.pth"))
            == [f"iter_{start}.pth"][:start]
        )


@pytest.mark.slow(scope_s=40)
class TestForgottenGenerators:
    """A generator that was forgotten would be noticed: each is broken in turn, and the comparison fails."""

    @pytest.mark.parametrize(
        "broken",
        [name if name in BROKEN_EACH_TIME else pytest.param(name, marks=pytest.mark.soak) for name in BREAKS],
    )
    def test_only_an_unbroken_run_that_goes_on_equals_one_that_was_not_cut(
        self, children: Children, tmp_path: Path, broken: str
    ) -> None:
        whole = trained(children, tmp_path / "whole", broken)
        cut = trained(children, tmp_path / "cut", broken, start=whole.work_dir.path / f"iter_{HALF}.pth")
        assert [event.iteration for event in cut.events("resume")] == [HALF]
        found = differences(whole.checkpoint(SHORTEST), cut.checkpoint(SHORTEST))
        assert (found == []) == (broken == "nothing"), found


@pytest.fixture(scope="class")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the work dir of mmengine's own Runner after 6 of 12 iterations."""
    run = stand_in(tmp_path_factory.mktemp("stock") / "kaggle")
    config = with_hook(run)
    text = config.read_text().replace("seed=None", f"seed={SEED}")
    config.write_text(text)
    env = {
        **os.environ,
        "PYTHONPATH": str(config.parent),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    target = run.root / "working" / "their_work_dir"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOCK, str(config), str(target), str(STOCK_ITERATIONS)],
        cwd=run.root / "input", env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.mark.slow(scope_s=35)
class TestStockCheckpoints:
    """Checkpoints that stock mmengine made go on with all that can be kept, and what cannot is said."""

    def test_a_stock_checkpoint_goes_on_with_its_seed_optimizer_schedule_and_hooks(
        self, stock: Path, tmp_path: Path
    ) -> None:
        run = stand_in(tmp_path / "kaggle")
        with_hook(run)
        attach_file(run, newest_of(stock))
        done = run.train("--resume", "require", "--expect-iteration", str(STOCK_ITERATIONS))
        assert done.returncode == 0, done.stdout + done.stderr
        record = run.record()
        assert (record.start_iteration, record.end_iteration) == (STOCK_ITERATIONS, MAX_ITERS)
        assert effective_seed(run) == SEED
        assert record.exactness.bitwise is False
        assert "stock mmengine" in " ".join(record.exactness.reasons)

        resumed = run.events("resume")[0]
        assert f"iteration {STOCK_ITERATIONS}, optimizer state of" in resumed.data["verdict"]
        theirs = torch.load(newest_of(stock), weights_only=False)
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

    def test_a_stock_checkpoint_with_the_least_meta_goes_on_all_the_same(
        self, stock: Path, tmp_path: Path
    ) -> None:
        def least(state: dict[str, Any]) -> None:
            state["meta"] = {name: state["meta"][name] for name in ("epoch", "iter")}
            state["message_hub"]["runtime_info"] = {}

        run = stand_in(tmp_path / "kaggle")
        with_hook(run)
        attach_file(run, newest_of(stock), least)
        done = run.train("--resume", "require")
        assert done.returncode == 0, done.stdout + done.stderr
        record = run.record()
        assert (record.start_iteration, record.end_iteration) == (STOCK_ITERATIONS, MAX_ITERS)
        assert effective_seed(run) == 0
        reasons = " ".join(record.exactness.reasons)
        assert "stock mmengine" in reasons
        assert "does not say its seed" in reasons

    def test_a_best_file_alone_is_refused(self, stock: Path, tmp_path: Path) -> None:
        run = stand_in(tmp_path / "kaggle")
        with_hook(run)
        attach_file(run, next(stock.glob("best_mIoU_iter_*.pth")))
        refused = run.train()
        assert refused.returncode == 3, refused.stdout + refused.stderr
        assert "--allow-weights-only" in refused.stderr

    def test_a_best_file_alone_gives_its_weights_where_that_is_allowed_and_says_so(
        self, stock: Path, tmp_path: Path
    ) -> None:
        run = stand_in(tmp_path / "kaggle")
        with_hook(run)
        attach_file(run, next(stock.glob("best_mIoU_iter_*.pth")))
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
