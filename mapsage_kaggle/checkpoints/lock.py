"""One process at a time writes into a work dir: a lock that goes with its holder."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import WorkDir


class WorkDirLock:
    """The lock of one work dir, or of another folder that a command writes into.

    Args:
        work_dir: The folder; made where it is missing.
        file: What is locked; by default the work dir's own file for that.
        option: What names the folder on the command line.
    """

    def __init__(self, work_dir: Path, *, file: Path | None = None, option: str = "--work-dir") -> None:
        self._folder, self._option = work_dir, option
        self._file = file or WorkDir(work_dir).lock
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def take(self, *, wait_s: float) -> None:
        """Take the lock for this process, whose number is left in the file.

        Raises:
            MachineError: Another process holds it; the message names it. Or the folder cannot be written.
        """
        folder, file = self._folder, self._file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise MachineError(
                Message("The folder {path} cannot be written: {why}.", folder, error.strerror),
                Message("Choose another one with {option}.", self._option),
            ) from error
        try:
            self._wait_for(descriptor, wait_s)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)

    def require(self) -> None:
        """Check that this process holds the lock.

        Raises:
            MachineError: This process does not hold it.
        """
        if self._descriptor is None:
            raise MachineError(
                Message("The work dir {path} is not locked by this process.", self._folder),
                "Call lock() before saving.",
            )

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            _held.discard(self)

    def _wait_for(self, descriptor: int, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() < deadline:
                    time.sleep(min(0.1, wait_s))
                    continue
                holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise MachineError(
                    Message(
                        "The folder {path} is in use by process {holder}; two may not write into it.",
                        self._folder,
                        holder,
                    ),
                    Message("Wait for it, end it, or choose another folder with {option}.", self._option),
                ) from error
            except OSError as error:
                raise MachineError(
                    Message("{path} cannot be locked: {why}.", self._file, error.strerror),
                    Message("Choose a folder on a local disk with {option}.", self._option),
                ) from error


_held: weakref.WeakSet[WorkDirLock] = weakref.WeakSet()


def holder_of(folder: Path) -> str | None:
    """Return the process that holds a folder's lock, as its number; None where nobody does."""
    try:
        descriptor = os.open(WorkDir(folder).lock, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _release_in_forked_child() -> None:
    """Close inherited locks: a data loader's worker that outlives its trainer must not hold them."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_forked_child)
