"""What a config's test pipeline does to one image: reading it, and the transforms before the model."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from numpy.typing import NDArray

from mapsage_kaggle.config.reading import type_name
from mapsage_kaggle.config.scale import RESIZES, at_scale
from mapsage_kaggle.config.testing import image_loaders, test_pipeline_of, why_not_single
from mapsage_kaggle.errors import ConfigError, DataError
from mapsage_kaggle.imagery.reading import (
    Picture,
    Pixels,
    ReadOptions,
    open_loaded,
    open_picture,
    read_bands,
)
from mapsage_kaggle.messages import Message


class TestPipeline:
    """The transforms that a config's test data go through.

    Args:
        cfg: The config.
        scale: The factor by which an image is resized; None: as the pipeline resizes it.

    Attributes:
        reads_rgb: Whether it reads three colours of 8 bits, which the kit then does, also of scenes that do
            not fit into memory. Else :meth:`load` reads, as the config's own transforms do.
        blue_first: Whether :meth:`load` returns blue first, as OpenCV does.
        resizes: Whether it gives images another size, unless ``scale`` says which.
        transforms_channels: Whether a custom transform follows, which may change the channels.

    Raises:
        ConfigError: There is no such pipeline, or it makes several images of one.
    """

    __test__ = False  # no test class, whatever pytest takes its name for

    def __init__(self, cfg: Config, scale: float | None = None) -> None:
        pipeline = test_pipeline_of(cfg)
        problem = why_not_single(pipeline)
        if problem:
            raise ConfigError(
                Message("{path} is no config to make maps with: {problem}.", cfg.filename, problem),
                "It must begin with a transform that loads (Load…) and make one input of one image.",
            )
        loading = image_loaders(pipeline)
        left = [item for item in pipeline if not type_name(item.get("type")).startswith("Load")]
        self.resizes = any(type_name(item.get("type")) in RESIZES for item in left)
        if scale is not None:
            left = at_scale(left, scale)
        first = loading[0]
        self.blue_first = (
            type_name(first.get("type")) == "LoadImageFromFile"
            and first.get("imdecode_backend") != "tifffile"
        )
        colours = str(first.get("color_type", "color")).startswith("color")
        self.reads_rgb = len(loading) == 1 and self.blue_first and colours
        self._loading, self._left = loading, left
        self._as_float = bool(first.get("to_float32", False))
        self._of_thread, self._building = threading.local(), threading.Lock()
        own = (type(item).__module__ for item in self._steps()[1].transforms)
        self.transforms_channels = not all(
            name.startswith(("mmseg.", "mmcv.", "mapsage_kaggle.")) for name in own
        )

    def _steps(self) -> tuple[Compose, Compose]:
        """Return what loads, and the other transforms: of this thread alone, since some keep a state.

        mmsegmentation's ``ResizeShortestEdge`` stores an image's size in itself.
        """
        if not hasattr(self._of_thread, "steps"):
            with self._building:  # a transform of another scope switches that of all threads
                self._of_thread.steps = Compose(self._loading), Compose(self._left)
        found: tuple[Compose, Compose] = self._of_thread.steps
        return found

    def load(self, path: Path) -> NDArray[Any]:
        """Return an image of shape ``(H, W, C)`` as the config's own transforms read it.

        Raises:
            DataError: They cannot.
        """
        try:
            found = self._steps()[0]({"img_path": str(path), "seg_fields": []})
            image = np.asarray(found["img"])
        except MemoryError:
            raise
        except Exception as error:  # a person's own transform raises what it likes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                Message(
                    "{path} cannot be read as the config's test pipeline reads images: {why}.", path, reason
                ),
                "Give images like those that it was trained on.",
            ) from error
        return image if image.ndim == 3 else image[..., None]

    def __call__(self, pixels: Pixels) -> tuple[torch.Tensor, Any]:
        """Return the input, ``(C, H, W)`` (colours blue first), and the sample that knows its shape."""
        image: Any = np.ascontiguousarray(pixels.as_read())
        if self._as_float:
            image = image.astype(np.float32)
        shape = image.shape[:2]
        found = self._steps()[1]({"img": image, "img_shape": shape, "ori_shape": shape})
        return found["inputs"], found["data_samples"]


def open_as_trained(
    path: Path, prepare: TestPipeline, options: ReadOptions, wanted: int | None
) -> AbstractContextManager[Picture]:
    """Open an image: as 8-bit colours, or whole as the config's own transform reads it.

    ``options`` say how to read what does not say it itself; ``wanted`` is how many channels the model takes,
    None where that is not known.

    Raises:
        DataError: It cannot be read.
        MachineError: It needs rasterio, which is missing.
    """
    if prepare.reads_rgb:
        return open_picture(path, options)
    samples, valid = _samples(path, prepare, options, wanted)
    return open_loaded(path, samples, blue_first=prepare.blue_first, valid=valid, is_named=options.is_named)


def _samples(
    path: Path, prepare: TestPipeline, options: ReadOptions, wanted: int | None
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """Return an image as the test pipeline reads it; bands where it gives other channels than wanted.

    Of bands it is known which pixels have data. OpenCV, by which mmsegmentation reads, takes only some of the
    TIFFs of more than three bands.
    """
    problem: DataError | None = None
    if not options.bands:
        try:
            samples = prepare.load(path)
            if wanted in (None, samples.shape[2]) or prepare.transforms_channels:
                return samples, None
        except DataError as error:
            problem = error
    if wanted is None:
        raise problem or DataError(Message("{path} cannot be read by bands.", path), "Leave --bands out.")
    return read_bands(path, wanted, options, blue_first=prepare.blue_first)
