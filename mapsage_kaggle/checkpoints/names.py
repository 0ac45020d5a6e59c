"""What checkpoint files are called: the one place that reads such names and writes them."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["iter", "best", "epoch", "latest", "last_checkpoint", "other"]

LAST_CHECKPOINT = "last_checkpoint"
"""A file that holds the name of the newest checkpoint."""

ENDINGS = (".pth", ".pt", LAST_CHECKPOINT)
"""What every such name ends with, and that of a copy."""

# [0-9], for \d also matches the digits of other scripts; 15 of them at most, for no run is longer and
# JSON's numbers hold no more everywhere.
_NAME = re.compile(r"(?:best_(?P<metric>.+)_)?(?P<unit>iter|epoch)_(?P<count>[0-9]{1,15})\.pth")
# As browsers, file managers and people name copies, in any language: "iter_24 (1).pth", "iter_24的副本.pth",
# "Copy of iter_24.pth", "iter_24.pt". A further digit or letter makes another word of it: "iter_24k.pth".
_COPY = re.compile(
    r"(?:copy of |copy_of_|副本|复制)?[ _-]?"
    r"(?:best_(?P<metric>.+)_)?(?P<unit>iter|epoch)_[0-9]{1,15}(?![\da-z])[^/]*\.pth?",
    re.IGNORECASE,
)
_ENDS_LIKE_ONE = re.compile(r"(?:.*_)?(?P<unit>iter|epoch)_(?P<count>[0-9]{1,15})\.pth", re.DOTALL)


def iteration_name(iteration: int) -> str:
    return f"iter_{iteration}.pth"


def best_name(metric: str, iteration: int) -> str:
    return f"best_{metric}_iter_{iteration}.pth"


def kind_of(name: str) -> Kind:
    """Return what a file name promises; ``other`` where it is no checkpoint's.

    ``best`` counts iterations; a best checkpoint that counts epochs is an ``epoch``.
    """
    if name == LAST_CHECKPOINT:
        return "last_checkpoint"
    if name == "latest.pth":
        return "latest"
    return _kind(_NAME.fullmatch(name))


def likely_kind_of(name: str) -> Kind:
    """Return what a file name promises, a copy's too; which iteration a copy holds, its header has to say."""
    kind = kind_of(name)
    return _kind(_COPY.fullmatch(name)) if kind == "other" else kind


def _kind(found: re.Match[str] | None) -> Kind:
    if not found:
        return "other"
    if found["unit"].lower() == "epoch":
        return "epoch"
    return "best" if found["metric"] else "iter"


def iteration_of(name: str) -> int | None:
    found = _NAME.fullmatch(name)
    return int(found["count"]) if found and found["unit"] == "iter" else None


def metric_of(name: str) -> str | None:
    """Return the score that a best checkpoint's name states, such as ``mIoU``; None for other names."""
    return _NAME.fullmatch(name)["metric"] if kind_of(name) == "best" else None  # type: ignore[index]


def counts_in(name: str) -> tuple[int | None, int | None]:
    """Return the iterations and the epochs that any name states at its end, as ``mine_iter_8.pth`` does."""
    found = _ENDS_LIKE_ONE.fullmatch(name)
    count = int(found["count"]) if found else None
    return (count, None) if found and found["unit"] == "iter" else (None, count)
