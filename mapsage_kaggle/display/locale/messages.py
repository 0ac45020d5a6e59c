"""Messages of the rooms below, in other languages.

Those rooms state facts in English, for logs, records and programs. What a person then sees is found
here by its template: the English sentence with names in place of what was put into it. A sentence that
has none is shown as it is. A test compares the templates with the sources, so that none outlives its
sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache

from mapsage_kaggle.display.locale.messages_errors import CHINESE_ERRORS
from mapsage_kaggle.display.locale.messages_jobs import CHINESE_JOBS

CHINESE: Mapping[str, str] = {
    **CHINESE_ERRORS,
    **CHINESE_JOBS,
    # environment
    "Python {version}.": "Python {version}。",
    "Python {version}; the kit was tried with {least} to {most}. Choose an environment that has one of those.": (
        "Python {version}；本工具在 {least} 到 {most} 上验证过，请改用其中之一。"
    ),
    "torch {version}.": "torch {version}。",
    "torch cannot be imported ({why}). On Kaggle, choose a notebook environment that has it; elsewhere, "
    "`pip install torch`.": "无法导入 torch（{why}）。在 Kaggle 上请选择带有 torch 的环境；其他地方请运行 `pip install torch`。",
    "torch {version} is older than {least}, the first that loads checkpoints safely. Choose a newer notebook "
    "environment, or `pip install --upgrade torch`.": (
        "torch {version} 早于 {least}，后者才能安全地加载检查点。请选择更新的环境，或运行 "
        "`pip install --upgrade torch`。"
    ),
    "{names}: upstream packages with the same import names as the kit's, and they cannot resume on today's "
    "torch. {remedy}": "{names}：这些上游软件包与本工具所用的软件包导入名相同，在目前的 torch 上无法恢复训练。{remedy}",
    "Run `pip uninstall -y {names}`, then install again, then restart the kernel.": (
        "请运行 `pip uninstall -y {names}`，重新安装，再重启内核。"
    ),
    "Training needs {names}. Run `mapsage_kaggle.install()` first.": (
        "训练需要 {names}。请先运行 `mapsage_kaggle.install()`。"
    ),
    "No GPU: training runs on {count} CPU cores, slowly.{hint}": "没有 GPU：将用 {count} 个 CPU 核训练，速度很慢。{hint}",
    " On Kaggle, set Accelerator to GPU T4 x2; an account without a verified phone number gets a machine "
    "without GPU and without Internet, whatever it asks for.": (
        "在 Kaggle 上请把 Accelerator 设为 GPU T4 x2；未验证手机号的账号无论选什么，得到的机器都没有 GPU，也不能联网。"
    ),
    "The driver lists {names}, but torch {version} cannot use it: training would run on the CPU. Install a "
    "torch that is built for CUDA and for this driver.": (
        "驱动列出了 {names}，但 torch {version} 用不了它，训练会落到 CPU 上。请安装支持 CUDA 且与驱动相配的 torch。"
    ),
    "torch {version} has no kernels for {names}: it would take memory and then fail at the first step. Choose "
    "another accelerator (on Kaggle: GPU T4 x2).": (
        "torch {version} 没有适用于 {names} 的内核：会先占用显存，然后在第一步就失败。"
        "请改选其他加速器（在 Kaggle 上选 GPU T4 x2）。"
    ),
    "Names resolve.": "可以联网。",
    "No Internet; nothing is needed from it, all packages are installed.": "不能联网；软件包已全部装好，不需要联网。",
    "No Internet: packages can be installed only from wheels attached as input. Turn Internet on in the "
    "notebook's settings (it needs a verified phone number), or attach a data set that holds the wheels.": (
        "不能联网：只能用挂载的 wheel 安装软件包。请在 Notebook 设置里打开 Internet（需验证手机号），或挂载含有 wheel 的数据集。"
    ),
    "Attached: {names}{more}.": "已挂载：{names}{more}。",
    "Nothing is attached below {path}. Use Add Input for the data set and, from the second session on, for "
    "the last one's output. A source that was just attached can take a minute to appear.": (
        "{path} 下没有挂载任何内容。请用 Add Input 加入数据集；从第二次会话起，还要加入上一次的输出。刚挂载的来源可能要一分钟才出现。"
    ),
    "The output folder can be written to.": "输出目录可写。",
    "Nothing can be written to the output folder ({why}), so no checkpoint could be kept. {remedy}": (
        "输出目录无法写入（{why}），检查点将无法保存。{remedy}"
    ),
    "Delete what is not needed there.": "请删除其中不需要的内容。",
    "The free space of the output folder cannot be read.": "无法得知输出目录的剩余空间。",
    "{free} are free for the output; the checkpoints of a session need {needed}. Delete what is not needed "
    "there.": "输出目录剩余 {free}，而一次会话的检查点需要 {needed}。请删除其中不需要的内容。",
    "{free} are free for the output{scratch}.": "输出目录剩余 {free}{scratch}。",
    ", {free} of scratch": "，临时目录剩余 {free}",
    "The output holds {count} files, {size}; Kaggle keeps at most {most} and drops files beyond 500 in silence.": (
        "输出目录已有 {count} 个文件，共 {size}；Kaggle 最多保留 {most}，超过 500 个的文件会被悄悄丢弃。"
    ),
    "{message} Delete what is not needed, or move it to scratch.": "{message}请删除不需要的内容，或移到临时目录。",
    "The session has run for {spent} of its {limit}: there is no time left to train. Start a new session.": (
        "会话已运行 {spent}（时限 {limit}），没有时间训练了。请开始新的会话。"
    ),
    "{left} are left, less the reserve of {reserve}.": "剩余 {left}，其中已扣除预留的 {reserve}。",
    "Only {message} A new session has more.": "时间不多：{message}新的会话时间更充裕。",
    "This session takes up to {limit} of Kaggle's GPU hours (about {quota} a week). The next week begins in "
    "{left}, on Saturday at 00:00 UTC.": (
        "本次会话最多用去 {limit} 的 Kaggle GPU 限额（每周约 {quota}）。{left} 后，即周六 00:00（UTC），限额重新计算。"
    ),
    # checkpoints.choose: why a file was taken or not
    "taken as named": "按指定采用",
    "taken as named, weights only": "按指定采用，仅取权重",
    "taken as named, weights only, as asked": "按要求仅取其权重",
    "taken, weights only, as the config's load_from asks": "按配置中的 load_from 采用，仅取权重",
    "taken: the highest iteration of this run that passes": "采用：本任务中通过检查的最高迭代",
    "taken, as the config's load_from names it": "按配置中的 load_from 采用",
    "taken: the highest iteration that passes; it states no run, but fits the model and classes": (
        "采用：通过检查的最高迭代；文件没有注明所属任务，但与模型和类别相符"
    ),
    "is of a run with another config; taken, as it is named": "属于配置不同的任务；因被指定而采用",
    "not considered, as --resume says never": "未考虑：设置为不恢复",
    "starting fresh, as --resume says never": "从头训练：设置为不恢复",
    "starting fresh: there is no checkpoint of this run": "从头训练：没有本任务的检查点",
    "not taken: it is of another run; {option} takes it": "未采用：属于另一个任务；要用它请指定 {option}",
    "not taken: it and {path} are one run that was trained apart": (
        "未采用：它与 {path} 属于同一任务，但分头训练过"
    ),
    "it states run {one}, and the record beside it run {other}": "文件注明任务 {one}，旁边的记录却注明任务 {other}",
    "Nothing beside {path} says whose checkpoint it is. If it is not of your run, detach {folder}, or start "
    "anew with --resume never.": (
        "{path} 旁边没有记录说明它属于谁。如果不是您的任务，请卸下 {folder}，或用 --resume never 从头开始。"
    ),
    "No checkpoint of run {run}, which --run names, was found.": "没有找到 --run 所指任务 {run} 的检查点。",
    "Attach an output of that run, or leave --run out.": "请挂载该任务的输出，或去掉 --run。",
    "Checkpoints of {count} runs were found, and nothing says which is yours.": (
        "找到了 {count} 个任务的检查点，没有任何信息说明哪个是您的。"
    ),
    "Start again with what stands behind the one to go on with, or detach the others.": (
        "请用要继续的那一个后面的选项重新开始，或卸下其他的。"
    ),
    "--run {run} and --resume {resume} contradict each other.": "--run {run} 与 --resume {resume} 相互矛盾。",
    "Leave one out.": "请去掉其中一个。",
    "not taken: it is of a run with another config": "未采用：属于配置不同的任务",
    "not taken: it would start anew, and this run has been further": "未采用：它会从头开始，而本任务已走得更远",
    "not taken: a best checkpoint holds weights only": "未采用：最佳检查点只含权重",
    "not taken: it counts epochs, and this run counts iterations": "未采用：它按轮次计数，而本任务按迭代计数",
    "not taken: {why}": "未采用：{why}",
    "not needed: {why}": "不需要：{why}",
    "it is of a run with another config; name it with --resume to take it": "属于配置不同的任务；要用它请明确指定",
    "nothing says that it is of this run; name it with --resume to take it": "没有注明属于本任务；要用它请明确指定",
    "an older iteration": "迭代较早",
    "the same iteration, and no record names it": "迭代相同，但没有记录提到它",
    "the same iteration, and its sha256 is not recorded": "迭代相同，但没有记录其 sha256",
    "the same iteration, in another place": "迭代相同，在另一处",
    "its weights are loaded as far as they fit: {why}": "只加载相符的权重：{why}",
    # what a training says when it ends, or is begun again
    "All iterations are done.": "全部迭代已完成。",
    "Stopped early at {iteration} of {max_iters} by {who}.": "已在第 {iteration} 次（共 {max_iters} 次）迭代提前结束：{who}。",
    "The run has ended early, at iteration {iteration} of {max_iters}. {said}": (
        "训练任务已在第 {iteration} 次（共 {max_iters} 次）迭代提前结束。{said}"
    ),
    "The training data are not those of the checkpoint, which lists {before} samples; here are {now}: {detail}.": (
        "训练数据与检查点所用的不同：检查点列有 {before} 个样本，这里有 {now} 个：{detail}。"
    ),
    "Training samples have another size than when they were read before: {names}.": (
        "训练样本的大小与先前读取时不同：{names}。"
    ),
    "{file} is no longer what was proven, and is not the best any more: it {problem}.": (
        "{file} 已与验证时不同，不再是最佳检查点：{problem}。"
    ),
    "has changed": "内容已改变",
    "cannot be read: {why}": "无法读取：{why}",
    "{device} computed two different gradients from the same state, {apart}": (
        "{device} 从同一状态算出了两个不同的梯度，{apart}"
    ),
    "{found}, with deterministic algorithms alone: it computes wrongly. Train on another machine, and trust no "
    "result of this one.": "{found}，而且只用了确定性算法：它的计算有错。请换一台机器训练，不要相信这台机器的任何结果。",
    "{message} Training goes on with what is here.": "{message}将用现有数据继续训练。",
    "Attach the data as they were, or go on with what is here: --on-changed-data go-on.": (
        "请挂载原来的数据；若要用现有数据继续，请用 --on-changed-data go-on。"
    ),
    "{name} gives another result for the same sample each time, whatever is seeded: a resumed run and an "
    "uninterrupted one will differ. Have it draw from NumPy's, Python's or torch's own generator, or from one that "
    "it keeps as an attribute.": (
        "无论怎样设定随机种子，{name} 对同一样本每次给出的结果都不同：恢复的训练与不间断的训练会有差异。"
        "请让它使用 NumPy、Python 或 torch 的全局随机数生成器，或自己作为属性保存的生成器。"
    ),
    "The session's time is up; everything is saved.": "会话时间已到，所有内容都已保存。",
    "Stopped on request; everything is saved.": "已按要求停止，所有内容都已保存。",
    "No end is recorded: the session was cut off. What was proven until then is safe.": (
        "没有结束记录：会话中途被切断。此前已验证的内容都安全。"
    ),
    "The supervising notebook or command is gone; everything is saved.": (
        "监管训练的 Notebook 或命令已不在，所有内容都已保存。"
    ),
    "The run was complete already, at iteration {iteration}.": "该训练任务在第 {iteration} 次迭代就已完成。",
    "The validation at {iteration} was left unfinished; it is owed.": (
        "第 {iteration} 次迭代的验证没有做完，留待下次补做。"
    ),
    "The validation at {iteration} takes about {takes}, which is more than a whole session has: it is left out. "
    "Validate fewer or smaller images, or give sessions a longer limit.": (
        "第 {iteration} 次迭代的验证约需 {takes}，超过整个会话的时间，因此略去。请减少或缩小验证图像，或延长会话时限。"
    ),
    "Out of memory: going on with {count} image(s) per forward pass and more of them; the batch that the "
    "optimizer sees stays the same.": (
        "内存或显存不足：改为每次前向 {count} 张图像并增加次数，优化器所见的批大小不变，训练继续。"
    ),
    "Out of memory with one image: going on with blocks recomputed in the backward pass (with_cp).": (
        "单张图像仍内存或显存不足：改为在反向时重算各模块（with_cp），训练继续。"
    ),
    "Out of memory after {count} iterations, which had fitted: starting again from the newest checkpoint in "
    "the same way.": "训练了 {count} 次迭代之后内存或显存不足，此前一直够用：按原样从最新的检查点重新开始。",
    "{message} Going on in float32 from the newest checkpoint.": "{message} 改用 float32 从最新的检查点继续。",
    "{message} Half precision is the config's choice, or a person's: --precision float32 trains without it.": (
        '{message} 半精度是配置或用户所选：设 PRECISION = "float32"（--precision float32）即可不用它训练。'
    ),
    "The config asks for bfloat16, which this GPU only emulates, slowly: float16 is computed in.": (
        "配置要求 bfloat16，而此 GPU 只能缓慢地模拟它：改用 float16 计算。"
    ),
    "The data workers hold up to {needed} MB ready in shared memory, and /dev/shm has {there} MB: they may be "
    "killed for it. Set fewer (num_workers), or give the container more (--shm-size).": (
        "数据加载进程在共享内存中最多备有 {needed} MB，而 /dev/shm 只有 {there} MB：它们可能因此被终止。"
        "请减少其数量（num_workers），或给容器更多共享内存（--shm-size）。"
    ),
    "What memory allowed on {before} is not taken over to {now}: each rank takes its whole share of the batch "
    "again.": "在 {before} 上得知的内存或显存限度不沿用到 {now}：每个进程重新按其全部份额取批次。",
    "BatchNorm cannot be trained with {count} image(s) per forward pass: going on with {more}, and blocks "
    "recomputed in the backward pass (with_cp).": (
        "每次前向 {count} 张图像无法训练 BatchNorm：改为 {more} 张，并在反向时重算各模块（with_cp），训练继续。"
    ),
    "{message} Starting again from the newest checkpoint in {wait} s (try {number} of {most}).": (
        "{message} {wait} 秒后从最新的检查点重新开始（第 {number} 次，最多 {most} 次）。"
    ),
    "torchrun ended before its workers (exit code {code}); they have saved.": (
        "torchrun 先于训练进程结束（退出码 {code}）；训练进程已保存。"
    ),
    "The training process ended without a word (torchrun's exit code {code}).": (
        "训练进程无声无息地结束了（torchrun 退出码 {code}）。"
    ),
    "The machine's memory ran out, and the kernel killed a process for it.": (
        "机器内存耗尽，内核为此终止了一个进程。"
    ),
    "The training process said nothing for {seconds} s.": "训练进程已有 {seconds} 秒没有动静。",
    "Pretrained weights {name} are not attached: the backbone starts from scratch, which costs accuracy. "
    "Attach a data set that holds the file, under any folder, and start again.": (
        "没有挂载预训练权重 {name}：主干网络将从头训练，精度会受影响。请挂载含有该文件的数据集（任意目录均可），再重新开始。"
    ),
    # uploads
    "Uploaded to {handle}, in {seconds} s.": "已上传到 {handle}，用时 {seconds} 秒。",
    "Nothing is uploaded to {handle}: kagglehub is not installed.": "不会上传到 {handle}：没有安装 kagglehub。",
    "Nothing is uploaded to {handle}: there are no Kaggle credentials here.": (
        "不会上传到 {handle}：这里没有 Kaggle 凭证。"
    ),
    "Uploading to {handle} failed: {problem}. {after}": "上传到 {handle} 失败：{problem}。{after}",
    "It is tried again later.": "稍后再试。",
    "No more is tried in this session.": "本次会话不再尝试。",
    "it was not done within {seconds} s": "{seconds} 秒内没有完成",
    "the upload's process ended without a word (exit code {code})": "上传进程无声无息地结束了（退出码 {code}）",
    # what a cell refuses
    "Every checkpoint found was rejected.": "找到的检查点全都不可用。",
    "Every checkpoint found is of a run with another config.": "找到的检查点都属于配置不同的任务。",
    "No checkpoint can be resumed; there are weights without an optimizer.": (
        "没有可恢复的检查点，只有不含优化器状态的权重。"
    ),
    "There is no checkpoint to resume from, and starting fresh was not allowed.": (
        "没有可恢复的检查点，而设置又不允许从头训练。"
    ),
    "{problem} Searched: {inputs}, {work_dir}.": "{problem}已查找：{inputs}、{work_dir}。",
    "Attach the output of the session before, or start anew with --resume never.": (
        "请挂载上一次会话的输出；要从头训练，请设 RESUME = \"never\"。"
    ),
    "Attach an earlier output of this run, or start anew with --resume never.": (
        "请挂载本任务更早的输出；要从头训练，请设 RESUME = \"never\"。"
    ),
    "To continue that run with this config, say --resume {path}; {anew}.": (
        '要用本配置接着那次任务训练，请设 RESUME = "{path}"；{anew}。'
    ),
    "to start a new one, --resume never": '要另起一次任务，请设 RESUME = "never"',
    "No data set lies below {path}: no folder with {shape} and its masks_png was found.": (
        "{path} 下没有数据集：没有找到含 {shape} 及其 masks_png 的目录。"
    ),
    "Attach the data set as input; if it was attached just now, wait a minute and try again.": (
        "请挂载数据集；若刚刚挂载，请等一分钟再试。"
    ),
    "{count} data sets lie below {path}: {names}.": "{path} 下有 {count} 个数据集：{names}。",
    "Detach all but one, or name it: --set data_root=FOLDER.": (
        "请只保留一个，或在 OVERRIDES 里指定 data_root=目录。"
    ),
    "{opening}, {count}:{lines}\n": "{opening}（{count}）：{lines}\n",
    "The data set at {path} is not sound": "{path} 处的数据集有问题",
    "Attach a complete copy of the data set, or remove what is named here.": (
        "请挂载完整的数据集，或去掉这里列出的文件。"
    ),
    "Training is going on already.": "训练正在进行。",
    "Nothing is being trained.": "没有正在进行的训练。",
    "Run the cells from the top.": "请从头依次运行各单元格。",
    "resume verified: iteration {iteration}, optimizer state of {states} parameters, {count} learning-rate "
    "schedulers after {steps} steps of their own, next sample position {position}": (
        "恢复已核对：第 {iteration} 次迭代，{states} 个参数的优化器状态，{count} 个学习率调度器各自已走 {steps} 步，"
        "下一个样本位置 {position}"
    ),
    # the report's page
    "Run": "训练任务",
    "fingerprint": "指纹",
    "What to do next": "下一步",
    "What to know": "须知",
    "Curves": "曲线",
    "Sessions": "各次会话",
    "Where the time went": "时间分配",
    "IoU by class, %": "各类 IoU，%",
    "Validations": "历次验证",
    "Checkpoints in the last output": "最近一次输出中的检查点",
    "What changed between sessions": "会话之间的改动",
    "What the machine taught": "在本机上得知的情况",
    "started (UTC)": "开始（UTC）",
    "from": "起", "to": "止",
    "iterations": "迭代次数", "iteration": "迭代",
    "ended": "结束原因", "best": "最佳", "time": "用时", "s/iteration": "秒/迭代", "last loss": "最后损失",
    "best mIoU, %": "最佳 mIoU，%", "in all": "合计", "class": "类别", "session": "会话", "time, s": "用时，秒",
    "file": "文件", "size": "大小",
    "sessions": "会话次数", "loss": "损失",
    "of {total}, {share}": "共 {total}，{share}",
    "{time} in all": "共 {time}",
    "best {metric}": "最佳 {metric}",
    "at iteration {iteration}": "第 {iteration} 次迭代",
    "from {value}": "起始 {value}",
    "session {index}": "第 {index} 次会话",
    "resume from here": "从这里接着训练",
    "The chain, and what it proves": "会话链及其证明", "chain": "会话链",
    "equals an uninterrupted run": "与不间断训练相比", "why not more": "原因",
    "unbroken": "完整", "broken": "断裂", "not shown": "无法证明",
    "bit for bit": "逐位相同", "to rounding": "仅差舍入误差", "neither": "都不是",
    "nothing of it was kept": "没有留下训练结果",
    "The run equals an uninterrupted one bit for bit, as far as its own files tell.": (
        "就其自身文件所示，本任务与不间断的训练逐位相同。"
    ),
    "The run equals an uninterrupted one to rounding, as far as its own files tell.": (
        "就其自身文件所示，本任务与不间断的训练仅差舍入误差。"
    ),
    "What the run equals an uninterrupted one to is not shown.": "无法证明本任务与不间断的训练有多接近。",
    "The run equals no uninterrupted one, neither bit for bit nor to rounding.": (
        "本任务与不间断的训练既不逐位相同，也不只差舍入误差。"
    ),
    "From the records, events and manifest; the bytes of the checkpoints are compared by": (
        "依据记录、事件和清单；检查点文件的字节由此命令核对："
    ),
    "its record and its events name other bytes each for {file}": "其记录与事件对 {file} 所述的字节不一致",
    "session {index} is not among the records": "记录中没有第 {index} 次会话",
    "its record does not say with which bytes it began": "其记录没有说明从哪些字节开始",
    "it began at {start} from a checkpoint of iteration {iteration}": (
        "它从第 {start} 次迭代开始，所用检查点却是第 {iteration} 次迭代的"
    ),
    "it began with {named}, and other bytes were proven at that iteration": (
        "它从 {named} 开始，而该次迭代已验证的是另外的字节"
    ),
    "it began with {named}, of which no session before tells": "它从 {named} 开始，此前的会话都没有提到它",
    "its config's fingerprint is not that of the session before": "其配置的指纹与上一次会话的不同",
    "it or the session before does not say its config's fingerprint": "它或上一次会话没有写明配置的指纹",
    "its training data are not those of the session before": "其训练数据与上一次会话的不同",
    "it is not recorded which images it and the session before were trained on": (
        "没有记录它和上一次会话用哪些图像训练"
    ),
    "it or the session before does not record all of what it was computed with": (
        "它或上一次会话没有完整记录计算所用的设备、精度、版本和拆分方式"
    ),
    "its record says nothing of its exactness": "其记录没有说明精确程度",
    "its record contradicts itself: bit for bit, and reasons why not": "其记录自相矛盾：既称逐位相同，又列出不同的原因",
    "whether the device repeats was not measured": "没有测量设备能否重复同样的结果",
    "its record says that it is not bit for bit, and not what it is": "其记录称并非逐位相同，但没有说明差到什么程度",
    "no record says which kit and which versions computed before": "没有记录说明此前用的是哪个版本的工具和软件包",
    "the {word} was {then} before, and is {here} now": "{word} 以前是 {then}，现在是 {here}",
    "GPU kernels may add in another order (train with --deterministic to forbid it)": (
        "GPU 内核的求和顺序可能不同（训练时加 --deterministic 可禁止）"
    ),
    "In session %s, against the one before:": "第 %s 次会话，与上一次相比：",
    "threads": "线程数", "ladder": "退让步骤", "pace": "速度",
    "Drawn by mapsage-kaggle from session.json and events.jsonl of %s session(s); this file needs no other.": (
        "由 mapsage-kaggle 根据 %s 次会话的 session.json 和 events.jsonl 绘制；本文件不依赖其他文件。"
    ),
    "forward and backward": "前向与反向", "optimizer step": "优化器更新",
    "waiting for data": "等待数据", "validating": "验证", "saving": "保存",
    "in training steps": "用于训练步", "of the last session, validation aside": "占最近一次会话，不计验证",
    "starting": "启动", "everything else": "其他",
    # its figures
    "thin: as told, thick: running mean": "细线：原始值，粗线：滑动平均", "learning rate": "学习率",
    "best {value} % at iteration {iteration}": "最佳 {value} %，第 {iteration} 次迭代",
    "no validation yet": "尚无验证", "time, {unit}": "用时，{unit}", "h": "小时", "min": "分", "s": "秒",
    "time since the session's start, {unit}": "自会话开始起，{unit}",
    "starting again after a fault": "故障后重新启动", "ending": "收尾",
    "a checkpoint proven": "检查点已校验", "a restart": "重新启动",
    "The predictions for the report could not be written: {why}.": "无法写出报告所用的预测图：{why}。",
    "Labels in the figures are in English: no font with Chinese letters is installed here.": (
        "图中标注为英文：本机没有安装中文字体。"
    ),
    "Loss, learning rate and mIoU over the iterations of all sessions": "历次会话的损失、学习率和 mIoU 曲线",
    "What each session went through, from its start to its end": "各次会话从开始到结束的经过",
    "Each session's time by activity": "各次会话的时间分配",
    "Iterations by session": "各次会话的迭代",
    "IoU of each class over the iterations": "各类 IoU 随迭代的变化",
    "Confusion matrix, normalised by truth": "按真值归一化的混淆矩阵",
    "What is taken for what": "混淆矩阵",
    "At iteration %s: of each true class (row), the share that was predicted as each class (column).": (
        "第 %s 次迭代：各真值类别（行）被预测为各类别（列）的比例。"
    ),
    "Predictions, early and late": "早期与近期的预测",
    "image": "图像", "iteration %s": "第 %s 次迭代", "no data": "无数据",
    "Validation image %s": "验证图像 %s", "Its true classes": "其真值类别",
    "Its classes as predicted at iteration %s": "第 %s 次迭代预测的类别",
    "an iteration, s": "每次迭代，秒", "a save, s": "保存，秒", "a save of the best, s": "保存最佳检查点，秒",
    "a validation, s": "验证，秒", "copying for a save, s": "为保存而复制，秒",
    "memory was short on": "内存或显存不足的设备", "images per forward pass": "每次前向的图像数", "blocks recomputed in the backward pass": "反向时重算各模块",
    "steps taken to save memory in validation": "验证时采取的省内存步骤数",
    "no class": "非任何类别", "truth": "真值", "prediction": "预测",
    "share of each true class, %": "占各真值类别的比例，%", "of all pixels": "占全部像素",
    # what the report finds
    "failed: {message}": "失败：{message}",
    "{count} lines or values of the records could not be read, and were left out": (
        "记录中有 {count} 行或数值无法读取，已略去"
    ),
    "went on at {start}, though session {index} had got to {end}: {lost} iterations were trained twice": (
        "从 {start} 接着训练，而第 {index} 次会话已到 {end}：有 {lost} 次迭代训练了两遍"
    ),
    "the loss jumped from {before} to {after} at the resume; it must not: compare the two sessions' configs "
    "below": "恢复时损失从 {before} 跳到 {after}，这不应发生：请对比下面两次会话的配置",
    "since iteration {at} mIoU fell from {best} % to {now} % while the training loss fell on, from {then} to "
    "{last}: the model learns its images by heart; take the best checkpoint, more data or more augmentation": (
        "自第 {at} 次迭代起，mIoU 从 {best} % 降到 {now} %，而训练损失仍从 {then} 降到 {last}："
        "模型在死记训练图像。请使用最佳检查点，或增加数据、加强数据增强"
    ),
    "not learned by iteration {iteration}: {names}; look whether the masks have enough of them": (
        "到第 {iteration} 次迭代仍未学会：{names}；请查看掩码中是否有足够的样本"
    ),
    "overfitting": "过拟合", "classes": "类别",
}  # fmt: skip
"""Simplified Chinese, by the English template."""

NAMES_CHINESE: Mapping[str, str] = {
    "python": "Python", "torch": "torch", "stack": "训练软件包", "gpu": "GPU", "internet": "联网",
    "inputs": "输入", "working": "输出目录", "disk": "磁盘", "output": "输出", "clock": "时间",
    "quota": "GPU 限额", "data": "数据",
}  # fmt: skip
"""The names of preflight's checks."""

