"""What a session starts from where its config names an address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.standin import REPOSITORY

from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine.building import build_model
from mapsage_kaggle.errors import CheckpointError
from mapsage_kaggle.paths import KagglePaths
from mapsage_kaggle.training.options import Options
from mapsage_kaggle.training.prepare import Discovery, discover

ADDRESS = "https://download.example.org/models/start_2022-7e0fe6dd.pth"


def started_from_an_address(root: Path, **options: Any) -> Discovery:
    config = root / "small.py"
    config.write_text(f"_base_ = [{str(REPOSITORY / 'configs' / 'demo.py')!r}]\nload_from = {ADDRESS!r}\n")
    return discover(Options(config=config, work_dir=root / "work", **options), paths=KagglePaths.below(root))


def test_an_address_to_start_from_that_is_not_attached_is_refused(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    with pytest.raises(CheckpointError, match=r"no start_2022-7e0fe6dd\.pth is attached") as refused:
        started_from_an_address(tmp_path)
    assert ADDRESS in refused.value.problem
    assert "--resume never" in refused.value.remedy
    found = started_from_an_address(tmp_path, resume="never")  # as the remedy says
    assert found.choice.action == "fresh"
    assert found.choice.steps_down[0].endswith("is attached. Training starts without it.")
    assert Words("zh").translate(found.choice.steps_down[0]).endswith("训练不使用它。")


@pytest.mark.slow(scope_s=30)
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_an_address_to_start_from_is_looked_for_by_its_file(tmp_path: Path, resume: Any) -> None:
    file = tmp_path / "input" / "datasets" / "bob" / "weights" / "start_2022-7e0fe6dd.pth"
    file.parent.mkdir(parents=True)
    cfg = read_config(REPOSITORY / "configs" / "demo.py")
    cfg.model.decode_head.loss_decode.avg_non_ignore = True  # else mmsegmentation warns
    torch.save({"state_dict": build_model(cfg).state_dict()}, file)
    choice = started_from_an_address(tmp_path, resume=resume).choice
    assert choice.action == "weights-only"
    assert choice.checkpoint is not None
    assert choice.checkpoint.target == file
