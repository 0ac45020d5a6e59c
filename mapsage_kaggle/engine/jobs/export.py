"""A trained model in forms that need neither this kit nor a pickle, each run again and compared.

The child of :func:`mapsage_kaggle.jobs.export.export`.

- ``model.safetensors``: the weights under mmsegmentation's names, for ``config.py``.
- ``model.onnx``: for any runtime that reads ONNX, of any batch, height and width.
- ``model.pt2``: ``torch.export``'s program, for one image of any height and width at a time.

The latter two take one tensor ``image``, float32 of shape ``(N, C, H, W)``, red, green and blue in 0 to 255
where they are three, and give ``logits``, float32 of shape ``(N, classes, H, W)``: what the config's
``data_preprocessor`` does to an image is part of the graph. They are made for one size, which is in their
names, where a model does not hold for any.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.utils import wrappers
from mmseg.registry import DATASETS
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from mapsage_kaggle.checkpoints.manifest import file_sha256
from mapsage_kaggle.config.reading import as_list, plain_copy, type_name
from mapsage_kaggle.config.scale import ScaleOptions, at_scale, choose_scale
from mapsage_kaggle.config.testing import image_loaders, test_pipeline_of
from mapsage_kaggle.engine import deterministic
from mapsage_kaggle.engine.building import num_inputs
from mapsage_kaggle.engine.jobs.child import Emit
from mapsage_kaggle.engine.jobs.inference import TrainedModel, build_model, is_of_training, load_model
from mapsage_kaggle.engine.jobs.labels import labels_of
from mapsage_kaggle.engine.jobs.preparing import TestPipeline
from mapsage_kaggle.errors import ConfigError, DataError, JobError
from mapsage_kaggle.imagery.reading import Pixels, drawable, open_picture
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import visible
from mapsage_kaggle.records import TrainedScale

WEIGHTS, ONNX, PROGRAM = "model.safetensors", "model.onnx", "model.pt2"
CONFIG, CLASSES = "config.py", "classes.json"

TOLERANCE = 1e-3
"""How far logits may be from the original's, relative to the largest of those (at least 1)."""

AGREEMENT = 0.99
"""The least share of pixels that must get the class that the original gives them."""

_OPSET = 18
_MAX_ROWS = 1024
_MAX_SIZE = (1024, 2048)
"""The larger of the sizes at which zoo configs take whole images, height first."""
_TRACED = (128, 160)
_DIVISORS = (32, 64)
"""Of which sides must be multiples, tried in turn for a model that does not take any."""
_MIN_SIDE = 64
_SEED = 0

Logits = Callable[[torch.Tensor], torch.Tensor]
"""``(N, C, H, W)`` to ``(N, classes, H, W)``."""


