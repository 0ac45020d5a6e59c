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

# %% [markdown]
# ## Parameters
# `CONFIG` is a file, or the name of one of the kit's own. `RESUME = "auto"` takes the newest trusted
# checkpoint that is attached and starts fresh where there is none at all; `"require"` never starts fresh.

# %% tags=["parameters"]
CONFIG = "train_earthvqa_kaggle.py"
RESUME = "auto"  # "auto", "require", "never", or the path of a checkpoint
EXPECT_ITERATION = None  # refuse to go on from any other iteration than this
ALLOW_WEIGHTS_ONLY = False  # take weights alone where nothing can be resumed
EXTEND_TO = None  # a new, later end for a run that is complete
SESSION_LIMIT = "12h"  # how long Kaggle lets a session live
RESERVE = "10m"  # kept free at its end
GPUS = "auto"  # or a number; 0 trains on the CPU
ON_MEMORY = "adapt"  # smaller micro-batches where memory runs out; "fail" ends there
OVERRIDES = []  # such as "train_dataloader.batch_size=2"
UPLOAD_TO = None  # "you/slug": upload the newest checkpoint to this data set as well, with your credentials
UPLOAD_EVERY = "1h"  # from one upload to the next
LANGUAGE = "en"  # or "zh"

# %% [markdown]
# ## Install
# The kit comes as an attached data set, its code or its wheel (which Kaggle may have unpacked), unless it is
# installed already.

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

# %%
import mapsage_kaggle

installed = mapsage_kaggle.install(language=LANGUAGE)

# %% [markdown]
# ## Preflight
# What would stop the session is found now, before it costs quota: GPU, disk, time, data set. Look whether
# the masks fit their images.

# %%
session = mapsage_kaggle.preflight(
    CONFIG,
    resume=RESUME,
    expect_iteration=EXPECT_ITERATION,
    allow_weights_only=ALLOW_WEIGHTS_ONLY,
    extend_to=EXTEND_TO,
    session_limit=SESSION_LIMIT,
    reserve=RESERVE,
    gpus=GPUS,
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

# %%
session.discover()

# %% [markdown]
# ## Configure
# The config file stays as it is; these keys are changed to run it on this machine. Cell by cell, a form below
# them changes what is trained.

# %%
session.configure()

# %% [markdown]
# ## Train
# A batch run stays here until the session ends. Cell by cell, this returns at once, and a view with buttons
# follows the training; `session.watch()` shows it again in any cell, `session.wait()` waits for the end.

# %%
session.train()

# %% [markdown]
# ## What next
# How the session ended, the curves of the whole run, and what to do now.

# %%
session.what_next()
