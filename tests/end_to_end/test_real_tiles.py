"""The chain on real input: LoveDA tiles of 1024 x 1024 through the real config's own pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.standin import REPOSITORY, StandIn

pytestmark = pytest.mark.soak

# A small MiT in place of B2, and short schedules; data, pipeline and loop are those of the real config.
SMALL = """
model["data_preprocessor"] = dict(size=(512, 512))
model["backbone"].update(init_cfg=None, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 4, 6])
train_dataloader.pop("dataset")  # so that it is the real one
train_dataloader.update(batch_size=2, num_workers=1, persistent_workers=True)
"""


def lay_out(tiles: Path, root: Path, *, train: tuple[int, ...], val: tuple[int, ...]) -> None:
    """Mount some of the tiles as EarthVQA's splits."""
    for split, names in (("Train", train), ("Val", val)):
        for kind in ("images_png", "masks_png"):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for name in names:
                shutil.copyfile(tiles / kind / f"{name}.png", folder / f"{name}.png")


def test_three_sessions_on_real_tiles_are_one_run(loveda: Path, tmp_path: Path) -> None:
    root = tmp_path / "kaggle"
    for name in ("input", "working", "temp"):
        (root / name).mkdir(parents=True)
    data = root / "input" / "datasets" / "alice" / "earthvqa" / "EarthVQA"
    lay_out(loveda, data, train=(0,), val=(1,))
    base = REPOSITORY / "configs" / "train_earthvqa_kaggle.py"
    run = StandIn(root=root, max_iters=9, val_interval=4, base=base, extra=SMALL)

    first = run.train(stop=3)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Pretrained" not in first.stdout
    run.hand_over("first-output")

    second = run.train(stop=6)
    assert second.returncode == 0, second.stdout + second.stderr
    assert [event.iteration for event in run.events("resume")] == [3]
    scores = run.events("validation")
    assert [event.iteration for event in scores] == [4]
    assert set(scores[0].data["per_class"]) >= {"background", "building", "road", "water"}
    run.hand_over("notebooks/alice/second")

    # From now on both tiles are trained on, and both are validated.
    shutil.rmtree(data)
    lay_out(loveda, data, train=(0, 1), val=(0, 1))
    third = run.train("--resume", "require", "--expect-iteration", "6", workers=1)
    assert third.returncode == 0, third.stdout + third.stderr
    record = run.record()
    assert (record.stop_reason, record.session_index, record.end_iteration) == ("completed", 3, 9)
    assert [event.iteration for event in run.events("validation")] == [8, 9]
    assert record.best is not None and record.best.metric == "mIoU"
