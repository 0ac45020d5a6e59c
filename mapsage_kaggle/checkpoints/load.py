"""Loads a checkpoint into real tensors: the very bytes that were proven, and no code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mapsage_kaggle.checkpoints.allowed import ArrayInfo, HistoryInfo, Symbol, TensorInfo, UnsafeError
from mapsage_kaggle.checkpoints.archive import Archive, DamagedError, Entry, Source
from mapsage_kaggle.checkpoints.inspect import (
    check_all_used,
    check_stored,
    open_archive,
    read_pickle,
    survey,
    unforeseen,
)
from mapsage_kaggle.checkpoints.legacy import LegacyArchive
from mapsage_kaggle.checkpoints.unpickle import LEGACY_PARTS, ZIP_PARTS, interpret
from mapsage_kaggle.errors import CheckpointError
from mapsage_kaggle.messages import Message

if TYPE_CHECKING:
    import numpy as np


def load_checkpoint(
    source: Path | BinaryIO,
    *,
    sha256: str | None = None,
    history_buffer: Callable[[], Any] | None = None,
) -> dict[str, Any]:
    """Return a checkpoint's content with tensors on the CPU.

    The file is read once, from its first byte to its last. The bytes whose checksums are compared
    are copied straight into the tensors' memory, so that nothing can change between proof and use,
    and the memory needed is that of the tensors.

    Args:
        source: The file, or a seekable stream of it.
        sha256: What the file's sha256 must be, from the manifest or from an inspection.
        history_buffer: The class of the scalars' histories. None: mmengine's ``HistoryBuffer`` in a
            program that has imported it, else ``HistoryInfo`` (this room imports no mmengine).

    Raises:
        CheckpointError: The file is missing, damaged, of another kind, has another sha256, or its
            pickle asks for something that no checkpoint needs.
    """
    name = str(source) if isinstance(source, Path) else getattr(source, "name", "the stream")
    try:
        with Source(source) as opened:
            return _load(opened, sha256, history_buffer)
    except OSError as error:
        raise CheckpointError(
            Message("{name} cannot be read: {why}.", name, error.strerror or error)
        ) from error
    except (DamagedError, UnsafeError) as error:
        raise CheckpointError(
            Message("{name} is rejected: {why}.", name, error), "Use another checkpoint."
        ) from error
    except Exception as error:  # the one boundary: a file is never a reason to crash
        raise CheckpointError(
            Message("{name} is rejected: {why}.", name, unforeseen(error)), "Use another checkpoint."
        ) from error


def _load(source: Source, sha256: str | None, history_buffer: Callable[[], Any] | None) -> dict[str, Any]:
    archive = open_archive(source)
    pickle = read_pickle(archive)
    build = _Realise(archive, pickle, history_buffer)
    num_parts = LEGACY_PARTS if isinstance(archive, LegacyArchive) else ZIP_PARTS
    tree: dict[str, Any] = interpret(pickle, build, num_parts)
    survey(tree)
    check_all_used(archive, build.used)
    found = archive.sweep(build.take)
    if sha256 is not None and found != sha256:
        raise DamagedError(f"its sha256 is {found}, expected {sha256}")
    meta = tree.get("meta")
    if isinstance(meta, dict):
        # mmengine's Runner.resume passes meta.config to Config.fromstring, which runs it as Python.
        meta.pop("config", None)
    return tree


class _Realise:
    """Builds real arrays, and tensors on memory that the sweep fills."""

    def __init__(
        self, archive: Archive | LegacyArchive, pickle: bytes, history_buffer: Callable[[], Any] | None
    ) -> None:
        import numpy as np
        import torch

        self._np, self._torch = np, torch
        imported = getattr(sys.modules.get("mmengine.logging.history_buffer"), "HistoryBuffer", None)
        self._history_buffer = history_buffer or imported or HistoryInfo
        self.tensor_types: tuple[type, ...] = (torch.Tensor,)
        self.array_types: tuple[type, ...] = (np.ndarray,)
        self.history_types: tuple[type, ...] = (type(self._history_buffer()),)
        self._archive, self._pickle = archive, pickle
        self._memory: dict[str, Any] = {}

    @property
    def used(self) -> Collection[str]:
        return self._memory.keys()

    def take(self, entry: Entry, pieces: Iterator[memoryview]) -> None:
        if entry.name == "data.pkl":
            if b"".join(bytes(piece) for piece in pieces) != self._pickle:
                raise DamagedError("it changed while it was read")
        elif entry.name.startswith("data/"):
            target = self._memory[entry.name].numpy()
            at = 0
            for piece in pieces:
                target[at : at + len(piece)] = self._np.frombuffer(piece, self._np.uint8)
                at += len(piece)

    def tensor(self, info: TensorInfo) -> Any:
        torch, storage = self._torch, info.storage
        memory = self._memory.get(storage.entry)
        if memory is None:
            check_stored(self._archive, storage)
            memory = torch.empty(storage.size_bytes, dtype=torch.uint8)
            self._memory[storage.entry] = memory
        result = torch.empty(0, dtype=getattr(torch, info.dtype))
        result.set_(memory.untyped_storage(), info.offset, info.shape, info.stride)
        result.requires_grad = info.requires_grad
        return result

    def new_array(self) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self._np.ndarray((0,), "|u1")
        return array

    def fill_array(self, array: np.ndarray[Any, Any], info: ArrayInfo) -> None:
        dtype = self._np.dtype(info.dtype)
        array.__setstate__((1, info.shape, dtype, info.fortran_order, info.data))  # type: ignore[arg-type]

    def scalar(self, dtype: str, data: bytes) -> Any:
        return self._np.frombuffer(data, self._np.dtype(dtype))[0]

    def new_history(self) -> Any:
        return self._history_buffer()

    def fill_history(self, history: Any, info: HistoryInfo) -> None:
        """Give a history its values. Its class, which holds what computes statistics, is left alone."""
        if isinstance(history, HistoryInfo):
            history.log, history.count = info.log, info.count
        else:
            history._log_history, history._count_history = info.log, info.count
        history.max_length = info.max_length

    def symbol(self, symbol: Symbol) -> Any:
        kind, _, device = symbol.name.partition(":")
        if kind == "torch.device":
            return self._torch.device(device)
        return getattr(self._torch, kind.removeprefix("torch."))