class Portable(nn.Module):
    """A segmentor whose input is an image as it is read, and whose output has the image's size.

    Images of three channels are RGB; of another number, as the config's test pipeline has them.

    Raises:
        JobError: The config's ``data_preprocessor`` is not mmsegmentation's.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        prepare: Any = net.data_preprocessor
        if not isinstance(prepare, SegDataPreProcessor):
            raise JobError(
                Message("The config's data_preprocessor is a {kind}.", type(prepare).__name__),
                "Export knows mmsegmentation's SegDataPreProcessor.",
            )
        self.net = net
        # mmsegmentation reads blue, green, red. A model that turns them around wants red, green, blue.
        self.channels = num_inputs(net) or 3
        self.turns = self.channels == 3 and not prepare._channel_conversion
        self.normalises = bool(prepare._enable_normalize)

    def padding(self) -> list[float]:
        """Return the value of a pixel, by channel, that is normalised to what the preprocessor pads with."""
        net: Any = self.net
        if not self.normalises:
            return [float(net.data_preprocessor.pad_val)] * self.channels
        prepare = net.data_preprocessor
        values: list[float] = (prepare.mean + prepare.pad_val * prepare.std).flatten().tolist()
        return values[::-1] if self.turns else values

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits, of shape ``(N, classes, H, W)``, for images of shape ``(N, C, H, W)``."""
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
            ``onnx`` and ``torch``; ``fixed``, whether those are made for one size only; ``scale``, that of
            the training; ``images`` to compare on, none for the validation set's first and middle one.
        emit: Called with progress, and a warning where there is no image.

    Returns:
        ``files``: for each form ``name``, ``size_bytes``, ``sha256``, ``max_difference`` (of logits),
        ``agreement`` (share of pixels of the same class), ``sizes`` that it was run at, and ``fixed``, the
        one height and width that it takes, or None. ``failed``: the forms that do not hold, with the reason.
        ``compared_on``: names of the images. ``classes``, ``divisor`` of the sides, ``draws`` and
        ``num_weights`` of the model.

    Raises:
        DataError: An image to compare on cannot be read, or is too small.
        JobError: The weights do not come back as they were, or the model takes no image.
    """
    cfg = Config.fromfile(job["config"], use_environment_variables=False)
    out = Path(job["out"])
    model = load_model(cfg, Path(job["checkpoint"]), sha256=job["sha256"], device="cpu")
    pictures, names = _pictures(cfg, num_inputs(model.net) or 3, [Path(file) for file in job["images"]], emit)
    tiles, divisor, only_size = _tiles(model, [_padded(picture, model.net) for picture in pictures], names)
    fixed = bool(job.get("fixed"))
    tiles = tiles[:1] if fixed else tiles
    batch = min(tiles, key=torch.numel).expand(3, -1, -1, -1).contiguous()
    expected = [_original(model, tile) for tile in (*tiles, batch)]
    portable = Portable(model.net).eval()
    if "safetensors" in job["forms"]:
        # What takes the model on sees images as `predict` does.
        factor = choose_scale(TrainedScale.from_json(job.get("scale")), ScaleOptions()).factor
        (out / CONFIG).write_text(portable_config(cfg, factor).pretty_text, encoding="utf-8")
        classes = {**_classes(cfg, model, portable, divisor, only_size), "scale": job.get("scale")}
        classes["prepare"] = _preparation(cfg, factor)
        (out / CLASSES).write_text(json.dumps(classes, indent=2) + "\n", encoding="utf-8")
    size: tuple[int, int] | None = (tiles[0].shape[2], tiles[0].shape[3]) if fixed else None
    makers: Mapping[str, tuple[str, Callable[[Path], Logits]]] = {
        "safetensors": (WEIGHTS, lambda file: _safetensors(model.net, cfg, file)),
        "onnx": (ONNX, lambda file: _onnx(portable, model, size, file)),
        "torch": (PROGRAM, lambda file: _program(portable, size, file)),
    }
    files, failed = [], []
    for done, form in enumerate(job["forms"]):
        plain_name, make = makers[form]
        name = _sized(plain_name, size)
        emit("progress", done=done, total=len(job["forms"]), name=name)
        try:
            takes_batches = form == "safetensors" or (form == "onnx" and not fixed)
            takes_batches = takes_batches and not model.draws  # which draws anew for each image
            inputs = (*tiles, batch) if takes_batches else tiles
            found = _compare(make(out / name), inputs, expected[: len(inputs)], model.labels)
        except (ImportError, MemoryError, OSError):
            raise
        except Exception as error:  # exporters raise whatever they run into
            if form == "safetensors":
                raise
            (out / name).unlink(missing_ok=True)
            failed.append({"name": name, "reason": _reason(error)})
            continue
        num_bytes = (out / name).stat().st_size
        sha256 = file_sha256(out / name)
        files.append({"name": name, "size_bytes": num_bytes, "sha256": sha256, "fixed": size, **found})
    return {
        "files": files,
        "failed": failed,
        "compared_on": names,
        "classes": list(model.classes),
        "divisor": divisor,
        "draws": list(model.draws),
        "num_weights": sum(value.numel() for value in model.net.parameters()),
    }


def _sized(name: str, size: tuple[int, int] | None) -> str:
    """Return a file's name with the one size that it takes, height first."""
    stem, dot, suffix = name.rpartition(".")
    return name if size is None else f"{stem}-{size[0]}x{size[1]}{dot}{suffix}"


