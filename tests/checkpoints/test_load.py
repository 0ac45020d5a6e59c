"""What is loaded of checkpoints: what torch loads, and only what was inspected."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.real_checkpoints import entry_data, real_checkpoints

from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.errors import CheckpointError


def assert_same(left: Any, right: Any, place: str = "") -> None:
    """Compare two trees by value and by type."""
    assert type(left) is type(right), f"{place}: {type(left)} and {type(right)}"
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, place
        assert torch.equal(left, right), place
        assert left.stride() == right.stride(), place
        assert left.requires_grad == right.requires_grad, place
    elif isinstance(left, dict):
        assert list(left) == list(right), place
        for key in left:
            assert_same(left[key], right[key], f"{place}.{key}")
        assert getattr(left, "_metadata", None) == getattr(right, "_metadata", None), place
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), place
        for index, (one, two) in enumerate(zip(left, right, strict=True)):
            assert_same(one, two, f"{place}.{index}")
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, place
        assert np.array_equal(left, right), place
    elif type(left).__name__ == "HistoryBuffer":
        assert_same(left.data, right.data, place)
        assert left.max_length == right.max_length
        assert left.mean() == right.mean()
    else:
        assert left == right, f"{place}: {left} and {right}"


@pytest.mark.parametrize(
    "name", ["tiny/iter_4.pth", "tiny/iter_8.pth", "tiny/best_mIoU_iter_4.pth", "segformer/iter_8000.pth"]
)
def test_what_is_loaded_is_what_torch_loads(name: str) -> None:
    import mmengine.logging  # noqa: F401 - so that the histories are mmengine's own

    path = real_checkpoints() / name
    assert_same(load_checkpoint(path), torch.load(path, weights_only=False))


def test_a_stream_is_loaded_too(tiny: Path) -> None:
    stream = io.BytesIO((tiny / "iter_8.pth").read_bytes())
    assert load_checkpoint(stream)["meta"]["iter"] == 8


def test_loaded_tensors_may_be_written_to_and_share_what_was_shared(tmp_path: Path) -> None:
    weight = torch.ones(4)
    torch.save({"state_dict": {"a": weight, "b": weight, "half": weight[:2]}}, tmp_path / "w.pth")
    state = load_checkpoint(tmp_path / "w.pth")["state_dict"]
    state["a"][0] = 5
    assert state["b"][0] == 5
    assert state["half"][0] == 5


def test_another_sha256_is_refused_at_loading(copy: Path) -> None:
    right = inspect(copy).sha256
    assert load_checkpoint(copy, sha256=right)["meta"]["iter"] == 8
    with pytest.raises(CheckpointError, match=f"its sha256 is {right}, expected 0000"):
        load_checkpoint(copy, sha256="0" * 64)


def test_a_file_replaced_during_the_load_is_not_mixed_in(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is swapped for another file after the pickle was read and before the data is read."""
    from mapsage_kaggle.checkpoints import load

    expected = torch.load(copy, weights_only=False)["state_dict"]["fc.weight"]
    real = load.survey

    def swap(tree: Any) -> Any:
        found = real(tree)
        other = copy.with_name("other.pth")
        torch.save({"state_dict": {"fc.weight": torch.zeros(2, 4)}}, other)
        other.replace(copy)
        return found

    monkeypatch.setattr(load, "survey", swap)
    assert torch.equal(load_checkpoint(copy)["state_dict"]["fc.weight"], expected)


@pytest.mark.parametrize("where", ["pickle", "directory"])
def test_a_file_changed_in_place_during_the_load_is_refused(
    copy: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mapsage_kaggle.checkpoints import load

    real = load.survey
    # In the directory, the first entry's attributes: a byte that nothing else would miss.
    at = (
        entry_data(copy, "data.pkl")[0] + 10
        if where == "pickle"
        else copy.read_bytes().index(b"PK\x01\x02") + 38
    )

    def change(tree: Any) -> Any:
        found = real(tree)
        with copy.open("r+b") as stream:
            stream.seek(at)
            stream.write(b"\xff")
        return found

    monkeypatch.setattr(load, "survey", change)
    with pytest.raises(CheckpointError, match="it changed while it was read"):
        load_checkpoint(copy)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth cannot be read: No such file"):
        load_checkpoint(tmp_path / "none.pth")


def test_a_legacy_file_is_loaded_safely(legacy: Path) -> None:
    import mmengine.logging  # noqa: F401

    assert_same(load_checkpoint(legacy), torch.load(legacy, weights_only=False))
