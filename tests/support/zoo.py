"""Configs of mmsegmentation's own zoo, made small in nothing but sizes, with data as they want it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmseg
import numpy as np
import torch
from mmseg.models.backbones import PIDNet
from mmseg.registry import DATASETS
from PIL import Image

from mapsage_kaggle.config.reading import datasets_of, find_keys, mapping_or_empty, read_config
from mapsage_kaggle.config.weights import pretrained_of, weights_files
from mapsage_kaggle.data.scenes import draw_scene
from mapsage_kaggle.engine.jobs.inference import build_model

ZOO = Path(mmseg.__file__).parent / ".mim" / "configs"
TABLE = Path(__file__).resolve().parents[1] / "benchmarks" / "zoo.md"
SIDE = 64
SIDES = {"mobilenet_v3": 512}
"""Of families whose heads look at more of an image than 128 pixels."""
ITERATIONS, CUT = 6, 3


def config_of(name: str) -> Path:
    """Return the zoo's config of that stem."""
    (path,) = ZOO.glob(f"*/{name}.py")
    return path


def reduced(config: Path, *extra: str, side: int = SIDE) -> list[str]:
    """Return ``--set`` arguments for small crops, images, windows and a short schedule."""
    cfg = read_config(config).to_dict()
    crop, scene = (side, side), (2 * side, 2 * side)
    found: dict[str, Any] = {
        "train_cfg.max_iters": ITERATIONS,
        "train_cfg.val_interval": CUT,
        "default_hooks.checkpoint.interval": CUT,
        "default_hooks.logger.interval": 2,
        "train_dataloader.batch_size": 2,
    }
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        found |= {f"{name}.num_workers": 0, f"{name}.persistent_workers": False}
        found |= {key: scene for key, _ in find_keys(cfg[name], name, "scale")}
        for key in ("crop_size", "img_scale"):
            found |= {key: crop for key, _ in find_keys(cfg[name], name, key)}
        for key, value in find_keys(cfg[name], name, "scales"):
            found |= {f"{key}.{index}": side for index in range(len(value))}
    for name in ("size", "crop_size", "img_size"):
        found |= {key: crop for key, value in find_keys(cfg["model"], "model", name) if value is not None}
    found |= {
        key: (side * 2 // 3,) * 2
        for key, _ in find_keys(cfg["model"]["test_cfg"], "model.test_cfg", "stride")
    }
    for index, scheduler in enumerate(_as_list(cfg.get("param_scheduler"))):
        if scheduler.get("end"):
            found[f"param_scheduler.{index}.end"] = ITERATIONS if scheduler["end"] > 10_000 else 2
        if scheduler.get("begin"):
            found[f"param_scheduler.{index}.begin"] = 2
    pairs = [f"{key}={_written(value)}" for key, value in found.items()]
    return [item for pair in (*pairs, *extra) for item in ("--set", pair)]


def mount(config: Path, inputs: Path, *, train: int = 4, val: int = 2, side: int = SIDE) -> None:
    """Lay out scenes below the inputs as a config's data sets look for them."""
    cfg = read_config(config).to_dict()
    for name, count in (("train_dataloader", train), ("val_dataloader", val)):
        for dataset in datasets_of(cfg[name]["dataset"]):
            if dataset.get("data_prefix"):
                _lay_out(inputs / "some-owner-s-upload", dataset, name, count, side)


def _lay_out(root: Path, dataset: Mapping[str, Any], name: str, count: int, side: int) -> None:
    cls = DATASETS.get(dataset["type"])
    options = {**_defaults(cls), **dataset}
    images, masks = (root / dataset["data_prefix"][key] for key in ("img_path", "seg_map_path"))
    num_classes = len(cls.METAINFO.get("classes", "any"))  # a DSDL file would name its own
    names = [f"{name}_{index}" for index in range(count)]
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    for index, stem in enumerate(names):
        image, mask = draw_scene(2 * side, (int(name.startswith("val")), index))
        mask = np.minimum(mask, num_classes - 1 + bool(options.get("reduce_zero_label")))
        Image.fromarray(image).save(images / f"{stem}{options['img_suffix']}")
        Image.fromarray(mask.astype(np.uint8)).save(masks / f"{stem}{options['seg_map_suffix']}")
    if dataset.get("ann_file"):
        listing = root / dataset["ann_file"]
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{stem}\n" for stem in names))


def mount_weights(config: Path, sizes: Sequence[str], inputs: Path) -> list[str]:
    """Lay out weights at random as the pretrained ones that a config names; return the names.

    Raises:
        MapsageError: The model cannot be built here.
    """
    cfg = read_config(config, sizes[1::2])
    names = list(pretrained_of(cfg))
    if not names:
        return []
    torch.manual_seed(1)
    net = build_model(cfg)
    folder = inputs / "weights"
    folder.mkdir()
    for name in names:
        # Whichever part of the model names the file: a backbone, or one within it.
        part = next(item for item in net.modules() if _init_cfg(item).get("checkpoint") == name)
        prefix = str(_init_cfg(part).get("prefix") or ("backbone." if name.startswith("mmcls://") else ""))
        prefix = prefix and prefix.rstrip(".") + "."
        state = {prefix + key: value for key, value in part.state_dict().items()}
        bare = isinstance(part, PIDNet)  # which loads its file by itself
        torch.save(state if bare else {"state_dict": state}, folder / weights_files(name)[0])
    return names


def _init_cfg(module: torch.nn.Module) -> Mapping[str, Any]:
    return mapping_or_empty(getattr(module, "init_cfg", None))


def write_row(family: str, *cells: str) -> None:
    """Put a family's line into the table of ``tests/benchmarks/zoo.md``, in the place of the older one."""
    config, *others = cells
    row = " | ".join(["", family, f"`{config}`", *others, ""]).strip()
    lines = TABLE.read_text().splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith("| family |")) + 2
    end = next((index for index in range(begin, len(lines)) if not lines[index].startswith("|")), len(lines))
    rows = {line.split("|")[1].strip(): line for line in lines[begin:end]} | {family: row}
    lines[begin:end] = [rows[name] for name in sorted(rows)]
    TABLE.write_text("\n".join(lines) + "\n")


def _defaults(cls: type) -> dict[str, Any]:
    """Return what a data set's class takes where nothing is said, from its bases too."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        init = vars(base).get("__init__")
        if inspect.isfunction(init):
            found |= {
                name: item.default
                for name, item in inspect.signature(init).parameters.items()
                if item.default is not inspect.Parameter.empty
            }
    return found


def _as_list(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, (list, tuple)) else [value] if value else []


def _written(value: Any) -> str:
    return str(value).replace(" ", "")
