"""Pretrained weights: what a config names, under which file name, and where it is attached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.config.planner import Planner
from mapsage_kaggle.config.reading import as_list, as_mapping, find_keys, mapping_or_empty, type_name

if TYPE_CHECKING:
    from mmengine.config import Config

    from mapsage_kaggle.config.patch import PatchContext

_WEIGHTS = (".pth", ".pt", ".bin", ".ckpt")
_HUB_LISTINGS = {
    "open-mmlab": "openmmlab.json",
    "openmmlab": "openmmlab.json",
    "mmcls": "mmcls.json",
    "torchvision": "torchvision_0.12.json",
    "modelzoo": "torchvision_0.12.json",
}
_UPLOADED_AS = {
    # mmsegmentation's published name, and the one under which people upload the same file.
    "mit_b0_20220624-7e0fe6dd.pth": "mit_b0.pth",
    "mit_b1_20220624-02e5a6a1.pth": "mit_b1.pth",
    "mit_b2_20220624-66e8bf70.pth": "mit_b2.pth",
    "mit_b3_20220624-13b1141c.pth": "mit_b3.pth",
    "mit_b4_20220624-d588d980.pth": "mit_b4.pth",
    "mit_b5_20220624-658746d9.pth": "mit_b5.pth",
}
ATTACHED_MMCLS = "mapsage-mmcls://"
"""Before the path of an attached file that a config names by ``mmcls://``: mmengine takes only the backbone
out of such a file."""


def pretrained_of(cfg: Mapping[str, Any] | Config) -> tuple[str, ...]:
    model = mapping_or_empty(as_mapping(cfg).get("model"))
    names = [
        str(item["checkpoint"])
        for _, value in find_keys(model, "model", "init_cfg")
        for item in as_list(value)
        if is_pretrained(item) and "checkpoint" in item
    ]
    names += [value for key, value in find_keys(model, "model", "pretrained") if names_weights(key, value)]
    return tuple(dict.fromkeys(names))


def is_pretrained(init_cfg: Any) -> bool:
    """Return whether an item of an ``init_cfg`` loads a file; mmengine's class is not named like its key."""
    return type_name(mapping_or_empty(init_cfg).get("type")) in ("Pretrained", "PretrainedInit")


def names_weights(key: str, value: Any) -> bool:
    """Return whether a ``pretrained`` in a model names a file: in its usual place, or by its name."""
    is_own = key in ("model.pretrained", "model.backbone.pretrained")
    return isinstance(value, str) and bool(value) and (is_own or "://" in value or value.endswith(_WEIGHTS))


def weights_files(name: str) -> tuple[str, ...]:
    """Return the file names under which pretrained weights may be attached, the published one first.

    Args:
        name: As a config names them: a path, an address, or mmengine's ``open-mmlab://resnet50_v1c``.
    """
    scheme, separator, key = name.partition("://")
    listing = _HUB_LISTINGS.get(scheme) if separator else None
    address = _hub_listing(listing).get(key, name) if listing else name
    file = address.rpartition("/")[2]
    if "://" in address:
        file = file.partition("?")[0]
    return (file, _UPLOADED_AS[file]) if file in _UPLOADED_AS else (file,)


def published_file(path: str) -> str:
    """Return the name under which mmsegmentation publishes the weights that a file's name stands for."""
    file = path.rpartition("/")[2]
    return next((name for name, other in _UPLOADED_AS.items() if file == other), file)


def _hub_listing(file: str) -> Mapping[str, str]:
    spec = find_spec("mmengine")
    if spec is None or spec.origin is None:
        return {}
    listing = Path(spec.origin).parent / "hub" / file
    return mapping_or_empty(json.loads(listing.read_text(encoding="utf-8"))) if listing.is_file() else {}


def plan_pretrained(planner: Planner, facts: PatchContext) -> None:
    """Name the attached files; where a checkpoint is resumed, none."""
    for key, value in list(planner.find("model", "init_cfg")):
        if isinstance(value, (list, tuple)):
            found = [_initialiser(planner, facts, item) for item in value]
            planner.set(key, [item for item in found if item is not None] or None, _reason(facts))
        elif is_pretrained(value):
            kept = _initialiser(planner, facts, value)
            if kept is None:
                planner.set(key, None, _reason(facts))
            else:
                planner.set(f"{key}.checkpoint", kept["checkpoint"], _reason(facts, kept["checkpoint"]))
    for key, name in list(planner.find("model", "pretrained")):
        if names_weights(key, name):
            file = _file(planner, facts, name)
            planner.set(key, file, _reason(facts, file))


def _initialiser(planner: Planner, facts: PatchContext, value: Any) -> Any:
    """Return an ``init_cfg`` with its weights where they were found; None where it goes."""
    if not is_pretrained(value):
        return value
    file = _file(planner, facts, str(value.get("checkpoint")))
    return None if file is None else {**value, "checkpoint": file}


def _file(planner: Planner, facts: PatchContext, name: str) -> str | None:
    """Return where pretrained weights lie; None, with a warning if they would be needed, if nowhere."""
    if facts.action != "fresh":
        return None
    found = facts.pretrained.get(name)
    if found is None:
        planner.warn(
            "Pretrained weights {name} are not attached: the backbone starts from scratch, which "
            "costs accuracy. Attach a data set that holds the file, under any folder, and start "
            "again.",
            weights_files(name)[0],
        )
        return None
    return f"{ATTACHED_MMCLS}{found}" if name.startswith("mmcls://") else str(found)


def _reason(facts: PatchContext, file: str | None = None) -> str:
    if facts.action != "fresh":
        return "the checkpoint holds these weights already"
    return "the attached file of that name" if file is not None else "where the attached files are"
