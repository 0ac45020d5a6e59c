# LoveDA (Wang et al., 2021): 2,522 images to train on and 1,669 to validate, 1024 x 1024 at 0.3 m.
#
#   <data_root>/Train/{Urban,Rural}/images_png/*.png   <data_root>/Train/{Urban,Rural}/masks_png/*.png
#   <data_root>/Val/{Urban,Rural}/images_png/*.png     <data_root>/Val/{Urban,Rural}/masks_png/*.png
#
# Mask values: 0 no data (ignored), 1 background, 2 building, 3 road, 4 water, 5 barren, 6 forest,
# 7 agriculture. The dataset class turns them into 255 and 0 to 6.
dataset_type = "LoveDASplitDataset"
# An example. The kit finds the folder by its shape, wherever it is mounted, and sets this.
data_root = "/kaggle/input/loveda"
crop_size = (512, 512)
trained_gsd = 0.3  # metres that a pixel of the images covers, for predict --gsd

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    # A side of 1024 times 0.5 to 2.0: from 512, which the crop just fits, to 2048.
    dict(type="RandomResize", scale=(1024, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    # Ten tries for a crop in which no class covers more than three quarters.
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
# Whole images at their own size. Labels are loaded last, so that nothing ever resizes them.
val_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(1024, 1024), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]

# Kaggle gives about 4 CPU cores: 2 workers for each of two GPUs, or 2 beside one.
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, split="Train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split="Val", pipeline=val_pipeline, test_mode=True),
)
test_dataloader = val_dataloader  # the masks of Test are not published

val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
