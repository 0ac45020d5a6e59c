"""Models with weights that say something, and what is written of them."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.engine.building import num_inputs
from mapsage_kaggle.engine.jobs.inference import build_model
from support.standin import REPOSITORY

DEMO = REPOSITORY / "configs" / "demo.py"


def fill(net: torch.nn.Module, seed: int = 0) -> None:
    """Give a model weights whose logits differ from class to class, and statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
        if name.endswith("running_var"):
            value.abs_().add_(0.5)


def balance(net: torch.nn.Module) -> None:
    """Shift the logits so that no class wins everywhere."""
    head = net.decode_head
    last = head.mask_norm if hasattr(head, "mask_norm") else head.conv_seg  # Segmenter's, and others'
    with torch.inference_mode():
        inputs = torch.randn(1, num_inputs(net) or 3, 64, 64, generator=torch.Generator().manual_seed(5))
        last.bias -= net.eval().encode_decode(inputs, [{"img_shape": inputs.shape[2:]}]).mean((0, 2, 3))


def write_model(cfg: Config, path: Path, seed: int) -> Path:
    net = build_model(cfg)
    fill(net, seed)
    balance(net)
    torch.save({"meta": {"iter": 8}, "state_dict": net.state_dict()}, path)
    return path


def demo(scenes: Path, *overrides: str) -> Config:
    cfg = read_config(DEMO, list(overrides))
    cfg.model.decode_head.loss_decode.avg_non_ignore = True  # else mmsegmentation warns
    return for_inference(cfg, {str(cfg.val_dataloader.dataset.data_root): scenes})
