"""What the rooms below refuse and warn of, in simplified Chinese; looked up by ``messages.translate``.

Where the English names an option of the command, the Chinese names the notebook's parameter as well: it
is mostly read there.
"""

from __future__ import annotations

from collections.abc import Mapping

CHINESE_ERRORS: Mapping[str, str] = {
    # checkpoints.choose
    "{path}, which --resume names, was rejected: {problem}.": "指定的检查点 {path} 不可用：{problem}。",
    "Name another file, or let the kit choose with --resume auto.": (
        '请指定其他文件，或设 RESUME = "auto"（--resume auto）由本工具选择。'
    ),
    "--resume never starts at iteration 0, and --expect-iteration asks for {iteration}.": (
        'RESUME = "never" 从第 0 次迭代开始，而 EXPECT_ITERATION 要求第 {iteration} 次。'
    ),
    "Leave one of them out.": "请去掉其中一个。",
    "{path} holds weights only ({problem}): nothing can be resumed from it.": (
        "{path} 只含权重（{problem}），无法从中恢复训练。"
    ),
    "Add --allow-weights-only to start at iteration 0 from its weights.": (
        "请设 ALLOW_WEIGHTS_ONLY = True（--allow-weights-only），用它的权重从第 0 次迭代开始。"
    ),
    "{problem} The newest, {path}, does not fit: {why}.": "{problem}其中最新的 {path} 不相符：{why}。",
    "Use the config that it was trained with; {anew}.": "请使用训练它时的配置；{anew}。",
    "The config's load_from, {path}, cannot be used.": "配置中的 load_from（{path}）无法使用。",
    "--expect-iteration asks for {wanted}, and {path} starts at {iteration}.": (
        "EXPECT_ITERATION（--expect-iteration）要求第 {wanted} 次迭代，而 {path} 从第 {iteration} 次开始。"
    ),
    "Attach the output that holds iteration {iteration}, name its file with --resume, or leave "
    "--expect-iteration out.": (
        "请挂载含有第 {iteration} 次迭代的输出，用 RESUME 指定其文件，或不设 EXPECT_ITERATION。"
    ),
    "--expect-iteration asks for {wanted}, and there is nothing to resume.": (
        "EXPECT_ITERATION（--expect-iteration）要求第 {wanted} 次迭代，而没有可恢复的检查点。"
    ),
    "Attach the output of the session before, or leave --expect-iteration out.": (
        "请挂载上一次会话的输出，或不设 EXPECT_ITERATION。"
    ),
    "Add --allow-weights-only to start at iteration 0 from the best of them, or attach the output that "
    "holds an iter_N.pth.": (
        "请设 ALLOW_WEIGHTS_ONLY = True（--allow-weights-only），用其中最好的权重从第 0 次迭代开始；或挂载"
        "含有 iter_N.pth 的输出。"
    ),
    # checkpoints.load and checkpoints.store
    "{name} cannot be read: {why}.": "无法读取 {name}：{why}。",
    "{name} is rejected: {why}.": "{name} 不可用：{why}。",
    "Use another checkpoint.": "请使用其他检查点。",
    "The work dir {path} cannot be written: {why}.": "工作目录 {path} 无法写入：{why}。",
    "Choose another one with --work-dir.": "请用 --work-dir 换一个目录。",
    "The work dir {path} is in use by process {holder}; two may not save into it.": (
        "工作目录 {path} 正被进程 {holder} 使用；不能有两个进程往里保存。"
    ),
    "Wait for it, end it, or choose another folder with --work-dir.": (
        "请等它结束、终止它，或用 --work-dir 换一个目录。"
    ),
    "{path} cannot be locked: {why}.": "无法锁定 {path}：{why}。",
    "Choose a work dir on a local disk with --work-dir.": "请用 --work-dir 选本地磁盘上的目录。",
    "The work dir {path} is not locked by this process.": "本进程没有锁定工作目录 {path}。",
    "Call lock() before saving.": "请先调用 lock() 再保存。",
    "{path} has sha256 {found}, its record says {recorded}: it is not the file that was recorded, and was "
    "not carried over.": (
        "{path} 的 sha256 是 {found}，而记录中是 {recorded}：它不是当初记录的文件，没有带入本次输出。"
    ),
    "Attach the output of the session that wrote it again.": "请重新挂载写出它的那次会话的输出。",
    "{path} was written with sha256 {written} and reads back as {found}: the disk does not keep what it is "
    "given.": "{path} 写入时的 sha256 是 {written}，读回却是 {found}：磁盘没有如实保存内容。",
    "Training goes on with the older checkpoint; save to another disk with --work-dir.": (
        "训练继续，仍以较早的检查点为准；请用 --work-dir 存到其他磁盘。"
    ),
    "{path} could not be written: {why}.": "无法写入 {path}：{why}。",
    "{path} could not be published: {why}.": "无法将 {path} 改为正式文件名：{why}。",
    "The checkpoints proven before are untouched.": "此前已验证的检查点不受影响。",
    "The disk is full: deleted {names} to save {name}.": "磁盘已满：为保存 {name}，已删除 {names}。",
    # clock
    "{text} is not a duration: it must be finite and not negative.": "{text} 不是时长：必须有限且不为负。",
    "{text} is not a duration.": "{text} 不是时长。",
    "Write it as 12h, 10m, 1h30m or 45s.": "请写成 12h、10m、1h30m 或 45s 的形式。",
    "The reserve ({reserve}) leaves nothing of the session limit ({limit}).": (
        "预留时间（{reserve}）用尽了会话时限（{limit}）。"
    ),
    "Choose a longer limit or a shorter reserve.": "请把时限设长，或把预留时间设短。",
    # configure
    "There is no config at {path}.": "{path} 处没有配置文件。",
    "Give the path of an mmengine config (.py).": "请给出 mmengine 配置（.py）的路径。",
    "{path} does not parse as an mmengine config: {kind}: {why}.": (
        "无法按 mmengine 配置解析 {path}：{kind}：{why}。"
    ),
    "Check the named line, and that every file in _base_ is there.": (
        "请检查所指的那一行，并确认 _base_ 中的文件都在。"
    ),
    "--set {text} is not key=value.": "OVERRIDES（--set）中的 {text} 不是 键=值 的形式。",
    "Write it as optim_wrapper.optimizer.lr=1e-4.": "请写成 optim_wrapper.optimizer.lr=1e-4 的形式。",
    "--set {text} has a value that cannot be read: {why}.": (
        "OVERRIDES（--set）中 {text} 的值无法读取：{why}。"
    ),
    "Lists are written as [1,2], tuples as (1,2), without spaces.": (
        "列表写作 [1,2]，元组写作 (1,2)，中间不留空格。"
    ),
    "--set {text} does not fit {path}: {why}.": "OVERRIDES（--set）{text} 与 {path} 不相符：{why}。",
    "Compare the dotted keys with the config; items of lists are counted from 0.": (
        "请与配置对照带点的键名；列表的元素从 0 数起。"
    ),
    "{source} has no training loop (train_cfg).": "{source} 没有训练循环（train_cfg）。",
    "Add train_cfg = dict(type='IterBasedTrainLoop', max_iters=…, val_interval=…).": (
        "请加上 train_cfg = dict(type='IterBasedTrainLoop', max_iters=…, val_interval=…)。"
    ),
    "{source} trains by epochs ({kind}, max_epochs={epochs}); the kit cuts a run between iterations and "
    "needs an iteration-based loop.": (
        "{source} 按轮次训练（{kind}，max_epochs={epochs}）；本工具在迭代之间切分训练，需要按迭代计数的循环"
        "。"
    ),
    "Set train_cfg = dict(type='IterBasedTrainLoop', max_iters=…) and by_epoch=False in the schedulers and "
    "the checkpoint hook; one epoch is (images / batch size) iterations.": (
        "请设 train_cfg = dict(type='IterBasedTrainLoop', max_iters=…)，并在学习率调度器和检查点钩子中设"
        " by_epoch=False；一轮等于（图像数 / 批大小）次迭代。"
    ),
    "{source} has a training loop of its own ({kind}).": "{source} 使用自定义的训练循环（{kind}）。",
    "The kit runs IterBasedTrainLoop; what your loop does beyond it can be a hook (custom_hooks).": (
        "本工具运行 IterBasedTrainLoop；自定义循环的其他功能可改写成钩子（custom_hooks）。"
    ),
    "{source}: train_cfg.max_iters is {value}; a positive number is needed.": (
        "{source}：train_cfg.max_iters 是 {value}，应为正数。"
    ),
    "{source} has no {key}.": "{source} 没有 {key}。",
    "It is no complete training config.": "这不是完整的训练配置。",
    "{source} has a batch of {images} images, too few for {count} GPUs.": (
        "{source} 的批大小是 {images} 张图像，不够 {count} 块 GPU 分配。"
    ),
    "Use --gpus {count}, or a larger train_dataloader.batch_size.": (
        "请设 GPUS = {count}（--gpus），或增大 train_dataloader.batch_size。"
    ),
    "{source} samples with {kind}, which the kit cannot place by position.": (
        "{source} 用 {kind} 采样，本工具无法按位置确定其顺序。"
    ),
    "Use InfiniteSampler or DefaultSampler; to see some images more often, repeat them.": (
        "请使用 InfiniteSampler 或 DefaultSampler；要让某些图像多出现，请重复列出它们。"
    ),
    "--extend-to {end} is below the config's max_iters ({max_iters}).": (
        "EXTEND_TO（--extend-to）是 {end}，低于配置的 max_iters（{max_iters}）。"
    ),
    "It sets a new, later end for the schedule; to stop earlier, stop the session.": (
        "它用于设定更晚的终点；要提前结束，请直接停止会话。"
    ),
    "--extend-to {end}: {key} ({kind}) ends at iteration {last} and not with the run, at {max_iters}; the "
    "learning rate would not follow a schedule from there on.": (
        "EXTEND_TO（--extend-to）是 {end}：{key}（{kind}）到第 {last} 次迭代结束，而不是随训练到"
        "第 {max_iters} 次；此后学习率将没有计划可循。"
    ),
    "Write the schedule for {end} iterations into the config, with max_iters={same}, and say --extend-to "
    "{too} with it.": (
        "请在配置里写出 {end} 次迭代的学习率计划，把 max_iters 设为 {same}，并同时设 EXTEND_TO = {too}"
        "（--extend-to）。"
    ),
    # dataset
    "The data root {path} does not exist.": "数据根目录 {path} 不存在。",
    "Attach the data set as input, or set data_root to the folder that holds Train and Val.": (
        "请挂载数据集，或把 data_root 设为含有 Train 和 Val 的目录。"
    ),
    "{path} holds {found}, not Train/{images} and Val/{images_too}.": (
        "{path} 中是 {found}，而不是 Train/{images} 和 Val/{images_too}。"
    ),
    "no folder": "没有目录",
    "Set data_root to {path}.": "请把 data_root 设为 {path}。",
    "Set data_root to the folder that holds Train and Val.": "请把 data_root 设为含有 Train 和 Val 的目录。",
    "{path} has no {missing}/{images}, only {others}.": "{path} 没有 {missing}/{images}，只有 {others}。",
    "Attach the whole data set.": "请挂载完整的数据集。",
    "No data set with {shape} lies below {searched}, only {others}.": (
        "{searched} 下没有含 {shape} 的数据集，只有 {others}。"
    ),
    "Attach the data set that the config was written for, or choose the config for this one: train_{layout}_kaggle.py.": (
        "请挂载该配置对应的数据集，或为这个数据集选择相应的配置：train_{layout}_kaggle.py。"
    ),
    "{name} cannot be read": "无法读取 {name}",
    "{count} problem": "{count} 个问题",
    "{count} problems": "{count} 个问题",
    "... and {count} more": "……另有 {count} 个",
    "{path}: {found}, expected {expected}": "{path}：{found}，应为 {expected}",
    "no such folder": "没有该目录",
    "no image": "没有图像",
    "at least one": "至少一张",
    "images without masks": "图像没有掩码",
    "a folder {name} beside it": "旁边有目录 {name}",
    "no mask": "没有掩码",
    "a readable file": "可读的文件",
    "not a file": "不是文件",
    "an image": "图像",
    "an empty file": "空文件",
    "a whole image": "完整的图像",
    "{size} pixels": "{size} 像素",
    "the {size} of its mask": "与掩码相同的 {size}",
    # environment and the packages
    "This machine cannot run the session. {checks}": "本机无法运行这次会话。{checks}",
    "{names} of upstream are installed. They have the same import names as the kit's, and cannot resume on "
    "today's torch.": (
        "装有上游的 {names}：它们与本工具所用的软件包导入名相同，在目前的 torch 上无法恢复训练。"
    ),
    "The attached wheels ({count} found) lack {names} for this Python, and there is no Internet to get them "
    "from.": "已挂载的 wheel（共 {count} 个）缺少适用于本 Python 的 {names}，而此处不能联网下载。",
    "Attach the data set that `mapsage-kaggle bundle` makes, or turn Internet on in the settings.": (
        "请挂载用 `mapsage-kaggle bundle` 制作的数据集，或在设置里打开 Internet。"
    ),
    "torch is not installed, and the kit does not choose a build of it for you.": (
        "没有安装 torch，而本工具不会替您选择它的版本。"
    ),
    "On Kaggle, use an environment that has it; elsewhere, `pip install torch`.": (
        "在 Kaggle 上请选择带有 torch 的环境；其他地方请运行 `pip install torch`。"
    ),
    "torch {version} is older than {least}, the first that loads checkpoints safely.": (
        "torch {version} 早于 {least}，后者才能安全地加载检查点。"
    ),
    "Choose a newer notebook environment.": "请选择更新的 Notebook 环境。",
    "The packages are installed, but building the model of {config} took more than {seconds} s.": (
        "软件包已装好，但构建 {config} 的模型超过了 {seconds} 秒。"
    ),
    "The machine may be overloaded: try again.": "机器可能负载过高，请重试。",
    "The packages are installed, but the model of {config} cannot be built and run in a fresh process (exit "
    "code {code}):\n{shown}": (
        "软件包已装好，但在新进程中无法构建并运行 {config} 的模型（退出码 {code}）：\n{shown}"
    ),
    "\nIf the last line names a package, its version here does not go together with the others.": (
        "\n如果最后一行提到某个软件包，说明它的版本与其他软件包不相配。"
    ),
    "Building {names} gave {wheel}, which is not pure Python.": (
        "构建 {names} 得到的 {wheel} 不是纯 Python 的。"
    ),
    "Turn pip's build isolation on again: `pip config unset global.no-build-isolation`.": (
        "请重新启用 pip 的构建隔离：`pip config unset global.no-build-isolation`。"
    ),
    "The disk is full: the packages do not fit (No space left on device).": (
        "磁盘已满，装不下软件包（No space left on device）。"
    ),
    "Free some space.": "请腾出一些空间。",
    "This Python belongs to the operating system, and pip may not add to it.": (
        "这个 Python 属于操作系统，不允许 pip 往里安装。"
    ),
    "Make a virtual environment: `python3 -m venv .venv`.": "请建立虚拟环境：`python3 -m venv .venv`。",
    "The packages' folder cannot be written to ({said}).": "软件包目录无法写入（{said}）。",
    "Use a virtual environment.": "请使用虚拟环境。",
    "The missing packages do not go together with those installed ({said}).": (
        "缺少的软件包与已安装的不相配（{said}）。"
    ),
    "Nothing was changed. Use a fresh environment, or report this with `pip freeze`.": (
        "没有改动任何内容。请使用全新的环境，或附上 `pip freeze` 的结果反馈此问题。"
    ),
    "The package index cannot be reached (Temporary failure in name resolution, or the like): Internet is "
    "off in this session.": (
        "无法访问软件包索引（Temporary failure in name resolution 之类）：本次会话没有打开 Internet。"
    ),
    "Turn it on in the notebook's settings (it needs a verified phone number), or attach the data set that "
    "`mapsage-kaggle bundle` makes.": (
        "请在 Notebook 设置里打开（需验证手机号），或挂载用 `mapsage-kaggle bundle` 制作的数据集。"
    ),
    "{where} a package for this Python: {said}": "{where}适用于本 Python 的某个软件包：{said}",
    "The attached wheels lack": "已挂载的 wheel 缺少",
    "The package index lacks": "软件包索引缺少",
    "Attach a bundle that was made for this Python: `mapsage-kaggle bundle --python-version`.": (
        "请挂载为本 Python 版本制作的安装包：`mapsage-kaggle bundle --python-version`。"
    ),
    "pip failed: {said}": "pip 失败：{said}",
    "The whole of its output:\n": "它的全部输出：\n",
    "pip took more than {seconds} s: `pip {arguments}`.": "pip 用时超过 {seconds} 秒：`pip {arguments}`。",
    "The network may be slow: try again, or attach the data set that `mapsage-kaggle bundle` makes.": (
        "网络可能较慢：请重试，或挂载用 `mapsage-kaggle bundle` 制作的数据集。"
    ),
    "{python} has no pip, so nothing can be installed.": "{python} 没有 pip，无法安装任何软件包。",
    "Add it with `python -m ensurepip`, or make a virtual environment that has it.": (
        "请用 `python -m ensurepip` 补上，或建立带有 pip 的虚拟环境。"
    ),
    "The kit's own folder {name} is neither in {package} nor beside it.": (
        "本工具自带的目录 {name} 既不在 {package} 里，也不在它旁边。"
    ),
    "Install the kit again, or attach the whole of it.": "请重新安装本工具，或挂载完整的一份。",
    "EXTRA_WHEELS names {named}, and there is no {file} in {places}.": (
        "EXTRA_WHEELS 指明了 {named}，但 {places} 中没有 {file}。"
    ),
    "Attach the second data set that `mapsage-kaggle bundle --with` makes, or name it as owner/slug.": (
        "请挂载 `mapsage-kaggle bundle --with` 生成的第二个数据集，或写成 owner/slug。"
    ),
    "{folder} is damaged: {names} is missing or is not what its list says.": (
        "{folder} 已损坏：{names} 缺失，或与其清单不符。"
    ),
    "The list of wheels {path} cannot be used: {why}.": "wheel 清单 {path} 无法使用：{why}。",
    "The manifest of the bundle, {path}, cannot be used: {why}.": "安装包的清单 {path} 无法使用：{why}。",
    "If it was attached just now, wait a minute and run the cell again; else upload the bundle again, or "
    "detach it.": "若刚刚挂载，请等一分钟再运行本单元格；否则请重新上传安装包，或取消挂载。",
    "There are no texts in {language}.": "没有 {language} 的文本。",
    "Choose one of {names}.": "请从 {names} 中选择。",
    # notebook
    "There is no config {name}.": "没有名为 {name} 的配置。",
    "Give the path of a file, or one of the kit's own: {names}.": (
        "请给出文件路径，或本工具自带的配置之一：{names}。"
    ),
    "{name}={value} means nothing.": "{name} = {value} 没有意义。",
    "Choose one of {choices}.": "请从 {choices} 中选择。",
    "Nothing has been discovered yet.": "还没有查找检查点。",
    "Nothing has been configured yet.": "还没有配置。",
    "Run the cell with session.configure() first.": "请先运行含 session.configure() 的单元格。",
    "Nothing is being trained in {path}.": "{path} 中没有正在进行的训练。",
    "Wait for it, or press Stop (or session.stop()) first.": (
        "请等它结束，或先按“保存并停止”（或 session.stop()）。"
    ),
    "Another process trains in {path} already; the view above shows it.": (
        "已有另一个进程在 {path} 中训练；上方的视图显示了它。"
    ),
    "Wait for its end, or press Stop there; then run this cell again.": (
        "请等它结束，或在那里按“保存并停止”；然后再运行本单元格。"
    ),
    # training
    "--gpus {value} is neither auto nor a number.": "--gpus {value} 既不是 auto，也不是数字。",
    "{name} {value} is too low.": "{name} {value} 太小。",
    "Give {least} or more.": "请给 {least} 或更大的值。",
    "--node-rank {rank} does not fit --nnodes {count}.": "--node-rank {rank} 与 --nnodes {count} 不相符。",
    "Machines are numbered from 0.": "机器从 0 开始编号。",
    "--nnodes {count} needs --rdzv-endpoint.": "--nnodes {count} 需要 --rdzv-endpoint。",
    "Give HOST:PORT of machine 0, the same on all of them.": "请给出 0 号机器的 HOST:PORT，各台机器都相同。",
    "--code {path} is no folder.": "CODE（--code）中的 {path} 不是文件夹。",
    "Name the folder that holds the package.": "请指定含有该软件包的文件夹。",
    "Code is imported from {folder}, before the installed {names}.": (
        "从 {folder} 导入代码，优先于已安装的 {names}。"
    ),
    "Code is imported from {folder}.": "从 {folder} 导入代码。",
    "{folder} came with {config} and holds {names}, which is installed, too.": (
        "{folder} 随 {config} 而来，其中的 {names} 也已另行安装。"
    ),
    "Remove it, or say that it is to be imported in place of the installed one: --code {folder}": (
        "请删除它；若要用它代替已安装的版本，请在 CODE 中加入该文件夹（--code {folder}）"
    ),
    "custom_imports names {module}, which is neither installed nor beside the config; what is attached is "
    "not imported unless it is named. {folder} has it.": (
        "custom_imports 中的 {module} 既未安装，也不在配置旁边；挂载的代码只有指明后才会导入。{folder} 中有它。"
    ),
    "If you trust it: --code {folder}": "如果信任它，请在 CODE 中加入该文件夹（--code {folder}）",
    "--upload-every must be more than nothing.": "UPLOAD_EVERY（--upload-every）必须大于零。",
    "Give a time, such as 1h.": "请给出时长，例如 1h。",
    "{handle} cannot be a data set on Kaggle.": "{handle} 不是有效的 Kaggle 数据集名。",
    "Give OWNER/SLUG: your user name, and 6 to 50 small letters, digits and hyphens.": (
        "请写成 OWNER/SLUG：您的用户名，加上 6 到 50 个小写字母、数字和连字符。"
    ),
    "Building the model of {source} took more than {seconds} s.": "构建 {source} 的模型超过了 {seconds} 秒。",
    "The training packages are missing: {last}.": "缺少训练用的软件包：{last}。",
    "Run the install cell first.": "请先运行安装单元格。",
    "The model of {source} cannot be built: {last}.": "无法构建 {source} 的模型：{last}。",
    "Check the model and custom_imports.": "请检查 model 和 custom_imports。",
    "--gpus {count} was asked for, but this machine has {usable} that this torch can use.": (
        "要求 {count} 块 GPU，而本机只有 {usable} 块能被这个 torch 使用。"
    ),
    "Kaggle gave this session no GPU that torch can use, and {left} iterations are left to train: on the CPU "
    "they would take weeks.": (
        "Kaggle 没有给本次会话分配 torch 可用的 GPU，而还有 {left} 次迭代要训练：用 CPU 要花几个星期。"
    ),
    "Set Accelerator to GPU T4 x2 in the notebook's settings, which needs an account with a verified phone "
    "number; or set --gpus 0 to train on the CPU all the same.": (
        "请在 Notebook 设置里把 Accelerator 选为 GPU T4 x2（需要已验证手机号的账号）；"
        "若仍要用 CPU 训练，请设 GPUS = 0。"
    ),
    "Use --gpus auto, or choose another accelerator in the notebook's settings.": (
        '请设 GPUS = "auto"，或在 Notebook 设置里选择其他加速器。'
    ),
    "--precision {asked} was asked for, and training is on the CPU.": "要求精度 {asked}，而训练在 CPU 上进行。",
    "Leave it out, or train on a GPU.": "请去掉此项，或在 GPU 上训练。",
    "--precision bfloat16 was asked for, which {name} only emulates, slowly.": (
        "要求精度 bfloat16，而 {name} 只能缓慢地模拟它。"
    ),
    "Use --precision float16, or leave it out.": '请设 PRECISION = "float16"（--precision float16），或去掉此项。',
    "{config} ends at iteration {wanted}, but the run in {path} was to end at {before}, where its learning "
    "rate is 0.": (
        "{config} 到第 {wanted} 次迭代结束，而 {path} 所属的任务原定到第 {before} 次结束，那时学习率为 0。"
    ),
    "To lengthen the run, say so with --extend-to {wanted}: the schedule is then laid out anew.": (
        "要延长训练，请设 EXTEND_TO = {wanted}（--extend-to）：学习率计划会重新安排。"
    ),
    "The run in the checkpoint goes to iteration {before}, {config} to {wanted}: it goes on to {end}. To end "
    "at {number} all the same, say so with --extend-to {same}.": (
        "检查点所属的任务到第 {before} 次迭代结束，{config} 到第 {wanted} 次：训练继续到第 {end} 次。若仍要到"
        "第 {number} 次结束，请设 EXTEND_TO = {same}（--extend-to）。"
    ),
    "{count} folders below {inputs} may be the config's data_root {root} (with {expected}): {names}.": (
        "{inputs} 下有 {count} 个目录可能是配置的 data_root {root}（含 {expected}）：{names}。"
    ),
    "Detach all but one, or name it in the config or with --set: train_dataloader.dataset.data_root=FOLDER, "
    "and the same for val_dataloader.": (
        "请只保留一个，或在配置或 OVERRIDES 里指定 train_dataloader.dataset.data_root=目录，val_dataloader "
        "亦同。"
    ),
    "The config's data_root {root} does not exist, and no folder below {inputs} holds {expected}.": (
        "配置的 data_root {root} 不存在，{inputs} 下也没有含 {expected} 的目录。"
    ),
    "Attach the data set as input, or set data_root to where it lies; if it was attached just now, wait a "
    "minute and try again.": "请挂载数据集，或把 data_root 设为它的位置；若刚刚挂载，请等一分钟再试。",
    "The data root {path} has no {item}, which the config reads.": (
        "数据根目录 {path} 没有配置要读取的 {item}。"
    ),
    "{place} is empty.": "{place} 是空的。",
    "Attach the whole data set; if it was attached just now, wait a minute and try again.": (
        "请挂载完整的数据集；若刚刚挂载，请等一分钟再试。"
    ),
    "The work dir {path} cannot be made: {why}.": "无法建立工作目录 {path}：{why}。",
    "The whole log is in {path}.": "完整日志在 {path}。",
    "The report could not be drawn: {kind}: {why}.": "无法绘制报告：{kind}：{why}。",
    "{file} is no longer sound ({problems}); going further back.": (
        "{file} 已损坏（{problems}），改用更早的检查点。"
    ),
    # supervise
    "The training process was ended before it had saved.": "训练进程在保存之前就被终止了。",
    "The session's time was up, and the training process was ended before it had saved.": (
        "会话时间已到，训练进程在保存之前就被终止了。"
    ),
    "The session's time was up and training had not ended by itself: it was told to, and everything is "
    "saved.": "会话时间已到而训练没有自行结束：已令其结束，全部内容均已保存。",
    "{message} Nothing is to be adapted to it, as was asked.": "{message}按要求不做任何调整。",
    "Out of memory with one image per forward pass. {message} Use a smaller crop (crop_size) or a smaller "
    "backbone.": "每次前向一张图像仍内存或显存不足。{message}请减小裁剪（crop_size）或换更小的主干网络。",
    "Fewer than {least} images per forward pass are too few for BatchNorm, and memory does not hold more. "
    "{message} Use a smaller crop (crop_size), a smaller backbone, or a norm that needs no other images "
    "(norm_cfg = dict(type='GN', num_groups=32)).": (
        "每次前向少于 {least} 张图像对 BatchNorm 来说太少，而内存或显存放不下更多。{message}请减小裁剪"
        "（crop_size）、换更小的主干网络，或改用不依赖其他图像的归一化（norm_cfg = dict(type='GN', "
        "num_groups=32)）。"
    ),
    "{message} It was tried {count} times again without progress.": "{message}已重试 {count} 次，没有进展。",
    "{message} There is no time left to try again.": "{message}没有时间再试了。",
    "Progress is no longer shown ({name}: {why}); training goes on.": (
        "进度不再显示（{name}: {why}），训练继续。"
    ),
    "{message} Stopped on request before it was tried again.": "{message}在重试之前已按要求停止。",
    "Stopped on request before training began.": "在训练开始之前已按要求停止。",
    "{message} The session's time was up before it was tried again.": "{message}在重试之前会话时间已到。",
    "The session's time was up before training began.": "训练开始之前会话时间已到。",
    "Out of memory in validation: going on with {measure}.": (
        "验证时内存或显存不足：改为{measure}，训练继续。"
    ),
    "Out of memory in validation with {measure}. {message} Validate smaller images (the Resize of the "
    "validation pipeline), or in windows (test_cfg = dict(mode='slide', crop_size=…, stride=…)).": (
        "验证时（{measure}）仍内存或显存不足。{message}请缩小验证图像（验证流程中的 Resize），或分窗口验证"
        "（test_cfg = dict(mode='slide', crop_size=…, stride=…)）。"
    ),
    "one image at a time, and what training holds in reserve is given back first": (
        "每次一张图像，并先释放训练占用的缓存"
    ),
    "one image at a time, and its logits are put together and enlarged on the CPU": (
        "每次一张图像，其 logits 在 CPU 上拼合并放大"
    ),
    # engine: told by the training process
    "The checkpoint's loss scale of {before} is of training that needed none or was fixed; for float16 it "
    "begins anew at {scale}.": (
        "检查点中的损失缩放系数 {before} 来自无需缩放或系数固定的训练；在 float16 下重新从 {scale} 开始。"
    ),
    "The optimizer takes its steps without fused kernels, which changes nothing else: {why}": (
        "优化器不使用融合（fused）内核，其他都不变：{why}"
    ),
    "{name} is none of torch's own.": "{name} 不是 torch 自带的优化器。",
    "{name} does not hold real numbers.": "{name} 不是实数。",
    "Sliding windows of {size} at a stride of {stride} leave pixels out. Choose a stride that is no larger "
    "than the window.": (
        "大小为 {size}、步长为 {stride} 的滑动窗口会漏掉部分像素。请把步长设为不大于窗口的值。"
    ),
    "The cache of decoded images in {folder} takes no more: {why}. What it lacks is decoded each time, "
    "which is slower and changes nothing else.": (
        "{folder} 中的影像解码缓存不再写入：{why}。缓存里没有的影像每次都要解码，只是慢一些，其他都不变。"
    ),
    "{name} could not be read ({problem}); it is tried again.": "{name} 读取失败（{problem}），将重试。",
    "{name} could not be read in {tries} tries: {problem}.": "{name} 尝试 {tries} 次仍无法读取：{problem}。",
    "Decoded, the images take {needed}; {folder} may hold {room}, as the {what} allows: {percent} % are "
    "decoded once, the others each time, which is slower and changes nothing else.": (
        "影像解码后共占 {needed}；受{what}限制，{folder} 可存放 {room}：{percent}% 的影像只解码一次，"
        "其余每次都要解码，只是慢一些，其他都不变。"
    ),
    "disk": "磁盘",
    "memory": "内存",
    "its disk has {free} GB left, of which {reserve} stay free": (
        "磁盘剩余 {free} GB，其中要留出 {reserve} GB"
    ),
    "it lies in memory, of which {available} GB are left and {reserve} stay free": (
        "它位于内存中，内存剩余 {available} GB，其中要留出 {reserve} GB"
    ),
    "The faster pipeline does not know these transforms and runs them as they are: {names}.": (
        "快速流水线不认识以下数据变换，按原样运行：{names}。"
    ),
    "{name} is {kind} here, not mmsegmentation's own, and runs as it is.": (
        "此处的 {name} 是 {kind}，不是 mmsegmentation 自带的，按原样运行。"
    ),
    "OpenCV {version} resizes part of an image otherwise than the whole: images are resized whole, which is "
    "slower and changes nothing else.": (
        "OpenCV {version} 缩放局部影像的结果与缩放整幅时不同：改为整幅缩放，只是慢一些，其他都不变。"
    ),
    "Another rank has gone, and rank {rank} missed it ({why}).": (
        "另一个进程已退出，第 {rank} 号进程等不到它（{why}）。"
    ),
    "The mask {name} holds the label {label}; with num_classes = {classes}, labels are 0 to {most}, and "
    "{ignored} is ignored. reduce_zero_label is {reduces}.": (
        "掩码 {name} 含有标签 {label}；num_classes = {classes} 时，标签应为 0 到 {most}，{ignored} 会被忽略。"
        "reduce_zero_label 为 {reduces}。"
    ),
    "Where masks hold 0 for no data and class + 1 elsewhere, set reduce_zero_label = True; else map the "
    "label or correct num_classes.": (
        "若掩码以 0 表示无数据、以类别 + 1 表示类别，请设 reduce_zero_label = True；否则请映射该标签，或更正 "
        "num_classes。"
    ),
    "The loss scaler has left out the last {skipped} steps, up to iteration {iteration}: gradients are out "
    "of the range of half precision. Nothing was learned in them.": (
        "截至第 {iteration} 次迭代，损失缩放器已连续跳过 {skipped} 步：梯度超出半精度的范围，这些步没有学到任何东西。"
    ),
    "The loss scale has come down to {scale} in iteration {iteration}: gradients are out of the range of "
    "half precision, and small ones are lost.": (
        "第 {iteration} 次迭代时损失缩放系数已降到 {scale}：梯度超出半精度的范围，较小的梯度会丢失。"
    ),
    "Train in float32 (--precision float32).": '请用 float32 训练（PRECISION = "float32"，即 --precision float32）。',
    "{error} The data workers need more of /dev/shm than there is: set fewer (num_workers).": (
        "{error} 数据加载进程所需的 /dev/shm 空间不足：请减少其数量（num_workers）。"
    ),
    "The batch cannot be split into as many forward passes on each GPU, for which SyncBN would wait for ever: "
    "BN takes its place, with statistics of each GPU's own images. A batch size that the number of GPUs "
    "divides keeps SyncBN.": (
        "该批次无法拆成每块 GPU 次数相同的前向计算，SyncBN 会一直等待：改用 BN，其统计量只来自各 GPU 自己的图像。"
        "把批大小设为 GPU 数量的整数倍即可保留 SyncBN。"
    ),
    "The ranks no longer hold the same weights after iteration {iteration}: nothing is saved, and the "
    "checkpoints before it are untouched.": (
        "第 {iteration} 次迭代后各进程的权重已不一致：不再保存，此前的检查点不受影响。"
    ),
    "Resume on one GPU (--gpus 1), and report this with the log: it is a fault of the program.": (
        "请用一块 GPU 继续（GPUS = 1，即 --gpus 1），并附上日志报告此问题：这是程序的错误。"
    ),
    "{kind} has a train_step of its own, which cannot be split into micro-batches.": (
        "{kind} 自定义了 train_step，无法拆分成小批次。"
    ),
    "Train it on one GPU with its own batch size.": "请在一块 GPU 上按其自身的批大小训练。",
    "{kind} needs a data_root.": "{kind} 需要 data_root。",
    "Set it to the folder that holds Train and Val.": "请把它设为含有 Train 和 Val 的目录。",
    "The training data loader has a batch sampler of its own ({kind}).": (
        "训练数据加载器自带批采样器（{kind}）。"
    ),
    "Remove train_dataloader.batch_sampler from the config: the kit decides what a batch is.": (
        "请从配置中去掉 train_dataloader.batch_sampler：批次由本工具决定。"
    ),
    "Machine {machine} trains another config than machine 0: fingerprint and max_iters are {run} and {end}, "
    "not {run_0} and {end_0}.": (
        "第 {machine} 号机器训练的配置与 0 号机器不同：指纹和 max_iters 是 {run} 和 {end}，而不是 {run_0} "
        "和 {end_0}。"
    ),
    "Start every machine with the same config and the same --set and --extend-to.": (
        "请让每台机器使用相同的配置、相同的 --set 和 --extend-to。"
    ),
    "{path} holds none of the {wanted} weights of {module}; it names them otherwise, such as {name}.": (
        "{path} 不含 {module} 的 {wanted} 个权重中的任何一个；其命名方式不同，例如 {name}。"
    ),
    "Attach {name} as mmsegmentation publishes it, or convert this file with the script for it in "
    "mmsegmentation's tools/model_converters.": (
        "请挂载 mmsegmentation 发布的 {name}，或用 mmsegmentation 的 tools/model_converters 中对应的脚本转换这个"
        "文件。"
    ),
    "{path} gives {found} of the {wanted} weights of {module}; the others begin at random, as they do without "
    "the kit: {names}.": (
        "{path} 提供 {module} 的 {wanted} 个权重中的 {found} 个；其余的随机初始化（不用本工具时也是如此）：{names}。"
    ),
    "{user}, which needs the package {package}; it is not installed.": "{user}，需要软件包 {package}，但它没有安装。",
    "Install {package}, or add it to the attached wheels.": "请安装 {package}，或把它加入挂载的 wheel。",
    "{user}, which needs compiled ops of mmcv; the mmcv that is installed has none.": (
        "{user}，需要 mmcv 的编译算子；已安装的 mmcv 没有这些算子。"
    ),
    "Choose another head, or build mmcv with its ops from source, which takes half an hour: "
    "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary :all: --no-deps onedl-mmcv.": (
        "请换用别的解码头，或从源码编译带算子的 mmcv（约半小时）："
        "MMCV_WITH_OPS=1 pip install --no-build-isolation --no-binary :all: --no-deps onedl-mmcv。"
    ),
    "The module {module} is missing ({why}).": "缺少模块 {module}（{why}）。",
    "Attach the code that holds it beside the config, install its package, or take it out of custom_imports.": (
        "请把含有它的代码与配置一起挂载，或安装其软件包，或从 custom_imports 中去掉它。"
    ),
    "{source} is a config of mmsegmentation 0.x ({keys}); the kit trains those of 1.x.": (
        "{source} 是 mmsegmentation 0.x 的配置（{keys}）；本工具训练 1.x 的配置。"
    ),
    "Take the model's config from mmsegmentation 1.x (_base_ = 'mmseg::…'), or translate it: data becomes "
    "train_dataloader, optimizer becomes optim_wrapper, runner becomes train_cfg, lr_config becomes "
    "param_scheduler.": (
        "请使用 mmsegmentation 1.x 中该模型的配置（_base_ = 'mmseg::…'），或改写：data 改为 train_dataloader，"
        "optimizer 改为 optim_wrapper，runner 改为 train_cfg，lr_config 改为 param_scheduler。"
    ),
    "Put this at the end of the config, or of one that has it as its _base_:\n{lines}": (
        "请把下面几行放在该配置的末尾，或放在以它为 _base_ 的配置末尾：\n{lines}"
    ),
    "In the validation at iteration {iteration}, with {images}: {why}": (
        "第 {iteration} 次迭代的验证中，图像 {images}：{why}"
    ),
    "In the validation at iteration {iteration}: {why}": "第 {iteration} 次迭代的验证中：{why}",
    "{why} It failed in the same way twice.": "{why} 两次以同样的方式失败。",
    "BatchNorm cannot be trained with {images} image(s) per forward pass on each GPU. Use fewer GPUs (--gpus 1), "
    "a larger train_dataloader.batch_size, or a norm that needs no other images (norm_cfg = dict(type='GN', "
    "num_groups=32)).": (
        "BatchNorm 无法在每块 GPU 每次前向只有 {images} 张图像时训练。请减少 GPU（GPUS = 1）、增大 "
        "train_dataloader.batch_size，或改用不依赖其他图像的归一化（norm_cfg = dict(type='GN', num_groups=32)）。"
    ),
    "{name} is written for {gpus} GPUs with {images} images each: its learning rate is meant for {meant} images "
    "an iteration, and here an iteration has {effective}. For the batch that was meant, set "
    "train_dataloader.batch_size={same}; as many at a time go through the model as memory holds "
    "(--micro-batch).": (
        "{name} 是为 {gpus} 块 GPU、每块 {images} 张图像编写的：其学习率对应每次迭代 {meant} 张图像，而这里每次迭代为 "
        "{effective} 张。要得到原本的批次，请设 train_dataloader.batch_size={same}；每次送入模型的图像数由内存决定"
        "（--micro-batch）。"
    ),
    "The model cannot be built: {kind}: {why}.": "无法构建模型：{kind}: {why}。",
    "{count} samples in a row cannot be loaded, the last one {name}.": (
        "连续 {count} 个样本无法加载，最后一个是 {name}。"
    ),
    "Check the data set: this is not a single damaged file.": "请检查数据集：这不只是个别文件损坏。",
    "Sample {index} ({name}) cannot be loaded: {why}.": "样本 {index}（{name}）无法加载：{why}。",
    "Replace the file, or train with --on-bad-image skip to leave it out.": (
        "请替换该文件，或用 --on-bad-image skip 跳过它。"
    ),
    "The training data set is empty.": "训练数据集是空的。",
    "Check data_root and data_prefix.": "请检查 data_root 和 data_prefix。",
    "A batch of {images} images cannot be split over {count} ranks.": (
        "{images} 张图像的批次无法分给 {count} 个进程。"
    ),
    "Use at most {count} GPUs (--gpus {same}), or a larger batch size.": (
        "请最多使用 {count} 块 GPU（GPUS = {same}），或增大批大小。"
    ),
    "{name} became {value} in iteration {when}; the checkpoints before it are untouched.": (
        "{name} 在第 {when} 次迭代变成 {value}；此前的检查点不受影响。"
    ),
    "{began} and stayed so until {iteration}": "{began} 至 {iteration}",
    "Lower the learning rate or clip the gradients more (optim_wrapper.clip_grad), and resume.": (
        "请降低学习率或加强梯度裁剪（optim_wrapper.clip_grad），然后恢复训练。"
    ),
    "The weight {name} holds NaN or Inf after iteration {iteration}: not saved. The checkpoints before it "
    "are untouched.": "第 {iteration} 次迭代后权重 {name} 含有 NaN 或 Inf：没有保存。此前的检查点不受影响。",
    "Lower the learning rate or the clipping norm (optim_wrapper.clip_grad), and resume.": (
        "请降低学习率或减小裁剪范数（optim_wrapper.clip_grad），然后恢复训练。"
    ),
    "The validation at {iteration} is owed and takes about {takes}, but {left} are left: nothing is trained "
    "before it. Give the session a longer limit.": (
        "第 {iteration} 次迭代的验证尚未补做，约需 {takes}，而只剩 {left}：补做之前不会训练。请给会话更长的"
        "时限。"
    ),
    "The validation at {owed} is owed by a checkpoint that holds iteration {iteration}: it is left out.": (
        "检查点是第 {iteration} 次迭代的，却欠着第 {owed} 次的验证：略过该验证。"
    ),
    "{part} is left out of checkpoints: it holds an object that cannot be loaded without running code from "
    "the file, so the next session will not have it. Keep tensors, arrays, numbers, texts, dictionaries and "
    "lists instead (such as the object's state_dict()).": (
        "{part} 不会存入检查点：其中有对象必须运行文件里的代码才能加载，因此下次会话将没有它。请改存张量、"
        "数组、数字、文本、字典和列表（例如该对象的 state_dict()）。"
    ),
    "The config asks to keep the best {name}, but validation gives {names} only.": (
        "配置要求保留 {name} 最佳的检查点，而验证只给出 {names}。"
    ),
    "Machine 0 keeps what was saved.": "保存的内容在 0 号机器上。",
    "The resume did not take: the checkpoint holds iteration {saved}, training stands at {stands}, expected "
    "was {expected}.": (
        "恢复没有成功：检查点是第 {saved} 次迭代，训练处于第 {stands} 次，预期为第 {expected} 次。"
    ),
    "The data loader stands at sample {position}; after {iteration} iterations of {images} images it must "
    "be {expected}.": (
        "数据加载器位于第 {position} 个样本；经过 {iteration} 次、每次 {images} 张图像的迭代，应为第"
        " {expected} 个。"
    ),
    "The optimizer holds state for {count} parameters, the checkpoint for {saved}: they do not belong "
    "together.": "优化器有 {count} 个参数的状态，检查点有 {saved} 个：二者不是同一任务的。",
    "The optimizer's {name} of parameter {key} is not the checkpoint's.": (
        "优化器中参数 {key} 的 {name} 与检查点不一致。"
    ),
    "The learning rates are {rates}…, the checkpoint has {saved}….": (
        "学习率是 {rates}…，检查点中是 {saved}…。"
    ),
    "The config has {count} learning-rate schedulers, the checkpoint {saved}.": (
        "配置有 {count} 个学习率调度器，检查点有 {saved} 个。"
    ),
    "Resume with the config that the checkpoint was trained with.": "请用训练该检查点时的配置恢复。",
    "{kind} stands at step {step}, the checkpoint at {saved}.": (
        "{kind} 位于第 {step} 步，检查点在第 {saved} 步。"
    ),
    # the report
    "There is no session.json in {places}.": "{places} 中没有 session.json。",
    "Name a work dir, or a folder that has one below it.": "请指定工作目录，或其下有工作目录的文件夹。",
}  # fmt: skip
"""By the English template, as in ``messages.CHINESE``."""
