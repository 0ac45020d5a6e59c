"""What makes two configs the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.config import replacements
from mapsage_kaggle.config.reading import (
    as_list,
    as_mapping,
    effective_batch,
    find_below,
    mapping_or_empty,
    type_name,
    without_wrappers,
)

if TYPE_CHECKING:
    from mmengine.config import Config


DEFAULT_SEED = 0


_FINGERPRINT_VERSION = 1


_NOT_IN_FINGERPRINT = frozenset(
    {
        "data_root", "data_prefix", "ann_file", "img_dir", "ann_dir", "indices", "backend_args",
        "file_client_args", "init_cfg", "pretrained", "with_cp", "lazy_init", "serialize_data",
        "imdecode_backend", "_scope_",
    }
)  # fmt: skip
"""Keys that say where things lie or how they are run, not what is trained."""


HOW_IT_STEPS = frozenset({"fused", "foreach", "capturable"})
"""Options of an optimizer that choose between ways to compute the same step."""


def fingerprint(cfg: Mapping[str, Any] | Config) -> str:
    """Return 16 hex digits that two configs share when they are the same run.

    What counts: model, data set type and classes, training pipeline, optimizer, effective batch
    and seed. What does not: paths, workers, hooks, limits, precision, micro-batch, ``max_iters``,
    whether norms are synchronised, and whether the kit's faster parts stand in for stock ones.
    """
    cfg = as_mapping(cfg)
    loader = mapping_or_empty(cfg.get("train_dataloader"))
    dataset = without_wrappers(mapping_or_empty(replacements.stock(loader.get("dataset"))))
    optim = mapping_or_empty(cfg.get("optim_wrapper"))
    optimizer = {
        key: value
        for key, value in mapping_or_empty(optim.get("optimizer")).items()
        if key not in HOW_IT_STEPS
    }
    document = {
        "version": _FINGERPRINT_VERSION,
        "model": _canonical(replacements.stock(cfg.get("model"))),
        "dataset": _canonical({key: value for key, value in dataset.items() if key != "pipeline"}),
        "pipeline": _canonical(dataset.get("pipeline", [])),
        "optimizer": _canonical(
            {
                "optimizer": optimizer or None,
                **{key: optim.get(key) for key in ("paramwise_cfg", "clip_grad", "constructor")},
            }
        ),
        "effective_batch": effective_batch(loader) * int(optim.get("accumulative_counts", 1) or 1),
        "seed": mapping_or_empty(cfg.get("randomness")).get("seed") or DEFAULT_SEED,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _canonical(type_name(item) if key == "type" else item)
            for key, item in value.items()
            if key not in _NOT_IN_FINGERPRINT and item is not None
        }
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if value in ("SyncBN", "MMSyncBN"):
        return "BN"
    if isinstance(value, (str, int, bool)):
        return value.rpartition("::")[2] if isinstance(value, str) else value
    if isinstance(value, float):
        return repr(value)
    return getattr(value, "__qualname__", None) or repr(value)


_DROPS = ("drop_rate", "attn_drop_rate", "drop_path_rate", "dropout_ratio", "proj_drop_rate")


_DROP_DEFAULTS = {"SwinTransformer": ("drop_path_rate", 0.1)}


_HEAD_DROPOUT = 0.1
"""What mmsegmentation's heads take where the config is silent."""


_BATCH_NORMS = ("BN", "BN1d", "BN2d", "BN3d", "SyncBN", "MMSyncBN", "NaiveSyncBatchNorm2d")


_SPLITTABLE_LOSSES = ("CrossEntropyLoss", "FocalLoss", "DiceLoss")


def split_differences(model: Mapping[str, Any], *, world_size: int = 1) -> tuple[str, ...]:
    """Return what makes a step over a split batch differ from the whole one by more than rounding.

    What is left after that: per-sample norms and per-pixel losses, which the kit weights with
    their own normaliser.

    Args:
        model: The config's model.
        world_size: Ranks, over which SyncBN looks at once.
    """
    found: list[str] = []
    drops = {
        f"{key} = {value}" for name in _DROPS for key, value in find_below(model, "model", name) if value
    }
    backbone = mapping_or_empty(model.get("backbone"))
    name, rate = _DROP_DEFAULTS.get(type_name(backbone.get("type")), ("", 0.0))
    if name and rate and name not in backbone:
        drops.add(f"model.backbone.{name} = {rate} by default")
    heads = [*as_list(model.get("decode_head")), *as_list(model.get("auxiliary_head"))]
    if any("dropout_ratio" not in mapping_or_empty(head) for head in heads):
        drops.add(f"dropout_ratio = {_HEAD_DROPOUT} of the heads by default")
    if drops:
        found.append(f"dropout draws by rank and micro-batch: {', '.join(sorted(drops))}")
    norms = {
        str(type_name(value)) for _, value in find_below(model, "model", "type") if isinstance(value, str)
    }
    if norms & set(_BATCH_NORMS) or type_name(backbone.get("type")).startswith("ResNet"):
        seen = "all ranks' parts" if world_size > 1 and norms & {"SyncBN", "MMSyncBN"} else "its own part"
        found.append(f"batch norm takes its statistics from {seen} of the batch in one forward pass")
    losses = [
        mapping_or_empty(loss)
        for _, value in find_below(model, "model", "loss_decode")
        for loss in (value if isinstance(value, (list, tuple)) else [value])
    ]
    unknown = sorted(
        {
            type_name(loss.get("type"))
            for loss in losses
            if type_name(loss.get("type")) not in _SPLITTABLE_LOSSES
            and not (type_name(loss.get("type")) == "LovaszLoss" and loss.get("per_image"))
        }
    )
    if unknown:
        found.append(f"{', '.join(unknown)} may look at the whole batch; it is weighted by images")
    if any(mapping_or_empty(head).get("sampler") for head in heads):
        found.append("the pixel sampler chooses within its own part of the batch")
    return tuple(found)
