"""What comes after training works for a user who may write nowhere but into two folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.models import write_model
from support.standin import REPOSITORY

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config

DEMO = REPOSITORY / "configs" / "demo.py"
SMALL = ("model.backbone.embed_dims=8", "model.decode_head.in_channels=[8,16,32,48]")
NOBODY = 65534


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    cfg = for_inference(read_config(DEMO, SMALL), {})
    cfg.model.decode_head.loss_decode.avg_non_ignore = True  # else mmsegmentation warns
    write_model(cfg, folder / "iter_8.pth", seed=1)
    Image.fromarray(np.random.RandomState(1).randint(0, 256, (64, 64, 3), np.uint8)).save(folder / "tile.png")
    return folder


def as_another_user() -> list[str]:
    """Return what runs a command as a user who may read everything and write nothing of ours."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root needs setpriv (util-linux) to become another user")
    reads = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *reads]


@pytest.mark.slow(scope_s=40)
@pytest.mark.parametrize(
    ("command", "made"), [("predict", "masks/tile.png"), ("export", "model.safetensors")]
)
def test_another_user_can_run(tmp_path: Path, run: Path, command: str, made: str) -> None:
    given = {"predict": ["tile.png"], "export": ["--form", "safetensors", "--images", "tile.png"]}[command]
    own = [tmp_path / "tmp", tmp_path / "own"]
    for folder in own:
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
    environ = {name: value for name, value in os.environ.items() if name != "MAPSAGE_KAGGLE_ROOT"}
    environ |= {"TMPDIR": str(own[0]), "HOME": "/nowhere", "PYTHONPATH": str(REPOSITORY)}
    sets = [word for item in SMALL for word in ("--set", item)]
    arguments = [command, str(DEMO), "iter_8.pth", *given, "--out", str(own[1] / "out"), *sets]

    done = subprocess.run(
        [*as_another_user(), sys.executable, "-m", "mapsage_kaggle", *arguments],
        cwd=run, env=environ, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert (own[1] / "out" / made).is_file()
    assert [path.name.rpartition("-")[0] for path in own[0].iterdir()] == ["mapsage-kaggle"]
