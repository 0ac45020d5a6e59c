"""Two ranks train what one trains, survive the loss of one, and may come and go between sessions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from standin import StandIn, differences

pytestmark = pytest.mark.slow

HOOK = '''
"""Does harm to one rank only, once."""
import os, signal
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class OnOneRank(Hook):
    def __init__(self, rank, iteration, harm, marker):
        self.rank, self.iteration, self.harm, self.marker = rank, iteration, harm, Path(marker)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank != self.rank or runner.iter != self.iteration or self.marker.exists():
            return
        self.marker.touch()
        if self.harm == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError("a fault that was planted")
'''

# The design's class of models that may be split to rounding: no draw in the model, norms per sample.
TO_ROUNDING = """
model = dict(
    backbone=dict(drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0, embed_dims=8),
    decode_head=dict(
        in_channels=[8, 16, 32, 48], channels=16, dropout_ratio=0.0,
        norm_cfg=dict(type="GN", num_groups=4), loss_decode=dict(avg_non_ignore=True),
    ),
    data_preprocessor=dict(size=(64, 64)),
)
"""


def harming(run: StandIn, *, rank: int, iteration: int, harm: str) -> str:
    """Return config lines that do harm to one rank, once."""
    (run.root / "code").mkdir(exist_ok=True)
    (run.root / "code" / "on_one_rank.py").write_text(HOOK)
    options = {"rank": rank, "iteration": iteration, "harm": harm, "marker": str(run.root / "harmed")}
    return (
        'custom_imports = dict(imports=["at_iteration", "on_one_rank"], allow_failed_imports=False)\n'
        f'custom_hooks += [dict(type="OnOneRank", **{options!r})]\n'
    )


def stand_in(root: Path, extra: str = "") -> StandIn:
    return StandIn.with_scenes(root, val=3, max_iters=12, val_interval=5, extra=extra)


def weights(run: StandIn) -> torch.Tensor:
    state = run.checkpoint(12)["state_dict"]
    return torch.cat([state[name].double().reshape(-1) for name in sorted(state)])


def test_a_rank_that_is_killed_costs_nothing_but_time(tmp_path: Path) -> None:
    whole = stand_in(tmp_path / "whole")
    done = whole.train("--cpu-ranks", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    run = stand_in(tmp_path / "killed")
    done = run.train("--cpu-ranks", "2", config_extra=harming(run, rank=1, iteration=7, harm="kill"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.record().stop_reason == "completed"
    assert len(run.events("restart")) == 1
    assert [event.iteration for event in run.events("resume")] == [5]
    assert sorted(event.data["rank"] for event in run.events("start")) == [0, 0, 1, 1]
    # BatchNorm's running figures too: they do not depend on when a checkpoint was written.
    assert differences(whole.checkpoint(12), run.checkpoint(12)) == []


def test_one_two_one_ranks_and_smaller_micro_batches_equal_one_to_rounding(tmp_path: Path) -> None:
    whole = stand_in(tmp_path / "whole", TO_ROUNDING)
    done = whole.train()
    assert done.returncode == 0, done.stdout + done.stderr

    run = stand_in(tmp_path / "cut", TO_ROUNDING)
    assert run.train(stop=3).returncode == 0
    run.hand_over("first")
    harm = harming(run, rank=1, iteration=6, harm="memory")
    done = run.train("--cpu-ranks", "2", config_extra=harm, stop=8)
    assert done.returncode == 0, done.stdout + done.stderr
    record = run.record()
    assert record.learned["micro_batch"] == 1
    assert record.exactness["split"] == []
    assert "equal to rounding" in record.exactness["reasons"][0]
    assert [event.data["kind"] for event in run.events("restart")] == ["memory"]
    run.hand_over("second")
    done = run.train()
    assert done.returncode == 0, done.stdout + done.stderr

    expected, actual = weights(whole), weights(run)
    start_to_end = float(expected.norm())
    assert float((actual - expected).norm()) / start_to_end < 1e-5
    assert {"per_class", "confusion"} <= run.events("validation")[0].data.keys()
