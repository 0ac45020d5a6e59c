"""Models and batches whose losses are averaged in every way that mmsegmentation has."""

from __future__ import annotations

from typing import Any

import torch.multiprocessing
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

SIZE, CLASSES, IGNORE = 32, 4, 255


WEIGHTS = [0.5, 2.0, 1.0, 3.0]


MEAN = {"type": "CrossEntropyLoss"}


VALID = {"type": "CrossEntropyLoss", "avg_non_ignore": True}


WEIGHTED = {"type": "CrossEntropyLoss", "class_weight": WEIGHTS}


def build(decode: Any, auxiliary: Any, norm: str = "GN") -> Any:
    """Return a small model in float64, the same on every call, without any random draw in it."""
    init_default_scope("mmseg")
    torch.manual_seed(0)
    norm_cfg = {"type": norm, "num_groups": 2} if norm == "GN" else {"type": norm}

    def head(channels: int, index: int, loss: Any) -> dict[str, Any]:
        return {
            "type": "FCNHead", "in_channels": channels, "in_index": index, "channels": 8, "num_convs": 1,
            "concat_input": False, "dropout_ratio": 0.0, "num_classes": CLASSES, "norm_cfg": norm_cfg,
            "align_corners": False, "loss_decode": loss, "ignore_index": IGNORE,
        }  # fmt: skip

    model = MODELS.build(
        {
            "type": "EncoderDecoder",
            "data_preprocessor": {
                "type": "SegDataPreProcessor", "size": (SIZE, SIZE), "pad_val": 0, "seg_pad_val": IGNORE,
            },
            "backbone": {
                "type": "MixVisionTransformer", "embed_dims": 8, "num_stages": 2, "num_layers": [1, 1],
                "num_heads": [1, 2], "patch_sizes": [7, 3], "strides": [4, 2], "sr_ratios": [2, 1],
                "out_indices": (0, 1), "mlp_ratio": 2, "drop_path_rate": 0.0,
            },
            "decode_head": head(16, 1, decode),
            "auxiliary_head": head(8, 0, auxiliary),
            "test_cfg": {"mode": "whole"},
        }
    )  # fmt: skip
    # The preprocessor hands over float32.
    model.backbone.register_forward_pre_hook(lambda _module, args: (args[0].double(),))
    return model.double().train()


def images(begin: int, end: int) -> dict[str, Any]:
    """Return images ``begin`` to ``end`` of an endless batch; each ignores another part of its label."""
    batch: dict[str, Any] = {"inputs": [], "data_samples": []}
    for index in range(begin, end):
        generator = torch.Generator().manual_seed(index)
        label = torch.randint(0, CLASSES, (1, SIZE, SIZE), generator=generator)
        # The first ignores everything, the next ones ever less; class 1 only in the first half.
        label[:, : SIZE - 7 * index] = IGNORE
        batch["inputs"].append(torch.randn(3, SIZE, SIZE, generator=generator, dtype=torch.float64))
        batch["data_samples"].append(
            SegDataSample(gt_sem_seg=PixelData(data=label), metainfo={"img_shape": (SIZE, SIZE)})
        )
    return batch
