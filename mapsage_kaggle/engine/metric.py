"""mmsegmentation's IoU metric, counted in whole numbers, the same over any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import torch
import torch.distributed
from mmengine.dist import get_dist_info
from mmengine.registry import METRICS
from mmseg.evaluation import IoUMetric

from mapsage_kaggle.errors import DataError
from mapsage_kaggle.messages import Message

_MAX_TOLD_CLASSES = 32
"""Beyond this a confusion matrix is too long for a line of the event log."""


_EXACT_IN_FLOAT32 = 2**24
"""Pixels that OpenCV, which counts in single precision, counts exactly."""


@METRICS.register_module(name="MapsageIoUMetric")
class IntegerIoUMetric(IoUMetric):
    """``IoUMetric`` that counts pixels in int64, with all its options and its table.

    The stock metric adds up float32 histograms, which round beyond 2**24 pixels and depend on the
    order, and uses ``histc``, which has no deterministic kernel on CUDA. Here each sample adds to
    one confusion matrix; ranks add theirs. Samples that the sampler repeats, so that all ranks
    have the same number, count once. Nothing travels through files, so machines need no shared
    folder.

    Attributes:
        confusion: After :meth:`evaluate`, int64 of shape ``(C + 1, C + 1)``: pixels by label (row)
            and prediction (column); the last ones hold what is no class. Ignored pixels are out.
        per_class: After :meth:`evaluate`, ``{class: {"IoU": …, "Acc": …}}`` as fractions; a class
            that does not occur has None.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.confusion: torch.Tensor | None = None
        self.per_class: dict[str, dict[str, float | None]] = {}
        self._num_samples = 0

    @staticmethod
    def intersect_and_union(
        pred_label: torch.Tensor, label: torch.Tensor, num_classes: int, ignore_index: int
    ) -> torch.Tensor:
        """Return one sample's confusion matrix on the CPU, see :attr:`confusion`.

        The name is the base class's, whose ``process`` calls it once for each sample.
        """
        return confusion_matrix(pred_label, label, num_classes, ignore_index)

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Count one batch; keep the last sample apart, since it may turn out to be a repeated one.

        Raises:
            DataError: A mask is of another size than its image.
        """
        for sample in () if self.format_only else data_samples:
            size, mask = (tuple(sample[key]["data"].shape[-2:]) for key in ("pred_sem_seg", "gt_sem_seg"))
            if size != mask:
                raise mask_of_other_size(sample.get("img_path", "?"), mask, size)
        self._num_samples += len(data_samples)
        super().process(data_batch, data_samples)
        if len(self.results) > 2:
            *older, last = self.results
            self.results[:] = [torch.stack(older).sum(dim=0), last]

    def evaluate(self, size: int) -> dict[str, float]:
        """Return the metrics over all ranks' samples. Collective; every rank gets the same.

        Args:
            size: Images in the data set. Position ``k`` of it is rank ``k % world size``'s sample
                ``k // world size``, as mmengine's samplers deal them; later ones are repetitions.
        """
        rank, world_size = get_dist_info()
        if self.format_only:
            metrics = dict(self.compute_metrics([]))
        else:
            if world_size > 1 and self._num_samples and (self._num_samples - 1) * world_size + rank >= size:
                self.results.pop()
            self.confusion = self._summed(world_size)
            self.per_class = per_class_of(self.confusion, self.dataset_meta["classes"])
            metrics = dict(self.compute_metrics([areas(self.confusion)]))
        if self.prefix:
            metrics = {f"{self.prefix}/{name}": value for name, value in metrics.items()}
        self.results.clear()
        self._num_samples = 0
        return metrics

    def _summed(self, world_size: int) -> torch.Tensor:
        length = len(self.dataset_meta["classes"]) + 1
        total = torch.zeros(length, length, dtype=torch.int64)
        for matrix in self.results:
            total += matrix
        if world_size > 1:
            on_gpu = torch.distributed.get_backend() == "nccl"
            shared = total.cuda() if on_gpu else total
            torch.distributed.all_reduce(shared)
            total = shared.cpu()
        return total


def confusion_matrix(
    prediction: torch.Tensor, label: torch.Tensor, num_classes: int, ignore_index: int
) -> torch.Tensor:
    """Return pixels by label (row) and prediction (column), int64 ``(C + 1, C + 1)`` on the CPU.

    Args:
        prediction: Class indices of any shape.
        label: Class indices of the same shape.
        num_classes: ``C``. Values outside of ``[0, C)`` count in the last row or column.
        ignore_index: The label that is left out.
    """
    length = num_classes + 1
    if label.device.type == "cpu" and num_classes < 256:
        counts = _counted_as_bytes(prediction, label)
        if counts is not None:
            if 0 <= ignore_index < 256:
                counts[ignore_index] = 0
            return _without_others(_without_others(counts, num_classes).T, num_classes).T.contiguous()
    kept = label != ignore_index
    label = torch.where((label >= 0) & (label < num_classes), label, num_classes).long()
    prediction = torch.where((prediction >= 0) & (prediction < num_classes), prediction, num_classes).long()
    # What is ignored is counted beyond the end: selecting the rest would synchronise with the device.
    places = torch.where(kept, label * length + prediction, length * length)
    counts = torch.bincount(places.flatten(), minlength=length * length + 1)[:-1]
    return counts.view(length, length).cpu()


def _counted_as_bytes(prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor | None:
    """Return int64 ``(256, 256)`` counts of all pairs; None where some value is no byte."""
    as_bytes = []
    for item in (label, prediction):
        if item.dtype != torch.uint8:
            if item.is_floating_point() or not item.numel():
                return None
            lowest, highest = (int(value) for value in item.aminmax())
            if lowest < 0 or highest > 255:
                return None
        as_bytes.append(item.to(torch.uint8).contiguous().view(-1).numpy())
    total = torch.zeros(256, 256, dtype=torch.int64)
    for begin in range(0, len(as_bytes[0]), _EXACT_IN_FLOAT32):
        parts = [item[begin : begin + _EXACT_IN_FLOAT32] for item in as_bytes]
        total += torch.from_numpy(cv2.calcHist(parts, [0, 1], None, [256, 256], [0, 256, 0, 256])).long()
    return total


def _without_others(counts: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the first rows, and the sum of all others as one more."""
    return torch.cat([counts[:num_classes], counts[num_classes:].sum(dim=0, keepdim=True)])


