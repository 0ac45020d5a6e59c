"""Memory that runs out inside a chosen phase of training, in a model of the *to rounding* class."""

from __future__ import annotations

import json
from typing import Any

from support.standin import StandIn

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

FAULTY = '''
"""A segmentor and an optimizer that run out of memory inside a chosen phase, once each."""
import json
import traceback
from pathlib import Path
import torch
from mmengine.logging import MessageHub
from mmengine.registry import OPTIMIZERS
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS

FOLDER = Path({folder!r})
# By phase: what mmengine gives for the iteration, which a validation at 12 has as 11; or "any".
PLAN = {plan!r}

def now():
    return int(MessageHub.get_current_instance().get_info("iter"))

def is_due(phase):
    marker = FOLDER / phase
    if PLAN.get(phase) not in (now(), "any") or marker.exists():
        return False
    marker.touch()
    return True

def is_measured():
    return any(frame.name == "measure" for frame in traceback.extract_stack(limit=16))

def full(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

@MODELS.register_module()
class Faulty(EncoderDecoder):
    def loss(self, inputs, data_samples):
        if is_measured():  # whether the device repeats: no part of training
            return super().loss(inputs, data_samples)
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
FAULTY_CONFIG = """
custom_imports["imports"].append("faulty")
model["type"] = "Faulty"
optim_wrapper = dict(optimizer=dict(type="FaultyAdamW"))
"""


def plant(run: StandIn, **plan: int | str) -> None:
    """Write the module that fails beside a stand-in's config; with no plan it fails nowhere."""
    folder, code = run.root / "faults", run.root / "code"
    for path in (folder, code):
        path.mkdir(exist_ok=True)
    for phase in plan:
        (folder / phase).unlink(missing_ok=True)
    (code / "faulty.py").write_text(FAULTY.format(folder=str(folder), plan=plan))


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


def come_to_pass(run: StandIn) -> list[str]:
    """Return the phases in which memory has run out since they were planted."""
    return sorted(path.name for path in (run.root / "faults").iterdir() if path.name != "seen.jsonl")
