"""A config from mmsegmentation's own zoo trains and resumes through the kit as it is."""

from __future__ import annotations

from pathlib import Path

import mmseg
import numpy as np
import pytest
from PIL import Image
from support.standin import StandIn, differences

from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.data.scenes import draw_scene

pytestmark = pytest.mark.slow

ZOO = Path(mmseg.__file__).parent / ".mim" / "configs"
# Only sizes: the zoo's schedule is 80,000 iterations at 512 x 512.
REDUCED = (
    "model.backbone.init_cfg=None",
    "model.pretrained=None",
    "model.backbone.depth=18",
    "model.data_preprocessor.size=(64,64)",
    "train_dataloader.dataset.pipeline.2.scale=(128,128)",
    "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
    "train_dataloader.batch_size=2",
    "val_dataloader.dataset.pipeline.1.scale=(128,128)",
    "default_hooks.logger.interval=2",
    "default_hooks.checkpoint.interval=4",
    "train_cfg.max_iters=8",
    "train_cfg.val_interval=4",
    "param_scheduler.0.end=8",
)


@pytest.fixture
def with_loveda_as_the_zoo_wants_it(tmp_path: Path) -> StandIn:
    """Mount scenes as ``img_dir/train``, ``ann_dir/train``, ...: under another name than the config's."""
    root = tmp_path / "kaggle"
    for name in ("input", "working", "temp"):
        (root / name).mkdir(parents=True)
    data = root / "input" / "some-owner-s-upload" / "converted"
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("img_dir", "ann_dir"):
            (data / kind / split).mkdir(parents=True)
        for index in range(count):
            image, mask = draw_scene(128, (int(split == "val"), index))
            Image.fromarray(image).save(data / "img_dir" / split / f"{index}.png")
            Image.fromarray(np.minimum(mask, 7)).save(data / "ann_dir" / split / f"{index}.png")
    return StandIn(root=root)


def test_pspnet_for_loveda_goes_on_where_it_was_cut(with_loveda_as_the_zoo_wants_it: StandIn) -> None:
    run = with_loveda_as_the_zoo_wants_it
    config = ZOO / "pspnet" / "pspnet_r18-d8_4xb4-80k_loveda-512x512.py"
    work_dir = run.root / "working" / "work_dirs" / config.stem
    arguments = [item for override in REDUCED for item in ("--set", override)]
    arguments += ["--threads", "1", "--session-limit", "10m", "--reserve", "10s"]

    first = run.run("train", config, *arguments)
    assert first.returncode == 0, first.stdout + first.stderr
    assert (work_dir / "iter_8.pth").is_file()

    # As if the session had died after iteration 4: that one and the data are all that is left.
    other = run.root / "working" / "elsewhere"
    again = run.run(
        "train", config, *arguments, "--resume", work_dir / "iter_4.pth", "--work-dir", other
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resume verified: iteration 4" in again.stdout
    assert (other / "iter_8.pth").is_file()

    assert differences(load_checkpoint(work_dir / "iter_8.pth"), load_checkpoint(other / "iter_8.pth")) == []
