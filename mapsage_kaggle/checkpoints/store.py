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
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import threading
import time
import weakref
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, cast

from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.paths import WorkDir, replace_file, sync_folder
from mapsage_kaggle.records import CheckpointRef

SCHEMA = 1
BUDGET_BYTES = 4_000_000_000
MAX_FILES = 60
"""Kaggle keeps 500 files of an output; the rest of the work dir needs most of them."""

OnEvent = Callable[[str, int, Mapping[str, Any]], None]
Prove = Callable[[Path], "CheckpointRef | None"]
Kind = Literal["iter", "best", "other"]

_ITER = re.compile(r"iter_(\d+)\.pth")
_BEST = re.compile(r"best_(?P<metric>.+)_iter_(\d+)\.pth")
_CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_STRAY_AGE_S = 600.0


class SaveFailed(MachineError):
    """A checkpoint could not be written. Those proven before are untouched, so training may go on."""


# --- what is in the folder, as values ---------------------------------------------------------


def kind_of(name: str) -> Kind:
    """Return ``iter``, ``best`` or ``other`` for a checkpoint's file name."""
    if _ITER.fullmatch(name):
        return "iter"
    return "best" if _BEST.fullmatch(name) else "other"


def iteration_of(name: str) -> int | None:
    """Return the iteration that a file name states, or None where it states none."""
    found = _ITER.fullmatch(name) or _BEST.fullmatch(name)
    return int(found.group(found.lastindex or 1)) if found else None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``manifest.json`` says: the proven files, and one that was about to be renamed into place.

    Attributes:
        files: The proven checkpoints by name.
        pending: Proven checkpoints whose rename may or may not have happened, by final name.
    """

    files: Mapping[str, CheckpointRef] = field(default_factory=dict)
    pending: Mapping[str, CheckpointRef] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is torn, or no manifest; the message names the file.
        """
        try:
            document = json.loads(path.read_bytes())
            if int(document["schema"]) > SCHEMA:
                raise ValueError(f"schema {document['schema']} is newer than {SCHEMA}")
            return cls(
                files=_refs_from_json(document["files"]),
                pending=_refs_from_json(document.get("pending", {})),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no readable manifest: {error!r}") from error

    def write(self, path: Path) -> None:
        """Replace ``path`` atomically.

        Raises:
            OSError: The folder is full or read-only; the old manifest is then unchanged.
        """
        document: dict[str, Any] = {"schema": SCHEMA, "files": _refs_to_json(self.files)}
        if self.pending:
            document["pending"] = _refs_to_json(self.pending)
        replace_file(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")

    def with_file(self, ref: CheckpointRef) -> Manifest:
        """Return a manifest that lists ``ref``, and nothing pending under its name."""
        pending = {name: other for name, other in self.pending.items() if name != ref.file}
        return Manifest({**self.files, ref.file: ref}, pending)

    def with_pending(self, ref: CheckpointRef) -> Manifest:
        """Return a manifest that expects ``ref`` under its name, beside what is listed there now."""
        return Manifest(self.files, {**self.pending, ref.file: ref})

    def without(self, names: Iterable[str]) -> Manifest:
        """Return a manifest that says nothing of ``names``."""
        gone = set(names)
        return Manifest(
            {name: ref for name, ref in self.files.items() if name not in gone},
            {name: ref for name, ref in self.pending.items() if name not in gone},
        )


def _refs_to_json(refs: Mapping[str, CheckpointRef]) -> dict[str, Any]:
    return {
        name: {
            "size_bytes": ref.size_bytes,
            "sha256": ref.sha256,
            "iteration": ref.iteration,
            "kind": kind_of(name),
            "metric": ref.metric,
            "value": ref.value,
            "proven": True,
        }
        for name, ref in sorted(refs.items())
    }


def _refs_from_json(document: Mapping[str, Any]) -> dict[str, CheckpointRef]:
    return {
        str(name): CheckpointRef(
            file=str(name),
            iteration=int(entry["iteration"]),
            sha256=str(entry["sha256"]),
            size_bytes=int(entry["size_bytes"]),
            metric=entry.get("metric"),
            value=entry.get("value"),
        )
        for name, entry in document.items()
        if entry.get("proven", True)
    }


def manifest_sha256(checkpoint: Path) -> str | None:
    """Return the sha256 that the manifest beside a checkpoint states for it, or None where none does.

    A kill between a rename and the manifest's update leaves two hashes for one name, the listed
    and the pending one. Then the file's size decides, and its bytes where the sizes are equal; a
    file that is neither gets the listed hash, which it will fail.
    """
    try:
        manifest = Manifest.read(WorkDir(checkpoint.parent).manifest)
    except (OSError, ValueError):
        return None
    listed = manifest.files.get(checkpoint.name)
    pending = manifest.pending.get(checkpoint.name)
    if pending is None:
        return listed.sha256 if listed else None
    if listed is None:
        return pending.sha256
    try:
        size_bytes = checkpoint.stat().st_size
        if listed.size_bytes != pending.size_bytes:
            return (pending if size_bytes == pending.size_bytes else listed).sha256
        return pending.sha256 if _sha256(checkpoint) == pending.sha256 else listed.sha256
    except OSError:
        return listed.sha256


# --- which files to keep, pure ----------------------------------------------------------------


def best_of(refs: Iterable[CheckpointRef], *, greater_is_better: bool = True) -> CheckpointRef | None:
    """Return the best-scored checkpoint, the newer of equals; None where no file holds a score."""
    scored = [ref for ref in refs if ref.metric is not None and ref.value is not None]
    sign = 1.0 if greater_is_better else -1.0
    return max(scored, key=lambda ref: (sign * cast(float, ref.value), ref.iteration), default=None)


def newest_of(refs: Iterable[CheckpointRef], count: int = 1) -> list[CheckpointRef]:
    """Return the newest resumable checkpoints, newest first. Best files hold no optimizer: not among them."""
    return sorted(
        (ref for ref in refs if kind_of(ref.file) != "best"),
        key=lambda ref: (-ref.iteration, ref.file),
    )[:count]


def plan_retention(
    refs: Sequence[CheckpointRef],
    *,
    budget_bytes: int = BUDGET_BYTES,
    max_files: int = MAX_FILES,
    milestones_every: int | None = None,
    other_bytes: int = 0,
    other_files: int = 0,
    greater_is_better: bool = True,
) -> tuple[str, ...]:
    """Return the names to delete, oldest first, so that the work dir stays within its budget.

    The newest two and the best are always kept, even where they alone exceed the budget: losing
    progress is worse than a slow output. Then come the milestones, newest first, each if it fits.

    Args:
        refs: The proven checkpoints.
        budget_bytes: For all that is kept.
        max_files: For all that is kept.
        milestones_every: Iterations between the checkpoints worth keeping; None keeps none.
        other_bytes: What else lies in the folder and counts.
        other_files: How many other files count.
        greater_is_better: Which way the score goes.
    """
    kept = {ref.file: ref for ref in newest_of(refs, 2)}
    best = best_of(refs, greater_is_better=greater_is_better)
    if best is not None:
        kept[best.file] = best
    left_bytes = budget_bytes - other_bytes - sum(ref.size_bytes for ref in kept.values())
    left_files = max_files - other_files - len(kept)
    if milestones_every:
        for ref in newest_of(refs, len(refs)):
            if ref.file in kept or ref.iteration == 0 or ref.iteration % milestones_every:
                continue
            if ref.size_bytes <= left_bytes and left_files > 0:
                kept[ref.file] = ref
                left_bytes -= ref.size_bytes
                left_files -= 1
    gone = [ref for ref in refs if ref.file not in kept]
    return tuple(ref.file for ref in sorted(gone, key=lambda ref: (ref.iteration, ref.file)))


def plan_room(
    refs: Sequence[CheckpointRef], *, needed_bytes: int, greater_is_better: bool = True
) -> tuple[str, ...]:
    """Return what to delete, in this order, to free ``needed_bytes`` on a full disk.

    Milestones and outdone scores go first, oldest first, then the second newest; the newest and
    the best never. May free less than asked where that is all there is.
    """
    newest = newest_of(refs, 2)
    best = best_of(refs, greater_is_better=greater_is_better)
    safe = {ref.file for ref in (*newest, best) if ref is not None}
    spare = sorted((ref for ref in refs if ref.file not in safe), key=lambda ref: (ref.iteration, ref.file))
    spare += newest[1:]
    names: list[str] = []
    freed_bytes = 0
    for ref in spare:
        if freed_bytes >= needed_bytes:
            break
        names.append(ref.file)
        freed_bytes += ref.size_bytes
    return tuple(names)


# --- the store --------------------------------------------------------------------------------


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
        prove: Verifies a checkpoint that no manifest lists; by default its zip structure, every
            CRC in it, and the iteration in its name.
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
        prove: Prove | None = None,
    ) -> None:
        self._files = WorkDir(work_dir)
        self._budget_bytes = budget_bytes
        self._max_files = max_files
        self._milestones_every = milestones_every
        self._greater_is_better = greater_is_better
        self._on_event = on_event
        self._prove = prove_by_zip if prove is None else prove
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
            try:
                try:
                    ref = self._save_once(name, write, iteration, metric, value)
                except SaveFailed as failure:
                    ref = self._retry_with_room(failure, name, write, iteration, metric, value)
                self._publish(ref, make_last=make_last)
            except SaveFailed as failure:
                self._tell("warning", iteration, {"message": str(failure), "file": name})
                raise
            self._tell("checkpoint", iteration, ref.to_json())
            self.retain()
            return ref

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
            expected = sha256 or manifest_sha256(source)

            def write(stream: BinaryIO) -> None:
                digest = hashlib.sha256()
                with source.open("rb") as original:
                    while chunk := original.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        stream.write(chunk)
                if expected is not None and digest.hexdigest() != expected:
                    raise SaveFailed(
                        f"{source} has sha256 {digest.hexdigest()}, its record says {expected}: it is not "
                        "the file that was recorded, and was not carried over.",
                        "Attach the output of the session that wrote it again.",
                    )

            return self.save(
                source.name, write, iteration=iteration, metric=metric, value=value, make_last=False
            )

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
            names = plan_retention(
                self.proven(),
                budget_bytes=self._budget_bytes,
                max_files=self._max_files,
                milestones_every=self._milestones_every,
                other_bytes=sum(path.stat().st_size for path in unlisted),
                other_files=len(unlisted),
                greater_is_better=self._greater_is_better,
            )
            return self._delete(names)

    # -- the steps of a save

    def _save_once(
        self,
        name: str,
        write: Callable[[BinaryIO], None],
        iteration: int,
        metric: str | None,
        value: float | None,
    ) -> CheckpointRef:
        """Write and prove the temporary file; it is gone again where that fails."""
        temporary = self.path / f"{name}.tmp"
        hashing: _HashingStream | None = None
        try:
            with temporary.open("wb", buffering=_CHUNK_BYTES) as stream:
                hashing = _HashingStream(stream)
                write(cast(BinaryIO, hashing))
                stream.flush()
                os.fsync(stream.fileno())
            sha256 = hashing.sha256()
            found = _sha256(temporary, from_disk=True)
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
        return CheckpointRef(
            file=name,
            iteration=iteration,
            sha256=sha256,
            size_bytes=hashing.size_bytes,
            metric=metric,
            value=value,
        )

    def _retry_with_room(
        self,
        failure: SaveFailed,
        name: str,
        write: Callable[[BinaryIO], None],
        iteration: int,
        metric: str | None,
        value: float | None,
    ) -> CheckpointRef:
        cause = failure.__cause__
        if not (isinstance(cause, OSError) and cause.errno in _FULL):
            raise failure
        refs = self.proven()
        needed_bytes = max((ref.size_bytes for ref in refs), default=0)
        names = plan_room(refs, needed_bytes=needed_bytes, greater_is_better=self._greater_is_better)
        freed = self._delete(names)
        self._tell(
            "warning",
            iteration,
            {"message": f"The disk is full: deleted {', '.join(freed) or 'nothing'} to save {name}."},
        )
        if not freed:
            raise failure
        return self._save_once(name, write, iteration, metric, value)

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
        except OSError as error:
            self._remove_quietly(temporary)
            self._manifest = self._settled()
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
            self._tell("warning", 0, {"message": f"{error}; it is rebuilt from what verifies."})
        settled = self._settled()
        for path in sorted(self.path.glob("*.pth")):
            if path.name in settled.files or path.is_symlink() or not path.is_file():
                continue
            ref = self._prove(path)
            if ref is not None:
                settled = settled.with_file(ref)
        if torn or settled != self._manifest:
            self._manifest = settled
            settled.write(self._files.manifest)
        self._point_to_newest()

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
                sha256 = _sha256(self.path / name)
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
                self._tell("warning", 0, {"message": f"{path} is left over and resists: {error.strerror}."})

    def _delete(self, names: Sequence[str]) -> tuple[str, ...]:
        """Delete files, then take them off the manifest: a name without its file is dropped when read."""
        gone: list[str] = []
        for name in names:
            try:
                (self.path / name).unlink(missing_ok=True)
                gone.append(name)
            except OSError as error:
                message = f"{self.path / name} should make room and resists: {error.strerror}."
                self._tell("warning", self._iteration(name), {"message": message})
        if gone:
            iteration = max(self._iteration(name) for name in gone)
            self._manifest = self._manifest.without(gone)
            try:
                sync_folder(self.path)
                self._manifest.write(self._files.manifest)
            except OSError as error:
                message = f"{self._files.manifest} could not be updated: {error.strerror}."
                self._tell("warning", iteration, {"message": message})
            self._tell("retention", iteration, {"deleted": gone})
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

    def _tell(self, kind: str, iteration: int, data: Mapping[str, Any]) -> None:
        if self._on_event is not None:
            self._on_event(kind, iteration, data)


def prove_by_zip(path: Path) -> CheckpointRef | None:
    """Verify a checkpoint without running it: whole zip, every CRC, an iteration in its name.

    Returns:
        Its reference, or None where it is no whole checkpoint.
    """
    iteration = iteration_of(path.name)
    if iteration is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if not archive.namelist() or archive.testzip() is not None:
                return None
        size_bytes = path.stat().st_size
        sha256 = _sha256(path)
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, ValueError, EOFError):
        return None
    return CheckpointRef(file=path.name, iteration=iteration, sha256=sha256, size_bytes=size_bytes)


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


