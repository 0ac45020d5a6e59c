"""The shapes and traits of a config's model, which is built in a child that may import torch."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.checkpoints.inspect import Inspection, inspect
from mapsage_kaggle.config.modules import CodePlaces
from mapsage_kaggle.config.reading import dataset_of
from mapsage_kaggle.config.split import ModelTraits
from mapsage_kaggle.errors import ConfigError, MachineError, MapsageError
from mapsage_kaggle.messages import Message, from_said, joined_by
from mapsage_kaggle.processes import ChildError, child_environment, module_command, run_for_json

if TYPE_CHECKING:
    from mmengine.config import Config


SHAPES_TIMEOUT_S = 180.0


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltModel:
    """What is known of a config's model once it is built.

    Attributes:
        shapes: Shape of every parameter and buffer, by name.
        classes: Those of the config's data set; None where unknown.
        traits: What matters for splitting its batch.
    """

    shapes: Mapping[str, tuple[int, ...]]
    classes: tuple[str, ...] | None
    traits: ModelTraits


class LazyShapes:
    """Builds the config's model on demand, once."""

    def __init__(
        self,
        cfg: Config,
        source: Path,
        scratch: Path,
        code: CodePlaces | None = None,
        passed: Collection[str] = (),
    ) -> None:
        self._build = cache(lambda: look_at_model(cfg, source, scratch, code, passed))

    def look(self) -> BuiltModel:
        """Return the built model; raises what :func:`look_at_model` raises."""
        return self._build()

    def can_recompute(self) -> bool:
        """Return whether the backbone can recompute its blocks; False where the model cannot be built."""
        try:
            return self.look().traits.can_recompute
        except MapsageError:
            return False

    def inspect(self, path: Path, *, manifest_sha256: str | None = None, full: bool = True) -> Inspection:
        if not full:
            return inspect(path, manifest_sha256=manifest_sha256, full=False)
        built = self.look()
        return inspect(path, shapes=built.shapes, classes=built.classes, manifest_sha256=manifest_sha256)


def look_at_model(
    cfg: Config,
    source: Path,
    scratch: Path,
    code: CodePlaces | None = None,
    passed: Collection[str] = (),
) -> BuiltModel:
    """Build the config's model in a child.

    Raises:
        ConfigError: The model cannot be built; the message quotes why.
        MachineError: A package is not installed, or it took longer than ``SHAPES_TIMEOUT_S``.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    file = scratch / f"shapes-{os.getpid()}.py"
    file.write_text(cfg.dump() if hasattr(cfg, "dump") else cfg.pretty_text, encoding="utf-8")
    innermost = dataset_of(cfg)
    kind = innermost.get("type", "")
    data = {
        "type": kind if isinstance(kind, str) else kind.__name__,
        "metainfo": {"classes": list(classes)} if (classes := _own_classes(innermost)) else {},
    }
    env = child_environment(threads=1, scratch=scratch, gpus=False, passed=passed)
    start = (code or CodePlaces()).start("mapsage_kaggle.engine.shapes")
    command = module_command(*start, str(file), json.dumps(data))
    try:
        document = run_for_json(command, timeout_s=SHAPES_TIMEOUT_S, env=env)
    except ChildError as error:
        raise _refusal(source, error) from error
    finally:
        file.unlink(missing_ok=True)
    if "error" in document:
        refusal = MachineError if document["error"] == MachineError.__name__ else ConfigError
        document = from_said(document)
        raise refusal(joined_by(": ", (str(source), document["problem"])), document["remedy"])
    classes = document["classes"]
    traits: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document["traits"].items()
    }
    return BuiltModel(
        shapes={name: tuple(shape) for name, shape in document["shapes"].items()},
        classes=tuple(classes) if classes is not None else None,
        traits=ModelTraits(**traits),
    )


def _refusal(source: Path, error: ChildError) -> MapsageError:
    """Return the error for a child that could not build the model."""
    if error.timed_out:
        return MachineError(
            Message(
                "Building the model of {source} took more than {seconds} s.",
                source,
                f"{SHAPES_TIMEOUT_S:.0f}",
            )
        )
    last = error.last_word
    if "No module named 'torch'" in last or "No module named 'mm" in last:
        return MachineError(
            Message("The training packages are missing: {last}.", last), "Run the install cell first."
        )
    return ConfigError(
        Message("The model of {source} cannot be built: {last}.", source, last),
        "Check the model and custom_imports.",
    )


def _own_classes(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes that a data set's config states itself, if any."""
    metainfo = data.get("metainfo")
    return tuple(metainfo.get("classes", ())) if isinstance(metainfo, Mapping) else ()
