"""How exactly a resumed session equals a run that was never interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mapsage_kaggle.checkpoints.audit import Difference, differences
from mapsage_kaggle.config.reading import find_keys
from mapsage_kaggle.config.split import split_differences
from mapsage_kaggle.messages import Message
from mapsage_kaggle.records import GRADES, Exactness
from mapsage_kaggle.training.prepare import Prepared, device_of


def exactness_of(
    prepared: Prepared, before: Exactness, versions: Mapping[str, str], *, same_session: bool = False
) -> Exactness:
    """Return the exactness for the session's record.

    ``before`` was recorded before, with the split of the batch and what computed it; with ``same_session``
    it is this session's own, so that its reasons still hold.
    """
    facts, patch, machine = prepared.facts, prepared.patch, prepared.machine
    split: tuple[str, ...] = ()
    if patch.is_split:
        in_step = facts.on_gpu and patch.norms_in_step
        traits = prepared.discovery.shapes.look().traits
        split = split_differences(traits, world_size=facts.world_size if in_step else 1)
    recomputing = find_keys(prepared.discovery.cfg.to_dict()["model"], "model", "with_cp")
    now = Exactness(
        ranks=facts.world_size,
        micro_batch=patch.micro_batch,
        split=split,
        device=device_of(prepared),
        precision=patch.precision,
        torch=machine.torch,
        cudnn=machine.cudnn if facts.on_gpu else None,
        threads=prepared.threads,
        with_cp=facts.with_cp or any(value for _, value in recomputing),
        repeatable=before.repeatable if same_session else None,
        difference=before.difference if same_session else None,
    )
    now = replace(now, bitwise=True, grade=GRADES[0], reasons=())
    if same_session:
        now = now.less(before.reasons or (), before.grade or "neither")
    for grade, reason in _found(prepared, before, now, versions, same_session=same_session):
        now = now.less([reason], grade)
    return now


def _found(
    prepared: Prepared, before: Exactness, now: Exactness, versions: Mapping[str, str], *, same_session: bool
) -> list[Difference]:
    facts, patch, choice = prepared.facts, prepared.patch, prepared.discovery.choice
    found: list[Difference] = []
    if facts.on_gpu and not facts.deterministic:
        reason: str = Message(
            "GPU kernels may add in another order (train with --deterministic to forbid it)"
        )
        found.append(("rounding", reason))
    if facts.action != "resume":
        return found
    if choice.inspection is not None and choice.inspection.run_id is None:
        reason = Message("the checkpoint was made by stock mmengine, which walks the data in another order")
        found.append(("neither", reason))
        if choice.inspection.seed is None:
            reason = Message(
                "the checkpoint does not say its seed; the config's is taken ({seed})", patch.seed
            )
            found.append(("neither", reason))
    earlier = versions if same_session else choice.record.versions if choice.record else {}
    return found + differences(before, now, earlier, versions)
