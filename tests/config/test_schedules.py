"""A run that is lengthened: its loop and its schedulers end later, or it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from support.configs import patched, planned, small

from mapsage_kaggle.errors import ConfigError


def test_extending_moves_the_end_of_the_loop_and_of_the_schedulers_that_end_with_it() -> None:
    cfg = patched(extend_to=200)
    assert cfg.train_cfg.max_iters == 200
    assert [item.end for item in cfg.param_scheduler] == [10, 200]
    assert planned(extend_to=200).max_iters == 200


def test_extending_to_less_is_refused() -> None:
    with pytest.raises(ConfigError, match="--extend-to 50 is below"):
        planned(extend_to=50)


WARM_UP = {"type": "LinearLR", "by_epoch": False, "begin": 0, "end": 10}


def cosine(**options: Any) -> dict[str, Any]:
    return {"type": "CosineAnnealingLR", "by_epoch": False, **options}


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ({"type": "PolyLR", "by_epoch": False, "end": 100}, {"end": 200}),
        ({"type": "PolyLR", "by_epoch": False}, {"end": None}),
        (cosine(T_max=100), {"T_max": 200, "end": None}),
        (cosine(T_max=90, begin=10, end=100), {"T_max": 190, "end": 200}),
        (cosine(T_max=100, begin=10, end=100), {"T_max": 200, "end": 200}),
        (cosine(T_max=25, end=100), {"T_max": 25, "end": 200}),
        (cosine(T_max=400, end=100), {"T_max": 400, "end": 200}),
        (cosine(T_max=25, end=10**9), {"T_max": 25, "end": 10**9}),
        ({"type": "OneCycleLR", "by_epoch": False, "total_steps": 100}, {"total_steps": 200}),
        ({"type": "MultiStepLR", "by_epoch": False, "milestones": [50]}, {"milestones": [50]}),
        (WARM_UP, {"end": 10}),
        ({"type": "PolyLR", "end": 99}, {"end": 99}),
    ],
)
def test_extending_lays_out_anew_what_ends_with_the_run(scheduler: Any, expected: Any) -> None:
    for cfg in (small(param_scheduler=scheduler), small(param_scheduler=[scheduler])):
        found = patched(cfg, extend_to=200).param_scheduler
        found = found if isinstance(found, dict) else found[0]
        assert {name: found.get(name) for name in expected} == expected


def test_extending_reaches_the_schedulers_of_several_optimizers() -> None:
    poly = {"type": "PolyLR", "by_epoch": False, "end": 100}
    cfg = patched(small(param_scheduler={"one": poly, "two": [WARM_UP, poly]}), extend_to=200)
    assert [cfg.param_scheduler.one.end, *(item.end for item in cfg.param_scheduler.two)] == [200, 10, 200]


def test_one_of_several_decays_may_end_within_the_run() -> None:
    first = {"type": "PolyLR", "by_epoch": False, "begin": 0, "end": 50}
    last = {"type": "PolyLR", "by_epoch": False, "begin": 50, "end": 100}
    assert [
        item.end for item in patched(small(param_scheduler=[first, last]), extend_to=200).param_scheduler
    ] == [
        50,
        200,
    ]


def test_a_constant_rate_needs_no_schedule() -> None:
    for schedulers in ([], None, [WARM_UP]):
        assert planned(small(param_scheduler=schedulers), extend_to=200).max_iters == 200


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        (
            {"type": "PolyLR", "by_epoch": False, "end": 99},
            r"param_scheduler\.end \(PolyLR\) ends at iteration 99",
        ),
        ({"type": "PolyLR", "by_epoch": False, "end": 101}, "ends at iteration 101"),
        ({"type": "PolyLR", "by_epoch": False, "end": 80}, "ends at iteration 80"),
        (cosine(T_max=100, end=80), r"end \(CosineAnnealingLR\) ends at iteration 80"),
        (cosine(T_max=99, end=100), r"T_max \(CosineAnnealingLR\) ends at iteration 99"),
        ({"type": "LinearLR", "by_epoch": False, "end": 80, "end_factor": 0.1}, "ends at iteration 80"),
        ({"type": "CosineRestartLR", "by_epoch": False, "periods": [50, 50], "end": 100}, "periods"),
    ],
)
def test_extending_what_would_leave_the_rate_without_a_schedule_is_refused(
    scheduler: Any, named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        planned(small(param_scheduler=scheduler), extend_to=200)
    assert "max_iters=200" in str(caught.value)
    # Written out for the new end, the same is taken as it is.
    written = small(param_scheduler=scheduler, train_cfg__max_iters=200)
    assert planned(written, extend_to=200).max_iters == 200