TABLES: Mapping[str, Mapping[str, str]] = {"zh": CHINESE}
NAMES: Mapping[str, Mapping[str, str]] = {"zh": NAMES_CHINESE}


_SEVERAL = frozenset(("message", "problem", "problems", "remedy", "hint", "text", "shown", "lines", "checks"))
"""Values that may be several sentences or lines; no other is, so that none swallows the sentence after it."""

_MARKS = ("\n", ". ", ": ")


@lru_cache(maxsize=1024)
def translate(text: str, language: str) -> str:
    """Return a message in another language, as far as its templates are known; else as it is.

    One that was put together from several is translated line by line, else sentence by sentence; of a
    path with what was found there, that.
    """
    if not text or language not in TABLES:
        return text
    for pattern, target in _patterns(language):
        found = pattern.fullmatch(text)
        if found is not None:
            values = {name: translate(value, language) for name, value in found.groupdict().items()}
            return target.format(**values)
    for mark in _MARKS:
        for place in re.finditer(re.escape(mark), text):
            end = place.start() + len(mark.rstrip())
            first, rest = text[:end], text[place.end() :]
            indent = first[: len(first) - len(first.lstrip())]
            # What stands before a colon is a name.
            translated = first if mark == ": " else indent + translate(first.strip(), language)
            rest_translated = translate(rest, language)
            if (translated, rest_translated) != (first, rest):
                # A full stop in Chinese needs no space after it.
                return (
                    translated
                    + ("" if translated != first and mark == ". " else text[end : place.end()])
                    + rest_translated
                )
    return text


@cache
def _patterns(language: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """Return what each template matches, those with the most text of their own first."""
    table = TABLES.get(language, {})
    ordered = sorted(table.items(), key=lambda item: -len(re.sub(r"\{\w+\}", "", item[0])))
    return tuple((re.compile(_expression(template), re.DOTALL), target) for template, target in ordered)


def _expression(template: str) -> str:
    parts = re.split(r"\{(\w+)\}", template)
    return "".join(
        re.escape(part)
        if index % 2 == 0
        else f"(?P<{part}>.*?)"
        if part in _SEVERAL
        else rf"(?P<{part}>(?:(?!\.\s|\n).)*?)"
        for index, part in enumerate(parts)
    )
