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

_OF_0X = ("runner", "lr_config", "checkpoint_config", "evaluation", "total_iters", "total_epochs")
_IN_EPOCHS = ("begin", "end", "T_max", "total_iters", "total_steps", "step_size", "milestones", "periods")

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
        is_lazy = _is_lazy(source)
        raise ConfigError(
            Message(
                "{source} trains by epochs ({kind}, max_epochs={epochs}); the kit cuts a run between "
                "iterations and needs an iteration-based loop.",
                source,
                kind or "by_epoch=True",
                train.get("max_epochs"),
            ),
            Message(
                "Put this at the end of the config:\n{lines}"
                if is_lazy
                else "Write this into a file beside the config, or elsewhere with the config's whole path in "
                "_base_, and train that one:\n{lines}",
                by_iterations(cfg, num_images, source, is_lazy=is_lazy),
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
    found = keys_of_0x(cfg)
    if found and "train_dataloader" not in cfg:
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


def _is_lazy(source: Path) -> bool:
    """Return whether a config is in mmengine's pure Python style, which no ``_base_`` can name."""
    from mmengine.config import Config

    return source.is_file() and bool(Config._is_lazy_import(str(source)))


def keys_of_0x(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that mmsegmentation 0.x reads, and 1.x does not look at."""
    data = mapping_or_empty(cfg.get("data"))
    old = (name for name in _OF_0X if isinstance(cfg.get(name), (Mapping, int)))
    return (*(["data"] if {"samples_per_gpu", "workers_per_gpu", "train"} & data.keys() else []), *old)


def by_iterations(cfg: Mapping[str, Any], num_images: int, source: Path, *, is_lazy: bool) -> str:
    """Return what makes of a config that trains by epochs one of the same length by iterations.

    Returns:
        Python: a config with this one as its ``_base_``, or whole values for the end of this one.
    """
    loader = mapping_or_empty(cfg.get("train_dataloader"))
    batch = effective_batch(loader)
    per_epoch = num_images // batch if loader.get("drop_last") else -(-num_images // batch)
    train = mapping_or_empty(cfg.get("train_cfg"))
    loop = {
        "type": "IterBasedTrainLoop",
        "max_iters": int(train.get("max_epochs") or 0) * per_epoch,
        "val_interval": int(train.get("val_interval") or 1) * per_epoch,
    }
    loop |= {
        name: _times(train[name], per_epoch) for name in ("val_begin", "dynamic_intervals") if train.get(name)
    }
    found = mapping_or_empty(cfg.get("default_hooks"))
    hook = plain(mapping_or_empty(found.get("checkpoint")))
    interval = max(1, int(hook.get("interval") or 1)) * (per_epoch if hook.get("by_epoch", True) else 1)
    hooks = {"checkpoint": {"type": "CheckpointHook", **hook, "by_epoch": False, "interval": interval}}
    if found.get("logger"):
        hooks["logger"] = {**plain(found["logger"]), "log_metric_by_epoch": False}
    processor = {**plain(mapping_or_empty(cfg.get("log_processor"))), "by_epoch": False}
    lines = [
        f"# {num_images} images are {per_epoch} iterations an epoch",
        *([] if is_lazy else [f"_base_ = {source.name!r}"]),
        f"train_cfg = {loop if is_lazy else {'_delete_': True, **loop}!r}",
        f"default_hooks = { ({**plain(found), **hooks} if is_lazy else hooks)!r}",
        f"log_processor = {processor!r}",
    ]
    if cfg.get("param_scheduler"):
        lines.append(f"param_scheduler = {_schedulers(plain(cfg['param_scheduler']), per_epoch)!r}")
    custom = plain(as_list(cfg.get("custom_hooks")))
    if any("begin_epoch" in item for item in custom):
        for item in custom:
            item |= {"begin_iter": item.pop("begin_epoch") * per_epoch} if "begin_epoch" in item else {}
        lines.append(f"custom_hooks = {custom!r}")
    return "\n".join(lines)


def _times(value: Any, per_epoch: int) -> Any:
    """Return epochs as iterations: one, or several however deep."""
    if isinstance(value, (list, tuple)):
        return [_times(item, per_epoch) for item in value]
    return value * per_epoch if isinstance(value, int) else value


def _schedulers(found: Any, per_epoch: int) -> Any:
    """Return schedulers by iterations: a list, or those of several optimizers by name."""
    if isinstance(found, Mapping) and "type" not in found:
        return {name: _schedulers(item, per_epoch) for name, item in found.items()}
    return [_scheduler(item, per_epoch) for item in as_list(found)]


def _scheduler(found: Mapping[str, Any], per_epoch: int) -> Mapping[str, Any]:
    kind = type_name(found.get("type"))
    if not found.get("by_epoch", True) or kind.startswith(PLATEAU):  # that steps after each validation
        return found
    scheduler = {name: value for name, value in found.items() if name != "convert_to_iter_based"}
    scheduler |= {name: _times(found[name], per_epoch) for name in _IN_EPOCHS if name in found}
    if kind.startswith("Exponential") and "gamma" in found:  # by which each step multiplies
        scheduler["gamma"] **= 1 / per_epoch
    return {**scheduler, "by_epoch": False}