def _sha256(path: Path, *, from_disk: bool = False) -> str:
    """Hash a file; ``from_disk`` first asks the kernel to forget what it has of it in memory."""
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as stream:
        if from_disk:
            with contextlib.suppress(OSError):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while count := stream.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def _release_in_forked_child() -> None:
    """Close inherited locks: a data loader's worker that outlives its trainer must not hold them."""
    for store in list(_held_locks):
        store._close_lock()


os.register_at_fork(after_in_child=_release_in_forked_child)


# --- saving in the background -----------------------------------------------------------------


class BackgroundSaver:
    """Saves in a thread of its own, one at a time, so that training goes on meanwhile.

    :meth:`submit` waits for the save before it, so never more than one state is held in memory
    for it. The thread is not a daemon: Python itself waits for it at a normal end, and every
    other way out of training is to call :meth:`wait`.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._thread: threading.Thread | None = None
        self._saved: list[CheckpointRef] = []
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a save is going on, so that :meth:`submit` would wait."""
        return self._thread is not None and self._thread.is_alive()

    def submit(
        self,
        name: str,
        write: Callable[[BinaryIO], None],
        *,
        iteration: int,
        metric: str | None = None,
        value: float | None = None,
        make_last: bool = True,
        then: Callable[[CheckpointRef], None] | None = None,
    ) -> None:
        """Start a save, as :meth:`CheckpointStore.save`; waits for the one before it first.

        Args:
            name: As there.
            write: As there. Must not read what training changes: give it a copy.
            iteration: As there.
            metric: As there.
            value: As there.
            make_last: As there.
            then: Called in the thread with the proven checkpoint, such as to refresh the record.

        A save before it that failed has been told as an event, and is forgotten here: the new one
        makes up for it. An error that is not of the disk is raised.
        """
        self._join()
        if isinstance(self._error, SaveFailed):
            self._error = None
        self._raise_error()

        def work() -> None:
            try:
                ref = self._store.save(
                    name, write, iteration=iteration, metric=metric, value=value, make_last=make_last
                )
                self._saved.append(ref)
                if then is not None:
                    then(ref)
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                self._error = error

        thread = threading.Thread(target=work, name=f"save {name}")
        self._thread = thread
        thread.start()

    def wait(self) -> tuple[CheckpointRef, ...]:
        """Wait until nothing is being saved; return what has been proven since the last call.

        Ctrl-C while waiting is raised after the save has ended; a second one at once.

        Raises:
            SaveFailed: The last save failed. Told once; what was proven before is still there.
        """
        self._join()
        self._raise_error()
        saved, self._saved = tuple(self._saved), []
        return saved

    def _join(self) -> None:
        thread = self._thread
        if thread is None or thread.ident is None:
            return
        try:
            thread.join()
        except KeyboardInterrupt:
            thread.join()
            raise
        finally:
            if not thread.is_alive():
                self._thread = None

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error
