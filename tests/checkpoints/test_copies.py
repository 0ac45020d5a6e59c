"""Copies of checkpoints, named as browsers, file managers and people name them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.hostile import real_bytes

from mapsage_kaggle.checkpoints.choose import choose
from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.scan import scan
from mapsage_kaggle.errors import CheckpointError

NAMES = ["iter_24 (1).pth", "iter_24 - Copy.pth", "iter_24_副本.pth", "iter_24.pt", "Copy of iter_24.pth"]


def put(path: Path, iteration: int) -> Path:
    state = {
        "meta": {"iter": iteration, "epoch": 1},
        "state_dict": {"w": torch.ones(2)},
        "optimizer": {"param_groups": [{"lr": 1e-3}]},
        "param_schedulers": [],
        "message_hub": {"runtime_info": {"iter": iteration}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(real_bytes(state))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_resumed_by_the_iteration_in_its_header(name: str, tmp_path: Path) -> None:
    copy = put(tmp_path / name, 30)
    (found,) = scan(tmp_path).files
    assert (found.kind, found.iteration) == ("iter", None)
    choice = choose(inspect=inspect, inputs=[found])
    assert (choice.action, choice.inspection and choice.inspection.iteration) == ("resume", 30)
    assert choice.checkpoint is not None
    assert choice.checkpoint.target == copy


def test_a_copy_comes_in_the_order_of_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path / "iter_16.pth", 16)
    copy = put(tmp_path / "iter_24 (1).pth", 24)
    choice = choose(inspect=inspect, inputs=scan(tmp_path).files)
    assert choice.checkpoint is not None
    assert choice.checkpoint.target == copy


@pytest.mark.parametrize("name", NAMES)
def test_nothing_starts_fresh_beside_a_copy_that_fails(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="Every checkpoint found was rejected"):
        choose(inspect=inspect, inputs=scan(tmp_path).files)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_starts_fresh_beside_an_empty_copy(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    report = scan(tmp_path)
    with pytest.raises(CheckpointError, match="it is empty"):
        choose(inspect=inspect, inputs=report.files, rejected=report.rejected)
