"""Check some pairs before hours are spent on them, through the config's own pipeline.

What cannot work is refused with its file before training begins; what is merely odd is a warning. The samples
are made in processes of their own, so that the state of a pipeline is untouched when training starts.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from mapsage_kaggle.config.scale import trained_scale
from mapsage_kaggle.engine import seeding
from mapsage_kaggle.engine.building import num_inputs
from mapsage_kaggle.engine.drawing import in_forks, own_generators, seed_own, wrap_transforms
from mapsage_kaggle.engine.fast.transforms import MapsageFastPipeline
from mapsage_kaggle.engine.matching import check_files
from mapsage_kaggle.engine.reading import EVENTS_VARIABLE, NOT_ANSWERING, GuardedDataset
from mapsage_kaggle.errors import DataError
from mapsage_kaggle.messages import Message, settings_text
from mapsage_kaggle.outside import joined
from mapsage_kaggle.records import SCALE_KEY

MAX_PAIRS = 64
LOOK_S = 10.0
MANY_IGNORED = 0.5
"""A larger share of ignored pixels is a warning."""
_WORKERS = 2
_STOCK = ("mmseg.", "mmcv.", "mapsage_kaggle.")
"""Modules whose transforms leave labels as they were loaded."""
_WHITE = 255
_ENOUGH = 16
"""This many masks, or all there are, are taken for typical of the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a pipeline made of one pair.

    Attributes:
        unloadable: Why it cannot be loaded; empty where it can.
        unfit: What is wrong with the mask as a file; empty where nothing is.
        loaded: Pixels by label, in the whole mask as it was loaded; empty where a custom transform may change
            them.
        labels: Pixels by label, as the model gets them.
        sample: The first sample of a data set, as it is; None for the others.
        size: Height and width of the image as loaded; None where unknown, or changed by a custom transform.
    """

    image: str
    mask: str = ""
    unloadable: str = ""
    unfit: str = ""
    loaded: Mapping[int, int]
    labels: Mapping[int, int]
    sample: Any = None
    size: tuple[int, int] | None = None

    @property
    def values(self) -> set[int]:
        return {*self.loaded, *self.labels}


def look(runner: Any, model: nn.Module, classes: Sequence[str]) -> tuple[str, ...]:
    """Check some pairs to train and to validate on, and note the scale; return the warnings.

    Only data loaders with a :class:`GuardedDataset` are checked.

    Raises:
        DataError: Training or validating cannot work.
    """
    told: list[str] = []
    for name in ("train_dataloader", "val_dataloader"):
        is_training = name == "train_dataloader"
        if not is_training and runner.val_loop is None:
            continue
        dataset = getattr(runner, name).dataset
        if not isinstance(dataset, GuardedDataset):
            continue
        told += check_files(dataset, runner.cfg, name)
        seen = list(_see_some(dataset))
        _check_loadable(seen, strict=dataset.on_bad_image != "skip")
        _check_masks(dataset, seen)
        if seen and seen[0].sample is not None:
            _check_channels(model, seen[0], training=is_training)
        if is_training:
            told += _balance(dataset, seen, classes)
            note_scale(runner, seen)
    return tuple(told)


def note_scale(runner: Any, seen: Sequence[Seen] | None = None) -> None:
    """Note once for the run the scale of the training images: of those that were seen, else of a few."""
    dataset, hub = runner.train_dataloader.dataset, runner.message_hub
    if hub.get_info(SCALE_KEY, None) is not None:
        return
    if seen is None:
        seen = list(_see_some(dataset, _ENOUGH)) if isinstance(dataset, GuardedDataset) else ()
    sizes = [item.size for item in seen if not item.unloadable]
    scale = trained_scale(
        runner.cfg["train_dataloader"]["dataset"], [size for size in sizes if size is not None]
    )
    if scale is not None and None not in sizes:
        hub.update_info(SCALE_KEY, scale.to_json())


# --- looking ---------------------------------------------------------------------------------------------


class _Samples(Dataset[Seen]):
    def __init__(self, guarded: GuardedDataset) -> None:
        self._dataset = guarded.dataset
        self._notes: list[_Note] = []
        self._resized: list[str] = []
        self._is_wrapped = False

    def __getitem__(self, draw: tuple[int, bool]) -> Seen:
        index, with_sample = draw
        if not self._is_wrapped:
            os.environ.pop(EVENTS_VARIABLE, None)  # damage is reported when it is trained on
            wrap_transforms(self._dataset, self._noting)
            self._is_wrapped = True
        self._notes.clear()
        self._resized.clear()
        value = seeding.derive(seeding.LOOK, index)
        seeding.seed_sample(value)
        seed_own(own_generators(self._dataset), value)
        image = ""
        try:
            if hasattr(self._dataset, "get_data_info"):
                image = str(self._dataset.get_data_info(index).get("img_path", ""))
            sample = self._dataset[index]
        except MemoryError:
            return Seen(image="", loaded={}, labels={})
        except Exception as error:  # noqa: BLE001 - a pipeline may raise anything
            passing = isinstance(error, OSError) and error.errno in NOT_ANSWERING
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return self._seen(image, None, unloadable="" if passing else reason)
        return self._seen(image, sample, sample=sample if with_sample else None)

    def _noting(self, transform: Any) -> Any:
        """Return a transform that notes; of several in one, which give the same samples, each by itself."""
        if isinstance(transform, MapsageFastPipeline):
            return Compose([self._noting(item) for item in transform.transforms])
        return _Noting(transform, self._notes, self._resized)

    def _seen(self, image: str, made: Any, **found: Any) -> Seen:
        note = self._notes[0] if self._notes else None
        packed = made.get("data_samples") if isinstance(made, dict) else None
        truth = getattr(packed, "gt_sem_seg", None)
        size = getattr(packed, "metainfo", {}).get("ori_shape")
        labels = truth.data.numpy() if truth is not None else None
        is_flat = labels is not None and len(labels) == 1
        return Seen(
            image=image,
            mask=note.file if note is not None else "",
            unfit=_unfit(note, becomes_flat=is_flat) if note is not None else "",
            loaded=_counts(note.mask) if note is not None and note.is_final else {},
            labels=_counts(labels) if labels is not None else {},
            size=(int(size[0]), int(size[1])) if size is not None and not self._resized else None,
            **found,
        )


@dataclass(kw_only=True, slots=True)
class _Note:
    """A mask as a pipeline has loaded it.

    Attributes:
        is_stock: Whether mmsegmentation's own transform, or the kit's, has loaded it.
        is_final: Whether no custom transform has come since.
    """

    file: str
    mask: np.ndarray[Any, Any]
    is_stock: bool
    is_final: bool = True


class _Noting:
    """Wraps a transform, to note the mask once there is one, and a custom transform that resizes images."""

    def __init__(self, transform: Any, notes: list[_Note], resized: list[str]) -> None:
        self._transform, self._notes, self._resized = transform, notes, resized

    def __call__(self, results: Any) -> Any:
        is_stock = type(self._transform).__module__.startswith(_STOCK)
        if self._notes and not is_stock:
            self._notes[0].is_final = False
        before = _shape_in(results)
        results = self._transform(results)
        if not is_stock and before is not None and _shape_in(results) != before:
            self._resized.append(type(self._transform).__name__)
        mask = results.get("gt_seg_map") if isinstance(results, dict) else None
        if isinstance(mask, np.ndarray) and not self._notes:
            file = str(results.get("seg_map_path") or "")
            self._notes.append(_Note(file=file, mask=mask.copy(), is_stock=is_stock))
        return results

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transform, name)


def _shape_in(results: Any) -> tuple[int, ...] | None:
    image = results.get("img") if isinstance(results, dict) else None
    return image.shape[:2] if isinstance(image, np.ndarray) else None


def _see_some(guarded: GuardedDataset, most: int = MAX_PAIRS // 2) -> Iterator[Seen]:
    """Yield pairs that are spread evenly over a data set, as many as half the time allows."""
    end_s = time.monotonic() + LOOK_S / 2
    length = len(guarded)
    count = min(length, most)
    # From the middle of each part: the first and the last image of a data set are often not typical.
    draws = [((2 * step + 1) * length // (2 * count), step == 0) for step in range(count)]
    try:
        for seen in in_forks(_Samples(guarded), draws, num_workers=min(_WORKERS, 1 + count // 16)):
            yield seen
            if time.monotonic() > end_s:
                return
    except RuntimeError:
        # A worker was killed or hangs: the machine's fault, which training will report if it persists.
        return


def _counts(labels: np.ndarray[Any, Any]) -> dict[int, int]:
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _unfit(note: _Note, *, becomes_flat: bool) -> str:
    """Return what is wrong with a mask, as a file and as it was loaded; empty where nothing is."""
    if note.mask.ndim != 2 and not becomes_flat:
        shape = " x ".join(map(str, note.mask.shape))
        return Message(
            "is a picture in colours ({shape}), where one channel with a class for each pixel is needed",
            shape,
        )
    if note.mask.dtype != np.uint8 or not note.is_stock:
        return ""
    try:
        with Image.open(note.file) as picture:
            is_deep = picture.mode.startswith(("I", "F"))
            most = int(np.asarray(picture).max()) if is_deep else 0
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""  # of a format that the pipeline reads, and this does not
    if most > _WHITE:
        return Message(
            "has more than 8 bits and values up to {most}, of which the pipeline keeps the lower 8 bits", most
        )
    return ""


# --- judging ---------------------------------------------------------------------------------------------


def _check_loadable(seen: Sequence[Seen], *, strict: bool) -> None:
    lost = [item for item in seen if item.unloadable]
    if lost and (strict or len(lost) == len(seen)):
        unfit = next((item for item in lost if item.unfit), None)
        if unfit is not None:
            raise _no_mask(unfit)
        raise DataError(
            Message(
                "{image} or its mask cannot be loaded: {why} ({count} of the {total} pairs looked at).",
                lost[0].image,
                lost[0].unloadable,
                len(lost),
                len(seen),
            ),
            "Replace the file, or train with --on-bad-image skip to leave it out."
            if len(lost) < len(seen)
            else "Check the pipeline: this is not a single damaged file.",
        )


def _check_masks(guarded: GuardedDataset, seen: Sequence[Seen]) -> None:
    """Refuse files that are no masks, and labels that are no classes.

    Raises:
        DataError: There is one.
    """
    unfit = next((item for item in seen if item.unfit), None)
    if unfit is not None:
        raise _no_mask(unfit)
    masks = [item for item in seen if item.labels]
    ignored = guarded.ignore_index
    values = set[int]().union(*(item.values for item in masks))
    enough = len(masks) >= min(len(guarded), _ENOUGH)
    if enough and values == {ignored}:
        raise DataError(
            Message(
                "Every pixel of all {count} masks looked at is ignored ({ignored}), {name} among "
                "them: there is nothing to learn.",
                len(masks),
                ignored,
                masks[0].mask,
            ),
            "Set reduce_zero_label and ignore_index as the masks are written.",
        )
    if enough and ignored == _WHITE and values == {0, _WHITE} and not _may_be_rare(masks):
        white = next(item for item in masks if _WHITE in item.values)
        raise DataError(
            Message(
                "All {count} masks looked at hold 0 and 255 alone, such as {name}; 255 is ignored: "
                "only class 0 would be learned.",
                len(masks),
                white.mask,
            ),
            "Store the classes as 0 and 1: such as with Pillow, mask.point(lambda value: value // 255).",
        )
    classes = guarded.num_classes
    if classes is None:
        return
    for item in masks:
        beyond = sorted(value for value in item.values if not 0 <= value < classes and value != ignored)
        if beyond:
            refusal = guarded.no_class(item.mask or item.image, beyond[0])
            raise DataError(refusal.problem, refusal.remedy)


def _may_be_rare(masks: Sequence[Seen]) -> bool:
    """Return whether so little is ignored that other classes may merely be rare."""
    whole = sum(sum((item.loaded or item.labels).values()) for item in masks)
    white = sum((item.loaded or item.labels).get(_WHITE, 0) for item in masks)
    return white < 0.001 * whole


def _no_mask(seen: Seen) -> DataError:
    return DataError(
        Message("The mask {name} {why}.", seen.mask, seen.unfit),
        "Convert the masks to one channel of 8 bits, or name a transform that does in the pipeline.",
    )


def _check_channels(model: nn.Module, seen: Seen, *, training: bool) -> None:
    """Refuse images whose channels do not fit the model, after trying one.

    Raises:
        DataError: The model fails on a sample, and the channels are what does not fit.
    """
    sample = seen.sample
    inputs = sample.get("inputs") if isinstance(sample, dict) else None
    preprocess: Any = getattr(model, "data_preprocessor", None)
    takes, extract = num_inputs(model), getattr(model, "extract_feat", None)
    if preprocess is None or takes is None or extract is None:
        return
    if not isinstance(inputs, torch.Tensor) or inputs.ndim != 3:
        return
    means = getattr(preprocess, "mean", None)
    values = means.numel() if isinstance(means, torch.Tensor) else 0
    num = len(inputs)
    if num == takes and values in (0, 1, num):
        return
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), seeding.preserved_generators():
            found = preprocess({"inputs": [inputs], "data_samples": [sample["data_samples"]]}, training)
            extract(found["inputs"])
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        settings = [f"backbone.in_channels={num}"] if num != takes else []
        if values not in (0, 1, num):
            settings += ["data_preprocessor.mean=[127.5]", "data_preprocessor.std=[127.5]"]
        raise DataError(
            Message(
                "{image} has {num} channels as the pipeline gives it; the model's first layer takes "
                "{takes}, and data_preprocessor has {values} values of mean.",
                seen.image,
                num,
                takes,
                values,
            ),
            Message(
                "Have {takes} channels loaded; or, mmengine taking three values of mean or one: {settings}",
                takes,
                settings_text(f"model.{setting}" for setting in settings),
            ),
        ) from error
    finally:
        model.train(was_training)


def _balance(guarded: GuardedDataset, seen: Sequence[Seen], classes: Sequence[str]) -> list[str]:
    """Return warnings of classes that do not occur, and of many ignored pixels."""
    masks = [item for item in seen if item.labels]
    if not masks:
        return []
    told: list[str] = []
    values = set[int]().union(*(item.values for item in masks))
    count = guarded.num_classes or 0
    names = list(classes) if len(classes) == count else [f"class {label}" for label in range(count)]
    missing = [name for label, name in enumerate(names) if label not in values]
    if missing:
        told.append(
            Message(
                "In none of the {count} training masks looked at occurs {names}.", len(masks), joined(missing)
            )
        )
    pixels: Counter[int] = Counter()
    for item in masks:
        pixels.update(item.labels)
    share = pixels[guarded.ignore_index] / pixels.total()
    if share > MANY_IGNORED:
        most = max(masks, key=lambda item: item.labels.get(guarded.ignore_index, 0))
        told.append(
            Message(
                "{share} % of the pixels of the {count} training masks looked at are ignored; most "
                "are in {name}.",
                f"{100 * share:.0f}",
                len(masks),
                most.mask or most.image,
            )
        )
    return told