def _reason(error: Exception) -> str:
    # torch names sizes by how they follow from the input's, which can fill pages.
    first = visible((str(error).strip().splitlines() or ["no message"])[0])
    return first if isinstance(error, JobError) else f"{type(error).__name__}: {first}"


def _pipeline(cfg: Config, factor: float | None) -> list[Any]:
    """Return the test pipeline, resizing images by ``factor``; None: as it resizes them."""
    kept = [item for item in test_pipeline_of(cfg) if type_name(item.get("type")) != "LoadAnnotations"]
    loading = [item for item in kept if type_name(item.get("type")).startswith("Load")]
    return kept if factor is None else [*loading, *at_scale(kept[len(loading) :], factor)]


def portable_config(cfg: Config, factor: float | None = None) -> Config:
    """Return the config with which plain mmsegmentation builds the model and runs it on an image."""
    pipeline = _pipeline(cfg, factor)
    wanted = {
        "default_scope": cfg.get("default_scope", "mmseg"),
        "model": plain_copy(cfg.model),
        "test_pipeline": plain_copy(pipeline),
    }
    # The kit's own only register what trains.
    imports = [
        name
        for name in as_list(cfg.get("custom_imports", {}).get("imports"))
        if not name.startswith("mapsage_kaggle.")
    ]
    if imports:
        wanted["custom_imports"] = {"imports": imports, "allow_failed_imports": False}
    return Config(wanted)


def _classes(
    cfg: Config, model: TrainedModel, portable: Portable, divisor: int, only_size: tuple[int, int] | None
) -> dict[str, Any]:
    labels = labels_of(cfg, model)
    return {
        "classes": list(model.classes),
        "palette": [list(colour) for colour in model.palette],
        "mask_values": list(labels.numbers),
        "no_data": labels.no_data,
        "input": {
            "name": "image",
            **_input_of(model),
            "layout": "NCHW",
            "divisor": divisor,
            "least_size": _padded_size(model.net),
            "only_size": only_size,
            "padding": portable.padding(),
        },
        "output": {
            "name": "logits",
            "layout": "NCHW",
            "num_channels": model.num_channels,
            "align_corners": bool(model.net.align_corners),
            "threshold": model.net.decode_head.threshold if model.num_channels == 1 else None,
        },
        "read": _loading(cfg),
        "windows": None
        if model.windows is None
        else {"size": list(model.windows.size), "stride": list(model.windows.stride)},
    }


def _loading(cfg: Config) -> dict[str, Any]:
    """Return the transform of the test pipeline that reads an image."""
    first = next(iter(image_loaders(test_pipeline_of(cfg))), {})
    return {**plain_copy(first), "type": type_name(first.get("type"))}


def _input_of(model: TrainedModel) -> dict[str, Any]:
    num = num_inputs(model.net) or 3
    if num == 3:
        return {"channels": "RGB", "range": [0, 255]}
    return {"channels": f"{num}, as the config's test pipeline loads them", "num_channels": num}


def _preparation(cfg: Config, factor: float | None) -> list[dict[str, Any]]:
    """Return what the test pipeline does to an image between reading and packing it."""
    steps = []
    for item in _pipeline(cfg, factor):
        name = type_name(item.get("type"))
        if not name.startswith(("Load", "Pack")):
            steps.append({"type": name, **{key: value for key, value in item.items() if key != "type"}})
    return steps


# -- what to compare on


