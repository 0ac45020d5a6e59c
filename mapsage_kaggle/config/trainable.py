"""Which configs the kit can train; other forms are named, and converted to paste where that can be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.config.reading import (
    as_list,
    as_mapping,
    effective_batch,
    mapping_or_empty,
    plain,
    type_name,
)
from mapsage_kaggle.config.schedules import PLATEAU
from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.messages import Message

if TYPE_CHECKING:
    from mmengine.config import Config

_OF_0X = ("data", "runner", "optimizer", "lr_config", "checkpoint_config", "evaluation", "total_iters")
_IN_EPOCHS = ("begin", "end", "T_max", "total_iters", "step_size", "period")

_EPOCH_LOOPS = ("EpochBasedTrainLoop",)
_ITERATION_LOOPS = ("IterBasedTrainLoop", "MapsageTrainLoop")


def check_trainable(
    cfg: Mapping[str, Any] | Config, source: Path, count_images: Callable[[], int | None] = lambda: None
) -> int:
    """Return ``max_iters`` of a config that the kit can train.

    ``count_images`` is asked for the images of one that trains by epochs.

    Raises:
        ConfigError: It is of mmsegmentation 0.x or trains by epochs, or it has no training loop, model,
            data or optimizer.
    """
    cfg = as_mapping(cfg)
    _check_version(cfg, source)
    train = cfg.get("train_cfg")
    if not isinstance(train, Mapping):
        raise ConfigError(
            Message("{source} has no training loop (train_cfg).", source),
            "Add train_cfg = dict(type='IterBasedTrainLoop', max_iters=…, val_interval=…).",
        )
    kind = type_name(train.get("type"))
    by_epoch = kind in _EPOCH_LOOPS or (not kind and train.get("by_epoch", True))
    if by_epoch or "max_epochs" in train:
        num_images = count_images()
        raise ConfigError(
            Message(
                "{source} trains by epochs ({kind}, max_epochs={epochs}); the kit cuts a run between "
                "iterations and needs an iteration-based loop.",
                source,
                kind or "by_epoch=True",
                train.get("max_epochs"),
            ),
            Message(
                "Put this at the end of the config, or of one that has it as its _base_:\n{lines}",
                by_iterations(cfg, num_images),
            )
            if num_images
            else "Set train_cfg = dict(type='IterBasedTrainLoop', max_iters=…) and by_epoch=False in the "
            "schedulers and the checkpoint hook; one epoch is (images / batch size) iterations.",
        )
    if kind and kind not in _ITERATION_LOOPS:
        raise ConfigError(
            Message("{source} has a training loop of its own ({kind}).", source, kind),
            "The kit runs IterBasedTrainLoop; what your loop does beyond it can be a hook (custom_hooks).",
        )
    max_iters = train.get("max_iters")
    if not isinstance(max_iters, int) or isinstance(max_iters, bool) or max_iters <= 0:
        raise ConfigError(
            Message(
                "{source}: train_cfg.max_iters is {value}; a positive number is needed.",
                source,
                repr(max_iters),
            )
        )
    for key in ("model", "train_dataloader", "optim_wrapper"):
        if not isinstance(cfg.get(key), Mapping):
            raise ConfigError(
                Message("{source} has no {key}.", source, key), "It is no complete training config."
            )
    return max_iters


def _check_version(cfg: Mapping[str, Any], source: Path) -> None:
    """Refuse a config of mmsegmentation 0.x.

    Raises:
        ConfigError: It is one; the message names the keys by which it is known.
    """
    found = [name for name in _OF_0X if name in cfg]
    is_old = "samples_per_gpu" in mapping_or_empty(cfg.get("data")) or len(found) > 1
    if is_old and "train_dataloader" not in cfg:
        raise ConfigError(
            Message(
                "{source} is a config of mmsegmentation 0.x ({keys}); the kit trains those of 1.x.",
                source,
                ", ".join(found),
            ),
            "Take the model's config from mmsegmentation 1.x (_base_ = 'mmseg::…'), or translate it: data "
            "becomes train_dataloader, optimizer becomes optim_wrapper, runner becomes train_cfg, lr_config "
            "becomes param_scheduler.",
        )


def by_iterations(cfg: Mapping[str, Any], num_images: int) -> str:
    """Return what makes of a config that trains by epochs one of the same length by iterations.

    Returns:
        Python to put at the end of the config.
    """
    per_epoch = -(-num_images // effective_batch(mapping_or_empty(cfg.get("train_dataloader"))))
    train = mapping_or_empty(cfg.get("train_cfg"))
    hook = mapping_or_empty(mapping_or_empty(cfg.get("default_hooks")).get("checkpoint"))
    max_iters = int(train.get("max_epochs") or 0) * per_epoch
    val_interval = int(train.get("val_interval") or 1) * per_epoch
    interval = max(1, int(hook.get("interval") or 1)) * per_epoch
    loop = f"type='IterBasedTrainLoop', max_iters={max_iters}, val_interval={val_interval}"
    lines = [
        f"# {num_images} images are {per_epoch} iterations an epoch",
        f"train_cfg = dict(_delete_=True, {loop})",
        f"default_hooks = dict(checkpoint=dict(by_epoch=False, interval={interval}))",
        "log_processor = dict(by_epoch=False)",
    ]
    schedulers = [_scheduler(item, per_epoch) for item in as_list(cfg.get("param_scheduler"))]
    if schedulers:
        lines.append(f"param_scheduler = {schedulers!r}")
    return "\n".join(lines)


def _scheduler(scheduler: Any, per_epoch: int) -> Any:
    found = plain(mapping_or_empty(scheduler))
    if not found.get("by_epoch", True):
        return found
    found.pop("convert_to_iter_based", None)
    if type_name(found.get("type")).startswith(PLATEAU):
        return found  # it steps after each validation
    for name in _IN_EPOCHS:
        if isinstance(found.get(name), int):
            found[name] *= per_epoch
    if isinstance(found.get("milestones"), list):
        found["milestones"] = [milestone * per_epoch for milestone in found["milestones"]]
    return {**found, "by_epoch": False}
