"""Names and shapes of a config's model, asked of a child that may import torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.checkpoints.inspect import Inspection, inspect
from mapsage_kaggle.config.modules import import_paths
from mapsage_kaggle.config.reading import dataset_of
from mapsage_kaggle.errors import ConfigError, MachineError, MapsageError
from mapsage_kaggle.processes import ChildError, module_command, run_for_json

if TYPE_CHECKING:
    from mmengine.config import Config


SHAPES_TIMEOUT_S = 180.0


class LazyShapes:
    """Builds the config's model, for comparison, only once a checkpoint has to be judged."""

    def __init__(self, cfg: Config, source: Path, scratch: Path) -> None:
        self._cfg = cfg
        self._source = source
        self._scratch = scratch
        self._known: tuple[dict[str, tuple[int, ...]], tuple[str, ...] | None] | None = None

    def inspect(self, path: Path, *, manifest_sha256: str | None = None, full: bool = True) -> Inspection:
        if not full:
            return inspect(path, manifest_sha256=manifest_sha256, full=False)
        if self._known is None:
            self._known = config_shapes(self._cfg, self._source, self._scratch)
        shapes, classes = self._known
        return inspect(path, shapes=shapes, classes=classes, manifest_sha256=manifest_sha256)


def config_shapes(
    cfg: Config, source: Path, scratch: Path
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...] | None]:
    """Return the names and shapes of the config's model, and the classes of its data set.

    Raises:
        ConfigError: The model cannot be built; the message quotes why.
        MachineError: torch or mmsegmentation are not installed.
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
    env = dict(os.environ, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    env["PYTHONPATH"] = os.pathsep.join(
        [*map(str, import_paths(source)), *filter(None, [env.get("PYTHONPATH")])]
    )
    command = module_command("mapsage_kaggle.engine.shapes", str(file), json.dumps(data))
    try:
        document = run_for_json(command, timeout_s=SHAPES_TIMEOUT_S, env=env)
    except ChildError as error:
        raise _refusal(source, error) from error
    finally:
        file.unlink(missing_ok=True)
    shapes = {name: tuple(shape) for name, shape in document["shapes"].items()}
    classes = document["classes"]
    return shapes, tuple(classes) if classes is not None else None


def _refusal(source: Path, error: ChildError) -> MapsageError:
    """Return what a child that could not build a model means."""
    if error.timed_out:
        return MachineError(f"Building the model of {source} took more than {SHAPES_TIMEOUT_S:.0f} s.")
    last = error.last_word
    if "No module named 'torch'" in last or "No module named 'mm" in last:
        return MachineError(f"The training packages are missing: {last}.", "Run the install cell first.")
    return ConfigError(
        f"The model of {source} cannot be built: {last}.", "Check the model and custom_imports."
    )


def _own_classes(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes that a data set's config states itself, if it does."""
    metainfo = data.get("metainfo")
    return tuple(metainfo.get("classes", ())) if isinstance(metainfo, Mapping) else ()
