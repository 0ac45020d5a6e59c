"""A trained model in forms that need neither this kit nor a pickle, each run again and compared.

The child of :func:`mapsage_kaggle.jobs.export.export`. All forms take one tensor ``image``, float32 of shape
``(N, 3, H, W)``, red, green and blue in 0 to 255, and give ``logits``, float32 of shape
``(N, classes, H, W)``: what the config's ``data_preprocessor`` does to an image is part of the graph.

- ``model.safetensors``: the weights under mmsegmentation's names, for ``config.py``.
- ``model.onnx``: for any runtime that reads ONNX, of any batch, height and width.
- ``model.pt2``: ``torch.export``'s program, for one image of any height and width at a time.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import DATASETS
from numpy.typing import NDArray
from torch import nn

from mapsage_kaggle.checkpoints.manifest import file_sha256
from mapsage_kaggle.engine.jobs.child import Emit
from mapsage_kaggle.engine.jobs.inference import TrainedModel, build_model, load_model
from mapsage_kaggle.engine.jobs.predict import labels_of
from mapsage_kaggle.engine.shapes import json_like
from mapsage_kaggle.errors import DataError, JobError
from mapsage_kaggle.imagery.reading import open_picture

WEIGHTS, ONNX, PROGRAM = "model.safetensors", "model.onnx", "model.pt2"
CONFIG, CLASSES = "config.py", "classes.json"

TOLERANCE = 1e-3
"""How far logits may be from the original's, as a share of the original's largest (at least of 1)."""

_OPSET = 18
_MAX_PIXELS = 1024
_TRACED = (128, 160)
_DIVISOR = 32
_MIN_SIDE = 64

Logits = Callable[[torch.Tensor], torch.Tensor]
"""``(N, 3, H, W)`` to ``(N, classes, H, W)``."""


class Portable(nn.Module):
    """A segmentor whose input is an RGB image as it is read, and whose output has the image's size.

    Args:
        net: mmsegmentation's segmentor.

    Raises:
        JobError: The config's ``data_preprocessor`` does what this cannot.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        prepare: Any = net.data_preprocessor
        if not isinstance(prepare, SegDataPreProcessor):
            raise JobError(
                f"The config's data_preprocessor is a {type(prepare).__name__}.",
                "Export knows mmsegmentation's SegDataPreProcessor.",
            )
        self.net = net
        # mmsegmentation reads blue, green, red. A model that turns them around wants red, green, blue.
        self.turns = not prepare._channel_conversion
        self.normalises = bool(prepare._enable_normalize)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits, of shape ``(N, classes, H, W)``, for RGB in 0 to 255 of shape ``(N, 3, H, W)``."""
        net: Any = self.net
        inputs = image.flip(1) if self.turns else image
        if self.normalises:
            inputs = (inputs - net.data_preprocessor.mean) / net.data_preprocessor.std
        metas = [{"img_shape": image.shape[2:]}]
        logits: torch.Tensor = net.encode_decode(inputs, metas)
        return logits


def run(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Write every form that the job asks for into its folder, and compare each with the original.

    Args:
        job: ``config``, ``checkpoint``, ``sha256``; ``out``, the folder; ``forms``, of ``safetensors``,
            ``onnx`` and ``torch``; ``images`` to compare on, none for the validation set's first ones.
        emit: Told of progress and of a form that does not hold.

    Returns:
        ``files``: for each form ``name``, ``size_bytes``, ``sha256``, ``max_difference`` (of logits),
        ``agreement`` (share of pixels of the same class), ``sizes`` that it was run at. ``failed``: the
        forms that do not hold, with the reason. ``compared_on``: names of the images.

    Raises:
        DataError: An image to compare on cannot be read.
        JobError: The weights do not come back as they were; or no form could be made.
    """
    cfg = Config.fromfile(job["config"], use_environment_variables=False)
    out = Path(job["out"])
    model = load_model(cfg, Path(job["checkpoint"]), sha256=job["sha256"], device="cpu")
    divisor = _divisor(model.net)
    tiles, names = _tiles(cfg, [Path(file) for file in job["images"]], emit, divisor)
    expected = [_original(model, tile) for tile in tiles]
    (out / CONFIG).write_text(portable_config(cfg).pretty_text, encoding="utf-8")
    (out / CLASSES).write_text(json.dumps(_classes(cfg, model), indent=2) + "\n", encoding="utf-8")

    portable = Portable(model.net).eval()
    makers: Mapping[str, tuple[str, Callable[[Path], Logits]]] = {
        "safetensors": (WEIGHTS, lambda file: _safetensors(model.net, cfg, file)),
        "onnx": (ONNX, lambda file: _onnx(portable, model.classes, file)),
        "torch": (PROGRAM, lambda file: _program(portable, file)),
    }
    files, failed = [], []
    for done, form in enumerate(job["forms"]):
        name, make = makers[form]
        emit("progress", done=done, total=len(job["forms"]), name=name)
        try:
            found = _compare(make(out / name), tiles, expected, takes_batches=form != "torch")
        except (ImportError, MemoryError, OSError):
            raise
        except Exception as error:  # exporters raise whatever they run into
            if form == "safetensors":
                raise
            (out / name).unlink(missing_ok=True)
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            failed.append({"name": name, "reason": f"{type(error).__name__}: {reason}"})
            emit("warning", problem=f"{name} is not written: {type(error).__name__}: {reason}")
            continue
        size = (out / name).stat().st_size
        files.append({"name": name, "size_bytes": size, "sha256": file_sha256(out / name), **found})
    if not files:
        raise JobError(f"no form of the model could be written: {failed[0]['reason']}")
    return {
        "files": files,
        "failed": failed,
        "compared_on": names,
        "classes": list(model.classes),
        "divisor": divisor,
        "num_weights": sum(value.numel() for value in model.net.parameters()),
    }


