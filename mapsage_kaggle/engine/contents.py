"""Which samples a run is trained on: their names, and their sizes as they are read, kept in its checkpoints.

A position stands for a sample only as long as the list of samples is the same. So each checkpoint holds the
list, and a resume compares it. Sizes are taken when a sample has just been read, since asking a network mount
for every file's would take minutes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mapsage_kaggle.engine.fast.plan import leaves_of
from mapsage_kaggle.errors import TrainingError
from mapsage_kaggle.messages import Message, joined_by
from mapsage_kaggle.outside import joined

MAX_NAMES_BYTES = 256_000_000
NUM_LOOKED_AT = 64
"""Samples whose size is checked before training begins."""
CHANGED_REMEDY = Message("Attach the data as they were, or go on with what is here: --on-changed-data go-on.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataChange:
    """How training data differ from those that a checkpoint was trained on.

    Attributes:
        message: For a person, with what was added and removed; empty where nothing is known to have changed.
        reason: Why a resume equals no uninterrupted run; empty where nothing is known to have changed.
        lines: What differs, as the record's ``changes`` have it.
    """

    message: str = ""
    reason: str = ""
    lines: tuple[str, ...] = ()


class TrainingData:
    """The samples of a training data set, mmengine's or a wrapper of such ones.

    Of a data set that does not tell its files, only the number of samples is known.

    Attributes:
        names: Of the samples, relative to their root, in their order.
        refuses_changes: Whether a sample whose size has changed ends training.
    """

    def __init__(self, dataset: Any) -> None:
        self.names: list[str] = []
        self.refuses_changes = False
        self._files: list[tuple[str, ...]] = []
        leaves = list(leaves_of(dataset))
        for index, leaf in enumerate(leaves):
            files = files_of(leaf)
            prefix = f"{index}:" if len(leaves) > 1 else ""
            self.names += [prefix + name for name in _relative(files, str(getattr(leaf, "data_root", "")))]
            self._files += files
        self._packed = torch.frombuffer(bytearray(zlib.compress(_joined(self.names))), dtype=torch.uint8)
        self._digest = _digest(self.names)
        self._rows = {files[0]: row for row, files in enumerate(self._files) if files}
        self._sizes = _shared(len(self.names))
        self._before = np.zeros(len(self.names), np.int64)
        self._told = np.zeros(len(self.names), bool)

    def read(self, image: str) -> None:
        """Note the size of a sample that has just been read, by its image; called by data workers.

        Raises:
            TrainingError: It had another size before, and changes are refused.
        """
        row = self._rows.get(image)
        if row is None or self._sizes[row]:
            return
        self._sizes[row] = size = _size_bytes(self._files[row])
        if self.refuses_changes and 0 < self._before[row] != size > 0:
            raise TrainingError(self._other_sizes([row]), CHANGED_REMEDY)

    def summary(self) -> dict[str, Any]:
        """Return what the record holds: number and digest of the names, and of the sizes known by now."""
        sizes = self._known()
        return {
            "count": len(self.names),
            "digest": self._digest,
            "read": int((sizes > 0).sum()),
            "sizes": hashlib.sha256(sizes.tobytes()).hexdigest(),
        }

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds: everything by which :meth:`compare` compares."""
        return {
            "count": len(self.names),
            "digest": self._digest,
            "names": self._packed,
            "sizes": torch.from_numpy(self._known()),
        }

    def compare(self, state: Any) -> DataChange:
        """Compare with a checkpoint's :meth:`state`, or what a file holds instead; take its sizes over."""
        try:
            unpacking = zlib.decompressobj()
            text = unpacking.decompress(state["names"].numpy().tobytes(), MAX_NAMES_BYTES)
            before = text.decode("utf-8", "surrogateescape").split("\n") if text else []
            known = dict(zip(before, state["sizes"].tolist(), strict=True))
        except (TypeError, KeyError, ValueError, AttributeError, RuntimeError, zlib.error):
            return DataChange(reason="the checkpoint does not say which images it was trained on")
        self._before = np.array([int(known.get(name, 0)) for name in self.names], np.int64)
        if before != self.names:
            return self._other_names(before)
        rows = np.flatnonzero(self._before).tolist()
        for row in rows[:: max(1, len(rows) // NUM_LOOKED_AT)]:
            self._sizes[row] = _size_bytes(self._files[row])
        return self.resized()

    def resized(self) -> DataChange:
        """Return which samples have turned out, since the last call, to have changed in size."""
        now = self._sizes.numpy()
        changed = (now > 0) & (self._before > 0) & (now != self._before) & ~self._told
        if not changed.any():
            return DataChange()
        self._told |= changed
        rows = np.flatnonzero(changed).tolist()
        message = self._other_sizes(rows)
        lines = tuple(f"+data: {self.names[row]} has {int(now[row])} bytes" for row in rows[:4])
        return DataChange(message=message, reason=joined_by("", (message,)).rstrip("."), lines=lines)

    def _known(self) -> np.ndarray:
        """Return the sizes, as they were read now or before; 0 where neither."""
        now = self._sizes.numpy()
        return np.where(now > 0, now, self._before)

    def _other_sizes(self, rows: Sequence[int]) -> str:
        names = joined(
            f"{self.names[row]} ({int(self._before[row])} bytes, now {int(self._sizes[row])})" for row in rows
        )
        return Message("Training samples have another size than when they were read before: {names}.", names)

    def _other_names(self, before: Sequence[str]) -> DataChange:
        mine, theirs = set(self.names), set(before)
        found = {
            "gone": [name for name in before if name not in mine],
            "come": [name for name in self.names if name not in theirs],
        }
        parts = [joined_by(": ", (Message(word), joined(names))) for word, names in found.items() if names]
        detail = joined_by("; ", parts) or Message("the same names in another order")
        count, now = len(before), len(self.names)
        return DataChange(
            message=Message(
                "The training data are not those of the checkpoint, which lists {before} samples; "
                "here are {now}: {detail}.",
                count,
                now,
                detail,
            ),
            reason=f"the training data have changed, from {count} samples to {now}: {detail}",
            lines=(
                f"-data = {count} samples, {_digest(before)[:12]}",
                f"+data = {now} samples, {self._digest[:12]}",
            ),
        )


def files_of(leaf: Any) -> list[tuple[str, ...]]:
    """Return the image, and the mask where there is one, of each sample of a data set."""
    if not hasattr(leaf, "get_data_info"):
        return [()] * len(leaf)
    infos = (leaf.get_data_info(index) for index in range(len(leaf)))
    both = ((info.get("img_path"), info.get("seg_map_path")) for info in infos)
    return [tuple(str(path) for path in paths if path) for paths in both]


def _relative(files: Sequence[tuple[str, ...]], root: str) -> list[str]:
    """Return each image's name below the data set's root, which may be mounted elsewhere another time."""
    images = [paths[0] if paths else f"sample {index}" for index, paths in enumerate(files)]
    root = root.rstrip("/") + "/"
    if not all(image.startswith(root) for image in images):
        root = os.path.commonprefix(images).rpartition("/")[0] + "/"  # noqa: RUF071 - cut at its last slash
    return [image.removeprefix(root).replace("\n", " ") for image in images]


def _size_bytes(files: Sequence[str]) -> int:
    """Return the size of an image and its mask together; 0 where they cannot be read."""
    try:
        return sum(Path(file).stat().st_size for file in files)
    except (OSError, ValueError):
        return 0


def _shared(length: int) -> torch.Tensor:
    """Return int64 zeros that data workers can write to, where there is shared memory for it."""
    zeros = torch.zeros(length, dtype=torch.int64)
    with contextlib.suppress(RuntimeError):
        zeros.share_memory_()  # type: ignore[no-untyped-call]
    return zeros


def _joined(names: Sequence[str]) -> bytes:
    return "\n".join(names).encode("utf-8", "surrogateescape")


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256(_joined(names)).hexdigest()
