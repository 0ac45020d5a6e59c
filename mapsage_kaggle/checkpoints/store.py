"""Keeping checkpoints: written beside their final name, proven, and only then allowed to replace.

The order of a save, each step flushed to the disk before the next begins:

1. the bytes go to ``<name>.tmp``, hashed as they pass;
2. the file is read back from the disk and hashed again: *proven*;
3. the manifest notes the new hash as *pending*;
4. the temporary file is renamed to its final name, and the folder flushed;
5. the manifest lists it, ``last_checkpoint`` names it;
6. only now is anything older deleted.

Killed anywhere in between, the folder still holds the newest file that was proven before, or the
new one; :meth:`CheckpointStore.lock` puts the manifest in order again at the next start. Step 3
exists for the file that replaces one of the same name (a best score learned after the save): with
it, the name is covered by a hash whether the rename has happened or not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.manifest import CHUNK_BYTES, Manifest, file_sha256, manifest_sha256
from mapsage_kaggle.checkpoints.names import iteration_of, kind_of, metric_of
from mapsage_kaggle.checkpoints.retention import (
    BUDGET_BYTES,
    MAX_FILES,
    best_of,
    newest_of,
    plan_retention,
    plan_room,
)
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.events import EventKind
from mapsage_kaggle.paths import WorkDir, replace_file, sync_folder
from mapsage_kaggle.records import CheckpointRef, record_beside

OnEvent = Callable[[EventKind, int, Mapping[str, Any]], None]

ASIDE_SUFFIX = ".aside"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_STRAY_AGE_S = 600.0


class SaveFailed(MachineError):
    """A checkpoint could not be written. Those proven before are untouched, so training may go on."""


class _HashingStream(io.RawIOBase):
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


_held_locks: weakref.WeakSet[CheckpointStore] = weakref.WeakSet()


class CheckpointStore:
    """The checkpoints of one work dir. One process at a time may write there.

    Use it as a context manager, or call :meth:`lock` and :meth:`unlock`.

    Args:
        work_dir: The folder; made where it is missing.
        budget_bytes: What the kept checkpoints may take, see :func:`plan_retention`.
        max_files: How many checkpoints may be kept.
        milestones_every: Iterations between checkpoints worth keeping beyond the newest two.
        greater_is_better: Which way the score of the best checkpoint goes.
        on_event: Told of ``checkpoint``, ``retention`` and ``warning``, with the iteration and
            JSON data. May be called from the saving thread.
    """

    def __init__(
        self,
        work_dir: Path,
        *,
        budget_bytes: int = BUDGET_BYTES,
        max_files: int = MAX_FILES,
        milestones_every: int | None = None,
        greater_is_better: bool = True,
        on_event: OnEvent | None = None,
    ) -> None:
        self._files = WorkDir(work_dir)
        self._budget_bytes = budget_bytes
        self._max_files = max_files
        self._milestones_every = milestones_every
        self._greater_is_better = greater_is_better
        self._on_event = on_event
        self._manifest = Manifest()
        self._lock_descriptor: int | None = None
        self._saving = threading.RLock()

    @property
    def path(self) -> Path:
        """The work dir."""
        return self._files.path

    # -- the lock

    def lock(self, *, wait_s: float = 0.0) -> None:
        """Take the folder for this process, remove what a killed save left, and read the manifest.

        Args:
            wait_s: How long to wait for another process to leave, such as one being restarted.

        Raises:
            MachineError: Another process holds the folder; the message names it. Or the folder
                cannot be written.
        """
        if self._lock_descriptor is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._files.lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise MachineError(
                f"The work dir {self.path} cannot be written: {error.strerror}.",
                "Choose another one with --work-dir.",
            ) from error
        try:
            _take_lock(descriptor, self._files.lock, wait_s)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._lock_descriptor = descriptor
        _held_locks.add(self)
        try:
            self._recover()
        except BaseException:
            self.unlock()
            raise

    def unlock(self) -> None:
        """Give the folder free. Waits for a save that is going on."""
        with self._saving:
            self._close_lock()

    def _close_lock(self) -> None:
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None
            _held_locks.discard(self)

    def __enter__(self) -> CheckpointStore:
        self.lock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.unlock()

    # -- what is there

    def proven(self) -> tuple[CheckpointRef, ...]:
        """Return the proven checkpoints, oldest first."""
        with self._saving:
            refs = self._manifest.files.values()
        return tuple(sorted(refs, key=lambda ref: (ref.iteration, ref.file)))

    def newest(self) -> CheckpointRef | None:
        """Return the newest resumable checkpoint."""
        return next(iter(newest_of(self.proven())), None)

    def best(self) -> CheckpointRef | None:
        """Return the checkpoint with the best score."""
        return best_of(self.proven(), greater_is_better=self._greater_is_better)

    # -- saving

    def save(
        self,
        name: str,
        write: Callable[[BinaryIO], None],
        *,
        iteration: int,
        metric: str | None = None,
        value: float | None = None,
        make_last: bool = True,
    ) -> CheckpointRef:
        """Write a checkpoint, prove it, give it its name, and then apply the retention rule.

        Args:
            name: Its final name in the work dir, such as ``iter_8000.pth``.
            write: Writes the bytes, front to back, to the stream it is given, as
                ``torch.save(state, stream)`` does. Called again where the disk was full.
            iteration: Iterations done in the state.
            metric: For a best checkpoint, the score's name.
            value: For a best checkpoint, the score.
            make_last: Whether ``last_checkpoint`` shall name it; a best file cannot resume, so no.

        Raises:
            SaveFailed: It could not be written or did not read back as written. Everything
                proven before is still there, and a ``warning`` event has been told.
            MachineError: The folder is not locked by this store.
        """
        if Path(name).name != name or name.startswith(".") or not name.endswith(".pth"):
            raise ValueError(f"{name!r} is no plain checkpoint name such as iter_8000.pth")
        with self._saving:
            self._require_lock()

            def attempt() -> CheckpointRef:
                size_bytes, sha256 = self._write_proven(name, write)
                ref = CheckpointRef(
                    file=name,
                    iteration=iteration,
                    sha256=sha256,
                    size_bytes=size_bytes,
                    metric=metric,
                    value=value,
                )
                self._publish(ref, make_last=make_last)
                return ref

            try:
                try:
                    ref = attempt()
                except SaveFailed as failure:
                    if not self._make_room(failure, name, iteration):
                        raise
                    ref = attempt()
            except SaveFailed as failure:
                self._emit("warning", iteration, {"message": str(failure), "file": name})
                raise
            self._emit("checkpoint", iteration, ref.to_json())
            self.retain()
            return ref

    def start_at(self, iteration: int) -> tuple[str, ...]:
        """Say where training starts: what lies ahead of it was not taken, so it may not count as newest.

        This happens where the newest file was rejected, or an older one was named. Each such file
        is renamed to ``<name>.aside`` and deleted once training has passed it again. Best
        checkpoints stay: their score was reached.

        Returns:
            The names that were set aside.

        Raises:
            OSError: A file could not be renamed.
        """
        with self._saving:
            self._require_lock()
            ahead = [
                path
                for path in sorted(self.path.glob("*.pth"))
                if kind_of(path.name) == "iter" and self._iteration(path.name) > iteration
            ]
            for path in ahead:
                path.replace(path.with_name(path.name + ASIDE_SUFFIX))
            names = tuple(path.name for path in ahead)
            if names:
                sync_folder(self.path)
                self._manifest = self._manifest.without(names)
                self._manifest.write(self._files.manifest)
                self._point_to_newest()
                message = f"Set aside {', '.join(names)}: this session starts at {iteration}."
                self._emit("warning", iteration, {"message": message})
            return names

    def carry_over(
        self, source: Path, *, iteration: int, metric: str, value: float, sha256: str | None = None
    ) -> CheckpointRef | None:
        """Copy an earlier session's best checkpoint into this work dir, unless a better one is here.

        The copy is written like any other save, so it gets this process's mode bits and not the
        read-only ones of an attached input.

        Returns:
            The copy, or None where this folder already holds as good a score.

        Raises:
            SaveFailed: The source cannot be read, is not the file of that ``sha256``, or there is
                no room. The work dir is unchanged.
        """
        with self._saving:
            self._require_lock()
            held = self.best()
            if held is not None and held.value is not None and not self._is_better(value, held.value):
                return None
            write = partial(_copy_proven, source, sha256 or manifest_sha256(source))
            return self.save(
                source.name, write, iteration=iteration, metric=metric, value=value, make_last=False
            )

    def hand_on(self, source: Path, *, iteration: int, sha256: str | None = None) -> CheckpointRef:
        """Copy the checkpoint that was resumed into this work dir, as its newest.

        Args:
            source: The file.
            iteration: Iterations done in it.
            sha256: Of the file, as it was when it was resumed.

        Raises:
            SaveFailed: As for :meth:`carry_over`.
        """
        write = partial(_copy_proven, source, sha256 or manifest_sha256(source))
        return self.save(f"iter_{iteration}.pth", write, iteration=iteration)

    def adopt(self, ref: CheckpointRef) -> None:
        """List a file of this folder that has been verified by other means, such as ``inspect``.

        Raises:
            ValueError: It is not there, or not as large as ``ref`` says.
        """
        with self._saving:
            self._require_lock()
            path = self.path / ref.file
            if not path.is_file() or path.stat().st_size != ref.size_bytes:
                raise ValueError(f"{path} is not the file of {ref.size_bytes} bytes that was verified")
            self._manifest = self._manifest.with_file(ref)
            self._manifest.write(self._files.manifest)
            self._point_to_newest()

    def retain(self) -> tuple[str, ...]:
        """Delete what the retention rule does not keep; return the names. A file that resists is told of."""
        with self._saving:
            self._require_lock()
            unlisted = [
                path
                for path in self.path.glob("*.pth")
                if path.name not in self._manifest.files and path.is_file()
            ]
            newest = self.newest()
            reached = newest.iteration if newest else 0
            passed = [
                path.name
                for path in self.path.glob(f"*.pth{ASIDE_SUFFIX}")
                if (iteration_of(path.name.removesuffix(ASIDE_SUFFIX)) or 0) <= reached
            ]
            names = plan_retention(
                self.proven(),
                budget_bytes=self._budget_bytes,
                max_files=self._max_files,
                milestones_every=self._milestones_every,
                other_bytes=sum(path.stat().st_size for path in unlisted),
                other_files=len(unlisted),
                greater_is_better=self._greater_is_better,
            )
            return self._delete((*sorted(passed), *names), reached)

    # -- the steps of a save

    def _write_proven(self, name: str, write: Callable[[BinaryIO], None]) -> tuple[int, str]:
        """Write and prove the temporary file; it is gone again where that fails."""
        temporary = self.path / f"{name}.tmp"
        hashing: _HashingStream | None = None
        try:
            with temporary.open("wb", buffering=CHUNK_BYTES) as stream:
                hashing = _HashingStream(stream)
                write(cast(BinaryIO, hashing))
                stream.flush()
                os.fsync(stream.fileno())
            sha256 = hashing.sha256()
            found = file_sha256(temporary, from_disk=True)
            if found != sha256:
                raise SaveFailed(
                    f"{temporary} was written with sha256 {sha256} and reads back as {found}: the disk "
                    "does not keep what it is given.",
                    "Training goes on with the older checkpoint; save to another disk with --work-dir.",
                )
        except BaseException as error:
            self._remove_quietly(temporary)
            cause = hashing.error if hashing is not None and hashing.error is not None else error
            if isinstance(cause, OSError):
                raise SaveFailed(
                    f"{temporary} could not be written: {cause.strerror or cause}.",
                    "The checkpoints proven before are untouched.",
                ) from cause
            raise
        return hashing.size_bytes, sha256

    def _make_room(self, failure: SaveFailed, name: str, iteration: int) -> bool:
        """After a save that found the disk full, free about one checkpoint; tell whether any was freed."""
        cause = failure.__cause__
        if not (isinstance(cause, OSError) and cause.errno in _FULL):
            return False
        refs = self.proven()
        aside = tuple(path.name for path in sorted(self.path.glob(f"*.pth{ASIDE_SUFFIX}")))
        needed_bytes = 0 if aside else max((ref.size_bytes for ref in refs), default=0)
        names = plan_room(refs, needed_bytes=needed_bytes, greater_is_better=self._greater_is_better)
        freed = self._delete((*aside, *names), iteration)
        message = f"The disk is full: deleted {', '.join(freed) or 'nothing'} to save {name}."
        self._emit("warning", iteration, {"message": message})
        return bool(freed)

    def _publish(self, ref: CheckpointRef, *, make_last: bool) -> None:
        """Give the proven temporary file its name, and say so in the manifest and last_checkpoint."""
        temporary = self.path / f"{ref.file}.tmp"
        before = self._manifest
        try:
            self._manifest = before.with_pending(ref)
            self._manifest.write(self._files.manifest)
            temporary.replace(self.path / ref.file)
            sync_folder(self.path)
            self._manifest = before.with_file(ref)
            self._manifest.write(self._files.manifest)
            if make_last:
                replace_file(self._files.last_checkpoint, ref.file)
        except BaseException as error:
            self._remove_quietly(temporary)
            self._manifest = self._settled()
            if not isinstance(error, OSError):
                raise
            raise SaveFailed(
                f"{self.path / ref.file} could not be published: {error.strerror or error}.",
                "The checkpoints proven before are untouched.",
            ) from error

    # -- order in the folder

    def _recover(self) -> None:
        """Bring manifest, ``last_checkpoint`` and files together after whatever ended the last process."""
        self._remove_strays()
        torn = False
        try:
            self._manifest = Manifest.read(self._files.manifest)
        except FileNotFoundError:
            self._manifest = Manifest()
        except ValueError as error:
            torn = True
            self._manifest = Manifest()
            self._emit("warning", 0, {"message": f"{error}; it is rebuilt from what verifies."})
        settled = self._settled()
        for path in sorted(self.path.glob("*.pth")):
            if path.name in settled.files or path.is_symlink() or not path.is_file():
                continue
            ref = prove(path)
            if ref is not None:
                settled = settled.with_file(self._with_score(ref))
        if torn or settled != self._manifest:
            self._manifest = settled
            settled.write(self._files.manifest)
        self._point_to_newest()

    def _with_score(self, ref: CheckpointRef) -> CheckpointRef:
        """Give a best checkpoint its score back, which the session's record states too."""
        record = record_beside(self.path / ref.file)
        best = record.best if record else None
        if ref.value is None and best is not None and best.sha256 == ref.sha256:
            return dataclasses.replace(ref, metric=best.metric, value=best.value)
        return ref

    def _settled(self) -> Manifest:
        """Return what the manifest would say had the last save been finished: files that are there."""
        files: dict[str, CheckpointRef] = {}
        for name in {**self._manifest.files, **self._manifest.pending}:
            candidates = (self._manifest.files.get(name), self._manifest.pending.get(name))
            refs = [ref for ref in candidates if ref is not None]
            try:
                size_bytes = (self.path / name).stat().st_size
            except OSError:
                continue
            fitting = [ref for ref in refs if ref.size_bytes == size_bytes]
            if name in self._manifest.pending and fitting:
                sha256 = file_sha256(self.path / name)
                fitting = [ref for ref in fitting if ref.sha256 == sha256]
            if fitting:
                files[name] = fitting[0]
        return Manifest(files)

    def _point_to_newest(self) -> None:
        newest = self.newest()
        if newest is None:
            return
        try:
            named = self._files.last_checkpoint.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            named = ""
        if named != newest.file:
            replace_file(self._files.last_checkpoint, newest.file)

    def _remove_strays(self) -> None:
        """Remove the temporary files of a killed save.

        Those of other writers (the session's record is refreshed by another process) are left
        alone until they are too old to be in use.
        """
        for path in sorted(self.path.glob("*.tmp")):
            name = path.name
            mine = name.endswith(".pth.tmp") or name.startswith(("manifest.json.", "last_checkpoint."))
            try:
                if mine or time.time() - path.stat().st_mtime > _STRAY_AGE_S:
                    path.unlink()
            except OSError as error:
                self._emit("warning", 0, {"message": f"{path} is left over and resists: {error.strerror}."})

    def _delete(self, names: Sequence[str], iteration: int) -> tuple[str, ...]:
        """Delete files, then take them off the manifest: a name without its file is dropped when read."""
        gone: list[str] = []
        for name in names:
            try:
                (self.path / name).unlink(missing_ok=True)
                gone.append(name)
            except OSError as error:
                message = f"{self.path / name} should make room and resists: {error.strerror}."
                self._emit("warning", iteration, {"message": message})
        if gone:
            self._manifest = self._manifest.without(gone)
            try:
                sync_folder(self.path)
                self._manifest.write(self._files.manifest)
            except OSError as error:
                message = f"{self._files.manifest} could not be updated: {error.strerror}."
                self._emit("warning", iteration, {"message": message})
            self._emit("retention", iteration, {"deleted": gone})
        return tuple(gone)

    def _remove_quietly(self, temporary: Path) -> None:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)

    def _iteration(self, name: str) -> int:
        ref = self._manifest.files.get(name)
        return ref.iteration if ref else iteration_of(name) or 0

    def _is_better(self, value: float, than: float) -> bool:
        return value > than if self._greater_is_better else value < than

    def _require_lock(self) -> None:
        if self._lock_descriptor is None:
            raise MachineError(
                f"The work dir {self.path} is not locked by this process.", "Call lock() before saving."
            )

    def _emit(self, kind: EventKind, iteration: int, data: Mapping[str, Any]) -> None:
        if self._on_event is not None:
            # A disk that is full for a checkpoint is full for a log of events too, and a save must not
            # fail for being told of.
            with contextlib.suppress(OSError):
                self._on_event(kind, iteration, data)


