"""Sessions on a data set that the kit knows only by its config."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from support.fields import PIPELINE, any_image, any_mask, fields

from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.report import outcome_panel, write_report

pytestmark = pytest.mark.slow(scope_s=60)


def test_masks_in_colours_end_a_session_before_it_trains(tmp_path: Path) -> None:
    run = fields(tmp_path / "kaggle", mask=lambda number: np.repeat(any_mask(number)[..., None], 3, axis=2))
    done = run.train("--gpus", "0")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "ann/train/0.png is a picture in colours" in done.stderr
    record = run.record()
    assert (record.stop_reason, record.exit_code, record.end_iteration) == ("refused", 2, 0)
    assert run.events("iteration") == run.events("restart") == []


def test_images_in_capitals_are_trained_on_by_the_line_of_the_refusal(tmp_path: Path) -> None:
    """Of the classes two have no pixel to validate on, which stands beside the best score."""
    run = fields(
        tmp_path / "kaggle",
        suffix=".PNG",
        mask=lambda number: any_mask(number) // (2 if number > 3 else 1),
    )
    refused = run.train("--gpus", "0")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "No file in" in refused.stderr
    line = refused.stderr.partition("Name the suffix: ")[2].partition(" The whole log")[0]
    done = run.train("--gpus", "0", *shlex.split(line))
    assert done.returncode == 0, done.stdout + done.stderr
    unseen = "; no pixel of validation is maize, path"
    (best,) = [line for line in done.stdout.splitlines() if line.startswith("Best mIoU")]
    assert best.endswith(f"at 6{unseen}")
    panel = outcome_panel(run.record(), run.work_dir.path, Words())
    assert any(value.endswith(unseen) for _, value in panel.facts)
    assert "no pixel of validation is maize, path" in write_report([run.work_dir.path]).read_text()


def test_four_channels_are_trained_on_by_the_line_of_the_refusal(tmp_path: Path) -> None:
    pipeline = ({**PIPELINE[0], "color_type": "unchanged"}, *PIPELINE[1:])
    run = fields(tmp_path / "kaggle", image=lambda number: any_image(number, 4), pipeline=pipeline)
    refused = run.train("--gpus", "0")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "has 4 channels as the pipeline gives it" in refused.stderr
    line = "--set " + refused.stderr.partition(" --set ")[2].partition(" The whole log")[0]
    done = run.train("--gpus", "0", *shlex.split(line))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [event.iteration for event in run.events("validation")] == [6]


def test_pictures_of_every_validation_end_packed(tmp_path: Path) -> None:
    drawing = """
default_hooks["visualization"] = dict(type="SegVisualizationHook", draw=True, interval=1)
visualizer = dict(
    type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")], name="visualizer", _delete_=True
)
train_cfg["val_interval"] = 1
"""
    run = fields(tmp_path / "kaggle", extra=drawing)
    run.max_iters = 60
    done = run.train("--gpus", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    files = [path for path in (run.root / "working").rglob("*") if path.is_file()]
    assert len(files) < 60
    assert [path for path in files if path.name == "pictures_001.zip"]
    assert [event for event in run.events("warning") if "fills with pictures" in event.data["message"]]
