"""Schedulers and hooks that go by a metric which validation does not give are found before training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.configs import small

from mapsage_kaggle.config.monitored import check_monitored, metrics_given
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.errors import ConfigError

SOURCE = Path("own.py")
PLATEAU = {"type": "ReduceOnPlateauLR", "by_epoch": True, "rule": "less"}
EARLY = {"type": "EarlyStoppingHook", "monitor": "val_loss", "rule": "less"}
GROUPS = {"encoder": [{"type": "PolyLR"}], "decoder": [{**PLATEAU, "monitor": "val/loss"}]}
WRONG = {
    "a scheduler": small(param_scheduler=[{"type": "PolyLR"}, {**PLATEAU, "monitor": "loss"}]),
    "a scheduler's default": small(param_scheduler=PLATEAU),
    "another parameter's": small(param_scheduler=[{**PLATEAU, "type": "ReduceOnPlateauMomentum"}]),
    "one of several optimizers'": small(param_scheduler=GROUPS),
    "a hook": small(custom_hooks=[{"type": "EMAHook"}, EARLY]),
    "a default hook": small(default_hooks__stopping=EARLY),
    "a best checkpoint": small(default_hooks__checkpoint__save_best="mIou"),
    "one without the prefix": small(val_evaluator__prefix="val"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_metric_that_validation_does_not_give_is_refused_and_mended(name: str, tmp_path: Path) -> None:
    cfg = WRONG[name]
    with pytest.raises(ConfigError, match="goes by the metric") as refused:
        check_monitored(cfg, SOURCE)
    assert Words("zh").translate(refused.value.problem) != refused.value.problem
    config = tmp_path / "own.py"
    config.write_text("\n".join(f"{key} = {value!r}" for key, value in cfg.items()))
    settings = [word.strip() for word in refused.value.remedy.split("--set ")[1:]]
    check_monitored(read_config(config, settings), config)


def by_plateau(cfg: dict[str, Any], *scores: float) -> list[float]:
    """Return the learning rate after each validation in a loop by iterations, by mmengine's own hook."""
    import torch
    from mmengine.hooks import ParamSchedulerHook
    from mmengine.optim import OptimWrapper, ReduceOnPlateauLR

    optimizer = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    options = {name: value for name, value in cfg["param_scheduler"][1].items() if name != "type"}
    runner: Any = SimpleNamespace(param_schedulers=[ReduceOnPlateauLR(optimizer, **options)])
    hook, rates = ParamSchedulerHook(), []
    for number, score in enumerate(scores):
        hook.after_train_iter(runner, number)
        hook.after_val_epoch(runner, {"mIoU": score})
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("wrong", [{"by_epoch": False}, {"begin": 20}, {"by_epoch": False, "begin": 20}])
def test_a_plateau_scheduler_that_could_not_step_is_refused_and_mended(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    plateau = {"type": "ReduceOnPlateauLR", "patience": 0, "end": 100, **wrong}
    cfg = small(param_scheduler=[{"type": "PolyLR", "by_epoch": False, "end": 100}, plateau])
    config, settings = tmp_path / "own.py", list[str]()
    config.write_text("\n".join(f"{key} = {value!r}" for key, value in cfg.items()))
    for match in ("steps after each validation, and not with", "goes by the metric loss"):
        with pytest.raises(ConfigError, match=match) as refused:
            check_monitored(read_config(config, settings), config)
        assert Words("zh").translate(refused.value.problem) != refused.value.problem
        assert "OVERRIDES" in Words("zh").translate(refused.value.remedy)
        settings += [word.strip() for word in refused.value.remedy.split("--set ")[1:]]
    mended = read_config(config, settings)
    check_monitored(mended, config)
    assert by_plateau(mended, 50.0, 50.0, 60.0) == pytest.approx([1.0, 0.1, 0.1])


def test_a_metric_that_iou_metric_does_not_know_is_said_before_a_validation() -> None:
    cfg: dict[str, Any] = small(val_evaluator=[{"type": "IoUMetric", "iou_metrics": ["mIoU", "mIOU"]}])
    with pytest.raises(ConfigError, match="does not know the metric mIOU"):
        check_monitored(cfg, SOURCE)
    check_monitored({**cfg, "val_cfg": None}, SOURCE)


def test_what_goes_by_a_metric_needs_a_validation() -> None:
    cfg: dict[str, Any] = small(custom_hooks=[EARLY], val_cfg=None)
    with pytest.raises(
        ConfigError, match="EarlyStoppingHook goes by the metric val_loss, and there is no"
    ) as told:
        check_monitored(cfg, SOURCE)
    assert "take custom_hooks.0 out" in told.value.remedy
    del cfg["custom_hooks"]
    check_monitored(cfg, SOURCE)  # a best checkpoint that is never asked for does no harm


def test_what_a_person_s_own_metric_gives_is_not_guessed() -> None:
    own = small(val_evaluator=[{"type": "IoUMetric"}, {"type": "Own"}], custom_hooks=[EARLY])
    check_monitored(own, SOURCE)


@pytest.mark.parametrize(
    ("metrics", "given"),
    [
        (["mIoU"], ("mIoU", "mAcc", "aAcc")),
        (["mDice", "mFscore"], ("mDice", "mAcc", "mFscore", "mPrecision", "mRecall", "aAcc")),
    ],
)
def test_the_names_are_those_that_mmsegmentation_gives(metrics: list[str], given: tuple[str, ...]) -> None:
    import torch

    from mapsage_kaggle.engine.metric import IntegerIoUMetric

    assert metrics_given(small(val_evaluator={"type": "IoUMetric", "iou_metrics": metrics})) == given
    metric = IntegerIoUMetric(iou_metrics=metrics)
    metric.dataset_meta = {"classes": ("a", "b")}
    label = {"data": torch.tensor([[0, 1]])}
    metric.process({}, [{"pred_sem_seg": label, "gt_sem_seg": label}])
    assert set(metric.evaluate(1)) == set(given)