def _copy_proven(source: Path, expected: str | None, stream: BinaryIO) -> None:
    """Write what is in ``source``, from its beginning.

    Raises:
        SaveFailed: It is not the file of that sha256.
    """
    digest = hashlib.sha256()
    with source.open("rb") as original:
        while chunk := original.read(CHUNK_BYTES):
            digest.update(chunk)
            stream.write(chunk)
    if expected is not None and digest.hexdigest() != expected:
        raise SaveFailed(
            f"{source} has sha256 {digest.hexdigest()}, its record says {expected}: it is not the file that "
            "was recorded, and was not carried over.",
            "Attach the output of the session that wrote it again.",
        )


def prove(path: Path) -> CheckpointRef | None:
    """Verify a checkpoint that no manifest lists, every byte of it.

    Returns:
        Its reference, with the score where it is a best checkpoint; None where it is rejected, is
        named like a resumable checkpoint and is none, or has a name that the kit gives to no file:
        what is not ours is not ours to delete either.
    """
    if kind_of(path.name) == "other":
        return None
    found = inspect(path)
    if found.verdict == "rejected" or found.sha256 is None or found.size_bytes is None:
        return None
    metric = metric_of(path.name)
    iteration = found.iteration if found.iteration is not None else iteration_of(path.name)
    if iteration is None or (metric is None and found.verdict != "resumable"):
        return None
    return CheckpointRef(
        file=path.name,
        iteration=iteration,
        sha256=found.sha256,
        size_bytes=found.size_bytes,
        metric=metric if found.best_score is not None else None,
        value=found.best_score if metric is not None else None,
    )


def _take_lock(descriptor: int, path: Path, wait_s: float) -> None:
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
                f"The work dir {path.parent} is in use by process {holder}; two may not save into it.",
                "Wait for it, end it, or choose another folder with --work-dir.",
            ) from error
        except OSError as error:
            raise MachineError(
                f"{path} cannot be locked: {error.strerror}.",
                "Choose a work dir on a local disk with --work-dir.",
            ) from error


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
    for store in list(_held_locks):
        store._close_lock()


os.register_at_fork(after_in_child=_release_in_forked_child)


# --- saving in the background -----------------------------------------------------------------
