"""Compare weights, optimizer, schedulers and losses of two checkpoints bit for bit: run in a child.

    python -m mapsage_kaggle.engine.compare first.pth second.pth

prints one JSON document, see :func:`compare`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from mapsage_kaggle.checkpoints.allowed import HistoryInfo
from mapsage_kaggle.checkpoints.load import load_checkpoint

PARTS = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two checkpoints.

    Returns:
        ``iterations``, those of both; ``num_values``, how many tensors and numbers were compared;
        ``differences``, where they are not the same bit for bit; ``apart``, the distance of the second's
        weights from the first's, relative to the norm of the first's; ``loss_scale``, the first's, or None.
    """
    found = [
        item
        for part in PARTS
        if part in first or part in second
        for item in _walk(first.get(part), second.get(part), part)
    ]
    hubs = [checkpoint["message_hub"]["log_scalars"]["train/loss"] for checkpoint in (first, second)]
    losses = [list(hub.log) for hub in hubs]
    found += _walk(losses[0], losses[1], "train/loss")
    return {
        "iterations": [checkpoint["meta"]["iter"] for checkpoint in (first, second)],
        "num_values": len(found),
        "differences": [where for where, same in found if not same],
        "apart": _apart(first["state_dict"], second["state_dict"]),
        "loss_scale": first["optimizer"].get("loss_scaler", {}).get("scale"),
    }


def _walk(one: Any, other: Any, where: str) -> Iterator[tuple[str, bool]]:
    """Yield each place where a value stands, and whether it is the same in both."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        bits = [item.contiguous().reshape(-1).view(torch.uint8) for item in (one, other)]
        yield where, alike and torch.equal(*bits)
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            if key in one and key in other:
                yield from _walk(one[key], other[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}", False
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        yield f"{where}: its length", len(one) == len(other)
        for index, pair in enumerate(zip(one, other, strict=False)):
            yield from _walk(*pair, f"{where}.{index}")
    else:
        yield where, type(one) is type(other) and bool(one == other)


def _apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    both = [name for name in one if name in other and one[name].shape == other[name].shape]
    flat = [torch.cat([state[name].double().reshape(-1) for name in both]) for state in (one, other)]
    return float((flat[1] - flat[0]).norm() / flat[0].norm())


if __name__ == "__main__":
    read = [load_checkpoint(Path(name), history_buffer=HistoryInfo) for name in sys.argv[1:3]]
    print(json.dumps(compare(*read)))
