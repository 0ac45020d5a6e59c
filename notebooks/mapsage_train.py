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
# ## Parameters 参数
# `CONFIG` is a file, or the name of one of the kit's own. `RESUME = "auto"` takes the newest trusted
# checkpoint that is attached and starts fresh where there is none at all; `"require"` never starts fresh.
#
# `CONFIG` 是配置文件，或本工具自带配置的名字。`RESUME = "auto"` 采用已挂载的最新可信检查点，
# 一个都没有时从头训练；`"require"` 决不从头训练。面板和报告用中文：`LANGUAGE = "zh"`。

# %% tags=["parameters"]
CONFIG = "train_earthvqa_kaggle.py"
RESUME = "auto"  # "auto", "require", "never", or the path of a checkpoint 或检查点的路径
RUN = None  # the run to go on with, by its id, where several are attached 挂载了多个任务时选定一个
EXPECT_ITERATION = None  # refuse to go on from any other iteration than this 只从这个迭代继续，否则拒绝
ALLOW_WEIGHTS_ONLY = False  # take weights alone where nothing can be resumed 无法恢复时只取权重
EXTEND_TO = None  # a new, later end for a run that is complete 给已完成的任务设一个更晚的终点
SESSION_LIMIT = "12h"  # how long Kaggle lets a session live 会话的时限
RESERVE = "10m"  # kept free at its end 末尾预留的时间
GPUS = "auto"  # or a number; 0 trains on the CPU 或指定数量，0 表示用 CPU
PRECISION = "auto"  # or "float32", "float16", "bfloat16", whatever the config and the GPU say 计算精度
ON_MEMORY = "adapt"  # smaller micro-batches where memory runs out; "fail" ends there 显存不足时缩小微批
OVERRIDES = []  # such as "train_dataloader.batch_size=2" 覆盖配置中的键
CODE = []  # attached folders to import the config's own modules from, as they are trusted 可信的代码目录
PASS_ENV = []  # credentials that training may see, such as "WANDB_API_KEY" 允许训练进程看到的凭据
TRACK = ""  # or "tensorboard", "wandb": one curve over all sessions 在该工具中显示为跨会话的一条曲线
UPLOAD_TO = None  # "you/slug": upload the newest checkpoint to this data set as well 同时上传到此数据集
UPLOAD_EVERY = "1h"  # from one upload to the next 上传间隔
KIT = None  # "owner/slug" or a path: which attached kit to import, of several 挂载了多份本工具时选定一份
KIT_SHA256 = None  # import no kit but the one with this hash 只导入哈希相符的那一份
EXTRA_WHEELS = None  # "owner/slug" of a data set made by `bundle --with` to install as well 额外的 wheel
EVALUATE = True  # evaluate the best checkpoint afterwards, if time allows 时间允许时评估最佳检查点
LANGUAGE = "en"  # or "zh"; 中文填 "zh"

# %% [markdown]
# ## Install 安装
# The kit comes as an attached data set, its code or its wheel (which Kaggle may have unpacked), unless it is
# installed already. Only its own files are copied and imported. Where different kits are attached, `KIT`
# chooses one; where `KIT_SHA256` is set, no other is imported.
#
# 本工具以挂载的数据集提供（代码或 wheel），除非已经装好；只复制并导入它自己的文件。
# 挂载了不同的版本时用 `KIT` 选定；设了 `KIT_SHA256` 时只导入与之相符的那一份。

# %%
import hashlib
import importlib.util
import os
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(os.environ.get("MAPSAGE_KAGGLE_ROOT", "/kaggle"))
ENDINGS = (".py", ".txt", ".j2", ".css", ".js", ".json", ".ipynb", ".typed")


class Refusal(RuntimeError):
    def _render_traceback_(self):  # what IPython shows of it
        return [str(self)]


def kit_files(kit):
    """Return the kit's own files in a wheel or a folder, as mapsage_kaggle.kit does."""
    if kit.is_file():
        with zipfile.ZipFile(kit) as wheel:
            names = [name for name in wheel.namelist() if name.startswith("mapsage_kaggle/")]
            return {name: wheel.read(name) for name in names if name.endswith(ENDINGS)}
    package, files = kit / "mapsage_kaggle", {}
    beside = [name for name in ("configs", "notebooks") if not (package / name).is_dir()]
    for root, at in [(package, package.parent), *((kit / name, package.parent) for name in beside)]:
        for path in root.rglob("*"):
            if path.name.endswith(ENDINGS) and path.is_file():
                name = path.relative_to(at).as_posix()
                files[name if root == package else f"mapsage_kaggle/{name}"] = path.read_bytes()
    return files


def kit_hash(files):
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def find_kits():
    """Return the attached kits that KIT and KIT_SHA256 allow: hash and files by place."""
    found = {}
    for place in ("*", "*/*", "datasets/*/*", "datasets/*/*/*"):
        wheels = (ROOT / "input").glob(f"{place}/mapsage_kaggle-*.whl")
        folders = (ROOT / "input").glob(f"{place}/mapsage_kaggle/__init__.py")
        for kit in [*filter(Path.is_file, wheels), *(path.parents[1] for path in folders)]:
            owner, _, slug = str(KIT).partition("/")
            names = [Path(str(KIT)), ROOT / "input" / slug, ROOT / "input/datasets" / owner / slug]
            if KIT is None or (slug and {kit, *kit.parents} & set(names)):
                try:
                    files = kit_files(kit)
                    found[kit] = (kit_hash(files), files)
                except (OSError, zipfile.BadZipFile) as error:
                    print(f"{kit} is no kit: {error}")
    return found


