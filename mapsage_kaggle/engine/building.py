"""Build a config's model as mmengine's runner does, and inspect it."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.registry import MODELS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from mapsage_kaggle.config.split import ModelTraits

_SPLITTABLE_LOSSES = ("CrossEntropyLoss", "FocalLoss", "DiceLoss")
_DRAWS = re.compile(
    r"\btorch\.(rand|randn|randint|randperm|rand_like|randn_like|bernoulli|multinomial|normal)\("
    r"|\bnp\.random\.|\brandom\.(random|randint|uniform|choice|shuffle)\("
    r"|(?<!\binit)\.(uniform|bernoulli|normal)_\(|\bgumbel_softmax\("
)
_DROPS = re.compile(r"\b(F|functional)\.(alpha_|feature_)?dropout[123]?d?\(")
_DRAWING = (torch.nn.RReLU, torch.nn.FractionalMaxPool2d)
"""torch's own that draw while training, and have no rate."""
_LOSES = re.compile(r"\b(F|functional)\.\w*(cross_entropy|_loss|kl_div)\w*\(")
_OVER_THE_BATCH = re.compile(r"\b(reduce_mean|all_reduce|all_gather)\(")
_INITIALISERS = ("__init__", "init_weights", "_init_weights", "reset_parameters")


def build_model(cfg: Any) -> Any:
    """Return the config's model with random weights, on the CPU.

    mmsegmentation sets keys of the config as attributes while it builds, which plain dicts do not take, and
    removes others: so the model is built from a copy in mmengine's own kind of dict.
    """
    init_default_scope(cfg.get("default_scope") or "mmseg")
    return MODELS.build(copy.deepcopy(cfg.model))


def num_inputs(model: Any) -> int | None:
    """Return the channels that a model's first layer takes; None without a convolutional backbone."""
    backbone = getattr(model, "backbone", None)
    layers = backbone.modules() if isinstance(backbone, torch.nn.Module) else iter(())
    first = next((item for item in layers if isinstance(item, torch.nn.Conv2d)), None)
    return first.in_channels if first is not None else None


def traits_of(model: torch.nn.Module) -> ModelTraits:
    """Return what in a model bears on splitting its batch. It is left in training mode."""
    model.train()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    heads = [module for module in model.modules() if hasattr(module, "loss_decode")]
    losses = [loss for head in heads for loss in _losses(head)]
    losses += [module for module in model.modules() if "loss" in type(module).__name__.lower()]
    losses = [loss for loss in losses if not _is_splittable(loss)] + list(_matching(model, _LOSES))
    return ModelTraits(
        draws=_draws(model),
        batch_norm=bool(norms),
        sync_batch_norm=any(isinstance(module, torch.nn.SyncBatchNorm) for module in norms),
        losses=tuple(sorted({type(loss).__name__ for loss in losses})),
        over_batch=tuple(sorted({type(item).__name__ for item in _matching(model, _OVER_THE_BATCH)})),
        samplers=any(getattr(head, "sampler", None) is not None for head in heads),
        can_recompute=_takes_with_cp(type(getattr(model, "backbone", None))),
    )


def _draws(model: torch.nn.Module) -> tuple[str, ...]:
    """Return what draws random numbers, with the highest rate of each kind in each part."""
    highest: dict[tuple[str, str], float] = {}
    for name, module in model.named_modules():
        rate = 0.0
        if isinstance(module, _DropoutNd):
            rate = module.p
        elif isinstance(module, (torch.nn.MultiheadAttention, torch.nn.RNNBase)):
            rate = module.dropout
        elif re.search("drop|stochasticdepth", type(module).__name__.lower()):
            rate = float(getattr(module, "drop_prob", None) or getattr(module, "p", None) or 0.0)
        if rate and module.training:
            place = (type(module).__name__, name.partition(".")[0])
            highest[place] = max(rate, highest.get(place, 0.0))
    rates = (f"{kind} {rate:.2g} in {part}" for (kind, part), rate in sorted(highest.items()))
    drop = {type(module).__name__ for module in _matching(model, _DROPS)}
    drop |= {type(item).__name__ for item in model.modules() if isinstance(item, _DRAWING) and item.training}
    return (*rates, *sorted({*drop, *drawing_modules(model)}))


def drawing_modules(model: torch.nn.Module) -> tuple[str, ...]:
    """Return the classes of a model's modules that draw random numbers in their own code, also at inference.

    Dropouts are none: they draw in training alone.
    """
    found = {type(module).__name__ for module in _matching(model, _DRAWS)}
    return tuple(sorted(kind for kind in found if "drop" not in kind.lower()))


def _matching(model: torch.nn.Module, pattern: re.Pattern[str]) -> Iterator[torch.nn.Module]:
    """Yield a module of each class, other than torch's own, whose methods hold a pattern."""
    classes = {type(module): module for module in model.modules()}
    for cls, module in classes.items():
        if any(pattern.search(source) for source in _sources(cls)):
            yield module


def _sources(cls: type) -> Iterator[str]:
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("torch", "builtins", "mmengine"):
            continue
        for name, method in vars(base).items():
            if inspect.isfunction(method) and name not in _INITIALISERS:
                try:
                    yield inspect.getsource(method)
                except (OSError, TypeError):
                    continue  # written in a notebook, or generated


def _losses(head: Any) -> list[Any]:
    losses = head.loss_decode
    return list(losses) if isinstance(losses, torch.nn.ModuleList) else [losses]


def _is_splittable(loss: Any) -> bool:
    name = type(loss).__name__
    is_stock = type(loss).__module__.startswith("mmseg.")
    if not is_stock or getattr(loss, "reduction", "") == "sum":  # of a sum a part has no share by images
        return False
    return name in _SPLITTABLE_LOSSES or (name == "LovaszLoss" and bool(getattr(loss, "per_image", False)))


def _takes_with_cp(cls: type) -> bool:
    """Whether a class takes ``with_cp``, itself or by passing unknown options to its base."""
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if not inspect.isfunction(init):
            continue
        parameters = inspect.signature(init).parameters
        if "with_cp" in parameters:
            return True
        if not any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values()):
            return False
    return False
