"""Proves in a process of its own that the installed stack can train: imports, model, forward, loss.

``python -m mapsage_kaggle.engine.proof CONFIG`` prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import mmcv
import mmengine
import mmseg
import torch
from mmengine.config import Config
from mmseg.structures import SegDataSample

from mapsage_kaggle.engine.building import build_model

CROP = 64
"""Pixels; the smallest multiple of MiT's stride of 32 whose deepest map has more than one pixel."""


def prove(config: Path) -> dict[str, Any]:
    """Build a config's model on the CPU, run one forward pass, and return what was seen.

    Pretrained weights are skipped: whether they are attached is another question.
    """
    started = time.perf_counter()
    cfg = Config.fromfile(config)
    for part in (cfg.model, cfg.model.get("backbone", {})):
        part.pop("pretrained", None)
    cfg.model.get("backbone", {}).pop("init_cfg", None)
    model = build_model(cfg).eval()
    with torch.no_grad():
        images = torch.zeros(1, 3, CROP, CROP)
        logits = model(images, [SegDataSample(metainfo={"img_shape": (CROP, CROP)})], mode="tensor")
    return {
        "classes": int(logits.shape[1]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "finite": bool(torch.isfinite(logits).all()),
        "versions": {module.__name__: str(module.__version__) for module in (torch, mmengine, mmcv, mmseg)},
        "seconds": round(time.perf_counter() - started, 2),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    seen = prove(parser.parse_args(arguments).config)
    print(json.dumps(seen))
    return 0 if seen["finite"] else 1


if __name__ == "__main__":
    sys.exit(main())
