# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # MapSage on Kaggle: one long run in short sessions
#
# Attach the kit and the data set, press **Save & Run All**, and come back tomorrow. The session stops itself
# in time and hands over. Then attach this notebook's output to its next run: it goes on where this one ended.
#
# 在 Kaggle 上用多次短会话完成一次长训练：挂载本工具和数据集，按 **Save & Run All**，次日再来。
# 会话会及时自行停止并交接；再把本 Notebook 的输出挂载到下一次运行，就从停下的地方接着训练。

# %% [markdown]
# ## Parameters
# `CONFIG` is a file, or the name of one of the kit's own. `RESUME = "auto"` takes the newest trusted
# checkpoint that is attached and starts fresh where there is none at all; `"require"` never starts fresh.
#
# 参数：`CONFIG` 是配置文件，或本工具自带配置的名字。`RESUME = "auto"` 采用已挂载的最新可信检查点，
# 一个都没有时从头训练；`"require"` 决不从头训练。面板和报告用中文：`LANGUAGE = "zh"`。

# %% tags=["parameters"]
CONFIG = "train_earthvqa_kaggle.py"
RESUME = "auto"  # "auto", "require", "never", or the path of a checkpoint
RUN = None  # the run to go on with, by its id, where several are attached
EXPECT_ITERATION = None  # refuse to go on from any other iteration than this
ALLOW_WEIGHTS_ONLY = False  # take weights alone where nothing can be resumed
EXTEND_TO = None  # a new, later end for a run that is complete
SESSION_LIMIT = "12h"  # how long Kaggle lets a session live
RESERVE = "10m"  # kept free at its end
GPUS = "auto"  # or a number; 0 trains on the CPU
PRECISION = "auto"  # or "float32", "float16", "bfloat16", whatever the config and the GPU say
ON_MEMORY = "adapt"  # smaller micro-batches where memory runs out; "fail" ends there
OVERRIDES = []  # such as "train_dataloader.batch_size=2"
UPLOAD_TO = None  # "you/slug": upload the newest checkpoint to this data set as well, with your credentials
UPLOAD_EVERY = "1h"  # from one upload to the next
EVALUATE = True  # evaluate the best checkpoint afterwards, if the session's time allows
LANGUAGE = "en"  # or "zh"

# %% [markdown]
# ## Install
# The kit comes as an attached data set, its code or its wheel (which Kaggle may have unpacked), unless it is
# installed already.
#
# 安装：本工具以挂载的数据集提供（代码或 wheel），除非已经装好。

# %%
import os
import sys
import zipfile
from pathlib import Path

ROOT = Path(os.environ.get("MAPSAGE_KAGGLE_ROOT", "/kaggle"))
PLACES = ["input/*", "input/*/*", "input/datasets/*/*", "input/datasets/*/*/*", "temp/kit"]
WHEELS = [wheel for place in PLACES for wheel in ROOT.glob(f"{place}/mapsage_kaggle-*.whl")]
[zipfile.ZipFile(wheel).extractall(ROOT / "temp/kit") for wheel in WHEELS if wheel.is_file()]
KITS = [kit for place in PLACES for kit in ROOT.glob(f"{place}/mapsage_kaggle/__init__.py")]
sys.path += [str(kit.parents[1]) for kit in KITS]

# %% [markdown]
# It adds what this Python lacks to train, leaves its torch as it is, and proves it in a fresh process.
#
# 补上训练所缺的软件包，不动已有的 torch，并在新进程中验证。

# %%
import mapsage_kaggle

installed = mapsage_kaggle.install(language=LANGUAGE)

# %% [markdown]
# ## Preflight
# What would stop the session is found now, before it costs quota: GPU, disk, time, data set. Look whether
# the masks fit their images.
#
# 运行前检查：会妨碍本次会话的问题（GPU、磁盘、时间、数据集），在消耗限额之前就查出来。
# 请看掩码是否与图像相符。

# %%
session = mapsage_kaggle.preflight(
    CONFIG,
    resume=RESUME,
    run=RUN,
    expect_iteration=EXPECT_ITERATION,
    allow_weights_only=ALLOW_WEIGHTS_ONLY,
    extend_to=EXTEND_TO,
    session_limit=SESSION_LIMIT,
    reserve=RESERVE,
    gpus=GPUS,
    precision=PRECISION,
    on_memory=ON_MEMORY,
    overrides=OVERRIDES,
    upload_to=UPLOAD_TO,
    upload_every=UPLOAD_EVERY,
    language=LANGUAGE,
)

# %% [markdown]
# ## Discover
# Every checkpoint that is attached or here is judged, newest first, and the first sound one is taken. Cell by
# cell, another start may be chosen below the table.
#
# 查找检查点：对已挂载和此处的每个检查点从新到旧逐一判断，采用第一个完好的。逐格运行时，可在表格下方改选起点。

# %%
session.discover()

# %% [markdown]
# ## Configure
# The config file stays as it is; these keys are changed to run it on this machine. Cell by cell, a form below
# them changes what is trained.
#
# 配置：配置文件保持不变，只为在本机运行而改动下列键。逐格运行时，可用下方的表单修改训练设置。

# %%
session.configure()

# %% [markdown]
# ## Train
# A batch run stays here until the session ends. Cell by cell, this returns at once, and a view with buttons
# follows the training; `session.watch()` shows it again in any cell, `session.wait()` waits for the end.
#
# 训练：批处理运行停在这一格，直到会话结束。逐格运行时立即返回，由带按钮的视图跟踪训练；
# `session.watch()` 可在任一格再次显示，`session.wait()` 等到结束。

# %%
session.train()

# %% [markdown]
# ## Evaluate
# Scores of the best checkpoint by class, with an interval that says how sure they are, and a few predictions:
# image, mask, prediction. It is left out where time is short; the run loses nothing by it.

# %%
session.evaluate(EVALUATE)

# %% [markdown]
# ## What next
# How the session ended, the curves of the whole run, and what to do now.
#
# 下一步：会话如何结束，整个训练任务的曲线，现在该做什么。

# %%
session.what_next()
