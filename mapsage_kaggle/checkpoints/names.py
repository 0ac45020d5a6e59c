"""What checkpoint files are called."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["iter", "best", "other"]


_ITER = re.compile(r"iter_(\d+)\.pth")


_BEST = re.compile(r"best_(?P<metric>.+)_iter_(\d+)\.pth")


def kind_of(name: str) -> Kind:
    """Return ``iter``, ``best`` or ``other`` for a checkpoint's file name."""
    if _ITER.fullmatch(name):
        return "iter"
    return "best" if _BEST.fullmatch(name) else "other"


def iteration_of(name: str) -> int | None:
    """Return the iteration that a file name states, or None where it states none."""
    found = _ITER.fullmatch(name) or _BEST.fullmatch(name)
    return int(found.group(found.lastindex or 1)) if found else None


def metric_of(name: str) -> str | None:
    """Return the score that a best checkpoint's name states, such as ``mIoU``; None for other names."""
    found = _BEST.fullmatch(name)
    return found.group("metric") if found else None
