"""Predictions beside the truth on a few validation images, kept as small PNGs for the report."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

from mapsage_kaggle.paths import prediction_file, predictions_below, replace_file

MAX_IMAGES = 3
SIDE_PX = 256
"""The longer side of a tile. With these bounds all tiles of a run take less than 2 MB, in 12 files."""

NO_DATA_COLOUR = (64, 64, 64)


class PredictionTiles(Hook):
    """Keeps what the model says of the same validation images at the first and the newest validation.

    It only reads what validation gives and draws no random number, so training does not depend on it; nor
    does a sample that cannot be drawn end a validation. The images are spread evenly over this rank's
    ``num_batches``; rank 0 alone should have one of these.

    Attributes:
        problem: Why the last validation's images could not be taken, if so.
    """

    def __init__(self, folder: Path, *, classes: int, palette: Sequence[Sequence[int]], num_batches: int):
        self._folder = folder
        colours = np.full((256, 3), NO_DATA_COLOUR, dtype=np.uint8)
        colours[:classes] = np.asarray(palette, dtype=np.uint8)[:classes]
        self._colours = colours.tobytes()
        self._batches = {num_batches * index // MAX_IMAGES for index in range(MAX_IMAGES)}
        self._taken: dict[str, dict[str, Image.Image]] = {}
        self.problem: Exception | None = None

    def before_val(self, runner: Any) -> None:
        self._taken.clear()
        self.problem = None

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if batch_idx not in self._batches or not outputs or not data_batch:
            return
        try:
            self._take(data_batch["inputs"][0], outputs[0])
        except Exception as error:  # noqa: BLE001 - whatever a person's data set or model gives
            self.problem = error

    def _take(self, image: torch.Tensor, sample: Any) -> None:
        if "gt_sem_seg" not in sample or "pred_sem_seg" not in sample:
            return
        name = re.sub(r"[^A-Za-z0-9-]+", "-", Path(str(sample.get("img_path", "image"))).stem)[-40:]
        truth = self._mask(sample.gt_sem_seg.data)
        tiles = {"truth": truth, "prediction": self._mask(sample.pred_sem_seg.data)}
        if image.dtype == torch.uint8 and image.shape[0] == 3:
            # Validation's images come as OpenCV reads them, blue first.
            pixels = np.ascontiguousarray(image.flip(0).permute(1, 2, 0).cpu().numpy())
            tiles["image"] = Image.fromarray(pixels).resize(truth.size, Image.Resampling.BOX)
        self._taken.setdefault(name, tiles)

    def _mask(self, labels: torch.Tensor) -> Image.Image:
        """Return a map of classes, ``(1, H, W)`` or ``(H, W)``, shrunk, in the classes' colours."""
        labels = labels.reshape(labels.shape[-2:])
        step = max(1, -(-max(labels.shape) // SIDE_PX))
        small = labels[::step, ::step].clamp(0, 255).to(torch.uint8).cpu().numpy()
        tile = Image.frombytes("P", (small.shape[1], small.shape[0]), np.ascontiguousarray(small).tobytes())
        tile.putpalette(self._colours)
        return tile

    def write(self, iteration: int) -> None:
        """Write the last validation's tiles; of the earlier ones the first stays.

        Raises:
            OSError: The folder cannot be written to.
        """
        self._folder.mkdir(exist_ok=True)
        for name, tiles in self._taken.items():
            for part in ("image", "truth"):
                path = self._folder / prediction_file(name, part)
                if part in tiles and not path.is_file():
                    replace_file(path, png(tiles[part]))
            replace_file(self._folder / prediction_file(name, iteration), png(tiles["prediction"]))
        for path in self._outdated(iteration):
            path.unlink(missing_ok=True)
        self._taken.clear()

    def try_to_write(self, iteration: int) -> str:
        """Write; return why that failed, else an empty string: no picture is worth a training."""
        try:
            self.write(iteration)
            problem = self.problem
        except Exception as error:  # noqa: BLE001 - whatever a person's data set or model gives
            problem = error
        if problem is None:
            return ""
        return getattr(problem, "strerror", None) or f"{type(problem).__name__}: {problem}"

    def _outdated(self, iteration: int) -> Iterator[Path]:
        """Yield what is neither of the first validation nor of this one, and images no longer used."""
        for found in predictions_below(self._folder):
            kept = {min(found.predictions, default=iteration), iteration}
            yield from (path for at, path in found.predictions.items() if at not in kept or at > iteration)
            if found.name not in self._taken and iteration not in found.predictions:
                yield from found.files


def keep_predictions(runner: Runner, folder: Path, *, anew: bool) -> PredictionTiles | None:
    """Keep validation's predictions on a few images, where the data set has colours for them.

    With ``anew`` existing ones are another run's, and are removed.
    """
    if runner.val_loop is None:
        return None
    if anew:
        shutil.rmtree(folder, ignore_errors=True)
    classes, palette = classes_and_palette(runner)
    if not classes or len(palette) != len(classes):
        return None
    num_batches = len(runner.val_dataloader)
    tiles = PredictionTiles(folder, classes=len(classes), palette=palette, num_batches=num_batches)
    runner.register_hook(tiles)
    return tiles


def classes_and_palette(runner: Runner) -> tuple[list[str], list[list[int]]]:
    """Return the names and colours of the classes, as far as the data set states them."""
    loader = runner.train_dataloader
    meta = getattr(getattr(loader, "dataset", None), "metainfo", None) or {}
    classes = [str(name) for name in meta.get("classes") or ()]
    return classes, [[int(value) for value in colour] for colour in meta.get("palette") or ()]


def png(tile: Image.Image) -> bytes:
    buffer = io.BytesIO()
    tile.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
