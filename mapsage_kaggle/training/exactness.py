"""In which sense a session's resume equals a run that was never interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mapsage_kaggle.config.split import split_differences
from mapsage_kaggle.records import Exactness
from mapsage_kaggle.training.prepare import Prepared, device_of

_COMPUTED_WITH = {
    "device": "device",
    "precision": "precision",
    "torch": "version of torch",
    "cudnn": "version of cuDNN",
    "threads": "number of CPU threads",
}
"""What changes the bits of a sum, as the record names it and as a person reads it."""


def exactness_of(
    prepared: Prepared, before: Exactness, versions: Mapping[str, str], *, same_session: bool = False
) -> Exactness:
    """Return what the record says of it.

    Args:
        prepared: The session as it goes on from here.
        before: What was said of it before: how batches were split then counts, and what with.
        versions: The kit's, and of what computes, as the record has them.
        same_session: Whether that was in this session, so that its reasons are still true.
    """
    facts, patch, machine = prepared.facts, prepared.patch, prepared.machine
    split: tuple[str, ...] = ()
    if patch.is_split:
        in_step = facts.on_gpu and patch.norms_in_step
        traits = prepared.discovery.shapes.look().traits
        split = split_differences(traits, world_size=facts.world_size if in_step else 1)
    now = Exactness(
        ranks=facts.world_size,
        micro_batch=patch.micro_batch,
        split=split,
        device=device_of(prepared),
        precision=patch.precision,
        torch=machine.torch,
        cudnn=machine.cudnn if facts.on_gpu else None,
        threads=prepared.threads,
        repeatable=before.repeatable if same_session else None,
        difference=before.difference if same_session else None,
    )
    reasons = [*(before.reasons or ())] if same_session else []
    if facts.on_gpu and not facts.deterministic:
        reasons.append("GPU kernels may add in another order (train with --deterministic to forbid it)")
    inspection = prepared.discovery.choice.inspection
    if facts.action == "resume" and inspection is not None and inspection.run_id is None:
        reasons.append("the checkpoint was made by stock mmengine, which walks the data in another order")
        if inspection.seed is None:
            reasons.append(f"the checkpoint does not say its seed; the config's is taken ({patch.seed})")
    if facts.action == "resume":
        record = prepared.discovery.choice.record
        reasons += _other_versions(record.versions if record else {}, versions)
        for name, word in _COMPUTED_WITH.items():
            then, here = getattr(before, name), getattr(now, name)
            if then is not None and here is not None and then != here:
                reasons.append(f"the {word} was {then} before, and is {here} now")
    ranks = facts.world_size if before.ranks is None else before.ranks
    micro_batch = patch.micro_batch if before.micro_batch is None else before.micro_batch
    if facts.action == "resume" and (ranks, micro_batch) != (facts.world_size, patch.micro_batch):
        equal = "; the two differ by more than rounding" if split else ": equal to rounding"
        reasons.append(
            f"each batch was split into {micro_batch} image(s) on {ranks} rank(s), "
            f"and now into {patch.micro_batch} on {facts.world_size}{equal}"
        )
    return replace(now, bitwise=not reasons, reasons=tuple(dict.fromkeys(reasons)))


def _other_versions(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return what is of another version than in the session before; torch's is compared like the device."""
    if not before:
        return ["no record says which kit and which versions computed before"]
    told = []
    for name in {**before, **now}:
        if name not in ("kit_commit", "torch") and before.get(name) != now.get(name):
            then, here = (_version(versions, name) for versions in (before, now))
            told.append(f"{name} was {then} before, and is {here} now")
    return told


def _version(versions: Mapping[str, str], name: str) -> str:
    commit = versions.get("kit_commit") if name == "kit" else None
    found = versions.get(name, "absent")[:12]
    return f"{found} (commit {commit[:12]})" if commit else found
