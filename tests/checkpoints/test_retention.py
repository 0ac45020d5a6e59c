"""Which checkpoints are kept where there is no room for all."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapsage_kaggle.checkpoints.retention import (
    added_bytes,
    beats,
    best_of,
    greater_is_better,
    newest_of,
    plan_retention,
    plan_room,
)
from mapsage_kaggle.records import CheckpointRef

refs = st.lists(
    st.tuples(st.integers(1, 60), st.booleans(), st.integers(1, 100), st.integers(0, 5)),
    max_size=12,
    unique_by=lambda item: item[:2],
).map(
    lambda items: [
        CheckpointRef(
            file=f"best_mIoU_iter_{iteration}.pth" if best else f"iter_{iteration}.pth",
            iteration=iteration,
            sha256="0" * 64,
            size_bytes=size_bytes,
            metric="mIoU" if best else None,
            value=value / 5 if best else None,
        )
        for iteration, best, size_bytes, value in items
    ]
)


@pytest.mark.parametrize("values", [(math.nan, 0.5), (0.5, math.nan), (0.4, 0.5, math.nan)])
def test_nan_is_no_score_that_is_kept_as_the_best(values: tuple[float, ...]) -> None:
    held = [
        CheckpointRef(file=f"best_{i}.pth", iteration=i, sha256="0", size_bytes=1, metric="mIoU", value=value)
        for i, value in enumerate(values)
    ]
    for refs in (held, held[::-1]):
        best = best_of(refs)
        assert best is not None
        assert best.value == 0.5


def held_at(*iterations: int, best: int | None = None, value: float | None = None) -> list[CheckpointRef]:
    """Return checkpoints of 10 bytes each, and a best one beside them."""
    refs = [
        CheckpointRef(file=f"iter_{iteration}.pth", iteration=iteration, sha256="0", size_bytes=10)
        for iteration in iterations
    ]
    if best is not None:
        file = f"best_mIoU_iter_{best}.pth"
        metric = None if value is None else "mIoU"
        refs.append(
            CheckpointRef(file=file, iteration=best, sha256="0", size_bytes=10, metric=metric, value=value)
        )
    return refs


def test_a_best_file_whose_score_was_lost_is_still_the_best() -> None:
    held = held_at(4, 8, best=2)
    assert best_of(held) == held[-1]
    assert plan_retention(held, budget_bytes=0) == ()


def test_where_less_is_better_the_lowest_score_is_kept() -> None:
    held = [*held_at(best=2, value=0.5), *held_at(best=4, value=0.3), *held_at(best=6, value=0.4)]
    assert best_of(held, greater_is_better=False) == held[1]
    assert best_of(held) == held[0]


@pytest.mark.parametrize(
    ("metric", "rule", "greater"),
    [
        ("mIoU", None, True), ("val_Loss", None, False), ("mIoU", "less", False), ("loss", "greater", True),
    ],
)  # fmt: skip
def test_of_a_score_more_is_better_unless_it_is_a_loss_or_the_rule_says_so(
    metric: str, rule: str | None, greater: bool
) -> None:
    assert greater_is_better(metric, rule) is greater


@pytest.mark.parametrize(
    ("budget_bytes", "max_files", "gone"),
    [
        (99, 9, ["iter_0.pth", "iter_7.pth"]),
        (60, 6, ["iter_0.pth", "iter_7.pth"]),
        (59, 6, ["iter_0.pth", "iter_5.pth", "iter_7.pth"]),
        (60, 5, ["iter_0.pth", "iter_5.pth", "iter_7.pth"]),
        (60, 3, ["iter_0.pth", "iter_5.pth", "iter_7.pth", "iter_10.pth", "iter_15.pth"]),
    ],
)
def test_milestones_are_kept_newest_first_as_far_as_there_is_room(
    budget_bytes: int, max_files: int, gone: list[str]
) -> None:
    held = held_at(0, 5, 7, 10, 15, 16, 17, best=6, value=0.5)
    kept = plan_retention(held, budget_bytes=budget_bytes, max_files=max_files, milestones_every=5)
    assert list(kept) == gone


@pytest.mark.parametrize(
    ("needed_bytes", "gone"),
    [
        (0, []),
        (1, ["iter_5.pth"]),
        (10, ["iter_5.pth"]),
        (11, ["iter_5.pth", "iter_8.pth"]),
        (99, ["iter_5.pth", "iter_8.pth", "iter_16.pth"]),
    ],
)
def test_room_is_made_by_the_oldest_and_at_last_by_the_second_newest(
    needed_bytes: int, gone: list[str]
) -> None:
    held = held_at(5, 16, 17, 8, best=6, value=0.5)
    assert list(plan_room(held, needed_bytes=needed_bytes)) == gone


@pytest.mark.parametrize(
    ("held", "milestones_every", "added"),
    [
        (held_at(best=6), None, 0),  # what cannot be resumed says nothing of what the next one takes
        (held_at(5), None, 10),  # the two newest stay
        (held_at(5, 6), None, 0),  # it takes the place of the second newest
        (held_at(5, 7, 8), 5, 0),
        (held_at(5, 10), 5, 10),  # the second newest is a milestone, and there is room for it
        (held_at(5, 10, 15, 20, 25), 5, 0),  # for the second newest there is, the oldest goes
    ],
)
def test_what_the_next_checkpoint_adds_is_less_by_what_goes_for_it(
    held: list[CheckpointRef], milestones_every: int | None, added: int
) -> None:
    assert added_bytes(held, budget_bytes=50, milestones_every=milestones_every) == added


@pytest.mark.parametrize(
    ("score", "best", "greater", "less"),
    [
        (0.5, 0.4, True, False),
        (0.4, 0.5, False, True),
        (0.5, 0.5, False, False),
        (0.5, None, True, True),
        (0.5, math.nan, True, True),
        (math.nan, 0.5, False, False),
        (math.nan, None, False, False),
    ],
)
def test_a_score_beats_one_that_is_worse_and_none_at_all(
    score: float, best: float | None, greater: bool, less: bool
) -> None:
    assert beats(score, best, greater_is_better=True) is greater
    assert beats(score, best, greater_is_better=False) is less


@given(refs, st.integers(0, 500), st.integers(1, 8), st.sampled_from([None, 5, 10]))
def test_retention_keeps_the_newest_two_and_the_best_and_else_the_budget(
    held: list[CheckpointRef], budget_bytes: int, max_files: int, milestones_every: int | None
) -> None:
    gone = plan_retention(
        held, budget_bytes=budget_bytes, max_files=max_files, milestones_every=milestones_every
    )
    kept = [ref for ref in held if ref.file not in gone]
    best = best_of(held)
    safe = {ref.file for ref in newest_of(held, 2)} | ({best.file} if best else set())
    assert safe <= {ref.file for ref in kept}
    extra = [ref for ref in kept if ref.file not in safe]
    assert all(milestones_every and ref.iteration % milestones_every == 0 for ref in extra)
    if extra:
        assert sum(ref.size_bytes for ref in kept) <= budget_bytes
        assert len(kept) <= max_files
    assert (
        plan_retention(
            kept, budget_bytes=budget_bytes, max_files=max_files, milestones_every=milestones_every
        )
        == ()
    ), "what was kept once is kept again"


@given(refs, st.integers(0, 1000))
def test_making_room_never_takes_the_newest_or_the_best(held: list[CheckpointRef], needed_bytes: int) -> None:
    gone = plan_room(held, needed_bytes=needed_bytes)
    best = best_of(held)
    assert best is None or best.file not in gone
    assert all(ref.file not in gone for ref in newest_of(held))
    by_name = {ref.file: ref for ref in held}
    assert sum(by_name[name].size_bytes for name in gone[:-1]) < needed_bytes or not gone
