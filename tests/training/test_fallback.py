"""What follows the end of a child."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mapsage_kaggle.training.fallback import (
    MAX_CRASHES,
    VALIDATION_RUNGS,
    Kind,
    MemoryFallback,
    Next,
    Outcome,
    decide_next,
)

HOUR_S = 3600.0
KINDS: tuple[Kind, ...] = (
    "done",
    "memory",
    "shared_memory",
    "precision",
    "refused",
    "error",
    "crashed",
    "hung",
    "killed",
)
FAILURES: tuple[Kind, ...] = ("error", "crashed", "hung", "shared_memory")


def after(kind: Kind, ladder: MemoryFallback | None = None, **options: Any) -> Next:
    """Return what follows an end of this kind."""
    can_recompute = options.pop("can_recompute", True)
    time_left_s = options.pop("time_left_s", HOUR_S)
    adapt = options.pop("adapt", True)
    chose_half = options.pop("chose_half", False)
    outcome = Outcome(kind=kind, message=options.pop("message", "What happened."), **options)
    return decide_next(
        ladder or MemoryFallback(micro_batch=4),
        outcome,
        can_recompute=can_recompute,
        time_left_s=time_left_s,
        adapt=adapt,
        chose_half=chose_half,
    )


@pytest.mark.parametrize("stage", ["training", "validation"])
def test_running_out_of_memory_ends_it_where_nothing_is_to_be_adapted(stage: str) -> None:
    assert after("memory", adapt=False, data={"stage": stage}).ladder is None
    assert after("memory", data={"stage": stage}).ladder is not None


@pytest.mark.parametrize("kind", ["done", "killed", "refused"])
def test_what_would_end_the_same_way_again_is_not_tried_again(kind: Kind) -> None:
    assert after(kind) == Next(ladder=None, message="What happened.")


def test_half_precision_of_the_kit_s_choice_is_given_up_once_and_at_once() -> None:
    ladder = MemoryFallback(micro_batch=2, with_cp=True, crashes=2)
    found = after("precision", ladder, chose_half=True)
    assert found.ladder == replace(ladder, float32=True, crashes=0)
    assert found.wait_s == 0.0
    assert found.message == "What happened. Going on in float32 from the newest checkpoint."
    assert found.ladder is not None
    assert after("precision", found.ladder, chose_half=True).ladder is None


def test_half_precision_of_a_person_s_choice_ends_with_how_to_do_without() -> None:
    found = after("precision")
    assert found.ladder is None
    assert found.message.endswith("--precision float32 trains without it.")


def test_out_of_memory_halves_the_micro_batch_down_to_one_then_recomputes_then_ends() -> None:
    ladder, steps = MemoryFallback(micro_batch=5), []
    while (found := after("memory", ladder)).ladder is not None:
        assert found.wait_s == 0.0
        assert "Out of memory" in found.message
        ladder = found.ladder
        steps.append((ladder.micro_batch, ladder.with_cp))
    assert steps == [(2, False), (1, False), (1, True)]
    assert "smaller crop" in found.message
    assert "What happened." in found.message


LAST_RUNG = MemoryFallback(micro_batch=1, with_cp=True, validation_rung=1)


def test_out_of_shared_memory_halves_the_data_workers_down_to_none_at_once() -> None:
    ladder = MemoryFallback(micro_batch=4, workers=3, crashes=2)
    first = after("shared_memory", ladder, adapt=False)
    assert first == Next(
        ladder=replace(ladder, workers=1, crashes=0),
        message="What happened. Going on with 1 data worker(s) a rank.",
    )
    second = after("shared_memory", first.ladder)
    assert second.ladder == replace(ladder, workers=0, crashes=0)
    assert second.message == "What happened. Going on without data workers."


@pytest.mark.parametrize("ladder", [MemoryFallback(micro_batch=4), LAST_RUNG])
def test_memory_that_runs_out_late_costs_no_level_but_then_early_it_does(
    ladder: MemoryFallback,
) -> None:
    late = after("memory", replace(ladder, crashes=2), iteration=700, trained=300, proven=650, gained=250)
    assert late.ladder == ladder
    assert late.wait_s == 0.0
    early = after("memory", ladder, iteration=700, trained=50, proven=680, gained=30)
    assert early == after("memory", ladder)
    assert early.ladder != ladder


@pytest.mark.parametrize("stage", ["training", "validation"])
def test_memory_that_runs_out_late_and_with_nothing_to_go_on_from_costs_a_rung(stage: str) -> None:
    ladder = MemoryFallback(micro_batch=4)
    gained = {"training": 0, "validation": 250}[stage]
    found = after("memory", ladder, trained=300, proven=None, gained=gained, data={"stage": stage})
    assert found.ladder == (
        MemoryFallback(micro_batch=2, above=4)
        if stage == "training"
        else MemoryFallback(micro_batch=4, validation_rung=1)
    )


def test_a_model_that_cannot_recompute_ends_with_one_image() -> None:
    assert after("memory", MemoryFallback(micro_batch=1), can_recompute=False).ladder is None


TOO_FEW = (
    "ValueError: Expected more than 1 value per channel when training, got input size torch.Size([1, 8])"
)


def refused(ladder: MemoryFallback, *, can_recompute: bool = True) -> Next:
    outcome = Outcome(kind="refused", message=TOO_FEW)
    return decide_next(ladder, outcome, can_recompute=can_recompute, time_left_s=HOUR_S)


def test_an_error_that_repeats_itself_before_an_iteration_is_not_tried_again() -> None:
    first = after("error", MemoryFallback(micro_batch=2), message="No such key.")
    assert first.ladder is not None
    assert after("error", first.ladder, message="Another.").ladder is not None
    again = after("error", first.ladder, message="No such key.")
    assert again.ladder is None
    assert again.message == "No such key. It failed in the same way twice."
    assert after("error", first.ladder, message="No such key.", trained=1).ladder is not None


def test_one_image_on_each_rank_that_is_too_few_says_what_to_do() -> None:
    # Of three images, two ranks have two and one.
    found = refused(MemoryFallback(micro_batch=2))
    assert found.ladder is None
    assert found.message.startswith("BatchNorm cannot be trained with 1 image(s) in a forward pass.")
    assert "--gpus 1" in found.message


def test_where_one_image_is_too_few_for_batch_norm_blocks_are_recomputed_with_two() -> None:
    one = after("memory", MemoryFallback(micro_batch=2)).ladder
    assert one is not None
    found = refused(one).ladder
    assert found is not None
    assert (found.micro_batch, found.with_cp) == (2, True)
    end = after("memory", found)
    assert end.ladder is None
    assert "too few for BatchNorm" in end.message


def test_between_too_few_images_and_too_many_there_may_be_a_rung() -> None:
    one = after("memory", MemoryFallback(micro_batch=3)).ladder
    assert one is not None
    assert one.micro_batch == 1
    three = refused(one).ladder
    assert three is not None
    two = after("memory", three).ladder
    assert two is not None
    assert (two.micro_batch, two.with_cp) == (2, True)
    assert after("memory", two).ladder is None


def test_recomputing_that_shows_one_image_to_be_too_few_is_kept_with_two() -> None:
    ladder: MemoryFallback | None = MemoryFallback(micro_batch=2)
    for _ in range(2):
        assert ladder is not None
        ladder = after("memory", ladder).ladder
    assert ladder is not None
    assert (ladder.micro_batch, ladder.with_cp) == (1, True)
    found = refused(ladder).ladder
    assert found is not None
    assert (found.micro_batch, found.with_cp) == (2, True)


def test_batch_norm_that_refuses_ends_it_where_nothing_else_can_be_tried() -> None:
    one = after("memory", MemoryFallback(micro_batch=2)).ladder
    assert one is not None
    end = refused(one, can_recompute=False)
    assert end.ladder is None
    assert "Fewer than 2 images" in end.message


def test_out_of_memory_in_validation_leaves_training_as_it_is() -> None:
    ladder, rungs = MemoryFallback(micro_batch=4), []
    while (found := after("memory", ladder, data={"stage": "validation"})).ladder is not None:
        ladder = found.ladder
        assert (ladder.micro_batch, ladder.with_cp) == (4, False)
        rungs.append(ladder.validation_rung)
    assert rungs == list(range(1, len(VALIDATION_RUNGS)))
    assert "mode='slide'" in found.message


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_is_tried_again_three_times_each_later_than_the_last(kind: Kind) -> None:
    ladder, waits_s = MemoryFallback(micro_batch=2, with_cp=True, validation_rung=1), []
    while (found := after(kind, ladder, message=f"Try {len(waits_s)}.")).ladder is not None:
        ladder = found.ladder
        waits_s.append(found.wait_s)
        assert (ladder.micro_batch, ladder.with_cp, ladder.validation_rung) == (2, True, 1)
    assert waits_s == [5.0, 10.0, 20.0]
    assert len(waits_s) == MAX_CRASHES
    assert "without progress" in found.message


@pytest.mark.parametrize("kind", FAILURES)
def test_a_checkpoint_in_between_makes_the_tries_count_anew(kind: Kind) -> None:
    found = after(kind, MemoryFallback(micro_batch=4, crashes=MAX_CRASHES), proven=8)
    assert found.ladder is not None
    assert (found.ladder.micro_batch, found.ladder.crashes) == (4, 1)


def test_a_smaller_micro_batch_makes_the_tries_count_anew() -> None:
    found = after("memory", MemoryFallback(micro_batch=4, crashes=2))
    assert found.ladder == MemoryFallback(micro_batch=2, crashes=0, above=4)


@pytest.mark.parametrize(("left_s", "again"), [(65.0, True), (64.0, False), (-5.0, False)])
def test_nothing_is_started_that_has_no_time(left_s: float, again: bool) -> None:
    found = after("crashed", time_left_s=left_s)
    assert (found.ladder is not None) is again
    assert again or "no time left" in found.message


@given(
    kinds=st.lists(st.sampled_from([kind for kind in KINDS if kind != "done"]), min_size=40, max_size=40),
    stage=st.sampled_from(["", "validation"]),
    micro_batch=st.integers(1, 64),
)
def test_without_progress_every_chain_of_failures_ends(
    kinds: list[Kind], stage: str, micro_batch: int
) -> None:
    ladder = MemoryFallback(micro_batch=micro_batch)
    for kind in kinds:
        found = after(kind, ladder, data={"stage": stage})
        assert found.message
        if found.ladder is None:
            return
        assert 1 <= found.ladder.micro_batch <= ladder.micro_batch
        assert found.ladder.with_cp >= ladder.with_cp
        ladder = found.ladder
    raise AssertionError(f"40 children were started one after another, and none got anywhere: {ladder}")
