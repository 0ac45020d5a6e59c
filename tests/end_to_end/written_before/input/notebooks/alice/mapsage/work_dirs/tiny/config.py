crop_size = (
    64,
    64,
)
custom_imports = dict(
    allow_failed_imports=False, imports=[
        'mapsage_kaggle.engine.register',
    ])
data_root = '/kaggle/input/earthvqa'
default_hooks = dict(
    checkpoint=None,
    logger=dict(interval=1, log_metric_by_epoch=False, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=None,
    timer=dict(type='IterTimerHook'))
default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    dist_cfg=dict(backend='gloo'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
launcher = 'none'
load_from = '/kaggle/input/notebooks/alice/first/work_dirs/tiny/iter_4.pth'
log_level = 'INFO'
log_processor = dict(by_epoch=False)
max_iters = 12
model = dict(
    backbone=dict(
        attn_drop_rate=0.05,
        drop_path_rate=0.1,
        drop_rate=0.05,
        embed_dims=4,
        in_channels=3,
        mlp_ratio=2,
        num_heads=[
            2,
        ],
        num_layers=[
            1,
        ],
        num_stages=1,
        out_indices=(0, ),
        patch_sizes=[
            7,
        ],
        qkv_bias=True,
        sr_ratios=[
            2,
        ],
        strides=[
            4,
        ],
        type='MapsageMixVisionTransformer'),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_val=0,
        seg_pad_val=255,
        size=(
            64,
            64,
        ),
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='SegDataPreProcessor'),
    decode_head=dict(
        align_corners=False,
        channels=8,
        dropout_ratio=0.1,
        in_channels=[
            8,
        ],
        in_index=[
            0,
        ],
        loss_decode=dict(
            loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=False),
        norm_cfg=dict(requires_grad=True, type='BN'),
        num_classes=8,
        type='MapsageSegformerHead'),
    test_cfg=dict(mode='whole'),
    train_cfg=dict(),
    type='EncoderDecoder')
optim_wrapper = dict(
    clip_grad=dict(max_norm=1.0, norm_type=2),
    optimizer=dict(
        betas=(
            0.9,
            0.999,
        ),
        fused=True,
        lr=0.03,
        type='AdamW',
        weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys=dict(head=dict(lr_mult=3.0), norm=dict(decay_mult=0.0))),
    type='OptimWrapper')
param_scheduler = [
    dict(begin=0, by_epoch=False, end=3, start_factor=0.001, type='LinearLR'),
    dict(
        begin=3, by_epoch=False, end=12, eta_min=0.0, power=1.0,
        type='PolyLR'),
]
randomness = dict(seed=7)
resume = True
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        data_root='/kaggle/input/earthvqa',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                64,
                64,
            ), type='Resize'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        split='Val',
        test_mode=True,
        type='EarthVQADataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(
    iou_metrics=[
        'mIoU',
    ], type='MapsageIoUMetric')
train_cfg = dict(max_iters=12, type='MapsageTrainLoop', val_interval=3)
train_dataloader = dict(
    batch_sampler=dict(effective_batch=4, type='MapsageBatches'),
    batch_size=4,
    dataset=dict(
        dataset=dict(
            data_root='/kaggle/input/earthvqa',
            pipeline=[
                dict(
                    cache_dir='/kaggle/temp/decoded',
                    transforms=[
                        dict(type='LoadImageFromFile'),
                        dict(type='LoadAnnotations'),
                        dict(
                            keep_ratio=True,
                            ratio_range=(
                                1.0,
                                2.0,
                            ),
                            scale=(
                                64,
                                64,
                            ),
                            type='RandomResize'),
                        dict(
                            cat_max_ratio=0.75,
                            crop_size=(
                                64,
                                64,
                            ),
                            type='RandomCrop'),
                        dict(prob=0.5, type='RandomFlip'),
                        dict(type='PhotoMetricDistortion'),
                        dict(type='PackSegInputs'),
                    ],
                    type='MapsageFastPipeline'),
            ],
            split='Train',
            type='EarthVQADataset'),
        on_bad_image='fail',
        type='MapsagePositional'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=True, type='MapsageOrder'))
val_cfg = dict(fast=True, type='MapsageValLoop')
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        dataset=dict(
            data_root='/kaggle/input/earthvqa',
            pipeline=[
                dict(
                    cache_dir='/kaggle/temp/decoded', type='MapsageLoadImage'),
                dict(keep_ratio=True, scale=(
                    64,
                    64,
                ), type='Resize'),
                dict(
                    cache_dir='/kaggle/temp/decoded',
                    type='MapsageLoadLabels'),
                dict(type='PackSegInputs'),
            ],
            split='Val',
            test_mode=True,
            type='EarthVQADataset'),
        ignore_index=255,
        on_bad_image='fail',
        type='MapsageReadable'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(
    iou_metrics=[
        'mIoU',
    ], type='MapsageIoUMetric')
vis_backends = [
    dict(type='LocalVisBackend'),
]
visualizer = dict(
    name='visualizer',
    type='SegLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ])
work_dir = '/kaggle/working/work_dirs/tiny'