def _pictures(
    cfg: Config, channels: int, images: Sequence[Path], emit: Emit
) -> tuple[list[torch.Tensor], list[str]]:
    """Return images as the test pipeline prepares them, of shape ``(C, H, W)``, and their names.

    Three colours are uint8 RGB; what the pipeline loads otherwise stays as it is.
    """
    files = list(images) or _validation_images(cfg)
    try:
        prepare: TestPipeline | None = TestPipeline(cfg)
    except ConfigError:  # none that makes one input of one image
        prepare = None
    if files:
        pictures, names = [_read(file, prepare) for file in files], [file.name for file in files]
    else:
        emit(
            "warning",
            problem="No data set and no image is at hand: the forms are compared on noise, not on images.",
        )
        noise = np.random.RandomState(0).randint(0, 256, (512, 512, channels)).astype(np.uint8)
        pictures = [Pixels(rgb=noise, valid=None) if channels == 3 else _loaded(noise)]
        names = ["noise"]
    if prepare is None:
        inputs = [torch.from_numpy(picture.as_read().copy()).permute(2, 0, 1) for picture in pictures]
    else:
        inputs = [prepare(picture)[0] for picture in pictures]
    # What is read as colours begins with blue.
    return [
        found if picture.samples is not None else found.flip(0).to(torch.uint8)
        for picture, found in zip(pictures, inputs, strict=True)
    ], names


