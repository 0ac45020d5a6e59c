"""Two checkpoints compared: what is the same, and each kind of thing that is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mapsage_kaggle.engine.compare import compare


def checkpoint() -> dict[str, Any]:
    return {
        "meta": {"iter": 12},
        "state_dict": {"w": torch.arange(4.0), "count": torch.tensor(3)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(12.0), "exp_avg": torch.ones(4)}},
            "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}],
            "loss_scaler": {"scale": 64.0, "_growth_tracker": 2},
        },
        "param_schedulers": [{"last_step": 11}],
        "message_hub": {"log_scalars": {"train/loss": SimpleNamespace(log=[2.0, 1.5])}},
    }


def test_a_checkpoint_and_its_copy_are_the_same() -> None:
    found = compare(checkpoint(), copy.deepcopy(checkpoint()))
    assert (found["differences"], found["apart"], found["loss_scale"]) == ([], 0.0, 64.0)
    assert found["iterations"] == [12, 12]
    assert found["num_values"] > 10


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda item: item["state_dict"]["w"].mul_(1 + 1e-7), "state_dict.w"),
        (lambda item: item["state_dict"].update(w=torch.arange(4.0).double()), "state_dict.w"),
        (lambda item: item["state_dict"].update(more=torch.ones(0)), "state_dict.more"),
        (lambda item: item["optimizer"]["state"][0]["exp_avg"].neg_(), "optimizer.state.0.exp_avg"),
        (lambda item: item["optimizer"]["loss_scaler"].update(_growth_tracker=0), "optimizer.loss_scaler."),
        (lambda item: item["optimizer"].pop("loss_scaler"), "optimizer.loss_scaler"),
        (lambda item: item["optimizer"]["param_groups"][0].update(lr=0.2), "optimizer.param_groups.0.lr"),
        (lambda item: item["param_schedulers"].append({}), "param_schedulers: its length"),
        (lambda item: item.pop("param_schedulers"), "param_schedulers"),
        (lambda item: item["message_hub"]["log_scalars"]["train/loss"].log.pop(), "train/loss: its length"),
    ],
)
def test_whatever_a_resume_restores_is_compared(change: Callable[[Any], Any], where: str) -> None:
    other = checkpoint()
    change(other)
    for pair in ((checkpoint(), other), (other, checkpoint())):
        assert [item.startswith(where) for item in compare(*pair)["differences"]] == [True]


def test_minus_zero_is_not_zero_and_a_nan_is_itself() -> None:
    one, other = checkpoint(), checkpoint()
    one["state_dict"]["w"][0] = other["state_dict"]["w"][0] = float("nan")
    assert compare(one, other)["differences"] == []
    one["state_dict"]["w"][0], other["state_dict"]["w"][0] = 0.0, -0.0
    assert compare(one, other)["differences"] == ["state_dict.w"]


def test_the_distance_of_weights_is_relative_to_their_length() -> None:
    other = checkpoint()
    other["state_dict"]["w"] = other["state_dict"]["w"] * 2
    length = float(torch.tensor([0.0, 1.0, 2.0, 3.0, 3.0]).norm())
    assert compare(checkpoint(), other)["apart"] == pytest.approx(14**0.5 / length)
