"""Classes from logits in less time: given equal logits, all that comes out is mmsegmentation's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine.fast.prediction import highest, quick_prediction
from mapsage_kaggle.engine.metric import IntegerIoUMetric, areas, confusion_matrix
from mapsage_kaggle.messages import text_of

NUM_CLASSES = 5


def segmentor(**options: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    config = {
        "type": "EncoderDecoder",
        "backbone": {
            "type": "MixVisionTransformer", "embed_dims": 16, "num_layers": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 2], "sr_ratios": [8, 4, 2, 1],
        },
        "decode_head": {
            "type": "SegformerHead", "in_channels": [16, 32, 64, 32], "in_index": [0, 1, 2, 3],
            "channels": 24, "num_classes": NUM_CLASSES, "norm_cfg": {"type": "BN"}, "align_corners": False,
            "loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True}, **options.pop("head", {}),
        },
        "test_cfg": {"mode": "whole"}, **options,
    }  # fmt: skip
    with DefaultScope.overwrite_default_scope("mmseg"):
        model: EncoderDecoder = MODELS.build(ConfigDict(config))
    return model.eval()


def described(number: int, **meta: Any) -> list[SegDataSample]:
    return [
        SegDataSample(metainfo={"ori_shape": (40, 56), "img_shape": (40, 56), **meta}) for _ in range(number)
    ]


def outcome(samples: list[SegDataSample]) -> list[torch.Tensor]:
    return [item for sample in samples for item in (sample.seg_logits.data, sample.pred_sem_seg.data)]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"ori_shape": (80, 112)},
        {"ori_shape": (33, 47)},
        {"padding_size": [0, 8, 0, 16], "ori_shape": (24, 48)},
        {"img_padding_size": [8, 8, 4, 4], "ori_shape": (64, 80)},
        {"flip": True, "flip_direction": "horizontal"},
        {"flip": True, "flip_direction": "vertical", "ori_shape": (20, 28)},
    ],
)
@pytest.mark.parametrize("align_corners", [False, True])
def test_samples_are_those_of_the_stock_segmentor(meta: dict[str, Any], align_corners: bool) -> None:
    model = segmentor(head={"align_corners": align_corners})
    logits = torch.randn(2, NUM_CLASSES, 40, 56)
    logits[:, 1] = logits[:, 3]  # where they are highest, the first of both is taken
    expected = outcome(model.postprocess_result(logits, described(2, **meta)))
    with quick_prediction(model):
        found = outcome(model.postprocess_result(logits, described(2, **meta)))
    assert_same(found, expected)


def test_one_channel_alone_is_held_against_the_threshold() -> None:
    model = segmentor(
        head={"num_classes": 2, "out_channels": 1, "threshold": 0.4,
              "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": True, "avg_non_ignore": True}}
    )  # fmt: skip
    logits = torch.randn(1, 1, 40, 56)
    expected = outcome(model.postprocess_result(logits, described(1)))
    with quick_prediction(model):
        assert_same(outcome(model.postprocess_result(logits, described(1))), expected)


def test_images_without_a_description_are_predicted_as_ever() -> None:
    model = segmentor()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = outcome(model.predict(images))
        with quick_prediction(model):
            assert_same(outcome(model.predict(images)), expected)


@pytest.mark.parametrize("size", [(96, 96), (64, 64), (100, 130), (40, 200), (33, 35)])
@pytest.mark.parametrize("stride", [(64, 64), (43, 21)])
def test_sliding_windows_add_up_to_the_same_logits(size: tuple[int, int], stride: tuple[int, int]) -> None:
    model = segmentor(test_cfg={"mode": "slide", "crop_size": (64, 64), "stride": stride})
    images = torch.randn(2, 3, *size)
    metas = [{"ori_shape": size, "img_shape": size} for _ in range(2)]
    with torch.inference_mode():
        expected = model.inference(images, [dict(item) for item in metas])
        with quick_prediction(model):
            found = model.inference(images, [dict(item) for item in metas])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("stride", [(65, 64), (64, 96)])
def test_windows_that_leave_pixels_out_fail_as_in_the_stock_segmentor(stride: tuple[int, int]) -> None:
    model = segmentor(test_cfg={"mode": "slide", "crop_size": (64, 64), "stride": stride})
    images, metas = torch.randn(1, 3, 200, 200), [{"ori_shape": (200, 200), "img_shape": (200, 200)}]
    with torch.inference_mode():
        with pytest.raises(AssertionError):
            model.inference(images, [dict(item) for item in metas])
        with quick_prediction(model), pytest.raises(AssertionError, match="leave pixels out") as caught:
            model.inference(images, [dict(item) for item in metas])
    assert Words("zh").translate(text_of(caught.value)).startswith("大小为 (64, 64)、步长为 ")


def test_a_stride_larger_than_the_window_is_fine_where_nothing_is_left_out() -> None:
    model = segmentor(test_cfg={"mode": "slide", "crop_size": (64, 64), "stride": (80, 80)})
    images, metas = torch.randn(1, 3, 64, 100), [{"ori_shape": (64, 100), "img_shape": (64, 100)}]
    with torch.inference_mode():
        expected = model.inference(images, [dict(item) for item in metas])
        with quick_prediction(model):
            assert torch.equal(model.inference(images, [dict(item) for item in metas]), expected)


def test_afterwards_and_after_an_error_the_model_is_as_it_was() -> None:
    model = segmentor()
    before = dict(vars(model))
    with pytest.raises(RuntimeError, match="stop"), quick_prediction(model):
        assert vars(model) != before
        raise RuntimeError("stop")
    assert vars(model) == before


def test_what_a_subclass_does_in_its_own_way_is_left_alone() -> None:
    class Own(EncoderDecoder):
        def postprocess_result(self, seg_logits: Any, data_samples: Any = None) -> Any:
            return "own"

        def slide_inference(self, inputs: Any, batch_img_metas: Any) -> Any:
            return "own"

    model = segmentor()
    model.__class__ = Own
    with quick_prediction(model):
        assert model.postprocess_result(torch.randn(1, NUM_CLASSES, 40, 56), described(1)) == "own"
        assert model.slide_inference(torch.randn(1, 3, 8, 8), [{}]) == "own"
    with quick_prediction(torch.nn.Identity()):
        pass


def test_the_highest_is_the_first_of_the_highest() -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randint(0, 3, (7, 31, 29), generator=draws).float()
        logits[:, 0, 0] = float("nan")
        logits[:, 1, :] = float("-inf")
        assert torch.equal(highest(logits), logits.argmax(dim=0, keepdim=True))


def test_the_same_pixels_are_counted_as_by_the_stock_metric_image_by_image() -> None:
    """From equal logits, with ignored pixels and labels that are no class: every area, not its rounding."""
    model = segmentor()
    stock, ours = IoUMetric(), IntegerIoUMetric()
    for metric in (stock, ours):
        metric.dataset_meta = {"classes": tuple("abcde")}
    total = torch.zeros(NUM_CLASSES + 1, NUM_CLASSES + 1, dtype=torch.int64)
    for seed in range(6):
        draws = torch.Generator().manual_seed(seed)
        logits = torch.randn(1, NUM_CLASSES, 40, 56, generator=draws)
        label = torch.randint(0, NUM_CLASSES, (1, 40, 56), generator=draws, dtype=torch.uint8)
        label[:, :4], label[:, 4, :9] = 255, 17
        first, second = described(1), described(1)
        for sample in (first[0], second[0]):
            sample.gt_sem_seg = PixelData(data=label)
        stock.process({}, [model.postprocess_result(logits, first)[0].to_dict()])
        with quick_prediction(model):
            predicted = model.postprocess_result(logits, second)
        ours.process({}, [predicted[0].to_dict()])
        matrix = confusion_matrix(predicted[0].pred_sem_seg.data, label, NUM_CLASSES, 255)
        total += matrix
        for counted, expected in zip(areas(matrix), stock.results[-1], strict=True):
            assert counted.tolist() == expected.tolist()
    stock_figures, figures = stock.evaluate(6), ours.evaluate(6)
    assert {name: round(value, 2) for name, value in figures.items()} == {
        name: round(float(value), 2) for name, value in stock_figures.items()
    }
    assert torch.equal(ours.confusion, total)
