"""Whether validation gives the metrics by which schedulers and hooks go: else they fail, or never act."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.config.reading import as_list, as_mapping, mapping_or_empty, type_name
from mapsage_kaggle.config.schedules import PLATEAU, typed_with_keys
from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.messages import Message, settings_text

if TYPE_CHECKING:
    from mmengine.config import Config

_GIVEN: Mapping[str, tuple[str, ...]] = {
    "mIoU": ("mIoU", "mAcc"),
    "mDice": ("mDice", "mAcc"),
    "mFscore": ("mFscore", "mPrecision", "mRecall"),
}
"""What mmsegmentation's IoUMetric gives for each of its ``iou_metrics``, besides ``aAcc``."""

_IOU_METRICS = ("IoUMetric", "MapsageIoUMetric")
_AFTER_VALIDATION: Mapping[str, Any] = {"by_epoch": True, "begin": 0, "convert_to_iter_based": False}
"""The options with which those act: they step where by_epoch is set, and no epoch ends before the run."""


def check_monitored(cfg: Mapping[str, Any] | Config, source: Path) -> None:
    """Look whether every metric that a scheduler or hook names is one that validation gives.

    Of metrics that are a person's own it is not known what they give.

    Raises:
        ConfigError: One is not, or a scheduler that goes by one could not step.
    """
    cfg = as_mapping(cfg)
    _check_plateaus(cfg, source)
    validates = cfg.get("val_cfg") is not None and cfg.get("val_evaluator") is not None
    if validates:
        _check_choices(cfg, source)
    given = metrics_given(cfg) if validates else ()
    if given is None:
        return
    for key, owner, option, name in _monitored(cfg):
        if name in given or (option == "save_best" and not validates):
            continue
        if not given:
            raise ConfigError(
                Message(
                    "{source}: {owner} goes by the metric {name}, and there is no validation.",
                    source,
                    owner,
                    name,
                ),
                Message(
                    "Give the config a val_dataloader, val_cfg and val_evaluator, or take {key} out.", key
                ),
            )
        raise ConfigError(
            Message(
                "{source}: {owner} goes by the metric {name}, and validation gives {names}.",
                source,
                owner,
                name,
                ", ".join(given),
            ),
            Message(
                "Name one of those: --set {key}.{option}={name} --set {place}.rule=greater",
                key,
                option,
                given[0],
                key,
            ),
        )


def _check_choices(cfg: Mapping[str, Any], source: Path) -> None:
    """Look whether mmsegmentation's metric knows what is asked of it, which it says after a validation."""
    for metric in map(mapping_or_empty, as_list(cfg.get("val_evaluator"))):
        wanted = as_list(metric.get("iou_metrics")) if type_name(metric.get("type")) in _IOU_METRICS else []
        unknown = [str(name) for name in wanted if name not in _GIVEN]
        if unknown:
            raise ConfigError(
                Message("{source}: IoUMetric does not know the metric {names}.", source, ", ".join(unknown)),
                Message("Choose iou_metrics among {names}.", ", ".join(_GIVEN)),
            )


def _check_plateaus(cfg: Mapping[str, Any], source: Path) -> None:
    for key, item in typed_with_keys(cfg.get("param_scheduler"), "param_scheduler"):
        kind = type_name(item.get("type"))
        wrong = [name for name, value in _AFTER_VALIDATION.items() if item.get(name, value) != value]
        if kind.startswith(PLATEAU) and wrong:
            raise ConfigError(
                Message(
                    "{source}: {owner} ({key}) steps after each validation, and not with {options}.",
                    source,
                    kind,
                    key,
                    ", ".join(f"{name}={item[name]}" for name in wrong),
                ),
                Message(
                    "Set what it takes, also where training goes by iterations (patience counts "
                    "validations): {settings}",
                    settings_text(f"{key}.{name}={_AFTER_VALIDATION[name]}" for name in wrong),
                ),
            )


def metrics_given(cfg: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the names under which validation gives its scores, mIoU first; None where that is not known."""
    names: list[str] = []
    for item in as_list(cfg.get("val_evaluator")):
        metric = mapping_or_empty(item)
        if type_name(metric.get("type")) not in _IOU_METRICS:
            return None
        prefix = f"{metric['prefix']}/" if metric.get("prefix") else ""
        wanted = [] if metric.get("format_only") else as_list(metric.get("iou_metrics", ["mIoU"]))
        if any(name not in _GIVEN for name in wanted):
            return None
        names += [prefix + name for choice in wanted for name in _GIVEN[choice]]
        names += [f"{prefix}aAcc"] if wanted else []
    return tuple(dict.fromkeys(names))


def _monitored(cfg: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield of all that goes by a metric its dotted key, its type, the option that names it, and the name."""
    for place in ("param_scheduler", "custom_hooks", "default_hooks"):
        for key, item in typed_with_keys(cfg.get(place), place):
            kind = type_name(item.get("type"))
            name = item.get("monitor", "loss" if kind.startswith(PLATEAU) else None)
            if isinstance(name, str):
                yield key, kind, "monitor", name
    for name, item in mapping_or_empty(cfg.get("default_hooks")).items():
        hook = mapping_or_empty(item)
        best = next(iter(as_list(hook.get("save_best"))), None)
        if isinstance(best, str) and best != "auto":
            yield f"default_hooks.{name}", type_name(hook.get("type")), "save_best", best
