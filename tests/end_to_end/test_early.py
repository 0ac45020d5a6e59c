"""A run that a hook ends before its last iteration, over sessions."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.standin import StandIn

from mapsage_kaggle.checkpoints.inspect import inspect

pytestmark = pytest.mark.slow

PLANTED = """
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

@METRICS.register_module()
class Worse(BaseMetric):
    times = 0

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        Worse.times += 1
        return {"mIoU": 50.0 - Worse.times}
"""
EXTRA = """
custom_imports["imports"].append("planted")
val_evaluator = dict(_delete_=True, type="Worse")
custom_hooks.append(dict(type="EarlyStoppingHook", monitor="mIoU", rule="greater", patience=3))
"""


def test_early_stopping_counts_over_sessions_and_its_checkpoint_says_so(tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", train=4, val=1, size=64, max_iters=12, val_interval=1)
    run.config()
    (run.root / "code" / "planted.py").write_text(PLANTED)
    # Its first score, 49, is the best; the second session, which owes one, has 49, 48 and 47.
    first = run.train("--gpus", "0", config_extra=EXTRA, stop=2)
    assert run.record().stop_reason == "user", first.stdout + first.stderr
    second = run.train("--gpus", "0", config_extra=EXTRA)
    record = run.record()
    assert (record.stop_reason, record.exit_code) == ("early", 0), second.stdout + second.stderr
    assert (record.start_iteration, record.end_iteration, record.max_iters) == (2, 4, 12)
    assert record.message.startswith("Stopped early at 4 of 12 by EarlyStoppingHook: the monitored metric")
    assert "--extend-to 12" in second.stdout
    assert inspect(run.work_dir.path / "iter_4.pth").stopped_by == record.message.partition(" by ")[2][:-1]