def portable_config(cfg: Config) -> Config:
    """Return what is needed to build a config's model, and how it reads images: no paths, no training."""
    wanted = {
        "default_scope": cfg.get("default_scope", "mmseg"),
        "model": json_like(cfg.model),
        "test_pipeline": json_like(cfg.get("test_pipeline") or []),
    }
    if cfg.get("custom_imports"):
        wanted["custom_imports"] = json_like(cfg.custom_imports)
    return Config(wanted)


def _classes(cfg: Config, model: TrainedModel) -> dict[str, Any]:
    labels = labels_of(cfg, model)
    return {
        "classes": list(model.classes),
        "palette": [list(colour) for colour in model.palette],
        "mask_values": list(range(labels.first, labels.first + len(model.classes))),
        "no_data": labels.no_data,
        "input": {"name": "image", "channels": "RGB", "range": [0, 255], "layout": "NCHW"},
        "output": {"name": "logits", "layout": "NCHW", "num_channels": model.num_channels},
        "windows": None
        if model.windows is None
        else {"size": list(model.windows.size), "stride": list(model.windows.stride)},
    }


# -- what to compare on


def _tiles(
    cfg: Config, images: Sequence[Path], emit: Emit, divisor: int
) -> tuple[list[torch.Tensor], list[str]]:
    """Return crops, uint8 RGB of shape ``(1, 3, H, W)`` and of different sizes, and what they are from."""
    files = list(images) or _validation_images(cfg)
    if not files:
        emit(
            "warning",
            problem="No data set and no image is at hand: the forms are compared on noise, not on images.",
        )
        noise = np.random.RandomState(0).randint(0, 256, (512, 512, 3)).astype(np.uint8)
        pictures, names = [noise], ["noise"]
    else:
        pictures, names = [_read(file) for file in files], [file.name for file in files]
    tiles = []
    for number, picture in enumerate(pictures):
        height, width = (min(side, _MAX_PIXELS) for side in picture.shape[:2])
        wanted = [(height, width)]
        if number == 0:  # another size, and neither of its sides a round number
            wanted.append((height * 5 // 8 - 3, width * 3 // 4 - 5))
        for rows, columns in wanted:
            rows, columns = (side // divisor * divisor for side in (rows, columns))
            if min(rows, columns) < _MIN_SIDE:
                continue
            crop = np.ascontiguousarray(picture[:rows, :columns].transpose(2, 0, 1))
            tiles.append(torch.from_numpy(crop)[None])
    if not tiles:
        raise DataError(
            f"{', '.join(names)}: too small to compare on; {_MIN_SIDE} pixels a side are needed.",
            "Give larger images (--images).",
        )
    return tiles, names


def _read(file: Path) -> NDArray[np.uint8]:
    with open_picture(file) as picture:
        return picture.read(0, min(picture.height, _MAX_PIXELS)).rgb


def _validation_images(cfg: Config) -> list[Path]:
    """Return the first and the middle image of the validation set, where it is there."""
    loader = cfg.get("val_dataloader")
    if not loader:
        return []
    try:
        data = DATASETS.build(json_like(loader["dataset"]))
        return [Path(data.get_data_info(at)["img_path"]) for at in sorted({0, len(data) // 2})]
    except (OSError, LookupError, ValueError, TypeError, AssertionError):
        return []


def _original(model: TrainedModel, tile: torch.Tensor) -> torch.Tensor:
    return model.logits(tile.flip(1), windows=None)  # flip: as mmsegmentation reads it


def _divisor(net: Any) -> int:
    """Return what sides must be a multiple of, where the preprocessor would pad them to one; else 1."""
    test_cfg = getattr(net.data_preprocessor, "test_cfg", None) or {}
    return int(test_cfg.get("size_divisor") or 1)


def _compare(
    again: Logits, tiles: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], *, takes_batches: bool
) -> dict[str, Any]:
    """Run what was written, and return how far it is from the original.

    Raises:
        JobError: Too far.
    """
    furthest, same, pixels, sizes = 0.0, 0, 0, []
    for tile, logits in zip(tiles, expected, strict=True):
        found = again(tile.float())
        if found.shape != logits.shape:
            raise JobError(f"it gives {tuple(found.shape)} instead of {tuple(logits.shape)}")
        difference = float((found - logits).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(logits.abs().max())):
            raise JobError(f"its logits differ by up to {difference:.3g} from the original's")
        furthest = max(furthest, difference)
        same += int((_labels(found) == _labels(logits)).sum())
        pixels += found.shape[2] * found.shape[3]
        sizes.append(list(tile.shape[2:]))
    if takes_batches:
        several = again(tiles[-1].float().expand(3, -1, -1, -1).contiguous())
        furthest = max(furthest, float((several - expected[-1]).abs().max()))
        sizes.append([3, *tiles[-1].shape[2:]])
    return {"max_difference": furthest, "agreement": same / pixels, "sizes": sizes}


def _labels(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(1) if logits.shape[1] > 1 else logits > 0


# -- the forms


def _safetensors(net: nn.Module, cfg: Config, file: Path) -> Logits:
    """Write the weights; return the model that they make with the config alone."""
    from safetensors.torch import load_file, save_file

    # What only training uses stays out: it may never have been in the checkpoint.
    state = {
        name: value.detach().clone().contiguous()
        for name, value in net.state_dict().items()
        if not name.startswith("auxiliary_head.") and ".loss_decode." not in name
    }
    save_file(state, str(file), metadata={"format": "pt"})
    found = load_file(str(file))
    if found.keys() != state.keys() or any(not torch.equal(found[name], state[name]) for name in state):
        raise JobError(f"{file.name} does not read back as it was written")
    fresh = build_model(portable_config(cfg))
    missing = fresh.load_state_dict(found, strict=False).missing_keys
    lacking = [
        name for name in missing if not name.startswith("auxiliary_head.") and "loss_decode" not in name
    ]
    if lacking:
        raise JobError(f"{file.name} lacks {', '.join(lacking[:3])}")
    return _in_inference(Portable(fresh).eval())


def _in_inference(module: Callable[[torch.Tensor], torch.Tensor]) -> Logits:
    def logits(image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return module(image)

    return logits


def _trace(portable: Portable, batch: int) -> torch.export.ExportedProgram:
    """Return the program for any height and width; of any batch where it is traced with several."""
    auto = torch.export.Dim.AUTO
    free = {0: auto, 2: auto, 3: auto} if batch > 1 else {2: auto, 3: auto}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(
            portable, (torch.rand(batch, 3, *_TRACED) * 255,), dynamic_shapes=(free,), strict=False
        )


def _program(portable: Portable, file: Path) -> Logits:
    """Write ``torch.export``'s program; return it as read again.

    One image at a time: with a free batch the program of torch's own attention keeps a condition on
    the traced one.
    """
    torch.export.save(_trace(portable, batch=1), file)
    return _in_inference(torch.export.load(file).module())


def _onnx(portable: Portable, classes: Sequence[str], file: Path) -> Logits:
    """Write ONNX; return it as onnxruntime runs it on the CPU."""
    import onnx
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _trace(portable, batch=2), (), None, dynamo=True, verbose=False, opset_version=_OPSET,
            input_names=["image"], output_names=["logits"],
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    axes = dict(zip((0, 2, 3), ("batch", "height", "width"), strict=True))
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    _rename_sizes(proto, {shape[at].dim_param: name for at, name in axes.items() if shape[at].dim_param})
    metadata = {"classes": json.dumps(list(classes), ensure_ascii=False), "channels": "RGB, 0 to 255"}
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(proto)
    onnx.save_model(proto, str(file))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def logits(image: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])

    return logits


def _rename_sizes(proto: Any, names: Mapping[str, str]) -> None:
    """Call free sizes by names that say something, also within expressions."""
    if not names:
        return
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbol.sub(lambda match: names[match.group(0)], dim.dim_param)
