"""A config's test pipeline: what it does to one image before a trained model sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.config.reading import as_mapping, datasets_of, mapping_or_empty, plain_copy, type_name
from mapsage_kaggle.messages import Message

if TYPE_CHECKING:
    from mmengine.config import Config

_NO_IMAGES = ("LoadAnnotations", "LoadDepthAnnotation")


def test_pipeline_of(cfg: Mapping[str, Any] | Config) -> list[dict[str, Any]]:
    """Return the pipeline of the test data, else of the validation, else ``test_pipeline``."""
    cfg = as_mapping(cfg)
    for name in ("test_dataloader", "val_dataloader"):
        loader = mapping_or_empty(cfg.get(name))
        if loader.get("dataset"):
            *_, dataset = datasets_of(loader["dataset"])
            if dataset.get("pipeline"):
                return [dict(plain_copy(item)) for item in dataset["pipeline"]]
    return [dict(plain_copy(item)) for item in cfg.get("test_pipeline") or []]


def image_loaders(pipeline: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    names = ((type_name(item.get("type")), item) for item in pipeline)
    return [item for name, item in names if name.startswith("Load") and name not in _NO_IMAGES]


def why_not_single(pipeline: Sequence[Mapping[str, Any]]) -> str:
    names = [type_name(item.get("type")) for item in pipeline]
    if image_loaders(pipeline) and not {"TestTimeAug", "MultiScaleFlipAug"} & set(names):
        return ""
    return Message(
        "its test pipeline is not one that loads an image and packs it: {names}",
        ", ".join(names) or "it has none",
    )
