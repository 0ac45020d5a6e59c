"""Loads a checkpoint into real tensors: the very bytes that were proven, and no code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mapsage_kaggle.checkpoints.allowed import ArrayInfo, HistoryInfo, Symbol, TensorInfo, UnsafeError
from mapsage_kaggle.checkpoints.archive import DamagedError, Entry, Source
from mapsage_kaggle.checkpoints.inspect import Content, open_archive, read_content, unforeseen
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
    content = read_content(archive)
    build = _Realise(content, history_buffer)
    pickle = content.pickle
    num_parts = ZIP_PARTS if content.format == "zip" else LEGACY_PARTS
    del content  # what the pickle describes is not needed twice
    found = archive.sweep(build.take)
    if sha256 is not None and found != sha256:
        raise DamagedError(f"its sha256 is {found}, expected {sha256}")
    tree: dict[str, Any] = interpret(pickle, build, num_parts)
    meta = tree.get("meta")
    if isinstance(meta, dict):
        # mmengine's Runner.resume passes meta.config to Config.fromstring, which runs it as Python.
        meta.pop("config", None)
    return tree


class _Realise:
    """Builds real tensors and arrays on memory that the sweep has filled."""

    def __init__(self, content: Content, history_buffer: Callable[[], Any] | None) -> None:
        import numpy as np
        import torch

        self._np, self._torch = np, torch
        imported = getattr(sys.modules.get("mmengine.logging.history_buffer"), "HistoryBuffer", None)
        self._history_buffer = history_buffer or imported or HistoryInfo
        self.tensor_types: tuple[type, ...] = (torch.Tensor,)
        self.array_types: tuple[type, ...] = (np.ndarray,)
        self.history_types: tuple[type, ...] = (type(self._history_buffer()),)
        self._pickle = content.pickle
        self._memory: dict[str, Any] = {}
        for storage in content.storages.values():
            self._memory[storage.key] = torch.empty(storage.size_bytes, dtype=torch.uint8)

    def take(self, entry: Entry, pieces: Iterator[memoryview]) -> None:
        if entry.name == "data.pkl":
            if b"".join(bytes(piece) for piece in pieces) != self._pickle:
                raise DamagedError("it changed while it was read")
        elif entry.name.startswith("data/"):
            target = self._memory[entry.name.removeprefix("data/")].numpy()
            at = 0
            for piece in pieces:
                target[at : at + len(piece)] = self._np.frombuffer(piece, self._np.uint8)
                at += len(piece)

    def tensor(self, info: TensorInfo) -> Any:
        torch = self._torch
        result = torch.empty(0, dtype=getattr(torch, info.dtype))
        result.set_(self._memory[info.storage.key].untyped_storage(), info.offset, info.shape, info.stride)
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
