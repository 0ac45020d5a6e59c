"""Configs in a few lines, planned and patched."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mapsage_kaggle.config.patch import ConfigPatch, PatchContext, apply_patch, plan_patch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


SOURCE = Path("small.py")


def small(**changes: Any) -> dict[str, Any]:
    """Return a small iteration-based config; ``a__b=value`` sets ``a.b``."""
    cfg: dict[str, Any] = {
        "model": {
            "type": "EncoderDecoder",
            "backbone": {"type": "MixVisionTransformer", "init_cfg": None},
            "decode_head": {
                "type": "SegformerHead", "num_classes": 8, "dropout_ratio": 0.0,
                "norm_cfg": {"type": "SyncBN", "requires_grad": True},
                "loss_decode": {"type": "CrossEntropyLoss"},
            },
        },
        "train_dataloader": {
            "batch_size": 4, "num_workers": 2, "persistent_workers": True,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": {
                "type": "EarthVQADataset", "data_root": "data/earthvqa",
                "data_prefix": {"img_path": "Train/images_png", "seg_map_path": "Train/masks_png"},
                "pipeline": [{"type": "LoadImageFromFile"}, {"type": "RandomFlip", "prob": 0.5}],
            },
        },
        "val_dataloader": {
            "batch_size": 1, "num_workers": 2, "persistent_workers": True,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": {"type": "EarthVQADataset", "data_root": "data/earthvqa", "pipeline": []},
        },
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "AdamW", "lr": 6e-5}},
        "param_scheduler": [
            {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 10},
            {"type": "PolyLR", "by_epoch": False, "begin": 10, "end": 100},
        ],
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": 100, "val_interval": 20},
        "default_hooks": {
            "checkpoint": {
                "type": "CheckpointHook", "by_epoch": False, "interval": 20,
                "save_best": "mIoU", "rule": "greater",
            },
            "sampler_seed": {"type": "DistSamplerSeedHook"},
        },
        "env_cfg": {"cudnn_benchmark": True, "dist_cfg": {"backend": "nccl"}},
        "randomness": {"seed": 3},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = cfg
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return cfg


def without(cfg: dict[str, Any], key: str) -> dict[str, Any]:
    *parents, last = key.split(".")
    node = cfg
    for name in parents:
        node = node[name]
    del node[last]
    return cfg


def planned(cfg: dict[str, Any] | None = None, **facts: Any) -> ConfigPatch:
    return plan_patch(small() if cfg is None else cfg, SOURCE, PatchContext(work_dir=Path("work"), **facts))


def patched(cfg: dict[str, Any] | None = None, **facts: Any) -> Any:
    source = small() if cfg is None else cfg
    return apply_patch(Config(copy.deepcopy(source)), planned(source, **facts))


def wrapped(kind: str) -> dict[str, Any]:
    inner = small()["train_dataloader"]["dataset"]
    other = {**copy.deepcopy(inner), "data_root": "data/more"}
    dataset = {
        "RepeatDataset": {"type": "RepeatDataset", "times": 3, "dataset": inner},
        "ConcatDataset": {"type": "ConcatDataset", "datasets": [inner, other]},
        "both": {
            "type": "RepeatDataset",
            "times": 2,
            "dataset": {"type": "ConcatDataset", "datasets": [inner, other]},
        },
        "tuple": {"type": "ConcatDataset", "datasets": (inner, other)},
    }[kind]
    return small(train_dataloader__dataset=dataset)


def own_data(root: str = "data/fields", **dataset: Any) -> dict[str, Any]:
    """Return a config of a data set that the kit knows nothing of but what the config says."""
    cfg = small()
    for name, split in (("train_dataloader", "train"), ("val_dataloader", "val")):
        cfg[name]["dataset"] = {
            "type": "FieldsDataset", "data_root": root,
            "data_prefix": {"img_path": f"img/{split}", "seg_map_path": f"ann/{split}"},
            "pipeline": [], **dataset,
        }  # fmt: skip
    return cfg


def lay_out(folder: Path, splits: Sequence[str] = ("train", "val")) -> Path:
    for split in splits:
        for kind in ("img", "ann"):
            (folder / kind / split).mkdir(parents=True)
            (folder / kind / split / "0.png").touch()
    return folder