def _padded(picture: torch.Tensor, net: Any) -> torch.Tensor:
    """Return a picture of the size that the preprocessor pads it to."""
    divisor, (height, width) = _divisor(net), picture.shape[1:]
    least = _padded_size(net) or (1, 1)
    lines, columns = (
        -(-max(side, low) // divisor) * divisor for side, low in zip((height, width), least, strict=True)
    )
    return functional.pad(picture, (0, columns - width, 0, lines - height))


def _loaded(samples: NDArray[Any]) -> Pixels:
    return Pixels(rgb=drawable(samples, blue_first=True), valid=None, samples=samples)


def _tiles(
    model: TrainedModel, pictures: Sequence[torch.Tensor], names: Sequence[str]
) -> tuple[list[torch.Tensor], int, tuple[int, int] | None]:
    """Return crops of shape ``(1, C, H, W)`` that the model takes, the divisor of their sides, the only size.

    The first has the size at which the model is used: a window, or an image as it is prepared. Another size
    follows, neither of its sides a round number unless the model needs that; none where the model takes no
    other, as one with a table of positions that it does not resize.

    Raises:
        DataError: The images are too small.
        JobError: The model takes none of the sizes.
    """
    first = pictures[0]
    most = model.windows.size if model.windows is not None else _MAX_SIZE
    height, width = (min(side, limit) for side, limit in zip(first.shape[1:], most, strict=True))
    if min(height, width) < _MIN_SIDE:
        raise DataError(
            Message(
                "{names}: too small to compare on; {least} pixels a side are needed.",
                ", ".join(names),
                _MIN_SIDE,
            ),
            "Give larger images (--images).",
        )
    doubled = first.repeat(1, 2, 2)
    error: Exception | None = None
    alone: list[torch.Tensor] = []
    for divisor in dict.fromkeys((_divisor(model.net), *_DIVISORS)):
        smaller, larger = (height * 5 // 8 - 3, width * 3 // 4 - 5), (height * 3 // 2, width * 2)
        size, *others = (
            (rows // divisor * divisor, columns // divisor * divisor)
            for rows, columns in ((height, width), smaller, larger)
        )
        if min(size) < _MIN_SIDE:
            continue
        other = next(item for item in others if min(item) >= _MIN_SIDE and item != size)
        tiles = [doubled[None, :, :rows, :columns].contiguous() for rows, columns in (size, other)]
        same_size = [
            picture[None, :, : size[0], : size[1]].contiguous()
            for picture in pictures[1:]
            if picture.shape[1] >= size[0] and picture.shape[2] >= size[1]
        ]
        try:
            for tile in tiles:
                _original(model, tile)
        except (RuntimeError, ValueError, AssertionError) as problem:
            error = problem
            if tile is not tiles[0]:
                alone = alone or [tiles[0], *same_size]
            continue
        return [*tiles, *same_size], divisor, None
    if alone:
        only = alone[0].shape
        return alone, 1, (only[2], only[3])
    raise JobError(
        Message("the model takes no image of {height} x {width} pixels: {why}", height, width, error)
    )


def _read(file: Path, prepare: TestPipeline | None) -> Pixels:
    if prepare is not None and not prepare.reads_rgb:
        return _loaded(prepare.load(file)[:_MAX_ROWS])
    with open_picture(file) as picture:
        return picture.read(0, min(picture.height, _MAX_ROWS))


def _validation_images(cfg: Config) -> list[Path]:
    """Return the first and the middle image of the validation set, where it is there."""
    loader = cfg.get("val_dataloader")
    if not loader:
        return []
    try:
        data = DATASETS.build(plain_copy(loader["dataset"]))
        return [Path(data.get_data_info(at)["img_path"]) for at in sorted({0, len(data) // 2})]
    except (DataError, OSError, LookupError, ValueError, TypeError, AssertionError):
        return []


def _original(model: TrainedModel, tile: torch.Tensor) -> torch.Tensor:
    """Return the checkpoint's logits, with any random draws from one seed."""
    net = Portable(model.net).eval()
    torch.manual_seed(_SEED)
    with torch.no_grad():
        logits: torch.Tensor = net(tile.float())
    return logits


def _divisor(net: Any) -> int:
    """Return what sides must be a multiple of, where the preprocessor would pad them to one; else 1."""
    test_cfg = getattr(net.data_preprocessor, "test_cfg", None) or {}
    return int(test_cfg.get("size_divisor") or 1)


def _padded_size(net: Any) -> list[int] | None:
    """Return the height and width that the preprocessor pads smaller images to; None where it does not."""
    size = (getattr(net.data_preprocessor, "test_cfg", None) or {}).get("size")
    return list(size) if size else None


def _compare(
    again: Logits,
    inputs: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    labels: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, Any]:
    """Run what was written, and return how far it is from the original.

    Raises:
        JobError: Too far.
    """
    furthest, same, pixels, sizes = 0.0, 0, 0, []
    for image, logits in zip(inputs, expected, strict=True):
        torch.manual_seed(_SEED)
        found = again(image.float())
        if found.shape != logits.shape:
            raise JobError(
                Message("it gives {found} instead of {expected}", tuple(found.shape), tuple(logits.shape))
            )
        difference = float((found - logits).abs().max())
        if not difference <= TOLERANCE * max(1.0, float(logits.abs().max())):
            raise JobError(
                Message("its logits differ by up to {difference} from the original's", f"{difference:.3g}")
            )
        furthest = max(furthest, difference)
        agrees = labels(found) == labels(logits)
        same += int(agrees.sum())
        pixels += agrees.numel()
        sizes.append(list(image.shape[2:] if len(image) == 1 else (len(image), *image.shape[2:])))
    if same < AGREEMENT * pixels:
        raise JobError(
            Message("it gives {share} % of the pixels another class", f"{100 * (1 - same / pixels):.1f}")
        )
    return {"max_difference": furthest, "agreement": same / pixels, "sizes": sizes}


# -- the forms


def _safetensors(net: nn.Module, cfg: Config, file: Path) -> Logits:
    """Write the weights; return the model that they make with the config alone."""
    from safetensors.torch import load_file, save_file

    # What only training uses stays out: it may never have been in the checkpoint.
    weights = {name: value for name, value in net.state_dict().items() if not is_of_training(name)}
    state = {name: value.detach().clone().contiguous() for name, value in weights.items()}
    save_file(state, str(file), metadata={"format": "pt"})
    found = load_file(str(file))
    if found.keys() != state.keys() or any(not torch.equal(found[name], state[name]) for name in state):
        raise JobError(Message("{name} does not read back as it was written", file.name))
    fresh = build_model(portable_config(cfg))
    missing = fresh.load_state_dict(found, strict=False).missing_keys
    lacking = [name for name in missing if not is_of_training(name)]
    if lacking:
        raise JobError(Message("{name} lacks {names}", file.name, ", ".join(lacking[:3])))
    return torch.no_grad()(Portable(fresh).eval().__call__)


def _trace(
    portable: nn.Module, size: tuple[int, int] | None, *, batch: int = 1
) -> torch.export.ExportedProgram:
    """Return the program for one size; without one for any, and of any batch where traced with several.

    Raises:
        JobError: Traced for any size, it holds for the traced one alone.
    """
    auto = torch.export.Dim.AUTO
    free = {2: auto, 3: auto} if batch == 1 else {0: auto, 2: auto, 3: auto}
    channels = getattr(portable, "channels", 3)
    with warnings.catch_warnings(), torch.no_grad(), _sizes_kept_free() if size is None else nullcontext():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            portable,
            (torch.rand(batch, channels, *(size or _TRACED)) * 255,),
            dynamic_shapes=(free,) if size is None else None,
            strict=False,
        )
    (image,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == "image")
    # A free side is written as a symbol.
    if size is None and any(str(side).isdigit() for side in image.meta["val"].shape[2:]):
        raise JobError("its operators follow the height or the width of the image that it is traced with")
    return program


@contextmanager
def _sizes_kept_free() -> Iterator[None]:
    """Within it, tracing keeps sizes symbolic where that can be helped.

    mmsegmentation's ``resize`` and ``Upsample`` make whole numbers of sizes by ``int``, which asks for their
    values; ONNX takes the bins of adaptive pooling, as torch decomposes it, from them.
    """
    bins: Any = deterministic._bins
    pool = functional.adaptive_avg_pool2d
    wrappers.int = torch.sym_int
    functional.adaptive_avg_pool2d = deterministic.adaptive_avg_pool2d
    deterministic._bins = bins.__wrapped__  # caches none for the next time
    try:
        yield
    finally:
        del wrappers.int
        functional.adaptive_avg_pool2d, deterministic._bins = pool, bins


def _program(portable: Portable, size: tuple[int, int] | None, file: Path) -> Logits:
    """Write ``torch.export``'s program; return it as read again.

    One image at a time: with a free batch the program of torch's own attention keeps a condition on
    the traced one.
    """
    torch.export.save(_trace(portable, size), file)
    return torch.no_grad()(torch.export.load(file).module().__call__)


def _onnx(portable: Portable, model: TrainedModel, size: tuple[int, int] | None, file: Path) -> Logits:
    """Write ONNX; return it as onnxruntime runs it on the CPU.

    Raises:
        JobError: The model draws random numbers, which no other runtime draws alike.
    """
    import onnx
    import onnxruntime

    if model.draws:
        raise JobError(
            Message(
                "the model draws random numbers in use ({names}), which ONNX cannot", ", ".join(model.draws)
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _trace(portable, size, batch=2 if size is None else 1), (), None, dynamo=True, verbose=False,
            opset_version=_OPSET, input_names=["image"], output_names=["logits"],
        )  # fmt: skip
    assert program is not None
    proto = program.model_proto
    axes = dict(zip((0, 2, 3), ("batch", "height", "width"), strict=True))
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    _rename_sizes(proto, {shape[at].dim_param: name for at, name in axes.items() if shape[at].dim_param})
    channels = "RGB, 0 to 255" if portable.channels == 3 else _input_of(model)["channels"]
    metadata = {"classes": json.dumps(list(model.classes), ensure_ascii=False), "channels": channels}
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
    """Give free sizes descriptive names, also within expressions."""
    if not names:
        return
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbol.sub(lambda match: names[match.group(0)], dim.dim_param)
