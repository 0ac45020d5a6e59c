"""At what scale a model saw its images in training, and at what scale it is to see others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from mapsage_kaggle.config.reading import as_list, datasets_of, type_name
from mapsage_kaggle.config.replacements import stock
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.records import TrainedScale

RESIZES = ("Resize", "ResizeShortestEdge", "RandomResize", "RandomChoiceResize")
"""mmcv's and mmsegmentation's transforms that give an image another size."""
_MAX_STRETCH = 1.1
"""Height and width may change by factors that are so far apart."""
_MAX_SPREAD = 1.25
"""Of the factors of images in the middle half; where they differ by more, there is no one factor."""


# --- what training says


def trained_scale(dataset: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> TrainedScale | None:
    """Return at what scale the images of a training data set are seen; None where that is not one number.

    Args:
        dataset: Its config.
        sizes: Height and width of some of its images.
    """
    every = list(datasets_of(stock(dataset)))
    pipelines = [item["pipeline"] for item in every if item.get("pipeline")]
    if not sizes or not pipelines or any(item != pipelines[0] for item in pipelines):
        return None
    found = [_scale_of(pipelines[0], size) for size in sizes]
    known = [scale for scale in found if scale is not None]
    if len(known) < len(found):
        return None
    factors = [scale.factor for scale in known]
    if len(factors) > 1:
        low, _, high = quantiles(factors, n=4, method="inclusive")
        if high > _MAX_SPREAD * low:
            return None
    lows, highs = [scale.low for scale in known], [scale.high for scale in known]
    return TrainedScale(factor=median(factors), low=median(lows), high=median(highs))


def _scale_of(pipeline: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> TrainedScale | None:
    """Return what a training pipeline makes of one image; None where that cannot be told from the config."""
    resizes = list(_resizes_in(pipeline))
    if not resizes:
        return TrainedScale(factor=1.0, low=1.0, high=1.0)
    if len(resizes) > 1 or resizes[0] not in pipeline:
        return None
    (item,) = resizes
    kind = type_name(item.get("type"))
    factors = [_factor(kind, item, scale, size) for scale in _scales_of(kind, item)]
    known = [factor for factor in factors if factor is not None]
    if not known or len(known) < len(factors):
        return None
    low, high = item.get("ratio_range") or (1.0, 1.0)
    return TrainedScale(
        factor=median(known) * min(max(1.0, low), high), low=min(known) * low, high=max(known) * high
    )


def _resizes_in(transforms: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for item in transforms:
        if isinstance(item, (list, tuple)):
            yield from _resizes_in(item)
        elif isinstance(item, Mapping):
            if type_name(item.get("type")) in RESIZES:
                yield item
            yield from _resizes_in(as_list(item.get("transforms")))


def _scales_of(kind: str, item: Mapping[str, Any]) -> list[Any]:
    """Return the sizes that a transform chooses from, or between the two of which it draws."""
    if kind == "RandomChoiceResize":
        return as_list(item.get("scales"))
    scale = item.get("scale")
    if kind == "RandomResize" and isinstance(scale, (list, tuple)) and isinstance(scale[0], (list, tuple)):
        return list(scale)
    return [scale]


def _factor(kind: str, item: Mapping[str, Any], scale: Any, size: tuple[int, int]) -> float | None:
    """Return by what a transform multiplies an image's sides; None where that cannot be told."""
    height, width = size
    if kind == "Resize" and scale is None:
        scale = item.get("scale_factor")
        across, down = scale if isinstance(scale, (list, tuple)) else (scale, scale)
        return _mean(across, down)
    if kind == "ResizeShortestEdge" or type_name(item.get("resize_type")) == "ResizeShortestEdge":
        factor = (min(scale) if isinstance(scale, (list, tuple)) else scale) / min(size)
        longest = item.get("max_size")
        return float(min(factor, longest / max(size)) if longest else factor)
    across, down = scale if isinstance(scale, (list, tuple)) else (scale, scale)
    if item.get("keep_ratio"):
        return float(min(max(across, down) / max(size), min(across, down) / min(size)))
    return _mean(across / width, down / height)


