"""Whether pretrained weights arrived in the model: mmengine loads by name, and matching none is no error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mapsage_kaggle.config.weights import ATTACHED_MMCLS, is_pretrained, published_file
from mapsage_kaggle.engine.safety import load_local
from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import joined


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


def initialise(model: nn.Module) -> tuple[str, ...]:
    """Draw a model's weights and load its pretrained ones; return a warning for each file that gave a part.

    Raises:
        ConfigError: A file gave none.
    """
    warnings: list[str] = []
    init_weights: Any = getattr(model, "init_weights", None)
    if init_weights is not None:
        with noted_arrivals() as arrived, _with_interp2d():
            try:
                init_weights()
            except AssertionError as error:
                _check_prefix(model, str(error))
                raise
        check_pretrained(model, arrived, warnings.append)
    return tuple(warnings)


@contextmanager
def _with_interp2d() -> Iterator[None]:
    """Within it, SciPy has what mmsegmentation's BEiT resizes its position biases with; 1.14 took it out.

    On a regular grid a ``RectBivariateSpline`` is the same: SciPy's own guide for the transition says so.
    """
    from scipy import interpolate

    def interp2d(x: Any, y: Any, z: Any, kind: str = "linear") -> Callable[..., Any]:
        degree = {"linear": 1, "cubic": 3, "quintic": 5}[kind]
        spline = interpolate.RectBivariateSpline(x, y, z.T, kx=degree, ky=degree)
        return lambda new_x, new_y: spline(new_x, new_y).T

    before, interpolate.interp2d = getattr(interpolate, "interp2d", None), interp2d
    try:
        yield
    finally:
        interpolate.interp2d = before


def _check_prefix(model: nn.Module, said: str) -> None:
    """Name the file that has nothing under the prefix of its ``init_cfg``, if mmengine has said that of one.

    Raises:
        ConfigError: There is one.
    """
    prefix, _, rest = said.partition(" ")
    if rest != "is not in the pretrained model":
        return
    for module in model.modules():
        for checkpoint, wanted in _checkpoints_of(module):
            found = _weights_in(checkpoint) if f"{wanted.rstrip('.')}." == prefix else [prefix]
            if not any(name.startswith(prefix) for name in found):
                raise ConfigError(
                    Message(
                        "{path} has no weights of {module} under the prefix {prefix} of its init_cfg; its "
                        "names are like {name}.",
                        checkpoint,
                        type(module).__name__,
                        prefix,
                        min(found, default="nothing"),
                    ),
                    "Set prefix as the file has it, or attach the file that the config was written for.",
                )


def check_pretrained(model: nn.Module, arrived: set[int], warn: Callable[[str], None]) -> None:
    """Check that each pretrained file gave the model some weights; warn where it did not give all.

    ``arrived`` are the ids of :func:`noted_arrivals`.

    Raises:
        ConfigError: A file gave none.
    """
    for module in model.modules():
        for checkpoint, _ in _checkpoints_of(module):
            names = {name: id(parameter) for name, parameter in module.named_parameters()}
            missing = [name for name, key in names.items() if key not in arrived]
            if missing and len(missing) == len(names):
                raise none_arrived(checkpoint, module)
            if missing:
                warn(
                    Message(
                        "{path} gives {found} of the {wanted} weights of {module}; the others begin at "
                        "random, as they do without the kit: {names}.",
                        checkpoint,
                        len(names) - len(missing),
                        len(names),
                        type(module).__name__,
                        joined(missing, 3),
                    )
                )


def none_arrived(checkpoint: str, module: nn.Module) -> ConfigError:
    """Return the refusal of a file that gives a module no weight."""
    return ConfigError(
        Message(
            "{path} holds none of the {wanted} weights of {module}; it names them otherwise, such as {name}.",
            checkpoint,
            len(list(module.parameters())),
            type(module).__name__,
            min(_weights_in(checkpoint), default="nothing"),
        ),
        Message(
            "Attach {name} as mmsegmentation publishes it, or convert this file with the script for it in "
            "mmsegmentation's tools/model_converters.",
            published_file(checkpoint),
        ),
    )


def _checkpoints_of(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the attached files that a module is initialised from, and the prefix of what it takes of each."""
    init_cfg: Any = getattr(module, "init_cfg", None)
    for item in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
        if is_pretrained(item):
            checkpoint = str(item.get("checkpoint", "")).removeprefix(ATTACHED_MMCLS)
            if Path(checkpoint).is_file():
                yield checkpoint, str(item.get("prefix") or "")


def _weights_in(checkpoint: str) -> list[str]:
    """Return the names of a file's weights, as mmengine sees them: what lies deeper with where it lies."""
    loaded = load_local(checkpoint)
    loaded = loaded.get("state_dict", loaded)
    parts = {f"{key}.": part for key, part in loaded.items() if isinstance(part, Mapping)} | {"": loaded}
    return [
        f"{prefix}{name}"
        for prefix, part in parts.items()
        for name, value in part.items()
        if isinstance(value, torch.Tensor)
    ]
