"""Which configs can be trained; other forms are named, with what makes one of them."""

from __future__ import annotations

from typing import Any

import pytest
from support.configs import SOURCE, small

from mapsage_kaggle.config.trainable import check_trainable
from mapsage_kaggle.errors import ConfigError

EPOCHS = {"type": "EpochBasedTrainLoop", "max_epochs": 12, "val_interval": 2}


@pytest.mark.parametrize(
    "cfg",
    [
        {"data": {"samples_per_gpu": 2}, "model": {}},
        {"data": {}, "runner": {"type": "IterBasedRunner", "max_iters": 80000}, "model": {}},
    ],
)
def test_a_config_of_mmsegmentation_0_x_is_called_that(cfg: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"is a config of mmsegmentation 0\.x"):
        check_trainable(cfg, SOURCE)


def test_one_that_trains_by_epochs_is_refused_with_its_numbers_converted() -> None:
    schedulers = [
        {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 500},
        {"type": "MultiStepLR", "by_epoch": True, "milestones": [8, 11], "end": 12, "gamma": 0.1},
        {"type": "PolyLR", "begin": 1, "end": 12, "convert_to_iter_based": True},
        {"type": "ReduceOnPlateauLR", "monitor": "mIoU", "rule": "greater", "end": 12},
    ]
    cfg = small(train_cfg=EPOCHS, param_scheduler=schedulers)
    with pytest.raises(ConfigError) as caught:
        check_trainable(cfg, SOURCE, lambda: 10)
    pasted: dict[str, Any] = {}
    exec(caught.value.remedy.partition("\n")[2], {"dict": dict}, pasted)
    # 10 images in batches of 4 are 3 iterations.
    assert pasted["train_cfg"] == {
        "_delete_": True, "type": "IterBasedTrainLoop", "max_iters": 36, "val_interval": 6,
    }  # fmt: skip
    assert pasted["default_hooks"]["checkpoint"] == {"by_epoch": False, "interval": 60}
    assert pasted["param_scheduler"] == [
        {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 500},
        {"type": "MultiStepLR", "by_epoch": False, "milestones": [24, 33], "end": 36, "gamma": 0.1},
        {"type": "PolyLR", "begin": 3, "end": 36, "by_epoch": False},
        {"type": "ReduceOnPlateauLR", "monitor": "mIoU", "rule": "greater", "end": 12},
    ]


def test_without_the_data_the_formula_is_said() -> None:
    with pytest.raises(ConfigError, match="one epoch is"):
        check_trainable(small(train_cfg=EPOCHS), SOURCE)
