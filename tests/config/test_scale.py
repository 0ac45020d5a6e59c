"""At what scale a training pipeline shows its images, and what follows for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from mapsage_kaggle.config.replacements import PIPELINE
from mapsage_kaggle.config.scale import ScaleOptions, at_scale, choose_scale, trained_scale
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.records import TrainedScale

LOAD, CROP = {"type": "LoadImageFromFile"}, {"type": "RandomCrop", "crop_size": (64, 64)}
RANDOM = {"type": "RandomResize", "scale": (512, 512), "ratio_range": (0.5, 2.0), "keep_ratio": True}


def scale(
    *transforms: Mapping[str, Any], sizes: Sequence[tuple[int, int]] = ((256, 256),)
) -> tuple[float, float, float] | None:
    found = trained_scale({"type": "Any", "pipeline": [LOAD, *transforms, CROP]}, sizes)
    return (found.factor, found.low, found.high) if found is not None else None


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        ((), (1, 1, 1)),
        ((RANDOM,), (2, 1, 4)),
        (({**RANDOM, "type": "mmseg.RandomResize"},), (2, 1, 4)),
        (({"type": PIPELINE, "transforms": [LOAD, RANDOM, CROP]},), (2, 1, 4)),
        (({"type": "Resize", "scale": (1024, 512), "keep_ratio": True},), (2, 2, 2)),
        (({"type": "Resize", "scale": (512, 512)},), (2, 2, 2)),
        (({"type": "Resize", "scale_factor": 0.5},), (0.5, 0.5, 0.5)),
        (({"type": "ResizeShortestEdge", "scale": 384, "max_size": 2048},), (1.5, 1.5, 1.5)),
        (({"type": "RandomResize", "scale": [(256, 256), (768, 768)], "keep_ratio": True},), (2, 1, 3)),
        (
            ({"type": "RandomChoiceResize", "scales": [128, 512, 640], "resize_type": "ResizeShortestEdge"},),
            (2, 0.5, 2.5),
        ),
    ],
)
def test_a_pipeline_tells_its_scale(transforms: Any, expected: tuple[float, float, float]) -> None:
    assert scale(*transforms) == pytest.approx(expected)


@pytest.mark.parametrize(
    "transforms",
    [
        ({"type": "Resize", "scale": (512, 256)},),  # which stretches
        (RANDOM, RANDOM),
        ({"type": "RandomApply", "transforms": [RANDOM], "prob": 0.5},),
    ],
)
def test_a_pipeline_that_has_no_one_scale_tells_none(transforms: Any) -> None:
    assert scale(*transforms) is None


def test_the_scale_is_that_of_the_middle_image() -> None:
    sizes = [(256, 256)] * 3 + [(128, 128)] + [(256, 250)] * 3
    assert scale(RANDOM, sizes=sizes) == (2, 1, 4)


def test_images_of_many_sizes_brought_to_one_have_no_one_scale() -> None:
    assert scale(RANDOM, sizes=[(side, side) for side in (128, 256, 512, 700)]) is None
    assert scale(sizes=[(side, side) for side in (128, 256, 512, 700)]) == (1, 1, 1)


def test_two_data_sets_with_pipelines_of_their_own_have_no_one_scale() -> None:
    first, second = {"pipeline": [LOAD, RANDOM]}, {"pipeline": [LOAD, CROP]}
    assert trained_scale({"datasets": [first, second]}, [(256, 256)]) is None
    assert trained_scale({"datasets": [first, first]}, [(256, 256)]) is not None


# --- what is made of it

WIDE, FIXED = TrainedScale(factor=2, low=1, high=4), TrainedScale(factor=2, low=2, high=2)


@pytest.mark.parametrize(
    ("trained", "said", "factor"),
    [
        (None, {}, None),
        (WIDE, {}, 1.0),
        (FIXED, {}, 2.0),
        (TrainedScale(factor=0.25, low=0.125, high=0.5), {}, 0.25),
        (WIDE, {"scale": 3.0}, 3.0),
        (None, {"scale": 3.0}, 3.0),
        (FIXED, {"gsd": 0.6, "trained_gsd": 0.3}, 4.0),
        (FIXED, {"gsd": 0.15, "trained_gsd": 0.3}, 1.0),
        (WIDE, {"gsd": 0.6, "trained_gsd": 0.3}, 4.0),
        (None, {"gsd": 0.6, "trained_gsd": 0.3}, 2.0),
        (FIXED, {"trained_gsd": 0.3}, 2.0),
    ],
)
def test_an_image_is_seen_at_its_own_size_where_training_covered_that(
    trained: TrainedScale | None, said: Mapping[str, float], factor: float | None
) -> None:
    found = choose_scale(trained, ScaleOptions(**said))
    assert found.factor == (pytest.approx(factor) if factor is not None else None)
    assert bool(found.reason) == (factor is not None)
    assert factor is None or f"at {factor:.3g} times their own size" in found.reason


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"gsd": 0.6}, "is not known"),
        ({"scale": 0.0}, "--scale 0.0 makes no sense"),
        ({"gsd": -1.0, "trained_gsd": 0.3}, "--gsd -1.0 makes no sense"),
        ({"scale": float("nan")}, "makes no sense"),
        ({"scale": 2.0, "gsd": 0.6, "trained_gsd": 0.3}, "both say"),
    ],
)
def test_a_scale_that_cannot_be_meant_is_refused(said: Mapping[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_scale(WIDE, ScaleOptions(**said))


def test_a_test_pipeline_is_given_another_scale_in_the_place_of_its_own() -> None:
    pad, pack = {"type": "Pad", "size_divisor": 32}, {"type": "PackSegInputs"}
    resize = {"type": "Resize", "scale": (512, 512), "keep_ratio": True}
    assert at_scale([pad, resize, pack], 1.0) == [pad, pack]
    assert at_scale([pad, resize, pack], 2.0) == [pad, {"type": "Resize", "scale_factor": 2.0}, pack]
    assert at_scale([pad, pack], 0.5) == [{"type": "Resize", "scale_factor": 0.5}, pad, pack]


@pytest.mark.parametrize(
    "document", [None, 2.0, {}, {"factor": 2.0}, {"factor": "2", "low": 1, "high": 3},
                 {"factor": 5.0, "low": 1.0, "high": 3.0}, {"factor": float("nan"), "low": 1.0, "high": 3.0}]
)  # fmt: skip
def test_what_is_no_scale_in_a_checkpoint_is_none(document: Any) -> None:
    assert TrainedScale.from_json(document) is None
    assert TrainedScale.from_json(WIDE.to_json()) == WIDE
