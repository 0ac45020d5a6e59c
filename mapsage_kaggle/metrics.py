"""What confusion counts say: scores by class, how sure they are, and whether two models differ.

All of it starts from one confusion matrix for each image, int64 of shape ``(C + 1, C + 1)``: pixels by
label (row) and prediction (column), the last ones for what is no class, ignored pixels left out. Images
are what is drawn in a bootstrap, for pixels of one image are no independent witnesses.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

Counts: TypeAlias = npt.NDArray[np.int64]
Numbers: TypeAlias = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
MIN_IMAGES = 20
"""With fewer, an interval from a bootstrap is too narrow to be relied on."""
_CHUNK = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScores:
    """One class's scores as fractions; None where there is nothing to divide by.

    Attributes:
        iou: Intersection over union.
        f1: Of precision and recall; also known as Dice.
        precision: Share of what was predicted that is right.
        recall: Share of what is there that was found: mmsegmentation's ``Acc``.
        num_pixels: Labelled so.
    """

    name: str
    iou: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    num_pixels: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """A model's scores over some images, as fractions.

    Attributes:
        miou: Mean IoU over the classes that occur, in labels or predictions: mmsegmentation's ``mIoU``.
        mean_f1: Mean F1 over them.
        mean_accuracy: Mean recall over the labelled classes: mmsegmentation's ``mAcc``.
        accuracy: Share of pixels that are right: mmsegmentation's ``aAcc``.
        fwiou: IoU weighted by how often a class is labelled.
        confusion: Pixels by label (row) and prediction (column), see the module.
    """

    num_images: int
    miou: float | None
    mean_f1: float | None
    mean_accuracy: float | None
    accuracy: float | None
    fwiou: float | None
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A value with its bootstrap percentile interval."""

    value: float
    low: float
    high: float

    @property
    def settled(self) -> bool:
        """Whether zero lies outside: a difference that chance alone would hardly give."""
        return self.low > 0 or self.high < 0


def score(confusion: Counts, classes: Sequence[str], *, num_images: int) -> Scores:
    """Return the scores of a confusion matrix of shape ``(C + 1, C + 1)``."""
    hit, predicted, labelled = _areas(confusion)
    union = predicted + labelled - hit
    iou, f1 = _ratio(hit, union), _ratio(2 * hit, predicted + labelled)
    precision, recall = _ratio(hit, predicted), _ratio(hit, labelled)
    total = labelled.sum()
    weighted = float(np.nansum(iou * labelled) / total) if total else None
    return Scores(
        num_images=num_images,
        miou=_mean(iou),
        mean_f1=_mean(f1),
        mean_accuracy=_mean(recall),
        accuracy=float(hit.sum() / total) if total else None,
        fwiou=weighted,
        classes=tuple(
            ClassScores(
                name=name,
                iou=_number(iou[index]),
                f1=_number(f1[index]),
                precision=_number(precision[index]),
                recall=_number(recall[index]),
                num_pixels=int(labelled[index]),
            )
            for index, name in enumerate(classes)
        ),
        confusion=tuple(tuple(int(value) for value in row) for row in confusion),
    )


def miou_interval(confusions: Counts, *, resamples: int = RESAMPLES) -> Interval | None:
    """Return mIoU with its interval over images.

    Args:
        confusions: Of each image, ``(N, C + 1, C + 1)``.
        resamples: How many draws of ``N`` images with replacement.

    Returns:
        None where no class occurs.
    """
    return _interval(*_draw(resamples, confusions))


def paired_interval(confusions: Counts, others: Counts, *, resamples: int = RESAMPLES) -> Interval | None:
    """Return by how much the mIoU of one model exceeds another's on the same images, with its interval.

    Both are drawn together, so that what makes an image hard for both cancels out.

    Args:
        confusions: Of each image, ``(N, C + 1, C + 1)``.
        others: The other model's, of the same images in the same order.
        resamples: How many.

    Raises:
        ValueError: They are not of one shape.
    """
    if confusions.shape != others.shape:
        raise ValueError(f"{confusions.shape} and {others.shape} are not of the same images and classes")
    one, other = _draw(resamples, confusions, others)
    return _interval(one - other)


def _draw(resamples: int, *models: Counts) -> list[Numbers]:
    """Return each model's mIoU over all images, followed by that of each draw, which they share."""
    num = len(models[0])
    if not num:
        return [np.zeros(0)] * len(models)
    generator = np.random.Generator(np.random.PCG64(0))
    # Hits, predictions and labels of each image, (N, 3 C); float64 holds them exactly.
    areas = [np.stack([np.concatenate(_areas(item)) for item in confusions]) for confusions in models]
    found = [[_mious(item.sum(axis=0, keepdims=True))] for item in areas]
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        weights = generator.multinomial(num, np.full(num, 1 / num), size=size).astype(np.float64)
        for item, into in zip(areas, found, strict=True):
            into.append(_mious(weights @ item))
    return [np.concatenate(item) for item in found]


def _mious(areas: Numbers) -> Numbers:
    hit, predicted, labelled = np.split(areas, 3, axis=1)
    iou = _ratio(hit, predicted + labelled - hit)
    occurs = ~np.isnan(iou)
    num = occurs.sum(axis=1)
    return np.where(num > 0, np.where(occurs, iou, 0.0).sum(axis=1) / np.maximum(num, 1), np.nan)


def _interval(values: Numbers) -> Interval | None:
    if not len(values) or np.isnan(values[0]):
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    drawn = values[1:] if len(values) > 1 else values
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return Interval(value=float(values[0]), low=float(low), high=float(high))


def _areas(confusion: Counts) -> tuple[Numbers, Numbers, Numbers]:
    """Return hits, predicted and labelled pixels by class, as mmsegmentation counts them."""
    matrix = confusion.astype(np.float64)
    return matrix.diagonal()[:-1].copy(), matrix.sum(axis=0)[:-1], matrix.sum(axis=1)[:-1]


def _ratio(above: Numbers, below: Numbers) -> Numbers:
    found: Numbers = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=found, where=below > 0)
    return found


def _mean(values: Numbers) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _number(value: float) -> float | None:
    return None if value != value else float(value)


Matrix: TypeAlias = list[list[int]]


def read_tally(path: Path) -> dict[str, Matrix]:
    """Return the counts by image; none where there is no file."""
    found: dict[str, Matrix] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            entry = json.loads(line)
            found[str(entry["image"])] = [[int(value) for value in row] for row in entry["counts"]]
        except (ValueError, TypeError, KeyError):
            continue
    return found


def open_tally(path: Path) -> BinaryIO:
    """Open a tally to be added to; what was cut off at its end stays a line of its own.

    Raises:
        OSError: It cannot be written.
    """
    stream = path.open("ab+")
    if stream.tell():
        stream.seek(-1, 2)
        if stream.read(1) != b"\n":
            stream.write(b"\n")
    return stream


def add(stream: BinaryIO, image: str, counts: Matrix) -> None:
    """Append one image's counts, so that a kill of this process loses nothing of it."""
    line = json.dumps({"image": image, "counts": counts}, ensure_ascii=False, separators=(",", ":"))
    stream.write(line.encode("utf-8") + b"\n")
    stream.flush()
