"""Which stock parts are replaced by the kit's faster ones, what the diff says of it, and the way back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.config import Config
from mmseg.models.backbones import MixVisionTransformer

from mapsage_kaggle.config import replacements
from mapsage_kaggle.config.fingerprint import fingerprint
from mapsage_kaggle.config.patch import ConfigPatch, PatchContext, apply_patch, plan_patch
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.machine import Gpu
from mapsage_kaggle.training.prepare import half_precision

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SOURCE = CONFIGS / "train_loveda_kaggle.py"
CACHE = Path("/scratch/decoded")

STOCK = [
    {"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"},
    {"type": "RandomResize", "scale": (64, 64), "ratio_range": (0.5, 2.0), "keep_ratio": True},
    {"type": "RandomCrop", "crop_size": (32, 32), "cat_max_ratio": 0.75},
    {"type": "RandomFlip", "prob": 0.5}, {"type": "PhotoMetricDistortion"}, {"type": "PackSegInputs"},
]  # fmt: skip
IMAGE, LABELS, *_, PACK = STOCK


def config(*overrides: str) -> Config:
    return read_config(SOURCE, overrides)


def planned(cfg: Config, *, fast: bool = True, **facts: Any) -> ConfigPatch:
    return plan_patch(
        cfg,
        SOURCE,
        PatchContext(work_dir=Path("work"), fast=fast, cache_dir=CACHE if fast else None, **facts),
    )


def patched(cfg: Config, **facts: Any) -> Config:
    return apply_patch(cfg, planned(cfg, **facts))


def swapped(pipeline: list[Any], scope: str = "mmseg") -> list[str]:
    """Return the types of a pipeline after the swap; those within the faster one in its place."""
    found = replacements.faster_pipeline(pipeline, cache_dir=str(CACHE), scope=scope)
    assert found is None or replacements.stock(found[0]) == pipeline
    return [item["type"] for item in (found[0] if found else pipeline)]


def test_a_shipped_config_trains_with_the_faster_parts() -> None:
    cfg = patched(config())
    (training,) = cfg.train_dataloader.dataset.dataset.pipeline
    assert training.type == "MapsageFastPipeline"
    assert [item.type for item in training.transforms] == [item["type"] for item in STOCK]
    assert training.cache_dir == str(CACHE)
    kinds = [item.type for item in cfg.val_dataloader.dataset.dataset.pipeline]
    assert kinds == ["MapsageLoadImage", "Resize", "MapsageLoadLabels", "PackSegInputs"]
    assert cfg.model.backbone.type == "MapsageMixVisionTransformer"
    assert cfg.model.decode_head.type == "MapsageSegformerHead"
    assert cfg.optim_wrapper.optimizer.fused is True
    assert cfg.val_cfg.fast is True


def test_the_diff_shows_each_swap_with_its_reason() -> None:
    lines = planned(config()).diff().splitlines()
    for key in (
        "train_dataloader.dataset.pipeline", "val_dataloader.dataset.pipeline", "model.backbone.type",
        "model.decode_head.type", "optim_wrapper.optimizer.fused", "val_cfg.fast",
    ):  # fmt: skip
        assert any(line.startswith(f"@@ {key}: ") for line in lines), key


def test_without_fast_nothing_is_swapped() -> None:
    cfg = patched(config(), fast=False)
    assert [item.type for item in cfg.train_dataloader.dataset.dataset.pipeline] == [
        item["type"] for item in STOCK
    ]
    assert "Mapsage" not in cfg.model.backbone.type + cfg.model.decode_head.type
    assert "fused" not in cfg.optim_wrapper.optimizer
    assert "fast" not in cfg.val_cfg


def test_fast_and_stock_are_the_same_run() -> None:
    cfg = config()
    fast, stock = planned(cfg), planned(cfg, fast=False)
    assert fast.fingerprint == stock.fingerprint == fingerprint(cfg)
    assert fingerprint(apply_patch(cfg, fast)) == fast.fingerprint


def test_a_patched_config_is_left_as_it_is_and_goes_back_without_fast() -> None:
    once = patched(config())
    assert apply_patch(once, planned(once)).to_dict() == once.to_dict()
    back, never = patched(once, fast=False).to_dict(), patched(config(), fast=False).to_dict()
    assert back["model"] == never["model"]
    assert back["train_dataloader"] == never["train_dataloader"]
    assert back["val_dataloader"] == never["val_dataloader"]
    assert back["val_cfg"] == never["val_cfg"]
    assert back["optim_wrapper"] == never["optim_wrapper"]


def test_a_fused_optimizer_of_the_person_s_own_stays_without_fast() -> None:
    cfg = config("optim_wrapper.optimizer.fused=True")
    assert patched(cfg, fast=False).optim_wrapper.optimizer.fused is True


def test_mixed_precision_stays_without_fast() -> None:
    once = patched(config(), on_gpu=True, precision="bfloat16")
    wrapper = patched(once, fast=False, on_gpu=True).optim_wrapper
    assert (wrapper.type, wrapper.dtype, wrapper.loss_scale) == ("AmpOptimWrapper", "bfloat16", 1.0)


def test_under_another_scope_parts_keep_mmsegmentation_s_there_and_back() -> None:
    cfg = config()
    cfg.default_scope = "mmpretrain"
    cfg.model.backbone.type = "mmseg.MixVisionTransformer"
    cfg.model.decode_head.type = "mmseg::SegformerHead"
    for item in cfg.val_dataloader.dataset.pipeline:
        item.type = f"mmseg.{item.type}"
    once = patched(cfg)
    assert once.model.backbone.type == "mmseg.MapsageMixVisionTransformer"
    assert [item.type for item in once.val_dataloader.dataset.dataset.pipeline] == [
        "mmseg.MapsageLoadImage", "mmseg.Resize", "mmseg.MapsageLoadLabels", "mmseg.PackSegInputs"
    ]  # fmt: skip
    assert planned(cfg).fingerprint == planned(once).fingerprint
    back = patched(once, fast=False)
    assert back.model.backbone.type == "mmseg.MixVisionTransformer"
    assert back.model.decode_head.type == "mmseg.SegformerHead"
    assert back.val_dataloader.dataset.dataset.pipeline == cfg.val_dataloader.dataset.pipeline


@pytest.mark.parametrize("kind", ["MapsageLoadImage", "mmseg.MapsageLoadImage", "mmseg::MapsageLoadImage"])
def test_a_scope_before_a_faster_part_is_kept(kind: str) -> None:
    assert replacements.stock([{"type": kind, "cache_dir": "/scratch"}]) == [
        {"type": kind.replace("MapsageLoadImage", "LoadImageFromFile")}
    ]


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (STOCK, ["MapsageFastPipeline"]),
        (STOCK[:3], ["MapsageFastPipeline"]),
        ([*STOCK[:4], {"type": "Blur"}, PACK], ["MapsageFastPipeline", "Blur", "PackSegInputs"]),
        ([*STOCK[:2], STOCK[4], *STOCK[2:4]], ["MapsageFastPipeline", "RandomResize", "RandomCrop"]),
        ([*STOCK[:2], {**STOCK[2], "interpolation": "bicubic"}], ["MapsageFastPipeline", "RandomResize"]),
        ([*STOCK[:2], {**STOCK[4], "swap_seg_labels": [(1, 2)]}], ["MapsageFastPipeline", "RandomFlip"]),
        ([{**IMAGE, "to_float32": True}, LABELS], ["LoadImageFromFile", "MapsageLoadLabels"]),
        ([IMAGE, {"type": "Resize"}, LABELS], ["MapsageLoadImage", "Resize", "MapsageLoadLabels"]),
        ([{"type": "RandomMosaic"}, STOCK[2]], ["RandomMosaic", "RandomResize"]),
        ([{"type": "mmdet.LoadAnnotations"}], ["mmdet.LoadAnnotations"]),
        ([{"type": "mmseg.LoadImageFromFile"}, {"type": "mmseg::LoadAnnotations"}], ["MapsageFastPipeline"]),
        ([], []),
    ],
)  # fmt: skip
def test_as_many_transforms_are_swapped_as_are_known_in_order(
    pipeline: list[Any], expected: list[str]
) -> None:
    assert swapped(pipeline) == expected


def test_a_validation_loop_of_one_s_own_is_left_alone() -> None:
    cfg = config()
    cfg.val_cfg = {"type": "OwnValLoop"}
    assert patched(cfg).val_cfg == {"type": "OwnValLoop"}


def test_parts_of_another_scope_are_left_alone() -> None:
    assert swapped(STOCK, scope="mmpretrain") == [item["type"] for item in STOCK]
    cfg = config()
    cfg.default_scope = "mmpretrain"
    assert patched(cfg).model.backbone.type == "MixVisionTransformer"


def test_a_backbone_named_by_its_class_is_swapped_and_one_of_the_same_name_is_not() -> None:
    class Own:
        pass

    Own.__name__ = "MixVisionTransformer"
    assert replacements.stock_name(MixVisionTransformer, "mmseg") == "MixVisionTransformer"
    assert replacements.stock_name(Own, "mmseg") == ""


def test_mmcv_s_class_of_the_name_of_another_of_mmsegmentation_s_is_left_alone() -> None:
    assert replacements.stock_name(LoadAnnotations, "mmseg") == ""
    assert replacements.stock_name(LoadImageFromFile, "mmseg") == "LoadImageFromFile"


@pytest.mark.parametrize("kind", ["RepeatDataset", "ConcatDataset"])
def test_pipelines_within_wrappers_are_swapped(kind: str) -> None:
    cfg = config().to_dict()
    inner = cfg["train_dataloader"]["dataset"]
    wrapped = {
        "RepeatDataset": {"dataset": inner},
        "ConcatDataset": {"datasets": [inner, copy.deepcopy(inner)]},
    }
    cfg["train_dataloader"]["dataset"] = {"type": kind, **wrapped[kind]}
    found = patched(Config(cfg)).train_dataloader.dataset.dataset
    for item in [found.dataset] if kind == "RepeatDataset" else found.datasets:
        assert item.pipeline[0].type == "MapsageFastPipeline"


@pytest.mark.parametrize("override", ["foreach=True", "fused=False", "type=RMSprop"])
def test_an_optimizer_that_says_how_it_steps_or_has_no_fused_kind_is_left_alone(override: str) -> None:
    cfg = config(f"optim_wrapper.optimizer.{override}")
    before = dict(cfg.optim_wrapper.optimizer)
    assert dict(patched(cfg).optim_wrapper.optimizer) == before
    assert fingerprint(config("optim_wrapper.optimizer.fused=False")) == fingerprint(config())


class AdamW:
    """Of a person's own."""


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("AdamW", True), ("mmengine.AdamW", True), ("mmseg::SGD", True), ("torch.optim.Adam", True),
        (torch.optim.AdamW, True), ("apex.AdamW", False), ("bitsandbytes.optim.AdamW", False),
        (AdamW, False), ("RMSprop", False), (torch.optim.RMSprop, False), (None, False),
    ],
)  # fmt: skip
def test_only_torch_s_own_optimizers_are_told_to_be_fused(kind: Any, expected: bool) -> None:
    assert replacements.has_fused_kind(kind) is expected
    cfg = config().to_dict()
    cfg["optim_wrapper"]["optimizer"]["type"] = kind
    changed = {item.key for item in planned(Config(cfg)).changes}
    assert ("optim_wrapper.optimizer.fused" in changed) is expected


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("float16", {"type": "AmpOptimWrapper", "dtype": "float16"}),
        ("bfloat16", {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": 1.0}),
        ("", {"type": "OptimWrapper"}),
    ],
)
def test_precision_follows_the_gpu(precision: str, expected: dict[str, Any]) -> None:
    wrapper = patched(config(), on_gpu=True, precision=precision).optim_wrapper
    assert {key: wrapper[key] for key in ("type", "dtype", "loss_scale") if key in wrapper} == expected
    on_cpu = patched(config(), precision=precision).optim_wrapper
    assert on_cpu.type == "OptimWrapper"


def test_a_precision_that_the_config_chooses_is_kept() -> None:
    cfg = config("optim_wrapper.type=AmpOptimWrapper", "optim_wrapper.dtype=float16")
    wrapper = patched(cfg, on_gpu=True, precision="bfloat16").optim_wrapper
    assert wrapper.dtype == "float16"
    assert "loss_scale" not in wrapper


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([(7, 5), (7, 5)], "float16"), ([(8, 0)], "bfloat16"), ([(9, 0)], "bfloat16"), ([(6, 0)], ""),
        ([(7, 5), (8, 0)], "float16"), ([None], ""), ([], ""),
    ],
)  # fmt: skip
def test_half_precision_is_what_every_gpu_is_faster_in(
    capabilities: list[tuple[int, int] | None], expected: str
) -> None:
    gpus = [Gpu(name="any", memory_bytes=1, capability=item, supported=True) for item in capabilities]
    assert half_precision(gpus) == expected
