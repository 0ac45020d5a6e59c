"""A class of a person's own under a stock name is what is built, whatever the kit has in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.registry import TRANSFORMS as ALL_TRANSFORMS
from mmengine.registry import DefaultScope, Registry
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.models.backbones import MixVisionTransformer
from mmseg.models.decode_heads import SegformerHead
from mmseg.registry import MODELS, TRANSFORMS

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.config import replacements
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine.fast.transforms import MapsageFastPipeline

FASTER = {**replacements.FASTER_MODULES, **replacements.FASTER_LOADERS}
STOCK: dict[str, tuple[Registry, type, dict[str, Any]]] = {
    "MixVisionTransformer": (MODELS, MixVisionTransformer, {"embed_dims": 16, "num_layers": [1, 1, 1, 1]}),
    "SegformerHead": (
        MODELS,
        SegformerHead,
        {"in_channels": [8], "in_index": [0], "channels": 8, "num_classes": 3,
         "loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True}},
    ),
    "LoadImageFromFile": (TRANSFORMS, LoadImageFromFile, {"cache_dir": "/scratch/decoded"}),
    "LoadAnnotations": (TRANSFORMS, LoadAnnotations, {"cache_dir": "/scratch/decoded"}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


@pytest.mark.parametrize("name", STOCK)
def test_a_class_registered_under_the_stock_name_is_built_in_the_kit_s_place(
    name: str, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    registry, stock, options = STOCK[name]

    class Own(stock):  # type: ignore[misc, valid-type]
        pass

    monkeypatch.setitem(registry.module_dict, name, Own)
    for _ in range(2):
        assert type(registry.build({"type": FASTER[name], **options})) is Own
    (message,) = warnings()
    assert message.startswith(f"{name} is {Own.__module__}.")
    assert "Own" in message
    assert Words("zh").translate(message).startswith(f"此处的 {name} 是 ")


@pytest.mark.parametrize("name", STOCK)
def test_the_kit_s_class_is_built_where_the_name_means_the_stock_one(
    name: str, warnings: Callable[[], list[str]]
) -> None:
    registry, stock, options = STOCK[name]
    built = registry.build({"type": FASTER[name], **options})
    assert isinstance(built, stock)
    assert type(built).__module__.startswith("mapsage_kaggle.")
    assert warnings() == []


def test_a_function_under_the_stock_name_is_called(
    monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    monkeypatch.setitem(TRANSFORMS.module_dict, "LoadImageFromFile", lambda **options: options)
    built = TRANSFORMS.build({"type": "MapsageLoadImage", "color_type": "color", "cache_dir": "/scratch"})
    assert built == {"color_type": "color"}
    assert len(warnings()) == 1


def test_another_scope_s_class_of_the_same_name_does_not_matter(warnings: Callable[[], list[str]]) -> None:
    """As where the default scope is another and the config has said ``mmseg.`` before the name."""
    other = Registry("transform", parent=ALL_TRANSFORMS, scope="other_for_this_test")
    try:
        other.register_module(name="LoadImageFromFile", module=dict)
        with DefaultScope.overwrite_default_scope("other_for_this_test"):
            for kind in (LoadImageFromFile, LoadAnnotations):
                name = replacements.faster_name(kind.__name__, "other_for_this_test")
                assert isinstance(other.build({"type": name}), kind)
            built = other.build({"type": "MapsageLoadImage"})
    finally:
        ALL_TRANSFORMS.children.pop("other_for_this_test")
    assert isinstance(built, LoadImageFromFile)
    assert warnings() == []


def test_a_loader_of_one_s_own_runs_as_it_is_within_the_faster_pipeline(
    monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], list[str]]
) -> None:
    class Own(LoadImageFromFile):  # type: ignore[misc]
        pass

    monkeypatch.setitem(TRANSFORMS.module_dict, "LoadImageFromFile", Own)
    fast = MapsageFastPipeline([{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}])
    assert type(fast.transforms[0]) is Own
    assert fast._steps is None
    assert len(warnings()) == 1
