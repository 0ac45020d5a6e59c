"""What torch says of itself and of the GPUs: ``python -m mapsage_kaggle.engine.devices`` prints JSON."""

from __future__ import annotations

import json
from typing import Any

import torch


def devices() -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "cudnn": None, "gpus": [], "archs": []}
    if torch.cuda.is_available():
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found["archs"] = torch.cuda.get_arch_list()
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            found["gpus"].append([device.name, device.total_memory, device.major, device.minor])
    return found


if __name__ == "__main__":
    print(json.dumps(devices()))
