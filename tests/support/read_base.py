"""A whole config in mmengine's pure Python style, small."""

from mmcv.transforms import LoadImageFromFile, RandomFlip, RandomResize, Resize
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler import PolyLR
from mmengine.runner import IterBasedTrainLoop, ValLoop
from mmseg.datasets import LoveDADataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, RandomCrop
from mmseg.evaluation import IoUMetric
from mmseg.models import CrossEntropyLoss, EncoderDecoder, FCNHead, ResNetV1c, SegDataPreProcessor
from torch.optim import SGD

default_scope = "mmseg"
crop_size = (64, 64)
model = {
    "type": EncoderDecoder,
    "data_preprocessor": {
        "type": SegDataPreProcessor,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": 255,
        "size": crop_size,
    },
    "pretrained": "open-mmlab://resnet18_v1c",
    "backbone": {"type": ResNetV1c, "depth": 18, "norm_cfg": {"type": "SyncBN", "requires_grad": True}},
    "decode_head": {
        "type": FCNHead,
        "in_channels": 512,
        "in_index": 3,
        "channels": 8,
        "num_classes": 7,
        "norm_cfg": {"type": "SyncBN"},
        "loss_decode": {"type": CrossEntropyLoss},
    },
    "test_cfg": {"mode": "whole"},
}
train_pipeline = [
    {"type": LoadImageFromFile},
    {"type": LoadAnnotations, "reduce_zero_label": True},
    {"type": RandomResize, "scale": (128, 128), "ratio_range": (0.5, 2.0), "keep_ratio": True},
    {"type": RandomCrop, "crop_size": crop_size},
    {"type": RandomFlip, "prob": 0.5},
    {"type": PackSegInputs},
]
test_pipeline = [
    {"type": LoadImageFromFile},
    {"type": Resize, "scale": (128, 128), "keep_ratio": True},
    {"type": LoadAnnotations, "reduce_zero_label": True},
    {"type": PackSegInputs},
]
train_dataloader = {
    "batch_size": 2,
    "num_workers": 0,
    "sampler": {"type": InfiniteSampler, "shuffle": True},
    "dataset": {
        "type": LoveDADataset,
        "data_root": "data/loveDA",
        "data_prefix": {"img_path": "img_dir/train", "seg_map_path": "ann_dir/train"},
        "pipeline": train_pipeline,
    },
}
val_dataloader = {
    "batch_size": 1,
    "num_workers": 0,
    "dataset": {
        "type": LoveDADataset,
        "data_root": "data/loveDA",
        "data_prefix": {"img_path": "img_dir/val", "seg_map_path": "ann_dir/val"},
        "pipeline": test_pipeline,
    },
}
val_evaluator = {"type": IoUMetric, "iou_metrics": ["mIoU"]}
optim_wrapper = {"type": OptimWrapper, "optimizer": {"type": SGD, "lr": 0.01, "momentum": 0.9}}
param_scheduler = [{"type": PolyLR, "eta_min": 1e-4, "power": 0.9, "begin": 0, "end": 6, "by_epoch": False}]
train_cfg = {"type": IterBasedTrainLoop, "max_iters": 6, "val_interval": 3}
val_cfg = {"type": ValLoop}
default_hooks = {
    "timer": {"type": IterTimerHook},
    "logger": {"type": LoggerHook, "interval": 2},
    "param_scheduler": {"type": ParamSchedulerHook},
    "checkpoint": {"type": CheckpointHook, "by_epoch": False, "interval": 3},
    "sampler_seed": {"type": DistSamplerSeedHook},
}
