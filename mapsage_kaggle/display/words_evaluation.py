"""The sentences about an evaluation, by language."""

from __future__ import annotations

from collections.abc import Mapping

ENGLISH: Mapping[str, str] = {
    "evaluation": "Evaluation",
    "eval_headline": "{file} on {count} images of {split}, {looked}",
    "eval_class": "class, %",
    "eval_precision": "precision",
    "eval_recall": "recall",
    "eval_share": "of pixels",
    "eval_fwiou": "frequency-weighted IoU",
    "eval_mean_f1": "mean F1",
    "eval_mean_accuracy": "mean recall (mAcc)",
    "eval_accuracy": "pixel accuracy (aAcc)",
    "eval_images": "{count} images",
    "area_urban": "urban alone",
    "area_rural": "rural alone",
    "eval_better": "{file} is better than {other} ({other_miou}): {gain} points of mIoU, and "
    "between {low} and {high} with 95 % confidence.",
    "eval_worse": "{file} is worse than {other} ({other_miou}): {gain} points of mIoU, and "
    "between {low} and {high} with 95 % confidence.",
    "eval_noise": "{file} against {other} ({other_miou}): {gain} points of mIoU, but the 95 % "
    "interval from {low} to {high} holds zero. These images do not tell which is better.",
    "eval_few": "Only {count} images: the intervals are too narrow to be relied on.",
}

CHINESE: Mapping[str, str] = {
    "evaluation": "评估",
    "eval_headline": "{file}，{split} 的 {count} 张图像，{looked}",
    "eval_class": "类别，%",
    "eval_precision": "精确率",
    "eval_recall": "召回率",
    "eval_share": "像素占比",
    "eval_fwiou": "频率加权 IoU",
    "eval_mean_f1": "平均 F1",
    "eval_mean_accuracy": "平均召回率（mAcc）",
    "eval_accuracy": "像素准确率（aAcc）",
    "eval_images": "{count} 张图像",
    "area_urban": "仅城市",
    "area_rural": "仅乡村",
    "eval_better": "{file} 优于 {other}（{other_miou}）：mIoU 相差 {gain} 个百分点，"
    "95 % 置信区间为 {low} 到 {high}。",
    "eval_worse": "{file} 不如 {other}（{other_miou}）：mIoU 相差 {gain} 个百分点，"
    "95 % 置信区间为 {low} 到 {high}。",
    "eval_noise": "{file} 与 {other}（{other_miou}）：mIoU 相差 {gain} 个百分点，"
    "但 95 % 置信区间 {low} 到 {high} 包含零，这些图像不足以判断孰优孰劣。",
    "eval_few": "只有 {count} 张图像：置信区间偏窄，不可尽信。",
}
