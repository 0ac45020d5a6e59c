"""What is saved in the background is what training had when the save began."""

from __future__ import annotations

from typing import Any

import pytest

from mapsage_kaggle.checkpoints.host_copy import HostCopy, _buffer_like


def test_where_no_memory_can_be_pinned_the_copy_goes_to_pageable_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    empty, asked = torch.empty, []

    def scarce(*shape: Any, pin_memory: bool = False, **options: Any) -> Any:
        asked.append(pin_memory)
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", scarce)
    found = _buffer_like(torch.ones(2, 3, dtype=torch.float16), pinned=True)
    assert (found.shape, found.dtype, asked) == ((2, 3), torch.float16, [True, False])


def test_a_host_copy_does_not_follow_what_training_changes() -> None:
    import torch

    weight, log, curve = torch.ones(3), [1, {"a": 2}], bytearray(b"abc")
    taken = HostCopy().take({"state": (weight, log), "lr": 0.1, "curve": curve})
    weight.zero_()
    log.append(3)
    curve.append(0)
    assert taken["curve"] == b"abc"
    assert torch.equal(taken["state"][0], torch.ones(3))
    assert taken["state"][1] == [1, {"a": 2}]
    assert taken["lr"] == 0.1


def test_a_host_copy_keeps_its_buffers_and_forgets_those_out_of_use() -> None:
    import torch

    host = HostCopy()
    first = host.take({"a": torch.ones(4), "b": torch.ones(8)})
    assert host.size_bytes == 48
    again = host.take({"a": torch.zeros(4)})
    assert again["a"].data_ptr() == first["a"].data_ptr()
    assert host.size_bytes == 16
    assert host.take({"a": torch.ones(2, dtype=torch.float64)})["a"].dtype == torch.float64


def test_a_host_copy_of_tied_weights_and_of_a_module_saves_like_the_original() -> None:
    import io
    import zipfile

    import torch

    module = torch.nn.ModuleDict({"a": torch.nn.Linear(64, 64), "b": torch.nn.Linear(64, 64)})
    module["b"].weight = module["a"].weight
    original, copied = io.BytesIO(), io.BytesIO()
    torch.save(module.state_dict(), original)
    taken = HostCopy().take(module.state_dict())
    torch.save(taken, copied)
    assert type(taken) is type(module.state_dict())
    assert taken._metadata == module.state_dict()._metadata
    storages = [
        [entry.file_size for entry in zipfile.ZipFile(saved).infolist() if "/data/" in entry.filename]
        for saved in (original, copied)
    ]
    assert storages[0] == storages[1] == [64 * 64 * 4, 64 * 4, 64 * 4], "tied weights are stored once"
    assert all(torch.equal(taken[key], value) for key, value in module.state_dict().items())


def test_a_host_copy_of_a_view_leaves_the_rest_of_its_storage_behind() -> None:
    import torch

    base = torch.arange(100.0).reshape(10, 10)
    taken = HostCopy().take([base[:, 1], torch.empty(0), torch.tensor(3, dtype=torch.int64)])
    assert torch.equal(taken[0], base[:, 1])
    assert taken[0].untyped_storage().nbytes() == 40
    assert taken[2] == 3
