# SegFormer with the MiT-B2 encoder (Xie et al., 2021, https://arxiv.org/abs/2105.15203):
# 24.7 million parameters in the encoder, 2.7 million in the head.

# Written as SyncBN, as mmsegmentation's own configs are. SyncBN needs several CUDA ranks: on one
# GPU and on CPU the kit's patch turns it into BN, whose parameters carry the same names.
norm_cfg = dict(type="SyncBN", requires_grad=True)

data_preprocessor = dict(
    type="SegDataPreProcessor",
    mean=[123.675, 116.28, 103.53],  # of ImageNet, as the pretrained encoder expects
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,  # what is padded is ignored by the loss
    size=(512, 512),
)

model = dict(
    type="EncoderDecoder",
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type="MixVisionTransformer",
        # Looked for by its name under whatever folder it is attached; without it training starts
        # from scratch, and says so.
        init_cfg=dict(type="Pretrained", checkpoint="mit_b2_20220624-66e8bf70.pth"),
        in_channels=3,
        embed_dims=64,
        num_stages=4,
        num_layers=[3, 4, 6, 3],
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        out_indices=(0, 1, 2, 3),
        mlp_ratio=4,
        qkv_bias=True,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.1,
    ),
    decode_head=dict(
        type="SegformerHead",
        in_channels=[64, 128, 320, 512],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=8,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
