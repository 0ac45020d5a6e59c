"""Inference with a trained model: what evaluating, predicting and exporting share.

    model = load_model(cfg, Path("best_mIoU_iter_8000.pth"))
    logits = model.logits(images, windows=model.windows)      # (N, classes, H, W)
    labels = model.labels(logits)                              # (N, H, W)

Given the same input, ``logits`` are those of mmsegmentation's ``model.inference``: its ``test_cfg`` says
whole images or windows, which are placed and averaged as there. Beyond that, windows go through the network
several at a time, and several views of an image (flipped, scaled) may be averaged.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample

import mapsage_kaggle.engine.register  # noqa: F401 - registers the kit's data sets
from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.config.reading import dataset_of
from mapsage_kaggle.engine import seeding
from mapsage_kaggle.engine.building import build_model as build_as_mmengine
from mapsage_kaggle.engine.building import drawing_modules
from mapsage_kaggle.engine.fast.prediction import along
from mapsage_kaggle.engine.problems import known_problem
from mapsage_kaggle.engine.shapes import dataset_class, dataset_classes, places_of_classes
from mapsage_kaggle.errors import CheckpointError, ConfigError, MachineError, UsageError
from mapsage_kaggle.machine import keep_freed_memory
from mapsage_kaggle.messages import Message, joined_by
from mapsage_kaggle.outside import joined

Flip = Literal["", "horizontal", "vertical", "both"]
_FLIPPED_AXES: Mapping[Flip, tuple[int, ...]] = {
    "": (),
    "horizontal": (3,),
    "vertical": (2,),
    "both": (2, 3),
}
_MAX_NAMED = 3
_SEEN_EVERY = 8
"""The stride of the pixels that decide what a model draws for an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Windows that slide over an image, as in mmsegmentation's ``test_cfg`` with ``mode="slide"``.

    Attributes:
        size: Height and width in pixels; less where the image is smaller.
        stride: From one to the next, down and to the right, in pixels; at most ``size``.
        batch: How many go through the network at once.

    Raises:
        UsageError: The stride leaves pixels out, or ``batch`` is less than 1.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    batch: int = 4

    def __post_init__(self) -> None:
        fits = all(0 < stride <= size for stride, size in zip(self.stride, self.size, strict=True))
        if not fits or self.batch < 1:
            raise UsageError(
                Message(
                    "Windows of {size} pixels with a stride of {stride} leave pixels out.",
                    self.size,
                    self.stride,
                ),
                "The stride must be above zero and no more than the window.",
            )

    def places(self, height: int, width: int) -> tuple[tuple[int, int, int, int], ...]:
        """Return top, bottom, left and right of each window, row by row, all of one size."""
        return tuple(
            (top, bottom, left, right)
            for top, bottom in along(height, self.size[0], self.stride[0])
            for left, right in along(width, self.size[1], self.stride[1])
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One view of an image.

    Attributes:
        scale: The factor on height and width before the network sees it.
        flip: ``horizontal`` mirrors left and right, ``vertical`` top and bottom.
    """

    scale: float = 1.0
    flip: Flip = ""


PLAIN = (View(),)


class TrainedModel:
    """A segmentor with its weights, in evaluation mode, on one device.

    Args:
        net: mmsegmentation's segmentor.
        classes: Their names, by index.
        palette: Their colours, RGB, 0 to 255.
        device: Where it runs.
        meta: The checkpoint's ``meta``, as mmengine writes it.
        half: Whether it computes in half precision: float16 on a GPU, bfloat16 on a CPU.

    Attributes:
        windows: Those of the config's ``test_cfg``; None for whole images.
        draws: Classes of modules that draw random numbers at inference; what they draw follows from the
            image.
    """

    def __init__(
        self,
        net: EncoderDecoder,
        *,
        classes: tuple[str, ...],
        palette: tuple[tuple[int, int, int], ...],
        device: torch.device,
        meta: Mapping[str, Any],
        half: bool = False,
    ) -> None:
        self.net = net.eval().requires_grad_(False).to(device)
        self.classes = classes
        self.palette = palette
        self.device = device
        self.meta = meta
        self.windows = windows_of(net.test_cfg or {})
        self.draws = drawing_modules(net)
        self._half = torch.float16 if device.type == "cuda" else torch.bfloat16
        self._is_half = half

    @property
    def num_channels(self) -> int:
        """Channels of the logits: one per class, or 1 for a class against its absence."""
        return int(self.net.out_channels)

    def logits(
        self,
        images: torch.Tensor,
        *,
        windows: Windows | None,
        views: Sequence[View] = PLAIN,
    ) -> torch.Tensor:
        """Return the logits of images of one size.

        Args:
            images: uint8 or float in 0 to 255, of shape ``(N, C, H, W)``; three channels are blue, green,
                red, as mmsegmentation reads them. The config's ``data_preprocessor`` does the rest.
            windows: Those that slide over them; None for whole images.
            views: Those to average over, at least one.

        Returns:
            float32 of shape ``(N, channels, H, W)``.
        """
        samples = [SegDataSample(metainfo={"ori_shape": tuple(images.shape[2:])}) for _ in images]
        found = self.net.data_preprocessor({"inputs": list(images), "data_samples": samples}, False)
        logits = self.logits_of_inputs(found["inputs"], windows=windows, views=views)
        # What the preprocessor pads, it pads at the bottom and on the right.
        return logits[:, :, : images.shape[2], : images.shape[3]]

    @torch.inference_mode()
    def logits_of_inputs(
        self,
        inputs: torch.Tensor,
        *,
        windows: Windows | None,
        views: Sequence[View] = PLAIN,
    ) -> torch.Tensor:
        """As :meth:`logits`, of preprocessed images: normalised float32, of shape ``(N, C, H, W)``."""
        inputs = inputs.to(self.device)
        first, *others = views
        total = self._view(inputs, first, windows)
        for view in others:
            total.add_(self._view(inputs, view, windows))
        return total.div_(len(views)) if others else total

    def labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the class of each pixel: int64 of shape ``(N, H, W)`` from ``(N, channels, H, W)``."""
        if self.num_channels == 1:
            return (logits.sigmoid() > self.net.decode_head.threshold).long().squeeze(1)
        return logits.argmax(dim=1)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the classes' probabilities, of the logits' shape."""
        return logits.sigmoid() if self.num_channels == 1 else logits.softmax(dim=1)

    def _view(self, inputs: torch.Tensor, view: View, windows: Windows | None) -> torch.Tensor:
        size = inputs.shape[2:]
        seen = inputs
        if view.scale != 1.0:
            scaled = [max(1, int(side * view.scale + 0.5)) for side in size]
            seen = F.interpolate(seen, scaled, mode="bilinear", align_corners=False)
        axes = _FLIPPED_AXES[view.flip]
        if axes:
            seen = seen.flip(axes)
        logits = self._whole(seen) if windows is None else self._slide(seen, windows)
        if axes:
            logits = logits.flip(axes)
        if logits.shape[2:] != size:
            align_corners = bool(self.net.align_corners)
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
        return logits

    def _whole(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.draws and len(inputs) > 1:  # what is drawn for one must not follow from the others
            return torch.cat([self._whole(one) for one in torch.split(inputs, 1)])
        # Also where it is not known to draw, as with a dropout left on in its code; then without a look at
        # the image, for which a GPU would have to be waited for.
        seen = inputs[..., ::_SEEN_EVERY, ::_SEEN_EVERY].cpu().numpy().tobytes() if self.draws else b""
        seeding.seed_all(zlib.crc32(seen))
        # A torch.Size here is how mmsegmentation's heads are told the size to enlarge to.
        metas = [{"img_shape": inputs.shape[2:], "ori_shape": tuple(inputs.shape[2:])}] * len(inputs)
        with torch.autocast(self.device.type, dtype=self._half, enabled=self._is_half):
            logits = self.net.encode_decode(inputs, metas)
        return logits.to(torch.float32)

    def _slide(self, inputs: torch.Tensor, windows: Windows) -> torch.Tensor:
        num, _, height, width = inputs.shape
        total = torch.zeros(num, self.num_channels, height, width, device=self.device)
        count = torch.zeros(1, 1, height, width, device=self.device)
        places = windows.places(height, width)
        for top, bottom, left, right in places:
            count[:, :, top:bottom, left:right] += 1
        todo = [(image, place) for place in places for image in range(num)]
        for start in range(0, len(todo), windows.batch):
            some = todo[start : start + windows.batch]
            crops = torch.stack([inputs[image, :, t:b, x:r] for image, (t, b, x, r) in some])
            for (image, (t, b, x, r)), logits in zip(some, self._whole(crops), strict=True):
                total[image, :, t:b, x:r] += logits
        return total.div_(count)


def windows_of(test_cfg: Mapping[str, Any], *, batch: int = 4) -> Windows | None:
    """Return the windows that a config's ``test_cfg`` asks for; None for whole images.

    Raises:
        ConfigError: It asks for something else, or for windows without saying which.
    """
    mode = test_cfg.get("mode", "whole")
    if mode == "whole":
        return None
    size, stride = test_cfg.get("crop_size"), test_cfg.get("stride")
    if mode != "slide" or not size or not stride:
        raise ConfigError(
            Message(
                "The model's test_cfg has mode={mode}, crop_size={size}, stride={stride}.",
                repr(mode),
                repr(size),
                repr(stride),
            ),
            "It must be whole, or slide with a crop_size and a stride of two numbers each.",
        )
    return Windows(size=(int(size[0]), int(size[1])), stride=(int(stride[0]), int(stride[1])), batch=batch)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device to run on: ``auto`` takes the first GPU there is, else the CPU.

    Raises:
        MachineError: A GPU was asked for, and torch sees none.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    if name.startswith("cuda") and not available:
        raise MachineError(
            Message("The device {name} was asked for, but torch sees no GPU.", name),
            "Use --device auto or cpu.",
        )
    return torch.device(name)


def build_model(cfg: Config) -> EncoderDecoder:
    """Return the config's segmentor with random weights, on the CPU.

    Raises:
        ConfigError: It cannot be built, or is no ``EncoderDecoder``.
    """
    try:
        net = build_as_mmengine(cfg)
    except Exception as error:  # whatever a config's parts raise
        known = known_problem(error)
        if known is not None:
            raise known from error
        raise ConfigError(
            Message(
                "The model of {path} cannot be built: {kind}: {why}.",
                cfg.filename,
                type(error).__name__,
                error,
            ),
            "Check the model and custom_imports.",
        ) from error
    if not isinstance(net, EncoderDecoder):
        raise ConfigError(
            Message("The model of {path} is a {kind}.", cfg.filename, type(net).__name__),
            "After training the kit works with mmsegmentation's EncoderDecoder and what derives from it.",
        )
    return net


def load_model(
    cfg: Config,
    checkpoint: Path,
    *,
    sha256: str | None = None,
    device: torch.device | str = "auto",
    half: bool = False,
    fast: bool = False,
) -> TrainedModel:
    """Return a config's model with a checkpoint's weights, ready for inference.

    Where the training averaged its weights (mmengine's ``EMAHook``), the average is what is loaded: the hook
    keeps it under ``state_dict``, and the weights that were being trained beside it.

    Args:
        cfg: The config as :func:`mapsage_kaggle.config.patch.for_inference` returns it.
        checkpoint: The file: one to resume from, or of weights alone.
        sha256: What the file's sha256 must be, as an inspection found it.
        device: ``auto``, or a device as torch names it.
        half: See :class:`TrainedModel`.
        fast: Whether parts may be replaced by faster ones that are equal to rounding, see
            :mod:`mapsage_kaggle.engine.fast.inference`.

    Raises:
        ConfigError: The model cannot be built.
        CheckpointError: The file is damaged, unsafe, not the one that was verified, or of another model or
            classes.
        MachineError: There is no such device.
    """
    where = choose_device(device) if isinstance(device, str) else device
    if where.type == "cpu":
        keep_freed_memory()
    net = build_model(cfg)
    found = load_checkpoint(checkpoint, sha256=sha256)
    meta = found.get("meta") or {}
    data = dataset_of(cfg)
    classes = dataset_classes(data) or tuple(f"class {index}" for index in range(int(net.num_classes)))
    check_classes(checkpoint, meta, classes)
    if len(classes) == 1:
        raise ConfigError(
            Message("The model tells {name} and its absence apart; only one class has a name.", *classes),
            "Name the absence too: two classes in the data set's metainfo, num_classes=2 and out_channels=1.",
        )
    load_weights(net, found.get("state_dict", found), checkpoint)
    if fast:
        from mapsage_kaggle.engine.fast.inference import hasten

        hasten(net)
    palette = _palette(data, len(classes))
    return TrainedModel(net, classes=classes, palette=palette, device=where, meta=meta, half=half)


def check_classes(checkpoint: Path, meta: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Check that a checkpoint that names its classes was trained on these.

    Raises:
        CheckpointError: It was trained on others.
    """
    trained = (meta.get("dataset_meta") or {}).get("classes")
    if trained is not None and tuple(trained) != tuple(classes):
        raise CheckpointError(
            Message(
                "{path} was trained on {trained} classes ({names}); the config has {count} ({others}).",
                checkpoint,
                len(trained),
                ", ".join(trained),
                len(classes),
                ", ".join(classes),
            ),
            "Give the config that it was trained with.",
        )


def load_weights(net: torch.nn.Module, state: Mapping[str, Any], checkpoint: Path) -> None:
    """Load a checkpoint's weights into a model; every one must be there and fit.

    Heads that only training uses may be missing, or superfluous.

    Raises:
        CheckpointError: The weights are of another model; the message names what differs.
    """
    wanted = net.state_dict()
    given = {name.removeprefix("module."): value for name, value in state.items()}
    given = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    missing = [name for name in wanted if name not in given and not _is_optional(name)]
    surplus = [name for name in given if name not in wanted and not _is_optional(name)]
    unequal = [
        f"{name} has {tuple(given[name].shape)}, the config's model {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    problems = [
        Message(template, joined(names, _MAX_NAMED))
        for names, template in (
            (missing, "{names} not in it"),
            (surplus, "{names} not in the config's model"),
            (unequal, "{names}"),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            Message(
                "{path} does not fit the config's model: {problems}.", checkpoint, joined_by("; ", problems)
            ),
            "Give the config that it was trained with.",
        )
    net.load_state_dict(given, strict=False)


def _is_optional(name: str) -> bool:
    """Return whether inference needs no such weight: other heads', the loss's own, BatchNorm's counter."""
    return is_of_training(name) or name.endswith(".num_batches_tracked")


def is_of_training(name: str) -> bool:
    """Return whether only training uses a weight: one of another head, or a loss's own."""
    return name.startswith("auxiliary_head.") or ".loss_decode." in name


def _palette(data: Mapping[str, Any], num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """Return the data set's colours, or made-up ones where it has none."""
    own = (data.get("metainfo") or {}).get("palette")
    every = (getattr(dataset_class(data), "METAINFO", None) or {}).get("palette") or ()
    places = range(num_classes) if own else places_of_classes(data, num_classes)
    given = own or every
    if len(given) > max(places, default=0):
        return tuple((int(red), int(green), int(blue)) for red, green, blue in map(given.__getitem__, places))
    return tuple((37 * index % 256, 101 * index % 256, 173 * index % 256) for index in range(num_classes))
