"""The sentences about an evaluation, by language."""

from __future__ import annotations

from collections.abc import Mapping

ENGLISH: Mapping[str, str] = {
    "evaluation": "Evaluation",
    "eval_headline": "{file} on {count} images of {split}, {looked}",
    "eval_confusion": "Confusion matrix",
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
    "eval_off": "No evaluation: EVALUATE is False.",
    "eval_later": "Training is going on. Run this cell again when it has ended.",
    "eval_nothing": "No evaluation: nothing has been validated yet, so no checkpoint is known to be the best.",
    "eval_no_time": "No evaluation: {left} of the session are left, and it may take {needed}. Run it later, the "
    "same cell or: mapsage-kaggle evaluate {config}",
    "eval_cut": "The evaluation was stopped to hand over in time; what was counted is kept.",
    "eval_failed": "The evaluation failed; training and its checkpoints are not touched by that. {message}",
    "eval_few": "Only {count} images: the intervals are too narrow to be relied on.",
}

CHINESE: Mapping[str, str] = {
    "evaluation": "评估",
    "eval_headline": "{file}，{split} 的 {count} 张图像，{looked}",
    "eval_confusion": "混淆矩阵",
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
    "eval_off": "未做评估：EVALUATE 为 False。",
    "eval_later": "训练仍在进行。结束后请再运行本单元格。",
    "eval_nothing": "未做评估：尚未做过任何验证，还不知道哪个检查点最好。",
    "eval_no_time": "未做评估：本次会话还剩 {left}，而评估可能需要 {needed}。以后可再运行本单元格，或运行："
    "mapsage-kaggle evaluate {config}",
    "eval_cut": "为按时交接，评估已停止；已统计的结果都保留。",
    "eval_failed": "评估失败；训练及其检查点不受影响。{message}",
    "eval_few": "只有 {count} 张图像：置信区间偏窄，不可尽信。",
}
