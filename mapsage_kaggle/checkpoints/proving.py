"""What makes a checkpoint proven: written, read back from the disk, and the same."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.manifest import CHUNK_BYTES, file_sha256
from mapsage_kaggle.checkpoints.names import iteration_of, kind_of, metric_of
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import open_regular
from mapsage_kaggle.records import CheckpointRef, record_beside


class SaveFailed(MachineError):
    """A checkpoint could not be written. Those proven before are untouched, so training may go on."""


class HashingStream(io.RawIOBase):
    """Passes what is written on to a file, hashes it, and remembers the first error.

    The memory is needed because torch's zip writer, told of a full disk by an exception, raises
    a RuntimeError of its own about an unexpected position, and hides what happened.
    """

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.error is not None:
            raise self.error
        view = memoryview(data)
        self._hash.update(view)
        try:
            self._stream.write(view)
        except OSError as error:
            self.error = error
            raise
        self.size_bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """Leave flushing to the store: torch calls this at its end, the store before its fsync."""

    def sha256(self) -> str:
        return self._hash.hexdigest()


def write_proven(temporary: Path, write: Callable[[BinaryIO], None]) -> tuple[int, str]:
    """Write and prove the temporary file; it is gone again where that fails."""
    hashing: HashingStream | None = None
    try:
        with temporary.open("wb", buffering=CHUNK_BYTES) as stream:
            hashing = HashingStream(stream)
            write(cast(BinaryIO, hashing))
            stream.flush()
            os.fsync(stream.fileno())
        sha256 = hashing.sha256()
        found = file_sha256(temporary, from_disk=True)
        if found != sha256:
            raise SaveFailed(
                Message(
                    "{path} was written with sha256 {written} and reads back as {found}: the disk does "
                    "not keep what it is given.",
                    temporary,
                    sha256,
                    found,
                ),
                "Training goes on with the older checkpoint; save to another disk with --work-dir.",
            )
    except BaseException as error:
        remove_quietly(temporary)
        cause = hashing.error if hashing is not None and hashing.error is not None else error
        if isinstance(cause, OSError):
            raise SaveFailed(
                Message("{path} could not be written: {why}.", temporary, cause.strerror or cause),
                "The checkpoints proven before are untouched.",
            ) from cause
        raise
    return hashing.size_bytes, sha256


def copy_proven(source: Path, expected: str | None, stream: BinaryIO) -> None:
    """Write what is in ``source``, from its beginning.

    Raises:
        SaveFailed: It is not the file of that sha256.
    """
    digest = hashlib.sha256()
    with open_regular(source) as original:
        while chunk := original.read(CHUNK_BYTES):
            digest.update(chunk)
            stream.write(chunk)
    if expected is not None and digest.hexdigest() != expected:
        raise SaveFailed(
            Message(
                "{path} has sha256 {found}, its record says {recorded}: it is not the file that was "
                "recorded, and was not carried over.",
                source,
                digest.hexdigest(),
                expected,
            ),
            "Attach the output of the session that wrote it again.",
        )


def remove_quietly(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def prove(path: Path) -> CheckpointRef | None:
    """Verify a checkpoint that no manifest lists, every byte of it.

    Returns:
        Its reference, with the score where it is a best checkpoint and states it itself, or the
        session's record does; None where it is rejected, is
        named like a resumable checkpoint and is none, or has a name that the kit gives to no file:
        what is not ours is not ours to delete either.
    """
    if kind_of(path.name) not in ("iter", "best"):
        return None
    found = inspect(path)
    if found.verdict == "rejected" or found.sha256 is None or found.size_bytes is None:
        return None
    metric = metric_of(path.name)
    iteration = found.iteration if found.iteration is not None else iteration_of(path.name)
    if iteration is None or (metric is None and found.verdict != "resumable"):
        return None
    value = found.best_score if metric is not None else None
    record = record_beside(path)
    best = record.best if record is not None else None
    if value is None and best is not None and best.sha256 == found.sha256:
        metric, value = best.metric, best.value
    return CheckpointRef(
        file=path.name,
        iteration=iteration,
        sha256=found.sha256,
        size_bytes=found.size_bytes,
        metric=metric if value is not None else None,
        value=value,
    )


def what_changed(path: Path, sha256: str) -> str:
    """Return what is wrong with a file that was proven, read again from the disk; empty where nothing is."""
    try:
        return "" if file_sha256(path, from_disk=True) == sha256 else Message("has changed")
    except OSError as error:
        return Message("cannot be read: {why}", error.strerror)
