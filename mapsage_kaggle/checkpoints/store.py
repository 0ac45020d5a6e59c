"""Keeping checkpoints: written beside their final name, proven, and only then allowed to replace.

The order of a save, each step flushed to the disk before the next begins:

1. the bytes go to ``<name>.tmp``, hashed as they pass;
2. the file is read back from the disk and hashed again: *proven*;
3. the manifest notes the new hash as *pending*;
4. the temporary file is renamed to its final name, and the folder flushed;
5. the manifest lists it, ``last_checkpoint`` names it;
6. only now is anything older deleted.

Killed anywhere in between, the folder still holds the newest file that was proven before, or the
new one; :meth:`CheckpointStore.lock` repairs the manifest at the next start. Step 3
exists for the file that replaces one of the same name (a best score learned after the save): with
it, the name is covered by a hash whether the rename has happened or not.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from mapsage_kaggle.checkpoints.lock import WorkDirLock
from mapsage_kaggle.checkpoints.manifest import Manifest, manifest_sha256
from mapsage_kaggle.checkpoints.names import iteration_name, iteration_of, kind_of
from mapsage_kaggle.checkpoints.proving import (
    SaveFailed,
    copy_proven,
    remove_quietly,
    what_changed,
    write_proven,
)
from mapsage_kaggle.checkpoints.recovery import point_to_newest, recover
from mapsage_kaggle.checkpoints.retention import (
    BUDGET_BYTES,
    beats,
    best_of,
    newest_of,
    plan_retention,
    plan_room,
)
from mapsage_kaggle.events import EventKind
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import FULL, WorkDir, replace_file, sync_folder
from mapsage_kaggle.records import CheckpointRef

OnEvent = Callable[[EventKind, int, Mapping[str, Any]], None]

ASIDE_SUFFIX = ".aside"


class CheckpointStore:
    """The checkpoints of one work dir. One process at a time may write there.

    Use it as a context manager, or call :meth:`lock` and :meth:`unlock`.

    Args:
        work_dir: The folder; made where it is missing.
        budget_bytes: What the kept checkpoints may take, see :func:`plan_retention`.
        milestones_every: Iterations between checkpoints worth keeping beyond the newest two.
        greater_is_better: Which way the score of the best checkpoint goes.
        on_event: Called with ``checkpoint``, ``retention`` and ``warning``, with the iteration and
            JSON data. May be called from the saving thread.
    """

    def __init__(
        self,
        work_dir: Path,
        *,
        budget_bytes: int = BUDGET_BYTES,
        milestones_every: int | None = None,
        greater_is_better: bool = True,
        on_event: OnEvent | None = None,
    ) -> None:
        self._files = WorkDir(work_dir)
        self._budget_bytes = budget_bytes
        self._milestones_every = milestones_every
        self.greater_is_better = greater_is_better
        self._on_event = on_event
        self._manifest = Manifest()
        self._lock = WorkDirLock(work_dir)
        self._saving = threading.RLock()

    @property
    def path(self) -> Path:
        return self._files.path

    # -- the lock

    def lock(self, *, wait_s: float) -> None:
        """Lock the work dir, remove what a killed save left, and read the manifest.

        Args:
            wait_s: How long to wait for another process to leave, such as one being restarted.

        Raises:
            MachineError: Another process holds the folder; the message names it. Or the folder
                cannot be written.
        """
        if self._lock.is_held:
            return
        self._lock.take(wait_s=wait_s)
        try:
            self._manifest = recover(self._files, warn=lambda text: self._warn(0, text))
        except BaseException:
            self.unlock()
            raise

    def unlock(self) -> None:
        """Release the lock, after a save that is in progress."""
        with self._saving:
            self._lock.release()

    def __enter__(self) -> CheckpointStore:
        self.lock(wait_s=0.0)
        return self

    def __exit__(self, *_: object) -> None:
        self.unlock()

    # -- what is there

    def proven(self) -> tuple[CheckpointRef, ...]:
        with self._saving:
            refs = self._manifest.files.values()
        return tuple(sorted(refs, key=lambda ref: (ref.iteration, ref.file)))

    def newest(self) -> CheckpointRef | None:
        return next(iter(newest_of(self.proven())), None)

    def best(self) -> CheckpointRef | None:
        return best_of(self.proven(), greater_is_better=self.greater_is_better)

    def drop_damaged_best(self) -> tuple[str, ...]:
        """Prove the best checkpoint again, by its content; take what is no longer the same off the manifest.

        Its size says nothing of a bit that was lost. The file stays where it is.

        Returns:
            One sentence for each that was taken off.
        """
        told: list[str] = []
        with self._saving:
            self._lock.require()
            while (ref := self.best()) is not None and (
                problem := what_changed(self.path / ref.file, ref.sha256)
            ):
                self._manifest = self._manifest.without([ref.file])
                with contextlib.suppress(OSError):  # it is found again the next time
                    self._manifest.write(self._files.manifest)
                template = "{file} is no longer what was proven, and is not the best any more: it {problem}."
                told.append(Message(template, ref.file, problem))
        return tuple(told)

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
            self._lock.require()

            def attempt() -> CheckpointRef:
                size_bytes, sha256 = write_proven(self._temporary(name), write)
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
            self._lock.require()
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
                point_to_newest(self._files, self._manifest)
                told = ", ".join(names)
                aside = Message("Set aside {names}: this session starts at {iteration}.", told, iteration)
                self._warn(iteration, aside)
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
            self._lock.require()
            held = self.best()
            if held is not None and not beats(value, held.value, greater_is_better=self.greater_is_better):
                return None
            write = partial(copy_proven, source, sha256 or manifest_sha256(source))
            return self.save(
                source.name, write, iteration=iteration, metric=metric, value=value, make_last=False
            )

    def hand_on(self, source: Path, *, iteration: int, sha256: str | None = None) -> CheckpointRef:
        """Copy the checkpoint that was resumed into this work dir, as its newest.

        Raises:
            SaveFailed: As for :meth:`carry_over`.
        """
        write = partial(copy_proven, source, sha256 or manifest_sha256(source))
        return self.save(iteration_name(iteration), write, iteration=iteration)

    def retain(self) -> tuple[str, ...]:
        """Delete what the retention rule does not keep, and return the names; warn of what resists."""
        with self._saving:
            self._lock.require()
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
                milestones_every=self._milestones_every,
                other_bytes=sum(path.stat().st_size for path in unlisted),
                other_files=len(unlisted),
                greater_is_better=self.greater_is_better,
            )
            return self._delete((*sorted(passed), *names), reached)

    # -- the steps of a save

    def _make_room(self, failure: SaveFailed, name: str, iteration: int) -> bool:
        """After a save that found the disk full, free about one checkpoint; tell whether any was freed."""
        cause = failure.__cause__
        if not (isinstance(cause, OSError) and cause.errno in FULL):
            return False
        refs = self.proven()
        aside = tuple(path.name for path in sorted(self.path.glob(f"*.pth{ASIDE_SUFFIX}")))
        needed_bytes = 0 if aside else max((ref.size_bytes for ref in refs), default=0)
        names = plan_room(refs, needed_bytes=needed_bytes, greater_is_better=self.greater_is_better)
        freed = self._delete((*aside, *names), iteration)
        told = ", ".join(freed) or "nothing"
        self._warn(iteration, Message("The disk is full: deleted {names} to save {name}.", told, name))
        return bool(freed)

    def _publish(self, ref: CheckpointRef, *, make_last: bool) -> None:
        """Give the proven temporary file its name, and say so in the manifest and last_checkpoint."""
        temporary = self._temporary(ref.file)
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
            remove_quietly(temporary)
            self._manifest = self._manifest.settled_in(self.path)
            if not isinstance(error, OSError):
                raise
            path, why = self.path / ref.file, error.strerror or error
            raise SaveFailed(
                Message("{path} could not be published: {why}.", path, why),
                "The checkpoints proven before are untouched.",
            ) from error

    def _delete(self, names: Sequence[str], iteration: int) -> tuple[str, ...]:
        """Delete files, then take them off the manifest: a name without its file is dropped when read."""
        gone: list[str] = []
        for name in names:
            try:
                (self.path / name).unlink(missing_ok=True)
                gone.append(name)
            except OSError as error:
                path, why = self.path / name, error.strerror
                self._warn(iteration, Message("{path} should make room and resists: {why}.", path, why))
        if gone:
            self._manifest = self._manifest.without(gone)
            try:
                sync_folder(self.path)
                self._manifest.write(self._files.manifest)
            except OSError as error:
                path, why = self._files.manifest, error.strerror
                self._warn(iteration, Message("{path} could not be updated: {why}.", path, why))
            self._emit("retention", iteration, {"deleted": gone})
        return tuple(gone)

    def _temporary(self, name: str) -> Path:
        return self.path / f"{name}.tmp"

    def _iteration(self, name: str) -> int:
        ref = self._manifest.files.get(name)
        return ref.iteration if ref else iteration_of(name) or 0

    def _warn(self, iteration: int, message: str) -> None:
        self._emit("warning", iteration, {"message": message})

    def _emit(self, kind: EventKind, iteration: int, data: Mapping[str, Any]) -> None:
        if self._on_event is not None:
            # A disk that is full for a checkpoint is full for a log of events too, and a save must not
            # fail because it cannot be logged.
            with contextlib.suppress(OSError):
                self._on_event(kind, iteration, data)
