"""A small model, images and maps for the tests of `predict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import torch
from mmengine.config import Config
from PIL import Image
from rasterio.transform import from_origin

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.datasets import EARTHVQA_CLASSES, EARTHVQA_PALETTE
from mapsage_kaggle.data.scenes import draw_scene
from mapsage_kaggle.engine.jobs.inference import build_model
from mapsage_kaggle.imagery.sources import JOURNAL, LOCK
from support.rasters import write_raster

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "configs" / "demo.py"
TRANSFORM = from_origin(500_000.0, 3_400_000.0, 0.3, 0.3)
SMALL = ["model.backbone.embed_dims=8", "model.decode_head.in_channels=[8,16,32,48]"]


def config(*overrides: str) -> Config:
    cfg = for_inference(read_config(DEMO, [*SMALL, *overrides]), {})
    cfg.model.decode_head.loss_decode.avg_non_ignore = True  # else mmsegmentation warns
    return cfg


def written_config(folder: Path) -> Path:
    path = folder / "small.py"
    path.write_text(config().pretty_text, encoding="utf-8")
    return path


def write_weights(folder: Path) -> Path:
    """Write a checkpoint whose model tells classes apart, if wrongly."""
    torch.manual_seed(3)
    net = build_model(config())
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape) * 0.2)
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    # No class may drown the others: each gets the same mean over a scene.
    image = torch.from_numpy(scene(256, 256).transpose(2, 0, 1).copy()).float()
    with torch.inference_mode():
        normal = net.eval().data_preprocessor({"inputs": [image]}, False)["inputs"]
        logits = net.encode_decode(normal, [{"img_shape": normal.shape[2:]}])
    net.decode_head.conv_seg.bias.data -= logits.mean((0, 2, 3))
    path = folder / "best_mIoU_iter_8.pth"
    meta = {"iter": 8, "dataset_meta": {"classes": EARTHVQA_CLASSES, "palette": EARTHVQA_PALETTE}}
    torch.save({"meta": meta, "state_dict": net.state_dict(), "message_hub": {}}, path)
    return path


def scene(height: int, width: int, seed: int = 0) -> Any:
    side = max(height, width)
    return draw_scene(side, (seed,))[0][:height, :width]


def save_tiff(path: Path, rgb: Any, **profile: Any) -> Path:
    options = {"crs": "EPSG:32650", "transform": TRANSFORM, "photometric": "RGB"} | profile
    return write_raster(path, np.moveaxis(rgb, -1, 0), **options)


def mask(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture)


def contents(folder: Path) -> Mapping[str, bytes]:
    return {
        str(path.relative_to(folder)): rows(path) if path.suffix == ".gpkg" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (JOURNAL, LOCK)
    }


def rows(path: Path) -> bytes:
    """Return what is in a GeoPackage, which notes when it was written."""
    _, _, geometries, fields = pyogrio.raw.read(path, layer="classes")
    return b"".join(geometries) + repr([list(values) for values in fields]).encode()
