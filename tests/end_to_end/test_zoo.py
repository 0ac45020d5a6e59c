"""Configs of mmsegmentation's own zoo, as they are but for sizes: trained, cut, gone on with, handed on."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.standin import StandIn, differences
from support.zoo import CUT, ITERATIONS, config_of, mount, reduced

from mapsage_kaggle.checkpoints.load import load_checkpoint

PSPNET = "pspnet_r18-d8_4xb4-80k_loveda-512x512"
FAMILIES = (
    PSPNET,
    "fcn_hr18s_4xb2-40k_cityscapes-512x1024",
    "segmenter_vit-t_mask_8xb1-160k_ade20k-512x512",
    "segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512",
    "unet-s5-d16_fcn_4xb4-40k_drive-64x64",
    "pidnet-s_2xb6-120k_1024x1024-cityscapes",
    "bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024",
    "fast_scnn_8xb4-160k_cityscapes-512x1024",
)
EXPORTED = {
    PSPNET: "onnx",
    "segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512": "torch",
    "unet-s5-d16_fcn_4xb4-40k_drive-64x64": "torch",
}
"""With the form that is tried here; all of them take minutes."""

READ_BASE = """
from mmengine.config import read_base

with read_base():
    from .base import *

train_cfg.update(max_iters=6, val_interval=3)
"""


@dataclass(frozen=True)
class Zoo:
    """One config in a stand-in of its own, with its data mounted under another name than the config's."""

    run: StandIn
    config: Path
    sizes: tuple[str, ...] = ()

    @property
    def work_dir(self) -> Path:
        return self.run.root / "working" / "work_dirs" / self.config.stem

    @property
    def image(self) -> Path:
        images = (self.run.root / "input").rglob("val_dataloader_0*")
        return min((path for path in images if pixels(path).ndim == 3), key=str)

    def command(self, *arguments: str | Path) -> str:
        words = [*arguments, *self.sizes, "--threads", "1"]
        done = self.run.run(*words, timeout_s=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def train(self, *more: str | Path) -> str:
        limits = ("--session-limit", "20m", "--reserve", "10s", "--save-every", "0")
        return self.command("train", self.config, *limits, *more)

    def goes_on_where_it_was_cut(self) -> list[str]:
        """Train to the end, then again from the middle, and return where the two ends differ."""
        self.train()
        # As if the session had died in the middle: that checkpoint and the data are all that is left.
        other = self.run.root / "working" / "elsewhere"
        said = self.train("--resume", self.work_dir / f"iter_{CUT}.pth", "--work-dir", other)
        assert f"resume verified: iteration {CUT}" in said
        ends = [load_checkpoint(folder / f"iter_{ITERATIONS}.pth") for folder in (self.work_dir, other)]
        return differences(*ends)


def small(name: str, root: Path) -> Zoo:
    config = config_of(name)
    return Zoo(run=laid_out(config, root), config=config, sizes=tuple(reduced(config)))


def laid_out(config: Path, root: Path) -> StandIn:
    for name in ("input", "working", "temp"):
        (root / name).mkdir(parents=True)
    mount(config, root / "input")
    return StandIn(root=root)


@pytest.mark.slow(scope_s=60)
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in EXPORTED])
def test_a_family_goes_on_bit_for_bit_where_it_was_cut(name: str, tmp_path: Path) -> None:
    assert small(name, tmp_path / "kaggle").goes_on_where_it_was_cut() == []


@pytest.mark.soak
@pytest.mark.parametrize("name", EXPORTED)
def test_a_family_is_evaluated_alike_twice_and_exported_with_code_that_predicts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = small(name, tmp_path / "kaggle")
    assert zoo.goes_on_where_it_was_cut() == []
    checkpoint = zoo.work_dir / f"iter_{ITERATIONS}.pth"

    scores = []
    for _ in range(2):
        scores.append(zoo.command("evaluate", zoo.config, checkpoint, "--json"))
        shutil.rmtree(zoo.work_dir / "evaluation")  # else it goes on with what was counted
    assert scores[0] == scores[1]

    masks = [predicted(zoo, checkpoint, tmp_path / folder) for folder in ("once", "twice")]
    assert np.array_equal(*masks)

    out = tmp_path / "export"
    zoo.command("export", zoo.config, checkpoint, "--out", out, "--form", EXPORTED[name])
    assert (out / "model.safetensors").is_file()
    card = (out / "README.md").read_text()
    (code,) = [item for item in re.findall(r"```python\n(.*?)```", card, re.S) if "def ask" in item]
    Image.fromarray(pixels(zoo.image)).save(tmp_path / "tile.png")
    for file in [*out.glob("*.onnx"), *out.glob("*.pt2")]:
        os.link(file, tmp_path / file.name)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)  # as the card has it
    assert (found["mask"] == masks[0]).mean() > 0.999


def predicted(zoo: Zoo, checkpoint: Path, out: Path) -> Any:
    zoo.command("predict", zoo.config, checkpoint, zoo.image, "--out", out)
    (mask,) = out.rglob("*.png")
    return pixels(mask)


def pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.soak
def test_a_config_with_read_base_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    source = Path(__file__).parents[1] / "support" / "read_base.py"
    (folder / "base.py").write_text(source.read_text())
    (folder / "mine.py").write_text(READ_BASE)
    run = laid_out(config_of(PSPNET), tmp_path / "kaggle")
    assert Zoo(run=run, config=folder / "mine.py").goes_on_where_it_was_cut() == []
