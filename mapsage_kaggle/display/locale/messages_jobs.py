"""What work after training refuses, in simplified Chinese; looked up by ``messages.translate``."""

from __future__ import annotations

from collections.abc import Mapping

CHINESE_JOBS: Mapping[str, str] = {
    # configure
    "{path} has no model.": "{path} 中没有 model。",
    "Give the config that the model was trained with.": "请给出训练该模型时所用的配置。",
    # jobs
    "--threads {number} is too low.": "--threads {number} 太小。",
    "Give 1 or more.": "请给 1 或更大的数。",
    "There is no checkpoint at {path}.": "{path} 处没有检查点。",
    "Give the path of a file such as best_mIoU_iter_8000.pth.": (
        "请给出文件路径，例如 best_mIoU_iter_8000.pth。"
    ),
    "There is no checkpoint in {folder} and none below {inputs}.": "{folder} 中没有检查点，{inputs} 之下也没有。",
    "Train first, attach a session's output, or name the file.": "请先训练、挂载某次会话的输出，或指定文件。",
    "The child that was to {work} ended without a word (exit code {code}).{log}": (
        "执行 {work} 的子进程未作说明就结束了（退出码 {code}）。{log}"
    ),
    "{work} failed: {problem}.": "{work} 失败：{problem}。",
    "Interrupted.": "已中断。",
    # engine.child
    "The package {name} is missing.": "缺少软件包 {name}。",
    "There was not enough memory.": "内存不足。",
    "Look through windows (--window), through fewer at a time (--window-batch 1), or on the CPU (--device cpu).": (
        "请改用滑动窗口（--window）、减少同时处理的窗口（--window-batch 1），或改用 CPU（--device cpu）。"
    ),
    "Check the disk and the path.": "请检查磁盘和路径。",
    # engine.inference
    "Windows of {size} pixels with a stride of {stride} leave pixels out.": (
        "边长 {size} 像素、步长 {stride} 的窗口会漏掉像素。"
    ),
    "The stride must be above zero and no more than the window.": "步长必须大于零，且不超过窗口边长。",
    "Scales must be above zero, not {scales}.": "缩放比例必须大于零，而不是 {scales}。",
    "There is no view to look at.": "没有可看的视图。",
    "The model's test_cfg has mode={mode}, crop_size={size}, stride={stride}.": (
        "模型的 test_cfg 为 mode={mode}，crop_size={size}，stride={stride}。"
    ),
    "It must be whole, or slide with a crop_size and a stride of two numbers each.": (
        "mode 必须是 whole，或是带有 crop_size 和 stride（各两个数）的 slide。"
    ),
    "The device {name} was asked for, but torch sees no GPU.": "要求使用设备 {name}，但 torch 看不到 GPU。",
    "Use --device auto or cpu.": "请用 --device auto 或 cpu。",
    "The model of {path} cannot be built: {kind}: {why}.": "无法构建 {path} 的模型：{kind}：{why}。",
    "The model of {path} is a {kind}.": "{path} 的模型是 {kind}。",
    "After training the kit works with mmsegmentation's EncoderDecoder and what derives from it.": (
        "训练之后，本工具只支持 mmsegmentation 的 EncoderDecoder 及其派生类。"
    ),
    "{path} was trained on {trained} classes ({names}); the config has {count} ({others}).": (
        "{path} 以 {trained} 个类别训练（{names}）；配置中有 {count} 个（{others}）。"
    ),
    "{path} does not fit the config's model: {problems}.": "{path} 与配置的模型不符：{problems}。",
    "Give the config that it was trained with.": "请给出训练它时所用的配置。",
    # engine.evaluate
    "{path} has no data loader {loader}.": "{path} 中没有数据加载器 {loader}。",
    "Attach the data set, or --set its data_root.": "请挂载数据集，或设置其 data_root（--set）。",
    "{loader} has no image.": "{loader} 中没有图像。",
    "Attach the whole data set.": "请挂载完整的数据集。",
    "{path} has no mask to compare with.": "{path} 没有可比较的掩膜。",
    "Evaluate on a split with masks: --split val.": "请在有掩膜的部分上评估：--split val。",
    "The evaluation's pipeline flips images.": "评估的数据流程会翻转图像。",
    "Take RandomFlip out of it.": "请从中去掉 RandomFlip。",
    "{path} or its mask cannot be read: {kind}: {why}.": "无法读取 {path} 或其掩膜：{kind}：{why}。",
    "Attach a complete copy of the data set.": "请挂载完整的数据集。",
    # evaluation
    "--whole and --window exclude each other.": "--whole 与 --window 不能同时使用。",
    "Give one of them.": "请只给其中之一。",
    "--stride needs --window.": "--stride 需要 --window。",
    "Give the window's side as well.": "请同时给出窗口边长。",
    "--window-batch and --resamples must be 1 or more.": "--window-batch 和 --resamples 必须不小于 1。",
    "--scales {scales} must lie above 0, and not above 8.": "--scales {scales} 必须大于 0 且不超过 8。",
    "{folder} cannot be written: {why}.": "无法写入 {folder}：{why}。",
    "Give another --work-dir.": "请换一个 --work-dir。",
    "The same command goes on where it was: what was counted is kept.": (
        "再次运行同一命令即可接着评估：已统计的结果都保留。"
    ),
    "whole images": "整幅图像",
    # averaging and engine.average
    "{name} is no name for averaged weights: nothing can be resumed from them.": (
        "{name} 不适合作为平均权重的文件名：不能从它恢复训练。"
    ),
    "Name it averaged.pth, for example.": "例如可命名为 averaged.pth。",
    "--batch-norm-images {number} is too low.": "--batch-norm-images {number} 太小。",
    "Give 0 or more.": "请给 0 或更大的数。",
    "There are not two or more different checkpoints to average.": "没有两个或更多不同的检查点可供平均。",
    "Name each of them once.": "请逐一列出，每个只列一次。",
    "{path} is of another model than {other}: {name} differs, and {count} more.": (
        "{path} 与 {other} 不是同一个模型：{name} 不同，另有 {count} 处不同。"
    ),
    "Average checkpoints of one run.": "请只平均同一训练任务的检查点。",
    "Give another --out.": "请换一个 --out。",
    # engine.predict
    "The test pipeline of {path} is not one that loads an image and packs it: {steps}.": (
        "{path} 的测试数据流程不是“读入一张图像并打包”：{steps}。"
    ),
    "It must begin with LoadImageFromFile and make one input of one image.": (
        "它必须以 LoadImageFromFile 开头，一张图像只产生一份输入。"
    ),
    # predict
    "Give images to predict, or --submission for the data set's test split; one of the two.": (
        "请给出要预测的图像，或用 --submission 预测数据集的测试部分，二者取一。"
    ),
    "See mapsage-kaggle predict --help.": "参见 mapsage-kaggle predict --help。",
    "Windows of {size} pixels are too small.": "{size} 像素的窗口太小。",
    "Give --window 32 or more.": "--window 请给 32 或更大的数。",
    "An overlap of {overlap} pixels makes no sense.": "重叠 {overlap} 像素没有意义。",
    "Windows of {size} pixels cannot overlap by {overlap}.": "{size} 像素的窗口不能重叠 {overlap} 像素。",
    "Take an overlap of at most half of the window.": "重叠最多为窗口的一半。",
    "--bands {bands} does not name three bands.": "--bands {bands} 没有指定三个波段。",
    "Give red, green and blue, counted from 1, such as 3,2,1; or one band for grey.": (
        "请按红、绿、蓝的顺序给出波段号（从 1 数起），例如 3,2,1；灰度图像给一个波段即可。"
    ),
    "--value-range {low} {high} is empty.": "--value-range {low} {high} 是空区间。",
    "Give the lower value first.": "请先给较小的值。",
    "{path} reads {kinds}.": "{path} 使用的数据集是 {kinds}。",
    "--submission is for EarthVQA; for another data set, predict its folder of images.": (
        "--submission 只用于 EarthVQA；其他数据集请直接预测其图像文件夹。"
    ),
    # export
    "{path} is there already.": "{path} 已存在。",
    "Name a new folder with --out.": "请用 --out 指定一个新文件夹。",
    "{names} is no form to export.": "{names} 不是可导出的格式。",
    "Choose of {names}.": "请从 {names} 中选择。",
    "--slug {slug} is no name that Kaggle takes.": "--slug {slug} 不是 Kaggle 接受的名称。",
    "Use a-z, 0-9 and single hyphens between.": "请只用 a-z、0-9，以及其间的单个连字符。",
    "The licence is empty.": "许可证为空。",
    "Such as --licence 'CC BY-NC-SA 4.0'.": "例如 --licence 'CC BY-NC-SA 4.0'。",
    "There is no image at {path}.": "{path} 处没有图像。",
    "Check the path.": "请检查路径。",
    "Nothing was written. Run the same command again.": "没有写入任何内容。请重新运行同一命令。",
    "The config's data_preprocessor is a {kind}.": "配置的 data_preprocessor 是 {kind}。",
    "Export knows mmsegmentation's SegDataPreProcessor.": "导出只支持 mmsegmentation 的 SegDataPreProcessor。",
    "{names}: too small to compare on; {least} pixels a side are needed.": (
        "{names}：太小，无法用来比较；每边至少需要 {least} 像素。"
    ),
    "Give larger images (--images).": "请给更大的图像（--images）。",
    "the model takes no image of {height} x {width} pixels: {why}": (
        "模型不接受 {height} x {width} 像素的图像：{why}"
    ),
    "the model draws random numbers in use ({names}), which ONNX cannot": (
        "模型在使用时会抽取随机数（{names}），ONNX 做不到"
    ),
    "It took more than {seconds} s.": "用时超过了 {seconds} 秒。",
    "it gives {found} instead of {expected}": "它给出 {found}，而不是 {expected}",
    "its logits differ by up to {difference} from the original's": "其 logits 与原模型最多相差 {difference}",
    "it gives {share} % of the pixels another class": "它使 {share} % 的像素得到另一个类别",
    "its operators follow the height or the width of the image that it is traced with": (
        "其算子依赖于导出时所用图像的高度或宽度"
    ),
    "{name} does not read back as it was written": "{name} 读回的内容与写入的不一致",
    "{name} lacks {names}": "{name} 缺少 {names}",
    "No data set and no image is at hand: the forms are compared on noise, not on images.": (
        "手头没有数据集也没有图像：各格式以噪声而非图像进行比较。"
    ),
}
