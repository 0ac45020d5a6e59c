"""A SegFormer small enough for two CPU cores, on a few generated scenes: `make demo`.

Needs: no GPU; scenes in EarthVQA's shape, as `mapsage-kaggle demo` generates them.

    mapsage-kaggle train configs/demo.py

Same classes, pipeline and schedule as `train_earthvqa_kaggle.py`, in small.
"""

_base_ = [
    "./_base_/models/segformer_mit-b2.py",
    "./_base_/datasets/earthvqa.py",
    "./_base_/schedules/adamw_40k.py",
    "./_base_/runtime/kaggle.py",
]

crop_size = (128, 128)
trained_gsd = 0.6

# From scratch: 0.35 million parameters. Drop path is off: so small a model has nothing to spare.
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        init_cfg=None, embed_dims=16, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 4, 6], drop_path_rate=0.0
    ),
    decode_head=dict(in_channels=[16, 32, 64, 96], channels=64),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(256, 256), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
val_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(256, 256), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=8, num_workers=1, persistent_workers=True, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(pipeline=val_pipeline)
)
test_dataloader = val_dataloader

# 480 iterations x 8 crops = 3,840 crops, 80 from each of 48 scenes. Measured: 0.12 s an iteration on one
# core, so about a minute in all, and mIoU 0.80 on 12 scenes to validate.
max_iters = 480
warmup_iters = 30
optim_wrapper = dict(
    optimizer=dict(lr=3e-3),
    # Nothing is pretrained, so the head needs no head start.
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=1.0))),
)
# A list replaces the one below it whole.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=warmup_iters, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=60)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=60))
