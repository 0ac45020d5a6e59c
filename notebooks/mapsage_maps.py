# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # MapSage on Kaggle: maps from a trained model
#
# Attach the kit, the output of a training session and your images (or EarthVQA, for its test split), and
# press **Save & Run All**: maps, or the benchmark's submission, and the model in forms that need no kit.
#
# 挂载本工具、某次训练会话的输出和你的图像（或 EarthVQA，预测其测试集），按 **Save & Run All**：
# 得到地图或基准测试的提交文件，以及不用本工具也能使用的模型。

# %% [markdown]
# ## Parameters 参数
# `IMAGES` names what is attached: `"owner/slug"`, a folder below the inputs, or paths. With `None`,
# EarthVQA's test split is predicted and packed.
#
# `IMAGES` 指定挂载的图像：`"owner/slug"`、输入目录下的文件夹名或路径。
# 填 `None` 时预测 EarthVQA 的测试集并打包。

# %% tags=["parameters"]
CONFIG = "train_earthvqa_kaggle.py"  # the one that the model was trained with 训练该模型所用的配置
IMAGES = None  # such as "you/my-scenes", or a list of images and folders 图像或文件夹，可为列表
CHECKPOINT = None  # a file; by default the best of what is attached 检查点文件，默认取已挂载的最佳者
RUN = None  # of which run, by its id, where several are attached 挂载了多个任务时选定一个
OVERLAY = False  # also the images with their classes in colour 同时输出叠加图
PROBABILITIES = False  # also a band for each class (GeoTIFF) 同时输出各类概率
POLYGONS = False  # also polygons (GeoPackage) 同时输出多边形
MIN_AREA = 0.0  # polygons from so many square metres on 略去小于此面积（平方米）的多边形
SCALE = None  # see images at so many times their own size; by default as in training 模型所见为原尺寸的几倍
GSD = None  # metres that a pixel of the images covers 图像每像素的米数
TRAINED_GSD = None  # the same of the training images 训练图像每像素的米数
BANDS = None  # such as [3, 2, 1]: which are red, green and blue 哪几个波段是红、绿、蓝
VALUE_RANGE = None  # such as [0, 3000]: what becomes 0 and 255, for more than 8 bits 超过 8 位时的取值范围
OVERRIDES = []  # such as "data_root=/kaggle/input/mine" 覆盖配置中的键
CODE = []  # attached folders to import the config's own modules from, as they are trusted 可信的代码目录
EXPORT = True  # hand the model on: safetensors, ONNX, torch.export and a card 导出模型
LICENCE = "Other"  # of the model, such as "CC-BY-NC-SA-4.0" 模型的许可证
KIT = None  # "owner/slug" or a path: which attached kit to import, of several 挂载了多份本工具时选定一份
KIT_SHA256 = None  # import no kit but the one with this hash 只导入哈希相符的那一份
EXTRA_WHEELS = None  # "owner/slug" of a data set made by `bundle --with` to install as well 额外的 wheel
LANGUAGE = "en"  # or "zh"; 中文填 "zh"

# %% [markdown]
# ## Install 安装
# The cell that finds the kit is that of the training notebook.
#
# 查找本工具的这一格与训练 Notebook 的相同。

# %%
# (the cell of mapsage_train.py that finds the kit)

# %% [markdown]
# It adds what this Python lacks, leaves its torch as it is, and proves it in a fresh process.
#
# 补上所缺的软件包，不动已有的 torch，并在新进程中验证。

# %%
import mapsage_kaggle

installed = mapsage_kaggle.install(language=LANGUAGE, extra_wheels=EXTRA_WHEELS)

# %% [markdown]
# ## The model 模型
# Which checkpoint is taken, and why.
#
# 采用哪个检查点，为什么。

# %%
maps = mapsage_kaggle.maps(
    CONFIG,
    images=IMAGES,
    checkpoint=CHECKPOINT,
    run=RUN,
    overlay=OVERLAY,
    probabilities=PROBABILITIES,
    polygons=POLYGONS,
    min_area=MIN_AREA,
    scale=SCALE,
    gsd=GSD,
    trained_gsd=TRAINED_GSD,
    bands=BANDS,
    value_range=VALUE_RANGE,
    overrides=OVERRIDES,
    code=CODE,
    language=LANGUAGE,
)

# %% [markdown]
# ## Maps 地图
# A few are shown, image and map; all are files in the output. Cell by cell, a cell that was interrupted
# goes on when it is run again.
#
# 展示其中几幅（图像与地图），全部作为文件写入输出。逐格运行时，被中断的一格再次运行即可继续。

# %%
maps.predict()

# %% [markdown]
# ## The submission 提交文件
# Whether `submission.zip` is complete: a mask for each image of the test split, decoded again and checked.
#
# `submission.zip` 是否完整：测试集的每张图像各有一个掩码，均重新解码核对。

# %%
maps.check()

# %% [markdown]
# ## Hand-over 导出
# The model as safetensors, ONNX and `torch.export`'s program, each run again and compared, with a card. It
# can take half an hour.
#
# 将模型导出为 safetensors、ONNX 和 `torch.export` 程序，逐一重新运行并比对，并附模型卡。可能需要半小时。

# %%
maps.export(EXPORT, licence=LICENCE)