def areas(confusion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return intersection, union, prediction and label area by class, float64 of shape ``(C,)``.

    float64 holds whole numbers up to 2**53 exactly: 9e9 images of 1024 × 1024.
    """
    intersection = confusion.diagonal()[:-1]
    predicted = confusion.sum(dim=0)[:-1]
    labelled = confusion.sum(dim=1)[:-1]
    union = predicted + labelled - intersection
    return intersection.double(), union.double(), predicted.double(), labelled.double()


def per_class_of(confusion: torch.Tensor, classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return IoU and accuracy by class name, as fractions; None where there is nothing to divide by."""
    intersection, union, _, labelled = (item.tolist() for item in areas(confusion))
    return {
        name: {
            "IoU": intersection[index] / union[index] if union[index] else None,
            "Acc": intersection[index] / labelled[index] if labelled[index] else None,
        }
        for index, name in enumerate(classes)
    }


def mask_of_other_size(image: str, mask: tuple[int, ...], size: tuple[int, ...]) -> DataError:
    """Return the refusal of a mask that is not of its image's height and width."""
    return DataError(
        Message(
            "The mask of {image} has {mask} pixels (height, width), its prediction {size}.", image, mask, size
        ),
        "Give the mask the size of its image, and load it after whatever resizes the image.",
    )


def scores_by_class(metrics: Sequence[Any]) -> Mapping[str, Any]:
    """Return what a ``validation`` event says by class, of the first metric that has it."""
    for metric in metrics:
        if isinstance(metric, IntegerIoUMetric) and metric.confusion is not None:
            matrix = metric.confusion.tolist() if len(metric.per_class) <= _MAX_TOLD_CLASSES else None
            return {"per_class": metric.per_class, "confusion": matrix}
    return {}
