"""Decide what follows a child's end: nothing, another try, one with less memory, or one in float32."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mapsage_kaggle.messages import Message

Kind = Literal[
    "done", "memory", "shared_memory", "precision", "refused", "error", "crashed", "hung", "killed"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a child ended.

    Attributes:
        kind: ``done`` in good order; ``memory`` or its data workers' ``shared_memory`` ran out; half
            ``precision`` is not enough; ``refused`` would fail again the same way; ``error`` an
            exception; ``crashed`` without a word; ``hung``; ``killed`` by the supervisor.
        reason: For ``done``: a record's ``stop_reason``. For ``hung``: ``deadline`` where it was still
            running when the session's time was up.
        message: The last one from it.
        iteration: The last one known.
        trained: Iterations that it did itself.
        proven: The iteration of the newest checkpoint that it proved, if any.
        gained: Iterations from where it began to ``proven``.
        data: The other fields of the event that tells how it ended.
        last_event_s: When it reported its stop, in seconds since the epoch; None where it did not.
    """

    kind: Kind
    reason: str = ""
    message: str = ""
    iteration: int = 0
    trained: int = 0
    proven: int | None = None
    gained: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    last_event_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFallback:
    """What has been adapted so far to keep training going.

    Attributes:
        micro_batch: Images per forward pass and rank.
        with_cp: Whether blocks are recomputed in the backward pass.
        validation_rung: How validation saves memory, as an index of :data:`VALIDATION_RUNGS`.
        crashes: Failed tries since the last new checkpoint.
        above: The next larger micro-batch, which did not fit without recomputing; None for none.
        least: The smallest micro-batch that the model can be trained with, as far as is known.
        error: Message of the last child that failed with an error.
        float32: Whether half precision, the kit's choice, was given up.
        workers: Data workers per loader, at most.
    """

    micro_batch: int
    with_cp: bool = False
    validation_rung: int = 0
    crashes: int = 0
    above: int | None = None
    least: int = 1
    error: str = ""
    float32: bool = False
    workers: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Next:
    """What follows: another child with these settings, or the end.

    Attributes:
        ladder: The settings of the next child; None for the end.
        wait_s: Seconds before it starts.
        message: For a person.
    """

    ladder: MemoryFallback | None = None
    wait_s: float = 0.0
    message: str = ""


MAX_CRASHES = 3
MANY_ITERATIONS = 100
"""After this many, running out of memory says little about what an iteration needs."""
_TOO_FEW = "Expected more than 1 value per channel when training"
"""torch's error for BatchNorm over a single value: one image whose features are pooled to 1x1."""
VALIDATION_RUNGS = (
    "as the config says",
    Message("one image at a time, and what training holds in reserve is given back first"),
    Message("one image at a time, and its logits are put together and enlarged on the CPU"),
)
"""How validation saves memory. No rung changes the scores by more than rounding."""


def decide_next(
    ladder: MemoryFallback,
    outcome: Outcome,
    *,
    can_recompute: bool,
    time_left_s: float,
    adapt: bool = True,
    chose_half: bool = False,
) -> Next:
    """Decide what follows the end of a child. Pure.

    Out of memory: halve the micro-batch, down to one image; then recompute blocks in the backward
    pass. The effective batch, and so the meaning of an iteration, stays. Where BatchNorm cannot train
    on so few images, recompute with the larger micro-batch before. A child that made progress over
    many iterations may have run out by fragmentation: it is restarted unchanged. For validation a
    smaller micro-batch saves nothing: it has rungs of its own. After crashes and hangs, restart from
    the newest proven checkpoint, at most three times without progress.

    ``ladder`` has the settings of the child that has ended. ``can_recompute`` says whether its backbone can
    recompute blocks, ``chose_half`` whether half precision was the kit's choice, which it may then take back.
    """
    if outcome.kind in ("done", "killed") or outcome.reason == "deadline":
        return Next(message=outcome.message)
    if outcome.kind == "refused":
        return _next_after_refusal(ladder, outcome, can_recompute=can_recompute)
    if outcome.kind == "precision":
        return _next_in_float32(ladder, outcome, chose_half=chose_half)
    if outcome.kind == "shared_memory" and ladder.workers > 0:
        return _next_with_fewer_workers(ladder, outcome)
    if outcome.kind == "memory" and not adapt:
        return Next(
            message=Message("{message} Nothing is to be adapted to it, as was asked.", outcome.message)
        )
    if outcome.kind == "memory" and outcome.data.get("stage") == "validation":
        return _next_for_validation(ladder, outcome)
    if outcome.kind == "memory":
        return _next_with_less_memory(ladder, outcome, can_recompute=can_recompute)
    if outcome.kind == "error" and outcome.trained == 0 and outcome.message == ladder.error:
        return Next(message=Message("{why} It failed in the same way twice.", outcome.message))
    crashes = 1 if outcome.proven is not None else ladder.crashes + 1
    if crashes > MAX_CRASHES:
        return Next(
            message=Message(
                "{message} It was tried {count} times again without progress.", outcome.message, MAX_CRASHES
            )
        )
    wait_s = 5.0 * 2 ** (crashes - 1)
    if time_left_s < wait_s + 60.0:
        return Next(message=Message("{message} There is no time left to try again.", outcome.message))
    again = replace(ladder, crashes=crashes, error=outcome.message if outcome.kind == "error" else "")
    return Next(
        ladder=again,
        wait_s=wait_s,
        message=Message(
            "{message} Starting again from the newest checkpoint in {wait} s (try {number} of {most}).",
            outcome.message,
            f"{wait_s:.0f}",
            crashes,
            MAX_CRASHES,
        ),
    )