def _mean(across: float, down: float) -> float | None:
    is_stretched = max(across, down) > _MAX_STRETCH * min(across, down)
    return None if is_stretched else math.sqrt(across * down)


# --- what is made of it


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleOptions:
    """What a person says of the images' scale.

    Attributes:
        scale: At how many times their own size the model is to see them.
        gsd: Metres that one of their pixels covers: the ground sample distance.
        trained_gsd: The same of the training images.
    """

    scale: float | None = None
    gsd: float | None = None
    trained_gsd: float | None = None

    def __post_init__(self) -> None:
        names = {"--scale": self.scale, "--gsd": self.gsd, "--trained-gsd": self.trained_gsd}
        for name, value in names.items():
            if value is not None and not 0 < value < math.inf:
                raise UsageError(
                    Message("{option} {value} makes no sense.", name, value), "Give a number above 0."
                )
        if self.scale is not None and self.gsd is not None:
            raise UsageError("--scale and --gsd both say at what scale.", "Give one of the two.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenScale:
    """At how many times their own size images are seen.

    Attributes:
        factor: None: as the test pipeline resizes them, larger ones at their own size.
        reason: What a person is told; empty where that depends on the image.
    """

    factor: float | None = None
    reason: str = ""


def choose_scale(trained: TrainedScale | None, said: ScaleOptions) -> ChosenScale:
    """Return at what scale a model is to see images: at their own where training covered that.

    Args:
        trained: What the checkpoint says; None where it says nothing.
        said: What a person says.

    Raises:
        UsageError: The images' ground sample distance is given, and that of the training images is not.
    """
    if said.scale is not None:
        return ChosenScale(
            factor=said.scale,
            reason=Message(
                "Images are seen at {factor} times their own size, as --scale says.", _short(said.scale)
            ),
        )
    coarser = 1.0
    if said.gsd is not None:
        if said.trained_gsd is None:
            raise UsageError(
                Message("--gsd {gsd} says nothing while that of the training images is not known.", said.gsd),
                "Give it as well, in metres: --trained-gsd 0.3; or set trained_gsd in the config.",
            )
        coarser = said.gsd / said.trained_gsd
    elif trained is None:
        return ChosenScale()
    known = trained or TrainedScale(factor=1.0, low=1.0, high=1.0)
    covered = known.low * coarser <= 1.0 <= known.high * coarser
    factor = 1.0 if covered else known.factor * coarser
    if trained is None:
        return ChosenScale(
            factor=factor,
            reason=Message(
                "Images are seen at {factor} times their own size: {gsd} m a pixel against {trained} m in "
                "training, whose pipeline is taken to have resized nothing.",
                _short(factor), f"{said.gsd:g}", f"{said.trained_gsd:g}",
            ),
        )  # fmt: skip
    return ChosenScale(
        factor=factor,
        reason=Message(
            "Images are seen at {factor} times their own size: in training it was {low} to {high} times"
            "{of_ground}.",
            _short(factor), _short(known.low * coarser), _short(known.high * coarser),
            "" if said.gsd is None else f" ({said.gsd:g} m a pixel against {said.trained_gsd:g} m)",
        ),
    )  # fmt: skip


def _short(factor: float) -> str:
    return f"{factor:.3g}"


def at_scale(pipeline: Sequence[Mapping[str, Any]], factor: float) -> list[dict[str, Any]]:
    """Return a test pipeline that gives images ``factor`` times their own size, whatever it gave them."""
    kept = [dict(item) for item in pipeline]
    places = [at for at, item in enumerate(kept) if type_name(item.get("type")) in RESIZES]
    at = places[0] if places else 0
    kept = [item for number, item in enumerate(kept) if number not in places]
    if factor != 1.0:
        kept.insert(at, {"type": "Resize", "scale_factor": factor})
    return kept
