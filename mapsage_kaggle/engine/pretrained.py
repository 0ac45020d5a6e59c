"""Whether pretrained weights arrived in the model: mmengine loads by name, and matching none is no error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mapsage_kaggle.config.reading import ATTACHED_MMCLS, published_file, type_name
from mapsage_kaggle.engine.safety import load_local
from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.messages import Message

_MAX_NAMED = 3


@contextmanager
def noted_arrivals() -> Iterator[set[int]]:
    """Within it, collect the id of every parameter for which a loaded file has a value of its shape.

    All of stock's ways to load end in ``_load_from_state_dict``, after names have been converted: prefixes,
    converters, hooks for older versions of a module.
    """
    arrived: set[int] = set()
    cls: Any = nn.Module
    original = cls._load_from_state_dict

    def load(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        original(module, state_dict, prefix, *args)  # its hooks may rename what is in the mapping
        for name, parameter in module._parameters.items():
            given = state_dict.get(prefix + name)
            if parameter is not None and isinstance(given, torch.Tensor) and given.shape == parameter.shape:
                arrived.add(id(parameter))

    cls._load_from_state_dict = load
    try:
        yield arrived
    finally:
        cls._load_from_state_dict = original


def check_pretrained(model: nn.Module, arrived: set[int], warn: Callable[[str], None]) -> None:
    """Check that each pretrained file gave the model some weights; warn where it did not give all.

    ``arrived`` are the ids of :func:`noted_arrivals`.

    Raises:
        ConfigError: A file gave none.
    """
    for module in model.modules():
        for checkpoint in _checkpoints_of(module):
            names = {name: id(parameter) for name, parameter in module.named_parameters()}
            missing = [name for name, key in names.items() if key not in arrived]
            if missing and len(missing) == len(names):
                found = _weights_in(checkpoint)
                raise ConfigError(
                    Message(
                        "{path} holds none of the {wanted} weights of {module}; it names them otherwise, "
                        "such as {name}.",
                        checkpoint,
                        len(names),
                        type(module).__name__,
                        min(found, default="nothing"),
                    ),
                    Message(
                        "Attach {name} as mmsegmentation publishes it, or convert this file with the script "
                        "for it in mmsegmentation's tools/model_converters.",
                        published_file(checkpoint),
                    ),
                )
            if missing:
                more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
                few = ", ".join(missing[:_MAX_NAMED]) + more
                warn(
                    Message(
                        "{path} gives {found} of the {wanted} weights of {module}; the others begin at "
                        "random, as they do without the kit: {names}.",
                        checkpoint,
                        len(names) - len(missing),
                        len(names),
                        type(module).__name__,
                        few,
                    )
                )


def _checkpoints_of(module: nn.Module) -> Iterator[str]:
    """Yield the attached files that a module is initialised from."""
    init_cfg = getattr(module, "init_cfg", None)
    for item in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
        if isinstance(item, dict) and type_name(item.get("type")) in ("Pretrained", "PretrainedInit"):
            checkpoint = str(item.get("checkpoint", "")).removeprefix(ATTACHED_MMCLS)
            if Path(checkpoint).is_file():
                yield checkpoint


def _weights_in(checkpoint: str) -> list[str]:
    loaded = load_local(checkpoint)
    for key in ("state_dict", "model"):
        if isinstance(loaded.get(key), Mapping):
            return list(map(str, loaded[key]))
    return list(map(str, loaded))
