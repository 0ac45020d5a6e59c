"""SegFormer MiT-B2 on LoveDA, seven classes: crops of 512 x 512, 4 a batch, 40,000 iterations.

Needs: one GPU with 16 GB (a T4), or two; the LoveDA data set, with `Urban` and `Rural` below `Train`
and `Val`, attached as input. Better with `mit_b2_20220624-66e8bf70.pth` attached in any folder.

    mapsage-kaggle train configs/train_loveda_kaggle.py
"""

_base_ = [
    "./_base_/models/segformer_mit-b2.py",
    "./_base_/datasets/loveda.py",
    "./_base_/schedules/adamw_40k.py",
    "./_base_/runtime/kaggle.py",
]

model = dict(decode_head=dict(num_classes=7))
