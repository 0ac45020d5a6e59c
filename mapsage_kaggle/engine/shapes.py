"""The names and shapes of a config's model: run in a child of its own, which needs no GPU.

    python -m mapsage_kaggle.engine.shapes config.py '{"type": "EarthVQADataset"}'

prints one JSON document, ``{"shapes": {name: [sizes]}, "classes": [...]}``. The model is really built,
with random weights: torch's meta device would save its memory, but MiT computes its drop-path rates
with tensors and asks for their values.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def model_shapes(cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter and buffer of the config's model."""
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope(cfg.get("default_scope", "mmseg"))
    model = MODELS.build(json_like(cfg["model"]))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def dataset_classes(dataset: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the classes of a data set's config: its own, else those of its type; None where unknown."""
    # mmsegmentation's registry: mmengine's own, its parent, does not look into its children.
    from mmseg.registry import DATASETS

    metainfo = dataset.get("metainfo") or {}
    if "classes" in metainfo:
        return tuple(metainfo["classes"])
    kind = dataset.get("type")
    cls = DATASETS.get(kind) if isinstance(kind, str) else kind
    classes = (getattr(cls, "METAINFO", None) or {}).get("classes")
    return tuple(classes) if classes else None


def json_like(value: Any) -> Any:
    """Return nested plain dicts and lists, so that building a model leaves the config as it was."""
    if isinstance(value, Mapping):
        return {key: json_like(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(json_like(item) for item in value)
    return value


def main(arguments: list[str]) -> int:
    """Print the document for one config, given its file and its data set's type and metainfo as JSON."""
    from mmengine.config import Config

    import mapsage_kaggle.engine.register  # noqa: F401 - registers the kit's data sets

    # Libraries greet on stdout; the one document must be alone there.
    with contextlib.redirect_stdout(sys.stderr):
        cfg = Config.fromfile(Path(arguments[0]))
        document = {
            "shapes": {name: list(shape) for name, shape in model_shapes(cfg).items()},
            "classes": dataset_classes(json.loads(arguments[1])),
        }
    print(json.dumps(document))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
