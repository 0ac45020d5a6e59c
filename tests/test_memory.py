"""Memory faults raised from inside each phase of training, and what becomes of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from standin import StandIn
from test_ranks import TO_ROUNDING

pytestmark = pytest.mark.slow

MAX_ITERS, VAL_INTERVAL = 14, 6

FAULTY = '''
"""A segmentor and an optimizer that run out of memory inside a chosen phase, once each."""
import json
from pathlib import Path
import torch
from mmengine.logging import MessageHub
from mmengine.registry import OPTIMIZERS
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS

FOLDER = Path({folder!r})
PLAN = {plan!r}  # by phase: what mmengine gives for the iteration, which a validation at 12 has as 11

def now():
    return int(MessageHub.get_current_instance().get_info("iter"))

def is_due(phase):
    marker = FOLDER / phase
    if PLAN.get(phase) != now() or marker.exists():
        return False
    marker.touch()
    return True

def full(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

@MODELS.register_module()
class Faulty(EncoderDecoder):
    def loss(self, inputs, data_samples):
        seen = [(Path(s.img_path).name, float(i.double().sum())) for s, i in zip(data_samples, inputs)]
        with (FOLDER / "seen.jsonl").open("a") as stream:
            stream.write(json.dumps(dict(iteration=now(), images=seen)) + "\\n")
        losses = super().loss(inputs, data_samples)
        if is_due("forward"):
            full()
        if is_due("backward"):
            # Where the gradient arrives at the head: those behind it have been added already.
            self.backbone_output.register_hook(full)
        return losses

    def extract_feat(self, inputs):
        features = super().extract_feat(inputs)
        self.backbone_output = features[-1]
        return features

    def predict(self, inputs, data_samples=None):
        if is_due("validation"):
            full()
        return super().predict(inputs, data_samples)

@OPTIMIZERS.register_module()
class FaultyAdamW(torch.optim.AdamW):
    def step(self, closure=None):
        if is_due("step"):
            # Half of the weights have taken their step when memory runs out.
            for group in self.param_groups[: len(self.param_groups) // 2]:
                for parameter in group["params"]:
                    parameter.data.add_(1.0)
            raise MemoryError
        return super().step(closure)
'''
CONFIG = """
custom_imports["imports"].append("faulty")
model["type"] = "Faulty"
optim_wrapper = dict(optimizer=dict(type="FaultyAdamW"))
"""


def stand_in(root: Path, **plan: int) -> StandIn:
    run = StandIn.with_scenes(
        root, max_iters=MAX_ITERS, val_interval=VAL_INTERVAL, size=96, extra=TO_ROUNDING + CONFIG
    )
    folder = root / "faults"
    folder.mkdir()
    (root / "code").mkdir()
    (root / "code" / "faulty.py").write_text(FAULTY.format(folder=str(folder), plan=plan))
    return run


def samples(run: StandIn) -> dict[int, list[Any]]:
    """Return what each iteration was trained on in its last attempt: file and augmented content."""
    seen: dict[int, list[list[Any]]] = {}
    for line in (run.root / "faults" / "seen.jsonl").read_text().splitlines():
        entry = json.loads(line)
        seen.setdefault(entry["iteration"], []).append(entry["images"])
    # An attempt that failed, and those before a restart, are followed by the whole batch once more.
    return {
        iteration: [image for images in parts for image in images][-4:] for iteration, parts in seen.items()
    }


def weights(run: StandIn) -> Any:
    import torch

    state = run.checkpoint(MAX_ITERS)["state_dict"]
    return torch.cat([state[name].double().reshape(-1) for name in sorted(state)])


def test_memory_that_runs_out_in_any_phase_costs_a_rung_and_nothing_else(tmp_path: Path) -> None:
    whole = stand_in(tmp_path / "whole")
    done = whole.train()
    assert done.returncode == 0, done.stdout + done.stderr

    run = stand_in(tmp_path / "faulty", forward=3, backward=7, step=9, validation=11)
    done = run.train()
    assert done.returncode == 0, done.stdout + done.stderr

    restarts = run.events("restart")
    failures = run.events("failure")
    assert [event.data["kind"] for event in restarts] == ["memory"] * 4
    assert [event.data["stage"] for event in failures] == ["training"] * 3 + ["validation"]
    for event, within in zip(failures, ("in loss", "in full", "in step", "in predict"), strict=True):
        assert within in event.data["trace"]
    # Each child's own word says with which rung it went on.
    rungs = ("2 image(s)", "1 image(s)", "with_cp", "in validation: going on with one image at a time")
    for event, rung in zip(restarts, rungs, strict=True):
        assert rung in event.data["message"]
    record = run.record()
    learned = {name: record.learned.get(name) for name in ("micro_batch", "with_cp", "validation_rung")}
    assert learned == {"micro_batch": 1, "with_cp": True, "validation_rung": 1}
    # The backward fault came at 7, after a validation at 6; nothing of its half-done iteration was kept.
    assert [event.iteration for event in run.events("resume")] == [6, 6, 12]
    assert record.stop_reason == "completed"

    assert samples(run) == samples(whole)
    expected, actual = weights(whole), weights(run)
    assert float((actual - expected).norm() / expected.norm()) < 1e-5
    scores = [
        {event.iteration: event.data["metrics"]["mIoU"] for event in item.events("validation")}
        for item in (whole, run)
    ]
    assert scores[1] == pytest.approx(scores[0], abs=0.05)
