"""Evaluating a trained model in a child: one confusion matrix for each image of a data set.

Each is added to a tally as soon as it is known. A child that is started again with the same tally continues
there. The scores are :mod:`mapsage_kaggle.metrics`' part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmseg.registry import DATASETS
from PIL import Image

from mapsage_kaggle.config.reading import as_list, mapping_or_empty, plain_copy
from mapsage_kaggle.data.datasets import area_of
from mapsage_kaggle.engine.fast.prediction import at_own_size
from mapsage_kaggle.engine.jobs.child import Emit
from mapsage_kaggle.engine.jobs.inference import TrainedModel, View, Windows, load_model, windows_of
from mapsage_kaggle.engine.jobs.pipelining import ahead
from mapsage_kaggle.engine.matching import nothing_matches, says_nothing_matches
from mapsage_kaggle.engine.metric import confusion_matrix, mask_of_other_size
from mapsage_kaggle.engine.tiles import png
from mapsage_kaggle.errors import ConfigError, DataError
from mapsage_kaggle.imagery.reading import drawable
from mapsage_kaggle.messages import Message, joined_by, text_of
from mapsage_kaggle.metrics import add, open_tally, read_tally

_LOOK_AHEAD = 3
"""Images that are decoded while the network is busy."""
_NUM_EXAMPLES = 3
_EXAMPLE_PX = 320
_EXAMPLE_GAP_PX = 4
_IGNORED_GREY = 64


def run(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Count, and return ``{"classes", "palette", "images", "areas", "num_taken_over"}``.

    Args:
        job: ``config``, ``checkpoint``, ``sha256``, ``device``; ``split`` (``val`` or ``test``); ``windows``
            (None for the config's own, ``"whole"``, or ``{"size", "stride"}``), ``window_batch``; ``views``
            (pairs of scale and flip); ``tally`` (the file).
        emit: Called with ``progress``, ``done`` and ``total``.

    Raises:
        DataError: There is nothing to compare with.
        ConfigError: The config has no such data, or its pipeline flips images.
        CheckpointError: The checkpoint does not fit.
    """
    cfg = Config.fromfile(job["config"])
    model = load_model(cfg, Path(job["checkpoint"]), sha256=job["sha256"], device=job["device"])
    data = build_data(cfg, f"{job['split']}_dataloader")
    windows = _windows(job, model)
    views = tuple(View(scale=scale, flip=flip) for scale, flip in job["views"])
    ignored = ignore_index_of(cfg, f"{job['split']}_evaluator")
    images = [_identity(data.get_data_info(index)) for index in range(len(data))]
    file = Path(job["tally"])
    known = read_tally(file)
    shown = set(range(0, len(data), -(-len(data) // _NUM_EXAMPLES)))
    todo = [index for index, image in enumerate(images) if image not in known]
    with open_tally(file) as tally:
        done = len(data) - len(todo)
        emit("progress", done=done, total=len(data))
        for index, item in _ahead(data, todo):
            prediction, label = look(model, item, windows=windows, views=views)
            if index in shown:
                _draw(file.with_name(f"{file.stem}-{index}.png"), item, prediction, label, model, emit)
            counts = confusion_matrix(prediction, label, len(model.classes), ignored)
            add(tally, images[index], counts.tolist())
            done += 1
            emit("progress", done=done, total=len(data))
    return {
        "classes": list(model.classes),
        "palette": [list(colour) for colour in model.palette],
        "images": images,
        "areas": [area_of(Path(data.get_data_info(index)["img_path"])) for index in range(len(data))],
        "num_taken_over": len(data) - len(todo),
    }


def build_data(cfg: Config, loader: str) -> BaseDataset:
    """Return the data set of a config's data loader.

    Raises:
        ConfigError: There is no such data loader.
        DataError: Its files are missing, or it is empty.
    """
    settings = (cfg.get(loader) or {}).get("dataset")
    if settings is None:
        raise ConfigError(
            Message("{path} has no data loader {loader}.", cfg.filename, loader),
            "Give the config that the model was trained with.",
        )
    try:
        data: BaseDataset = DATASETS.build(plain_copy(settings))
    except FileNotFoundError as error:
        raise DataError(
            joined_by("", (f"{loader}: ", text_of(error), ".")),
            "Attach the data set, or name it: --set data_root=FOLDER",
        ) from error
    except ValueError as error:
        explained = nothing_matches(cfg) if says_nothing_matches(error) else None
        if explained is None:
            raise
        raise explained from error
    if len(data) == 0:
        raise DataError(Message("{loader} has no image.", loader), "Attach the whole data set.")
    return data


def look(
    model: TrainedModel,
    item: Mapping[str, Any],
    *,
    windows: Windows | None,
    views: Sequence[View],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class that a model gives each pixel of an image, and the label, both ``(H, W)``.

    ``item`` is from a data set's pipeline: ``inputs`` and ``data_samples``. Logits are resized to the image's
    own size before the classes are taken, as in mmsegmentation.

    Raises:
        DataError: It has no mask, or one of another size.
        ConfigError: The pipeline flips.
    """
    sample = item["data_samples"]
    if "gt_sem_seg" not in sample:
        raise DataError(
            Message("{path} has no mask to compare with.", sample.metainfo.get("img_path")),
            "Evaluate on a split with masks: --split val.",
        )
    if sample.metainfo.get("flip"):
        raise ConfigError("The test pipeline flips images.", "Take RandomFlip out of it.")
    label = sample.gt_sem_seg.data.squeeze(0)
    size = tuple(sample.metainfo.get("ori_shape", label.shape)[:2])
    if tuple(label.shape) != size:
        raise mask_of_other_size(str(sample.metainfo.get("img_path")), tuple(label.shape), size)
    logits = model.logits(item["inputs"].unsqueeze(0), windows=windows, views=views)
    prediction = model.labels(at_own_size(logits, {"ori_shape": size}, model.net))[0]
    return prediction, label.to(prediction.device)


def _draw(
    file: Path,
    item: Mapping[str, Any],
    prediction: torch.Tensor,
    label: torch.Tensor,
    model: TrainedModel,
    emit: Emit,
) -> None:
    """Write a picture of an image and its classes; one that cannot be drawn costs no score."""
    try:
        file.write_bytes(example(item, prediction, label, model.palette))
    except Exception as error:  # noqa: BLE001 - whatever a person's pipeline gives
        reason = f"{type(error).__name__}: {error}"
        emit(
            "warning",
            problem=f"No picture was drawn of {item['data_samples'].metainfo.get('img_path')}: {reason}",
        )


def example(
    item: Mapping[str, Any], prediction: torch.Tensor, label: torch.Tensor, palette: Sequence[Sequence[int]]
) -> bytes:
    """Return an image, its mask and the prediction side by side, as PNG; what is ignored is grey."""
    height, width = label.shape
    step = max(1, -(-max(height, width) // _EXAMPLE_PX))
    # The pipeline has blue, green, red; of other channels the first are drawn.
    shown = drawable(item["inputs"].permute(1, 2, 0).cpu().numpy(), blue_first=True)
    image = torch.from_numpy(shown).permute(2, 0, 1).float().unsqueeze(0)
    image = F.interpolate(image, (height, width), mode="bilinear", align_corners=False)[0]
    colours = torch.full((256, 3), _IGNORED_GREY, dtype=torch.uint8)
    colours[: len(palette)] = torch.tensor([list(colour) for colour in palette], dtype=torch.uint8)
    parts = [image.round().clamp(0, 255).byte().permute(1, 2, 0)]
    parts += [colours[classes.cpu().long().clamp(0, 255)] for classes in (label, prediction)]
    gap = torch.full((-(-height // step), _EXAMPLE_GAP_PX, 3), 255, dtype=torch.uint8)
    first, *others = (part[::step, ::step] for part in parts)
    joined = torch.cat([first, *(piece for other in others for piece in (gap, other))], dim=1)
    return png(Image.fromarray(joined.numpy()))


def ignore_index_of(cfg: Config, evaluator: str) -> int:
    """Return the label that a config's evaluator leaves out; mmsegmentation's default is 255."""
    first = next(iter(as_list(cfg.get(evaluator))), None)
    return int(mapping_or_empty(first).get("ignore_index", 255))


def _windows(job: Mapping[str, Any], model: TrainedModel) -> Windows | None:
    asked, batch = job["windows"], int(job["window_batch"])
    if asked == "whole":
        return None
    if asked is None:
        return windows_of(model.net.test_cfg or {}, batch=batch)
    return Windows(size=tuple(asked["size"]), stride=tuple(asked["stride"]), batch=batch)


def _ahead(data: BaseDataset, todo: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yield items in order, while threads decode the next few."""
    with ThreadPoolExecutor(_LOOK_AHEAD, thread_name_prefix="decode") as pool:
        try:
            for index, future in ahead(pool, partial(_item, data), todo, _LOOK_AHEAD):
                yield index, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _item(data: BaseDataset, index: int) -> Any:
    try:
        return data[index]
    except (OSError, ValueError, AttributeError, TypeError, cv2.error) as error:
        info = data.get_data_info(index)
        raise DataError(
            Message(
                "{path} or its mask cannot be read: {kind}: {why}.",
                info.get("img_path"),
                type(error).__name__,
                error,
            ),
            "Attach a complete copy of the data set.",
        ) from error


def _identity(info: Mapping[str, Any]) -> str:
    """Return what identifies an image with its mask: names and sizes in bytes."""
    parts = []
    for key in ("img_path", "seg_map_path"):
        path = Path(info[key]) if info.get(key) else None
        if path is not None and path.is_file():
            parts.append(f"{'/'.join(path.parts[-3:])} {path.stat().st_size}")
    return " | ".join(parts)
