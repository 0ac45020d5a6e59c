"""A mask of ``predict`` is what mmsegmentation's own ``inference_model`` gives, at the pipeline's scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg.apis import inference_model
from PIL import Image
from support.models import balance, demo, fill
from support.zoo import config_of, reduced

from mapsage_kaggle.config.patch import for_inference
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.data.scenes import draw_scene
from mapsage_kaggle.engine.jobs.inference import TrainedModel, build_model
from mapsage_kaggle.engine.jobs.predict import Predictor, Source, Task
from mapsage_kaggle.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.mark.slow(scope_s=40)
@pytest.mark.parametrize(
    "name",
    [
        "pspnet_r18-d8_4xb4-80k_loveda-512x512",
        "fcn_hr18s_4xb4-80k_loveda-512x512",
        "segmenter_vit-t_mask_8xb1-160k_ade20k-512x512",
        "unet-s5-d16_fcn_4xb4-40k_drive-64x64",
        "bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024",
    ],
)
def test_an_image_is_predicted_as_by_mmsegmentation_s_inference_model(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    cfg = for_inference(read_config(config, reduced(config)[1::2]), {})
    cfg.test_dataloader = cfg.val_dataloader
    assert_predicted_as_by_stock(cfg, tmp_path)


@pytest.mark.parametrize(
    ("padding", "test_cfg"),
    [
        ({"size_divisor": 32}, {"mode": "whole"}),
        ({"size": (288, 320)}, {"mode": "slide", "crop_size": (96, 96), "stride": (64, 64)}),
    ],
)
def test_what_the_preprocessor_pads_is_cut_off_as_there(
    padding: dict[str, Any], test_cfg: dict[str, Any], tmp_path: Path
) -> None:
    small = ("backbone.embed_dims=8", "decode_head.in_channels=[8,16,32,48]", "decode_head.channels=16")
    cfg = demo(tmp_path, *(f"model.{item}" for item in small))
    cfg.model.data_preprocessor.test_cfg, cfg.model.test_cfg = padding, test_cfg
    assert_predicted_as_by_stock(cfg, tmp_path)


def test_a_pipeline_that_flips_makes_no_map(tmp_path: Path) -> None:
    cfg = demo(tmp_path)
    cfg.val_dataloader.dataset.pipeline.insert(1, {"type": "RandomFlip", "prob": 1.0})
    cfg.test_dataloader = cfg.val_dataloader
    with pytest.raises(ConfigError, match="flips images"):
        assert_predicted_as_by_stock(cfg, tmp_path)


def assert_predicted_as_by_stock(cfg: Config, folder: Path) -> None:
    cfg.test_pipeline = cfg.val_dataloader.dataset.pipeline
    net = build_model(cfg)
    fill(net)
    balance(net)
    net.cfg = cfg
    classes = tuple(f"class {index}" for index in range(net.num_classes))
    palette = tuple((index, index, index) for index in range(net.num_classes))
    model = TrainedModel(net, classes=classes, palette=palette, device=torch.device("cpu"), meta={})
    picture = folder / "tile.png"
    Image.fromarray(draw_scene(144, (0, 0))[0][:100]).save(picture)

    task = Task(out=folder / "out", sources=(Source(path=picture, name="tile.png"),), fast=False)
    found = Predictor(cfg, model, task, "0" * 64, lambda event, **data: None).run()

    expected = inference_model(net, str(picture)).pred_sem_seg.data[0].numpy()
    with Image.open(task.out / found["files"]["tile.png"]) as image:
        mask = np.asarray(image)
    assert np.array_equal(mask - found["labels"]["class 0"], expected)
    assert len(np.unique(expected)) > 1
