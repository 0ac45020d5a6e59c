# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # MapSage on Kaggle: does it hold here?
#
# Attach the kit and press **Save & Run All**: within 10 minutes on a GPU, 5 on a CPU, short real training
# sessions find out whether what the kit promises holds on this machine. No data set is needed. Each finding
# is in `selftest.json` in the output as soon as it is made.
#
# 挂载本工具，按 **Save & Run All**：GPU 上 10 分钟内、CPU 上 5 分钟内，用真实的短训练会话检验本工具的承诺
# 在这台机器上是否成立。不需要数据集。每项结论一得出就写入输出中的 `selftest.json`。

# %% [markdown]
# ## Parameters 参数
# `ONLY = ["step"]` makes that check alone. 只做其中某项检查：`ONLY = ["step"]`。

# %% tags=["parameters"]
ONLY = []  # the names of checks; all of them by default 检查的名称，默认全部
LIMIT = None  # such as "10m": how long it may take 最长用时，例如 "10m"
KIT = None  # "owner/slug" or a path: which attached kit to import, of several 挂载了多份本工具时选定一份
KIT_SHA256 = None  # import no kit but the one with this hash 只导入哈希相符的那一份
LANGUAGE = "en"  # or "zh"; 中文填 "zh"

# %% [markdown]
# ## Install 安装
# The cell that finds the kit is that of the training notebook.
#
# 查找本工具的这一格与训练 Notebook 的相同。

# %%
# (the cell of mapsage_train.py that finds the kit)

# %% [markdown]
# It adds what this Python lacks to train, leaves its torch as it is, and proves it in a fresh process.
#
# 补上训练所缺的软件包，不动已有的 torch，并在新进程中验证。

# %%
import mapsage_kaggle

installed = mapsage_kaggle.install(language=LANGUAGE)

# %% [markdown]
# ## Check 检查
# ✓ holds, ✗ does not hold, · was measured and nothing is promised, ? was not measured, with the reason. To
# interrupt the cell ends it; what was found stays in the file.
#
# ✓ 成立，✗ 不成立，· 已测量（不属于承诺），? 未测量并说明原因。中断此格即结束，已得出的结论保留在文件中。

# %%
tested = mapsage_kaggle.selftest(only=ONLY, limit=LIMIT, language=LANGUAGE)
