"""A generator that was forgotten would be noticed: each is broken in turn, and the comparison fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.children import Children, DirectRun
from support.standin import StandIn, differences

pytestmark = pytest.mark.slow

ITERATIONS = 6
CUT = 3

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
BREAK = """
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

CONFIG = f"""
custom_imports["imports"] += ["draws_from_all", "break_one"]
model["decode_head"]["type"] = "DrawingHead"
train_dataloader["dataset"]["pipeline"].insert(-1, dict(type="DrawFromAll"))
# One worker: in the main process the generators of a step and of a sample would stand in for each other.
train_dataloader["num_workers"] = 1
train_dataloader["persistent_workers"] = True
default_hooks["checkpoint"]["interval"] = {CUT}
"""


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as running:
        yield running


def trained(children: Children, root: Path, broken: str, start: Path | None = None) -> StandIn:
    """Return a run that went to the end, from the start or from a checkpoint."""
    run = StandIn.with_scenes(root, max_iters=ITERATIONS, val_interval=ITERATIONS, size=64)
    config = run.config(extra=CONFIG)
    (config.parent / "draws_from_all.py").write_text(DRAWS)
    (config.parent / "break_one.py").write_text(BREAK + BREAKS[broken])
    if start is not None:
        run.work_dir.path.mkdir(parents=True)
        shutil.copy(start, run.work_dir.path)
    code = DirectRun(run, children).train(config)
    assert code == 0, run.work_dir.log.read_text()
    return run


@pytest.mark.parametrize("broken", BREAKS)
def test_only_an_unbroken_run_that_goes_on_equals_one_that_was_not_cut(
    children: Children, tmp_path: Path, broken: str
) -> None:
    whole = trained(children, tmp_path / "whole", broken)
    cut = trained(children, tmp_path / "cut", broken, start=whole.work_dir.path / f"iter_{CUT}.pth")
    assert [event.iteration for event in cut.events("resume")] == [CUT]
    found = differences(whole.checkpoint(ITERATIONS), cut.checkpoint(ITERATIONS))
    assert (found == []) == (broken == "nothing"), found
