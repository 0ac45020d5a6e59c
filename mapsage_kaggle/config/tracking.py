"""Which trackers show a run, and where they keep what goes on with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mapsage_kaggle.config.packages import missing
from mapsage_kaggle.config.reading import as_list, mapping_or_empty, type_name
from mapsage_kaggle.paths import WorkDir

KINDS = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend"}
"""mmengine's backends that the kit makes go on, by the name that a person asks for them by."""
JOURNAL = "scalars.jsonl"
"""In a tracker's folder: what it has drawn, a line for each call."""


def tracked(cfg: Mapping[str, Any], asked: str) -> tuple[str, ...]:
    """Return the trackers that a config has, and the one that is asked for, by their names."""
    backends = as_list(mapping_or_empty(cfg.get("visualizer")).get("vis_backends"))
    kinds = {type_name(mapping_or_empty(item).get("type")) for item in backends}
    return tuple(name for name, kind in KINDS.items() if kind in kinds or name == asked)


def check_tracker(asked: str) -> None:
    """Make sure that a tracker that is asked for is installed.

    Raises:
        MachineError: It is not.
    """
    spec = find_spec(asked) if asked in KINDS else None
    # The folder that wandb leaves where it runs has its name, and is no package.
    if asked in KINDS and (spec is None or spec.origin is None):
        raise missing(asked, f"--track {asked} was asked for")


def trackers_of(work_dir: Path, run_id: str) -> Path:
    """Return the folder of a run's trackers, each of which has one in it; a stranger's id may be anything."""
    return WorkDir(work_dir).trackers / re.sub(r"[^\w-]", "_", run_id, flags=re.ASCII)
