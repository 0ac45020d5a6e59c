"""Reading samples from storage that may not answer, and from files that may be damaged."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from mapsage_kaggle.errors import TrainingError
from mapsage_kaggle.events import Event, EventLog
from mapsage_kaggle.messages import Message

EVENTS_VARIABLE = "MAPSAGE_EVENTS"
"""Names the event file to data workers, which hold no reference to the runner."""

MAX_SUBSTITUTES = 16
PATIENCE_S = (0.5, 2.0, 8.0)
"""Seconds to wait before each retry of storage that does not answer."""

NOT_ANSWERING = frozenset(
    {
        errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET,
        errno.ECONNABORTED, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EMFILE, errno.ENFILE,
    }
)  # fmt: skip


class StorageError(OSError):
    """Storage did not answer for so long that the process had better start over.

    It is no :class:`~mapsage_kaggle.errors.MapsageError`: another try may well succeed.
    """


def read_patiently(dataset: Any, index: int, prepare: Callable[[], None] = lambda: None) -> Any:
    """Return ``dataset[index]``, retried where it fails for the storage's sake, not the file's.

    Network mounts fail for a moment now and then. Taken for a damaged file, that would end a training, or
    substitute another sample, which the next run would not do. ``prepare`` is called before each try. Other
    errors of the data set pass through.

    Raises:
        StorageError: It failed each time.
    """
    for wait_s in (*PATIENCE_S, None):
        prepare()
        try:
            return dataset[index]
        except OSError as error:
            if error.errno not in NOT_ANSWERING:
                raise
            name, problem = name_of(dataset, index), os.strerror(error.errno)
            if wait_s is None:
                tries = len(PATIENCE_S) + 1
                raise StorageError(
                    Message("{name} could not be read in {tries} tries: {problem}.", name, tries, problem)
                ) from error
            emit(
                "storage",
                message=Message("{name} could not be read ({problem}); it is tried again.", name, problem),
            )
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def name_of(dataset: Any, index: int, key: str = "img_path") -> str:
    """Return the file of a sample, or its index where the data set does not tell."""
    if hasattr(dataset, "get_data_info"):
        return str(dataset.get_data_info(index).get(key, index))
    return f"index {index}"


def label_beyond(labels: torch.Tensor, *, num_classes: int, ignore_index: int) -> int | None:
    """Return a label that is neither a class, 0 to ``num_classes - 1``, nor ignored; None without one."""
    if labels.numel() == 0:
        return None
    least, most = (int(value) for value in torch.aminmax(labels))
    if least >= 0 and most < num_classes:
        return None
    beyond = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)]
    return int(beyond[0]) if beyond.numel() else None


def _first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def emit(kind: str, **data: Any) -> None:
    """Append a warning from a data worker, which does not know the iteration."""
    path = os.environ.get(EVENTS_VARIABLE)
    if path:
        EventLog(Path(path)).append(Event(event="warning", iteration=0, data={"kind": kind, **data}))


class GuardedDataset(Dataset[Any]):
    """A map-style data set around another one, of which some samples may not be loadable.

    Labels that are no class are refused here, by the mask's name: in training on a GPU they would end the
    process in the midst of a loss, and name nothing; in validation they would lower the score silently.

    Args:
        dataset: The data set, or the config to build it from.
        on_bad_image: ``fail`` ends training with the sample's name; ``skip`` substitutes another one.
        num_classes: Of the model; None to accept any label.
        ignore_index: The label that the model's losses, or the metric, leave out.
    """

    def __init__(
        self,
        dataset: Any,
        on_bad_image: str = "fail",
        num_classes: int | None = None,
        ignore_index: int = 255,
    ) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.on_bad_image = on_bad_image
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def full_init(self) -> None:
        """Load the data set's index, where it is loaded lazily."""
        if hasattr(self.dataset, "full_init"):
            self.dataset.full_init()

    @property
    def metainfo(self) -> Any:
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def first_loadable(
        self, indices: Iterable[int], *, prepare: Callable[[], None] = lambda: None, **where: Any
    ) -> tuple[int, Any]:
        """Return the first sample that can be loaded, with its index.

        The first few ``indices`` are tried, in order; ``prepare`` is called before each try. ``where`` goes
        into the warning of a damaged one, besides its file.

        Raises:
            TrainingError: The first cannot be loaded and none may be skipped, or too many cannot.
            StorageError: The storage does not answer.
        """
        for index in islice(indices, MAX_SUBSTITUTES):
            try:
                return index, read_patiently(self.dataset, index, prepare)
            except (MemoryError, StorageError):
                # The machine's fault and not the file's: the same sample must come in the next try.
                raise
            except Exception as error:  # a pipeline may raise anything on a damaged file
                name, why = name_of(self.dataset, index), _first_line(error)
                if self.on_bad_image != "skip":
                    mask = name_of(self.dataset, index, "seg_map_path")
                    # Most loaders do not say which of the two it is.
                    files = name if name in why or mask == str(index) else f"{name}, {mask}"
                    raise TrainingError(
                        Message("Sample {index} ({name}) cannot be loaded: {why}.", index, files, why),
                        "Replace the file, or train with --on-bad-image skip to leave it out.",
                    ) from error
                message = Message("{name} cannot be loaded, and is left out: {why}.", name, why.rstrip("."))
                emit("bad_image", **where, file=name, problem=why, message=message)
        raise TrainingError(
            Message("{count} samples in a row cannot be loaded, the last one {name}.", MAX_SUBSTITUTES, name),
            "Check the data set: this is not a single damaged file.",
        )

    def check_labels(self, index: int, sample: Any) -> None:
        """Refuse a sample with a label that is neither a class nor ignored.

        Raises:
            TrainingError: It has one.
        """
        truth = getattr(sample.get("data_samples") if isinstance(sample, dict) else None, "gt_sem_seg", None)
        classes = self.num_classes
        if truth is None or classes is None:
            return
        label = label_beyond(truth.data, num_classes=classes, ignore_index=self.ignore_index)
        if label is None:
            return
        raise self.no_class(name_of(self.dataset, index, "seg_map_path"), label)

    def no_class(self, mask: str, label: int) -> TrainingError:
        """Return the refusal of a mask with a label that is neither a class nor ignored."""
        classes = self.num_classes or 0
        return TrainingError(
            Message(
                "The mask {name} holds the label {label}; with num_classes = {classes}, labels are 0 "
                "to {most}, and {ignored} is ignored. reduce_zero_label is {reduces}.",
                mask,
                label,
                classes,
                classes - 1,
                self.ignore_index,
                _reduces_zero_label(self.dataset),
            ),
            "Where masks hold 0 for no data and class + 1 elsewhere, set reduce_zero_label = True; else map "
            "the label or correct num_classes.",
        )


@DATASETS.register_module(name="MapsageReadable")
class ReadableDataset(GuardedDataset):
    """A data set to validate on, of which samples that cannot be loaded count for nothing.

    Each is replaced by the next one that can be loaded, with all labels ignored: there are as many samples as
    before, and the metric counts no pixel of it. The arguments are those of :class:`GuardedDataset`.
    """

    def get_data_info(self, index: int) -> Any:
        return self.dataset.get_data_info(index)

    def __getitem__(self, index: int) -> Any:
        length = len(self.dataset)
        found, sample = self.first_loadable((index + step) % length for step in range(length))
        self.check_labels(found, sample)
        if found != index:
            sample["data_samples"].gt_sem_seg.data.fill_(self.ignore_index)
        return sample


def _reduces_zero_label(dataset: Any) -> bool:
    while getattr(dataset, "dataset", None) is not None:
        dataset = dataset.dataset
    return bool(getattr(dataset, "reduce_zero_label", False))
