"""How ranks find their device and their way to speak to each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import Config

from mapsage_kaggle.engine import ranks


@pytest.mark.parametrize(
    ("num_gpus", "local_rank", "device", "backend"),
    [(2, 1, 1, "nccl"), (1, 0, 0, "gloo"), (1, 1, 0, "gloo"), (0, 1, None, "gloo")],
)
def test_ranks_that_share_a_gpu_speak_by_gloo(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, local_rank: int, device: int | None, backend: str
) -> None:
    seen: dict[str, Any] = {"device": None}
    for name, value in (("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: seen.update(device=index))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **options: seen.update(options))
    ranks.join(Config({}))
    assert (seen["device"], seen["backend"]) == (device, backend)
