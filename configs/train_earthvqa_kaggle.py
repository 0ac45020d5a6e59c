"""SegFormer MiT-B2 on EarthVQA: crops of 512 x 512, 4 a batch, 40,000 iterations.

Needs: one GPU with 16 GB (a T4), or two; the EarthVQA data set attached as input. Better with the
encoder's ImageNet weights, `mit_b2_20220624-66e8bf70.pth`, attached in any folder.

    mapsage-kaggle train configs/train_earthvqa_kaggle.py

Takes several sessions of 12 hours. Attach the output of one to the next and run the same again:
40,000 x 4 images / 2,522 = 63 epochs, and it does not matter where they are cut.
"""

_base_ = [
    "./_base_/models/segformer_mit-b2.py",
    "./_base_/datasets/earthvqa.py",
    "./_base_/schedules/adamw_40k.py",
    "./_base_/runtime/kaggle.py",
]
