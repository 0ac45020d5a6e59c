"""A hastened SegFormer says what the stock one says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.registry import MODELS

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.engine.fast.inference import hasten

TOLERANCE = 2e-5
"""In parts of the largest value there is."""


def segformer(**head: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = {
        "type": "EncoderDecoder",
        "backbone": {
            "type": "MixVisionTransformer", "embed_dims": 16, "num_layers": [1, 2, 1, 1],
            "num_heads": [1, 2, 4, 2], "sr_ratios": [8, 4, 2, 1],
        },
        "decode_head": {
            "type": "SegformerHead", "in_channels": [16, 32, 64, 32], "in_index": [0, 1, 2, 3],
            "channels": 24, "num_classes": 5, "norm_cfg": {"type": "BN"}, "align_corners": False,
            "loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True}, **head,
        },
        "test_cfg": {"mode": "whole"},
    }  # fmt: skip
    with DefaultScope.overwrite_default_scope("mmseg"):
        model: torch.nn.Module = MODELS.build(config)
    for module in model.modules():
        # As after training: statistics that are not 0 and 1, and biases that are not 0.
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and module.bias is not None:
            torch.nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@pytest.mark.filterwarnings("ignore:When align_corners=True:UserWarning")  # the stock head's own
@pytest.mark.parametrize("size", [(64, 64), (96, 72), (61, 130)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_its_logits_are_the_stock_ones_to_rounding(size: tuple[int, int], align_corners: bool) -> None:
    stock = segformer(align_corners=align_corners)
    fast = copy.deepcopy(stock)
    images = torch.randn(2, 3, *size)

    assert hasten(fast) == ("attention", "feed-forward", "head")
    with torch.inference_mode():
        expected, found = (model.decode_head(model.backbone(images)) for model in (stock, fast))

    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def test_a_head_that_enlarges_in_another_way_is_the_stock_one_to_rounding() -> None:
    stock = segformer(interpolate_mode="bicubic")
    fast = copy.deepcopy(stock)
    images = torch.randn(1, 3, 96, 72)

    hasten(fast)
    with torch.inference_mode():
        expected, found = (model.decode_head(model.backbone(images)) for model in (stock, fast))

    assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def test_names_and_values_of_the_weights_stay() -> None:
    model = segformer()
    before = copy.deepcopy(model.state_dict())

    hasten(model)

    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_is_not_exactly_a_stock_module_is_left_alone() -> None:
    class Own(torch.nn.Conv2d):
        pass

    model = torch.nn.Sequential(Own(3, 4, 1), torch.nn.ReLU())

    assert hasten(model) == ()
    assert type(model[0]) is Own
