"""In which sense a session's resume equals a run that was never interrupted."""

from __future__ import annotations

from mapsage_kaggle.config.split import split_differences
from mapsage_kaggle.records import Exactness
from mapsage_kaggle.training.prepare import Prepared


def exactness_of(prepared: Prepared, before: Exactness) -> Exactness:
    """Return what the record says of it.

    Args:
        prepared: The session as it goes on from here.
        before: What was said of it before: how batches were split then counts.
    """
    facts, patch = prepared.facts, prepared.patch
    reasons = list(patch.exactness)
    split: tuple[str, ...] = ()
    if patch.is_split:
        traits = prepared.discovery.shapes.look().traits
        split = split_differences(traits, world_size=facts.world_size if facts.on_gpu else 1)
    if facts.on_gpu and not facts.deterministic:
        reasons.append("GPU kernels may add in another order (train with --deterministic to forbid it)")
    inspection = prepared.discovery.choice.inspection
    if facts.action == "resume" and inspection is not None and inspection.run_id is None:
        reasons.append("the checkpoint was made by stock mmengine, which walks the data in another order")
        if inspection.seed is None:
            reasons.append(f"the checkpoint does not say its seed; the config's is taken ({patch.seed})")
    ranks = facts.world_size if before.ranks is None else before.ranks
    micro_batch = patch.micro_batch if before.micro_batch is None else before.micro_batch
    if facts.action == "resume" and (ranks, micro_batch) != (facts.world_size, patch.micro_batch):
        equal = "; the two differ by more than rounding" if split else ": equal to rounding"
        reasons.append(
            f"each batch was split into {micro_batch} image(s) on {ranks} rank(s), "
            f"and now into {patch.micro_batch} on {facts.world_size}{equal}"
        )
    return Exactness(
        bitwise=not reasons,
        reasons=tuple(reasons),
        ranks=facts.world_size,
        micro_batch=patch.micro_batch,
        split=split,
    )
