"""A hash of a nested value, by which two states of it are compared without keeping either."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
import torch
from mmengine.structures import BaseDataElement

_LIBRARIES = frozenset({"mmengine", "mmcv", "mmseg", "torch", "logging", "threading", "mapsage_kaggle"})
_MAX_DEPTH = 40
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, PurePath)


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def digest(value: Any) -> str:
    """Return a hash of a value: of its numbers, texts, arrays, tensors and generators, up to 40 levels deep.

    Of an object, its attributes count; of a library's (a runner, a logger), only its type.
    """
    hashing = hashlib.blake2b(digest_size=16)
    _feed(hashing, value, {}, 0)
    return hashing.hexdigest()


def own_attributes(value: Any) -> Mapping[str, Any]:
    """Return an object's attributes by name; none of a class, or of a library's object."""
    if isinstance(value, type) or type(value).__module__.partition(".")[0] in _LIBRARIES:
        return {}
    return getattr(value, "__dict__", None) or {}


def _feed(hashing: _Hash, value: Any, seen: dict[int, Any], depth: int) -> None:
    hashing.update(f"{type(value).__name__}:".encode())
    if isinstance(value, _PLAIN):
        hashing.update(repr(value).encode("utf-8", "backslashreplace"))
        return
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        hashing.update(f"{value.dtype}{tuple(value.shape)}".encode())
        hashing.update(value.reshape(-1).view(torch.uint8).numpy())
        return
    if id(value) in seen or depth == _MAX_DEPTH:
        return
    seen[id(value)] = value  # kept alive, so that its id is not reused
    for item in _parts(hashing, value):
        _feed(hashing, item, seen, depth + 1)


def _parts(hashing: _Hash, value: Any) -> Iterable[Any]:
    """Return what a value consists of; the bytes of an array go into the hash at once."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        hashing.update(f"{value.dtype}{value.shape}".encode())
        hashing.update(np.ascontiguousarray(value).tobytes())
        return ()
    if isinstance(value, (list, tuple, deque, np.ndarray)):
        return list(value)
    if isinstance(value, Mapping):
        return [part for key in sorted(value, key=repr) for part in (key, value[key])]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, BaseDataElement):
        return (dict(value.metainfo_items()), dict(value.items()))
    if isinstance(value, torch.nn.Module):
        return (value.state_dict(),)
    if isinstance(value, np.random.Generator):
        return (value.bit_generator.state,)
    if isinstance(value, np.random.RandomState):
        return (value.get_state(),)
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return (value.getstate(),)
    if isinstance(value, torch.Generator):
        return (value.get_state(),)
    return (own_attributes(value),)
