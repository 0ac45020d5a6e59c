"""What a record, a manifest or an event may hold. All of them may come from a stranger.

Each function returns the value, or raises a ValueError that says what was expected in its place. None of them
shows more of a foreign value than its first characters.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

MAX_ITERATION = 10**9
MAX_NAME = 255

PERCENT = frozenset({"mIoU", "aAcc", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall"})
"""mmsegmentation's scores that are shares, in percent."""
_PLAIN = re.compile(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def whole(value: Any, what: str, low: int = 0, high: int = MAX_ITERATION) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return value
    raise _wrong(value, what, f"a whole number from {low} to {high}")


def number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and low <= value <= high:
        return value  # type: ignore[no-any-return]
    raise _wrong(value, what, "a finite number" if math.isinf(high) else f"a number from {low:g} to {high:g}")


def score(value: Any, metric: str) -> float:
    """Check a validation score: a share is between 0 and 100 percent."""
    low, high = (0.0, 100.0) if metric in PERCENT else (-math.inf, math.inf)
    return number(value, metric, low, high)


def text(value: Any, what: str, most: int = MAX_NAME) -> str:
    if isinstance(value, str) and len(value) <= most:
        return value
    raise _wrong(value, what, f"a text of at most {most} characters")


def one_of(value: Any, what: str, known: Collection[str]) -> str:
    if isinstance(value, str) and value in known:
        return value
    raise _wrong(value, what, f"one of {', '.join(known)}")


def plain_name(value: Any, what: str) -> str:
    """Check the name of a file in the same folder: no path, no dot in front, nothing invisible."""
    if isinstance(value, str) and len(value) <= MAX_NAME and _PLAIN.fullmatch(value):
        return value
    raise _wrong(value, what, "the plain name of a file")


def sha256(value: Any, what: str) -> str:
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return value
    raise _wrong(value, what, "64 hexadecimal digits")


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise _wrong(value, what, "an object")


def data(value: Any, what: str) -> Mapping[str, Any]:
    """Check what a record says of the training data: nothing, or counts and hashes."""
    for name, item in mapping(value, what).items():
        if name in ("count", "read"):
            whole(item, f"{what}.{name}")
        elif name in ("digest", "sizes"):
            sha256(item, f"{what}.{name}")
    return value  # type: ignore[no-any-return]


def built(kind: type[T], document: Mapping[str, Any]) -> T:
    """Return a dataclass made of a JSON object; names that it does not know are ignored.

    Raises:
        TypeError: A value is of another type than its field.
    """
    hints = _hints(kind)  # type: ignore[arg-type]  # a class is hashable
    return kind(**{name: _valued(hints[name], value) for name, value in document.items() if name in hints})


@functools.cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _valued(hint: Any, value: Any) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is UnionType or origin is Union:
        if value is None:
            return None
        return _valued(next(item for item in inner if item is not NoneType), value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if dataclasses.is_dataclass(hint):
        return built(hint, value)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        return tuple(_valued(inner[0], item) for item in value)
    if origin is Literal:
        fits = value in inner
    elif hint is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    elif hint is Any:
        fits = True
    else:
        fits = isinstance(value, origin or hint) and not (hint is int and isinstance(value, bool))
        if fits and isinstance(value, Mapping) and inner:
            fits = all(isinstance(name, str) for name in value)
            value = {name: _valued(inner[1], item) for name, item in value.items()}
    if not fits:
        raise TypeError(f"{value!r} is no {hint}")
    return value


def _wrong(value: Any, what: str, expected: str) -> ValueError:
    shown = ascii(value[:40]) if isinstance(value, str) else type(value).__name__
    if isinstance(value, float) or (isinstance(value, int) and -(10**15) < value < 10**15):
        shown = str(value)
    return ValueError(f"{what}: {shown} is not {expected}")
