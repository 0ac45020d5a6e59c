"""The mean of several checkpoints' weights as a checkpoint of its own, and how it does beside its parents.

The mean of weights that training passed late on often does better than any of them, at no cost when the
model is used (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018).
The work is done in a child, :mod:`mapsage_kaggle.engine.jobs.average`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mapsage_kaggle.checkpoints.inspect import Inspection
from mapsage_kaggle.checkpoints.names import kind_of
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.jobs.child import OnEvent, as_interrupted, run_child
from mapsage_kaggle.jobs.evaluate import Evaluation, EvaluationOptions, conclude, count
from mapsage_kaggle.jobs.subject import ModelSource, judge
from mapsage_kaggle.messages import Message

BATCH_NORM_IMAGES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Average:
    """What averaging gave.

    Attributes:
        subject: The new model, to work with.
        parents: What is known of the checkpoints that went into it.
        num_batch_norms: Layers whose statistics were gathered anew.
        num_images: Images that they were gathered over.
    """

    subject: ModelSource
    parents: tuple[Inspection, ...]
    num_batch_norms: int
    num_images: int


def average(
    subject: ModelSource,
    others: Sequence[Path],
    *,
    out: Path,
    batch_norm_images: int = BATCH_NORM_IMAGES,
    on_event: OnEvent | None = None,
) -> Average:
    """Write the mean of some checkpoints' weights as a checkpoint of weights alone.

    Its ``meta`` names the parents with their sha256, under ``averaged``.

    Args:
        subject: The first of them, opened with ``needs_data`` where its model has BatchNorm.
        others: The others, of the same run.
        out: The file to write.
        batch_norm_images: Training images for the statistics of BatchNorm; 0 keeps the parents' mean.
        on_event: Told ``progress``.

    Raises:
        UsageError: There is one checkpoint only, one twice, or ``out`` is named as one to resume from.
        CheckpointError: One is damaged, or of another model.
        MachineError: ``out`` cannot be written.
    """
    if kind_of(out.name) != "other" or out.stem.startswith(("epoch", "latest")) or out.suffix != ".pth":
        raise UsageError(
            Message("{name} is no name for averaged weights: nothing can be resumed from them.", out.name),
            "Name it averaged.pth, for example.",
        )
    if batch_norm_images < 0:
        raise UsageError(
            Message("--batch-norm-images {number} is too low.", batch_norm_images), "Give 0 or more."
        )
    parents = (subject.inspection, *(judge(file) for file in others))
    if len({parent.sha256 for parent in parents}) != len(parents) or len(parents) < 2:
        raise UsageError(
            "There are not two or more different checkpoints to average.", "Name each of them once."
        )
    job: dict[str, Any] = {
        **subject.job(),
        "parents": [
            {"file": str(item.path.absolute()), "sha256": item.sha256, "iteration": item.iteration}
            for item in parents
        ],
        "batch_norm_images": batch_norm_images,
        "seed": int((subject.cfg.get("randomness") or {}).get("seed") or 0),
        "out": str(out.absolute()),
    }
    with as_interrupted("Nothing was written."):
        answer = run_child("average", job, subject, on_event)
    return Average(
        subject=replace(subject, inspection=judge(out)),
        parents=parents,
        num_batch_norms=int(answer["num_batch_norms"]),
        num_images=int(answer["num_images"]),
    )


def beside_parents(
    found: Average, options: EvaluationOptions, *, on_event: OnEvent | None = None
) -> tuple[Evaluation, ...]:
    """Return the evaluation of the average, compared with its best parent, and those of its parents.

    Raises:
        Interrupted: By Ctrl-C; what was counted is kept.
        MapsageError: As :func:`mapsage_kaggle.jobs.evaluate.evaluate`.
    """
    counted = [
        count(replace(found.subject, inspection=item), options, on_event=on_event)
        for item in (found.subject.inspection, *found.parents)
    ]
    parents = [conclude(item, options) for item in counted[1:]]
    best = max(range(len(parents)), key=lambda index: parents[index].scores.miou or 0.0)
    return (conclude(counted[0], options, against=counted[1 + best]), *parents)
