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
from mmseg.registry import DATASETS  # mmengine's own, its parent, does not look into its children

import mapsage_kaggle.engine.register  # noqa: F401 - registers the kit's data sets
from mapsage_kaggle.engine.building import build_model, traits_of
from mapsage_kaggle.engine.problems import known_problem
from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.messages import Message, with_said


def dataset_class(dataset: Mapping[str, Any]) -> Any:
    """Return the class of a data set's config; None where it is not known."""
    kind = dataset.get("type")
    return DATASETS.get(kind) if isinstance(kind, str) else kind


def dataset_classes(dataset: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the classes of a data set's config: its own, else those of its type; None where unknown."""
    metainfo = dataset.get("metainfo") or {}
    if "classes" in metainfo:
        return tuple(metainfo["classes"])
    classes = (getattr(dataset_class(dataset), "METAINFO", None) or {}).get("classes")
    return tuple(classes) if classes else None


def places_of_classes(dataset: Mapping[str, Any], num_classes: int) -> tuple[int, ...]:
    """Return the index of each class among all of its type of data set, of which only some may be used.

    mmsegmentation maps the labels of some of the classes (``metainfo = dict(classes=…)``) by ``label_map``.
    """
    classes = dataset_classes(dataset) or ()
    try:
        label_map = dataset_class(dataset).get_label_map(list(classes)) or {}
    except (AttributeError, ValueError):  # it has none, or refuses these classes, as it says when it is built
        label_map = {}
    places = {new: old for old, new in sorted(label_map.items(), reverse=True)}
    return tuple(places.get(index, index) for index in range(num_classes))


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
