"""What makes two configs the same run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.config import replacements
from mapsage_kaggle.config.reading import (
    as_mapping,
    effective_batch,
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
