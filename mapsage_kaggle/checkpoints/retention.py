"""Which checkpoints to keep and which may go: decided here, done by the store."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

from mapsage_kaggle.checkpoints.names import iteration_name, kind_of
from mapsage_kaggle.records import CheckpointRef

BUDGET_BYTES = 4_000_000_000
"""Kaggle takes about 2 minutes to save 1 GB of output."""
MAX_FILES = 60
"""Kaggle keeps 500 files of an output; the rest of the work dir needs most of them."""


def best_of(refs: Iterable[CheckpointRef], *, greater_is_better: bool = True) -> CheckpointRef | None:
    """Return the best-scored checkpoint, the newer of equals; NaN is no score.

    Where none holds a score, the newest of those whose name says that they are the best: a score
    can be lost with a torn manifest, and the file must not go with it. None where there is none.
    """
    refs = tuple(refs)
    sign = 1.0 if greater_is_better else -1.0
    scored = [
        ref for ref in refs if ref.metric is not None and ref.value is not None and not math.isnan(ref.value)
    ]
    if scored:
        return max(scored, key=lambda ref: (sign * cast(float, ref.value), ref.iteration))
    return max(
        (ref for ref in refs if kind_of(ref.file) == "best"), key=lambda ref: ref.iteration, default=None
    )


def newest_of(refs: Iterable[CheckpointRef], count: int = 1) -> list[CheckpointRef]:
    """Return the newest resumable checkpoints, newest first. Best files hold no optimizer: not among them."""
    return sorted(
        (ref for ref in refs if kind_of(ref.file) != "best"),
        key=lambda ref: (-ref.iteration, ref.file),
    )[:count]


def plan_retention(
    refs: Sequence[CheckpointRef],
    *,
    budget_bytes: int,
    max_files: int = MAX_FILES,
    milestones_every: int | None = None,
    other_bytes: int = 0,
    other_files: int = 0,
    greater_is_better: bool = True,
) -> tuple[str, ...]:
    """Return the names to delete, oldest first, so that the work dir stays within its budget.

    The newest two and the best are always kept, even where they alone exceed the budget: losing
    progress is worse than a slow output. Then come the milestones, one for every ``milestones_every``
    iterations, newest first, each if it fits. What else lies in the folder (``other_bytes``, ``other_files``)
    counts, too.
    """
    kept = {ref.file: ref for ref in newest_of(refs, 2)}
    best = best_of(refs, greater_is_better=greater_is_better)
    if best is not None:
        kept[best.file] = best
    left_bytes = budget_bytes - other_bytes - sum(ref.size_bytes for ref in kept.values())
    left_files = max_files - other_files - len(kept)
    if milestones_every:
        for ref in newest_of(refs, len(refs)):
            if ref.file in kept or ref.iteration == 0 or ref.iteration % milestones_every:
                continue
            if ref.size_bytes <= left_bytes and left_files > 0:
                kept[ref.file] = ref
                left_bytes -= ref.size_bytes
                left_files -= 1
    gone = [ref for ref in refs if ref.file not in kept]
    return tuple(ref.file for ref in sorted(gone, key=lambda ref: (ref.iteration, ref.file)))


def added_bytes(refs: Sequence[CheckpointRef], *, budget_bytes: int, milestones_every: int | None) -> float:
    """Return what the next resumable checkpoint, as large as the newest, adds to what is kept."""
    newest = next(iter(newest_of(refs)), None)
    if newest is None:
        return 0.0
    coming = replace(newest, file=iteration_name(newest.iteration + 1), iteration=newest.iteration + 1)
    gone = plan_retention([*refs, coming], budget_bytes=budget_bytes, milestones_every=milestones_every)
    freed_bytes = sum(ref.size_bytes for ref in refs if ref.file in gone)
    return float(max(0, coming.size_bytes - freed_bytes))


def plan_room(
    refs: Sequence[CheckpointRef], *, needed_bytes: int, greater_is_better: bool = True
) -> tuple[str, ...]:
    """Return what to delete, in this order, to free ``needed_bytes`` on a full disk.

    Milestones and outdone scores go first, oldest first, then the second newest; the newest and
    the best never. May free less than asked where that is all there is.
    """
    newest = newest_of(refs, 2)
    best = best_of(refs, greater_is_better=greater_is_better)
    safe = {ref.file for ref in (*newest, best) if ref is not None}
    spare = sorted((ref for ref in refs if ref.file not in safe), key=lambda ref: (ref.iteration, ref.file))
    spare += newest[1:]
    names: list[str] = []
    freed_bytes = 0
    for ref in spare:
        if freed_bytes >= needed_bytes:
            break
        names.append(ref.file)
        freed_bytes += ref.size_bytes
    return tuple(names)


def beats(score: float, best: float | None, *, greater_is_better: bool) -> bool:
    if math.isnan(score):
        return False
    if best is None or math.isnan(best):
        return True
    return score > best if greater_is_better else score < best


def greater_is_better(metric: str, rule: str | None = None) -> bool:
    return rule == "greater" if rule else "loss" not in metric.lower()