def _next_with_less_memory(ladder: MemoryFallback, outcome: Outcome, *, can_recompute: bool) -> Next:
    if outcome.trained >= MANY_ITERATIONS and outcome.gained > 0:
        return Next(
            ladder=replace(ladder, crashes=0),
            message=Message(
                "Out of memory after {count} iterations, which had fitted: starting again from the "
                "newest checkpoint in the same way.",
                outcome.trained,
            ),
        )
    if ladder.micro_batch > ladder.least:
        smaller = max(ladder.least, ladder.micro_batch // 2)
        above = None if ladder.with_cp else ladder.micro_batch
        return Next(
            ladder=replace(ladder, micro_batch=smaller, crashes=0, above=above),
            message=Message(
                "Out of memory: going on with {count} image(s) per forward pass and more of them; the "
                "batch that the optimizer sees stays the same.",
                smaller,
            ),
        )
    if can_recompute and not ladder.with_cp:
        return Next(
            ladder=replace(ladder, with_cp=True, crashes=0),
            message="Out of memory with one image: going on with blocks recomputed in the backward pass "
            "(with_cp).",
        )
    if ladder.least > 1:
        return Next(message=_neither_fits(ladder, outcome))
    return Next(
        message=Message(
            "Out of memory with one image per forward pass. {message} Use a smaller crop "
            "(crop_size) or a smaller backbone.",
            outcome.message,
        )
    )


def _next_with_fewer_workers(ladder: MemoryFallback, outcome: Outcome) -> Next:
    fewer = ladder.workers // 2
    return Next(
        ladder=replace(ladder, workers=fewer, crashes=0),
        message=Message("{message} Going on with {count} data worker(s) a rank.", outcome.message, fewer)
        if fewer
        else Message("{message} Going on without data workers.", outcome.message),
    )


def _next_in_float32(ladder: MemoryFallback, outcome: Outcome, *, chose_half: bool) -> Next:
    if chose_half and not ladder.float32:
        return Next(
            ladder=replace(ladder, float32=True, crashes=0),
            message=Message("{message} Going on in float32 from the newest checkpoint.", outcome.message),
        )
    return Next(
        message=Message(
            "{message} Half precision is the config's choice, or a person's: --precision float32 "
            "trains without it.",
            outcome.message,
        )
    )


def _next_after_refusal(ladder: MemoryFallback, outcome: Outcome, *, can_recompute: bool) -> Next:
    if _TOO_FEW not in outcome.message:
        return Next(message=outcome.message)
    if ladder.above is None:
        return Next(
            message=Message(
                "BatchNorm cannot be trained with {images} image(s) in a forward pass. Use fewer GPUs "
                "(--gpus 1), a train_dataloader.batch_size that leaves more for each pass, or a norm that "
                "needs no other images (norm_cfg = dict(type='GN', num_groups=32)).",
                _images_in(outcome.message) or ladder.micro_batch,
            )
        )
    least = ladder.micro_batch + 1
    if not can_recompute:
        return Next(message=_neither_fits(replace(ladder, least=least), outcome))
    return Next(
        ladder=replace(ladder, micro_batch=ladder.above, with_cp=True, crashes=0, above=None, least=least),
        message=Message(
            "BatchNorm cannot be trained with {count} image(s) per forward pass: going on with "
            "{more}, and blocks recomputed in the backward pass (with_cp).",
            ladder.micro_batch,
            ladder.above,
        ),
    )


def _images_in(message: str) -> int:
    """Return the images of the pass that BatchNorm refused; 0 where it does not say."""
    told = re.search(r"input size torch\.Size\(\[(\d+)", message)
    return int(told[1]) if told is not None else 0


def _neither_fits(ladder: MemoryFallback, outcome: Outcome) -> str:
    return Message(
        "Fewer than {least} images per forward pass are too few for BatchNorm, and memory "
        "does not hold more. {message} Use a smaller crop (crop_size), a smaller backbone, or "
        "a norm that needs no other images (norm_cfg = dict(type='GN', num_groups=32)).",
        ladder.least,
        outcome.message,
    )


def _next_for_validation(ladder: MemoryFallback, outcome: Outcome) -> Next:
    rung = ladder.validation_rung + 1
    if rung < len(VALIDATION_RUNGS):
        return Next(
            ladder=replace(ladder, validation_rung=rung, crashes=0),
            message=Message("Out of memory in validation: going on with {measure}.", VALIDATION_RUNGS[rung]),
        )
    return Next(
        message=Message(
            "Out of memory in validation with {measure}. {message} Validate smaller images (the "
            "Resize of the validation pipeline), or in windows (test_cfg = dict(mode='slide', "
            "crop_size=…, stride=…)).",
            VALIDATION_RUNGS[-1],
            outcome.message,
        )
    )
