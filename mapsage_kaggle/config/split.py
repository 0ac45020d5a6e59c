"""What a split of the batch over ranks and micro-batches changes, from what the built model consists of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelTraits:
    """What in a built model bears on splitting its batch and on saving memory.

    Attributes:
        draws: Modules that draw random numbers while training, each with its rate where it has one.
        batch_norm: Whether a BatchNorm takes its statistics from the batch.
        sync_batch_norm: Whether one of those looks at all ranks' parts.
        losses: Types of losses that may look at the whole batch.
        over_batch: Modules that remember or average over the batch in another way.
        samplers: Whether a head chooses pixels by what is predicted for the batch.
        can_recompute: Whether the backbone can recompute its blocks in the backward pass (``with_cp``).
    """

    draws: tuple[str, ...] = ()
    batch_norm: bool = False
    sync_batch_norm: bool = False
    losses: tuple[str, ...] = ()
    over_batch: tuple[str, ...] = ()
    samplers: bool = False
    can_recompute: bool = False


def split_differences(traits: ModelTraits, *, world_size: int = 1) -> tuple[str, ...]:
    """Return what makes a step over a split batch differ from the whole one by more than rounding.

    What is left after that: per-sample norms and per-pixel losses, which the kit weights with
    their own normaliser.
    """
    found: list[str] = []
    if traits.draws:
        found.append(f"random draws go by rank and micro-batch: {', '.join(traits.draws)}")
    if traits.batch_norm:
        seen = "all ranks' parts" if world_size > 1 and traits.sync_batch_norm else "its own part"
        found.append(f"batch norm takes its statistics from {seen} of the batch in one forward pass")
    if traits.over_batch:
        found.append(f"{', '.join(traits.over_batch)} averages over its own part of the batch")
    if traits.losses:
        found.append(f"{', '.join(traits.losses)} may look at the whole batch; it is weighted by images")
    if traits.samplers:
        found.append("the pixel sampler chooses within its own part of the batch")
    return tuple(found)