def wait_for_kits(left_s=60):
    """Return the attached kits; where there is none, look again while a folder may still be mounted."""
    while not (found := find_kits()) and left_s > 0 and importlib.util.find_spec("mapsage_kaggle") is None:
        mounts = [path for place in ("*", "datasets/*/*") for path in (ROOT / "input").glob(place)]
        if mounts and all(path.is_file() or any(path.iterdir()) for path in mounts):
            break
        print(f"Waiting for the kit to be mounted ({left_s} s left). 等待挂载本工具（还剩 {left_s} 秒）。")
        time.sleep(5)
        left_s -= 5
    return found


def choose_kit():
    """Copy the kit that is to be imported, and nothing else, into scratch space; return its folder."""
    found = wait_for_kits()
    hashes = {sha256 for sha256, _ in found.values() if KIT_SHA256 in (None, sha256)}
    told = "".join(f"\n  {kit}  (sha256 {sha256[:12]})" for kit, (sha256, _) in found.items())
    installed = importlib.util.find_spec("mapsage_kaggle")
    if installed is not None and KIT is None:
        own = kit_hash(kit_files(Path(installed.origin).parents[1])) if KIT_SHA256 else None
        if own == KIT_SHA256:
            return None
    if len(hashes) > 1:
        raise Refusal(f'Different kits are attached; choose one by KIT = "owner/slug" or a path:{told}')
    if not hashes and (KIT or KIT_SHA256):
        wanted = f"sha256 {KIT_SHA256[:12]}" if KIT_SHA256 else f"KIT {KIT}"
        raise Refusal(
            f"No attached kit is the one that this notebook names ({wanted}). Attach it, upload the bundle "
            f"again, or set KIT and KIT_SHA256 to None. Attached:{told or ' none'}"
        )
    for sha256 in hashes:
        folder, files = ROOT / "temp" / f"kit-{sha256[:12]}", dict(found.values())[sha256]
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return str(folder)
    if installed is None:
        looked = [str(path) for path in sorted((ROOT / "input").glob("*"))] or ["nothing is attached"]
        raise Refusal(
            "The kit is not attached. Add Input: the data set that `mapsage-kaggle bundle` has made (with a "
            "mapsage_kaggle folder or a mapsage_kaggle-*.whl in it); then run this again.\n"
            "未挂载本工具：请用 Add Input 添加 `mapsage-kaggle bundle` 生成的数据集，然后重新运行。\n"
            f"{ROOT / 'input'}: {', '.join(looked[:20])}"
        )
    return None


sys.path[:0] = filter(None, [choose_kit()])

# %% [markdown]
# It adds what this Python lacks to train, leaves its torch as it is, and proves it in a fresh process.
#
# 补上训练所缺的软件包，不动已有的 torch，并在新进程中验证。

# %%
import mapsage_kaggle

installed = mapsage_kaggle.install(trains=CONFIG, language=LANGUAGE, extra_wheels=EXTRA_WHEELS)

# %% [markdown]
# ## Preflight 运行前检查
# What would stop the session is found now, before it costs quota: GPU, disk, time, data set. Look whether
# the masks fit their images.
#
# 会妨碍本次会话的问题（GPU、磁盘、时间、数据集），在消耗限额之前就查出来。
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
    code=CODE,
    pass_env=PASS_ENV,
    track=TRACK,
    upload_to=UPLOAD_TO,
    upload_every=UPLOAD_EVERY,
    language=LANGUAGE,
)

# %% [markdown]
# ## Discover 查找检查点
# Every checkpoint that is attached or here is judged, newest first, and the first sound one is taken. Cell by
# cell, another start may be chosen below the table.
#
# 对已挂载和此处的每个检查点从新到旧逐一判断，采用第一个完好的。逐格运行时，可在表格下方改选起点。

# %%
session.discover()

# %% [markdown]
# ## Configure 配置
# The config file stays as it is; these keys are changed to run it on this machine. Cell by cell, a form below
# them changes what is trained.
#
# 配置文件保持不变，只为在本机运行而改动下列键。逐格运行时，可用下方的表单修改训练设置。

# %%
session.configure()

# %% [markdown]
# ## Train 训练
# A batch run stays here until the session ends. Cell by cell, this returns at once, and a view with buttons
# follows the training. After the page was reloaded, `session.watch()` in any cell brings the view back.
# `session.wait()` waits for the end; to interrupt it stops the training, with everything saved.
#
# 批处理运行停在这一格，直到会话结束。逐格运行时立即返回，由带按钮的视图跟踪训练；
# 刷新页面后，在任一格运行 `session.watch()` 即可找回视图。`session.wait()` 等到结束；中断它会保存并停止训练。

# %%
session.train()

# %% [markdown]
# ## Evaluate 评估
# Scores of the best checkpoint by class, with an interval that says how sure they are, and a few predictions:
# image, mask, prediction. It is left out where time is short; the run loses nothing by it.
#
# 最佳检查点的各类别得分，附区间说明其可信程度，并给出几幅预测（图像、掩码、预测结果）。
# 时间不够时略去，训练任务不受任何影响。

# %%
session.evaluate(EVALUATE)

# %% [markdown]
# ## What next 下一步
# How the session ended, the curves of the whole run, and what to do now.
#
# 会话如何结束，整个训练任务的曲线，现在该做什么。

# %%
session.what_next()
