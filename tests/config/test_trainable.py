"""Which configs can be trained; other forms are named, with what makes one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.configs import SOURCE, planned, small

from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.config.trainable import check_trainable
from mapsage_kaggle.errors import ConfigError

EPOCHS = {"type": "EpochBasedTrainLoop", "max_epochs": 12, "val_interval": 2}


@pytest.mark.parametrize(
    "cfg",
    [
        {"data": {"samples_per_gpu": 2}, "model": {}},
        {"data": {}, "runner": {"type": "IterBasedRunner", "max_iters": 80000}, "model": {}},
        {"total_epochs": 12, "model": {}},
    ],
)
def test_a_config_of_mmsegmentation_0_x_is_called_that(cfg: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"is a config of mmsegmentation 0\.x"):
        check_trainable(cfg, SOURCE)


def test_what_0_x_would_read_of_a_config_of_1_x_is_said_to_have_no_effect() -> None:
    old = {"data": {"samples_per_gpu": 8}, "runner": {"max_iters": 9}, "optimizer": {"lr": 0.1}}
    (warning,) = planned(small(**old)).warnings
    assert warning.startswith("Without effect: data, runner, which")


SCHEDULERS = [
    {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 500},
    {"type": "MultiStepLR", "by_epoch": True, "milestones": [8, 11], "end": 12, "gamma": 0.1},
    {"type": "PolyLR", "begin": 1, "end": 12, "convert_to_iter_based": True},
    {"type": "ExponentialLR", "gamma": 0.125},
    {"type": "CosineRestartLR", "periods": [4, 8], "restart_weights": [1, 0.5]},
    {"type": "OneCycleLR", "total_steps": 12, "eta_max": 0.1},
    {"type": "ReduceOnPlateauLR", "monitor": "mIoU", "rule": "greater", "end": 12},
]
BY_ITERATIONS = [
    {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 500},
    {"type": "MultiStepLR", "by_epoch": False, "milestones": [24, 33], "end": 36, "gamma": 0.1},
    {"type": "PolyLR", "begin": 3, "end": 36, "by_epoch": False},
    {"type": "ExponentialLR", "gamma": 0.5, "by_epoch": False},
    {"type": "CosineRestartLR", "periods": [12, 24], "restart_weights": [1, 0.5], "by_epoch": False},
    {"type": "OneCycleLR", "total_steps": 36, "eta_max": 0.1, "by_epoch": False},
    {"type": "ReduceOnPlateauLR", "monitor": "mIoU", "rule": "greater", "end": 12},
]


def pasted(config: Path, num_images: int = 10, *, elsewhere: Path | None = None) -> Any:
    """Return a config by epochs, as the refusal says to write it: beside it, or elsewhere."""
    cfg = read_config(config)
    with pytest.raises(ConfigError) as caught:
        check_trainable(cfg, config, lambda: num_images)
    what, _, lines = caught.value.remedy.partition("\n")
    if "at the end" in what:
        config.write_text(f"{config.read_text()}\n{lines}\n")
    elif elsewhere is None:
        config = config.with_name("other.py")
        config.write_text(lines)
    else:
        elsewhere.write_text(lines.replace(repr(config.name), repr(str(config))))
        config = elsewhere
    found = read_config(config)
    assert check_trainable(found, config) == found.train_cfg.max_iters
    return found


def written(tmp_path: Path, **changes: Any) -> Path:
    """Return a config, half of it in its base."""
    cfg = small(train_cfg=EPOCHS, default_hooks__logger={"type": "LoggerHook", "interval": 5}, **changes)
    texts = [f"{name} = {value!r}\n" for name, value in cfg.items()]
    (tmp_path / "base.py").write_text("".join(texts[::2]))
    (tmp_path / "mine.py").write_text("_base_ = ['base.py']\n" + "".join(texts[1::2]))
    return tmp_path / "mine.py"


@pytest.mark.parametrize("named", [False, True])
def test_one_that_trains_by_epochs_is_refused_with_its_numbers_converted(tmp_path: Path, named: bool) -> None:
    cfg = pasted(written(tmp_path, param_scheduler={"one": SCHEDULERS} if named else SCHEDULERS))
    # 10 images in batches of 4 are 3 iterations.
    assert cfg.train_cfg == {"type": "IterBasedTrainLoop", "max_iters": 36, "val_interval": 6}
    assert cfg.default_hooks.checkpoint == {
        "type": "CheckpointHook", "by_epoch": False, "interval": 20, "save_best": "mIoU", "rule": "greater",
    }  # fmt: skip
    assert cfg.default_hooks.logger == {"type": "LoggerHook", "interval": 5, "log_metric_by_epoch": False}
    assert cfg.log_processor == {"by_epoch": False}
    assert cfg.param_scheduler == ({"one": BY_ITERATIONS} if named else BY_ITERATIONS)


def test_what_is_converted_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "working").mkdir()
    assert pasted(written(tmp_path), elsewhere=tmp_path / "working" / "other.py").train_cfg.max_iters == 36


def test_one_that_no_base_can_name_is_converted_at_its_end(tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    source = Path(__file__).parents[1] / "support" / "read_base.py"
    more = "train_cfg = {'type': EpochBasedTrainLoop, 'max_epochs': 2}\nparam_scheduler[0].pop('by_epoch')\n"
    imports = "from mmengine.runner import EpochBasedTrainLoop\n"
    config.write_text(f"{imports}{source.read_text()}\n{more}")
    cfg = pasted(config)
    assert cfg.train_cfg == {"type": "IterBasedTrainLoop", "max_iters": 10, "val_interval": 5}
    assert (cfg.default_hooks.checkpoint.interval, cfg.default_hooks.logger.interval) == (3, 2)
    assert cfg.param_scheduler[0].end == 30


def test_other_things_that_are_told_in_epochs_are_converted_too(tmp_path: Path) -> None:
    train = {**EPOCHS, "val_begin": 4, "dynamic_intervals": [(10, 1)]}
    ema = {"type": "EMAHook", "begin_epoch": 3}
    config = written(
        tmp_path, custom_hooks=[ema, {"type": "EmptyCacheHook"}], train_dataloader__drop_last=True,
        default_hooks__checkpoint={"type": "CheckpointHook", "interval": 5},
    )  # fmt: skip
    config.write_text(config.read_text() + f"train_cfg = {train!r}\n")
    cfg = pasted(config)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_begin) == (24, 8)
    assert cfg.train_cfg.dynamic_intervals == [[20, 2]]
    assert cfg.default_hooks.checkpoint == {"type": "CheckpointHook", "by_epoch": False, "interval": 10}
    assert cfg.custom_hooks == [{"type": "EMAHook", "begin_iter": 6}, {"type": "EmptyCacheHook"}]


def test_without_the_data_the_formula_is_said() -> None:
    with pytest.raises(ConfigError, match="one epoch is"):
        check_trainable(small(train_cfg=EPOCHS), SOURCE)
