"""The names and shapes of a config's model: run in a child of its own, which needs no GPU.

    python -m mapsage_kaggle.engine.shapes config.py '{"type": "EarthVQADataset"}'

prints one JSON document, ``{"shapes": {name: [sizes]}, "classes": [...], "traits": {...}}``, or
``{"error", "problem", "remedy"}`` where the model cannot be built. It is really built, with random weights:
torch's meta device would save its memory, but MiT computes its drop-path rates with tensors and asks for
their values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

import mapsage_kaggle.engine.register  # noqa: F401 - registers the kit's data sets
from mapsage_kaggle.engine.building import build_model, traits_of
from mapsage_kaggle.engine.problems import known_problem
from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.messages import Message, with_said


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


def places_of_classes(dataset: Mapping[str, Any], num_classes: int) -> tuple[int, ...]:
    """Return the index of each class among all of its type of data set, of which only some may be used.

    mmsegmentation maps the labels of some of the classes (``metainfo = dict(classes=…)``) by ``label_map``.
    """
    from mmseg.registry import DATASETS

    kind, classes = dataset.get("type"), dataset_classes(dataset) or ()
    cls: Any = DATASETS.get(kind) if isinstance(kind, str) else kind
    try:
        label_map = cls.get_label_map(list(classes)) or {}
    except (AttributeError, ValueError):  # it has none, or refuses these classes, as it says when it is built
        label_map = {}
    places = {new: old for old, new in sorted(label_map.items(), reverse=True)}
    return tuple(places.get(index, index) for index in range(num_classes))


def json_like(value: Any) -> Any:
    """Return nested plain dicts and lists, so that building a model leaves the config as it was."""
    if isinstance(value, Mapping):
        return {key: json_like(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(json_like(item) for item in value)
    return value


def main(arguments: list[str]) -> int:
    """Print the document for a config's file and a data set's config as JSON."""
    # Libraries greet on stdout; the one document must be alone there.
    with contextlib.redirect_stdout(sys.stderr):
        document = _document(Path(arguments[0]), json.loads(arguments[1]))
    print(json.dumps(document))
    return 0


def _document(file: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    try:
        cfg = Config.fromfile(file)
        model = build_model(cfg)
    except Exception as error:  # noqa: BLE001 - whatever a config's parts raise, the parent must learn of it
        traceback.print_exc()
        known = known_problem(error)
        if known is None:
            first = (str(error).strip().splitlines() or ["no message"])[0]
            problem = Message("The model cannot be built: {kind}: {why}.", type(error).__name__, first)
            known = ConfigError(problem, "Check the model and custom_imports.")
        return with_said({"error": type(known).__name__, "problem": known.problem, "remedy": known.remedy})
    return {
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
        "classes": dataset_classes(data),
        "traits": dataclasses.asdict(traits_of(model)),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
