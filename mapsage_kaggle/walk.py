"""Walks a folder tree quickly where every listing and every ``stat`` crosses a network."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAX_WORKERS = 32
_PATIENCE_S = 0.002
_SLOW_LISTING_S = 0.0003


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkProblem:
    """A place that could not be looked at, or a link that leads nowhere."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WalkResult:
    """What a walk found, each tuple sorted by path.

    Attributes:
        files: Wanted files, and links to files, by their own path.
        dirs: Wanted directories, and links to directories, by their own path.
        problems: What could not be looked at. Never fatal.
    """

    files: tuple[Path, ...]
    dirs: tuple[Path, ...]
    empty_dirs: tuple[Path, ...]
    problems: tuple[WalkProblem, ...]
    num_listings: int


def walk(
    root: Path,
    *,
    want_file: Callable[[str], object] = lambda name: False,
    want_dir: Callable[[str], object] = lambda name: False,
    enter: Callable[[str], object] = lambda name: True,
    endings: tuple[str, ...] = ("",),
) -> WalkResult:
    """List a tree: each directory once, in parallel where the file system is slow.

    No file is asked for anything but its name: its type comes with the listing. Links are followed,
    except into the tree itself or into what another link has led to, so that loops end. Work starts
    in the calling thread; helpers join when listings turn out to be waited for, since on a local
    disk they would only be in each other's way.

    Args:
        root: Where to begin. A missing root, or one that is no directory, is a problem in the result.
        want_file: Given a name, tells whether files of that name are to be reported.
        want_dir: Given a name, tells whether directories of that name are to be reported.
        enter: Given a name, tells whether directories of that name are to be listed.
        endings: ``want_file`` is asked about names with these endings only. Among 100,000 images, not
            asking about each is most of what a walk costs.
    """
    return _Walk(root, want_file, want_dir, enter, endings).run()


class _Walk:
    def __init__(
        self,
        root: Path,
        want_file: Callable[[str], object],
        want_dir: Callable[[str], object],
        enter: Callable[[str], object],
        endings: tuple[str, ...],
    ) -> None:
        self._root = os.fspath(root)
        self._want_file, self._want_dir, self._enter = want_file, want_dir, enter
        self._endings = endings
        self._files: list[str] = []
        self._dirs: list[str] = []
        self._empty: list[str] = []
        self._problems: list[tuple[str, str]] = []
        self._num_listings = 0
        self._pending: deque[str] = deque([self._root])
        self._num_busy = 0
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._roots: list[str] = []
        self._failure: BaseException | None = None

    def run(self) -> WalkResult:
        self._roots.append(os.path.realpath(self._root))
        if self._work_alone():
            while len(self._threads) < MAX_WORKERS - 1:
                thread = threading.Thread(target=self._work, name="walk", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._work()
        for thread in self._threads:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return WalkResult(
            files=tuple(map(Path, sorted(self._files))),
            dirs=tuple(map(Path, sorted(self._dirs))),
            empty_dirs=tuple(map(Path, sorted(self._empty))),
            problems=tuple(
                WalkProblem(path=Path(path), reason=reason) for path, reason in sorted(self._problems)
            ),
            num_listings=self._num_listings,
        )

    def _work_alone(self) -> bool:
        """List until there is nothing left, or until the listings turn out to be waited for."""
        waited_s = 0.0
        while self._pending:
            started, used = time.perf_counter(), time.thread_time()
            self._pending.extend(self._list(self._pending.popleft()))
            self._num_listings += 1
            waited_s += (time.perf_counter() - started) - (time.thread_time() - used)
            # A total, so that a small tree is not worth helpers, and a mean, so that a processor
            # taken away for a moment is not mistaken for a slow disk.
            if waited_s > _PATIENCE_S and waited_s > self._num_listings * _SLOW_LISTING_S:
                return bool(self._pending)
        return False

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._pending and self._num_busy and self._failure is None:
                    self._changed.wait()
                if not self._pending or self._failure is not None:
                    self._changed.notify_all()
                    return
                folder = self._pending.popleft()
                self._num_busy += 1
            found: list[str] = []
            try:
                found = self._list(folder)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self._failure = error
            with self._changed:
                self._num_busy -= 1
                self._num_listings += 1
                self._pending.extend(found)
                self._changed.notify(len(found))
                if not self._num_busy and not self._pending:
                    self._changed.notify_all()

    def _list(self, folder: str) -> list[str]:
        """Note what is wanted in one directory; return the directories in it that are to be listed."""
        want_file, want_dir, endings = self._want_file, self._want_dir, self._endings
        inner: list[str] = []
        empty = True
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    empty = False
                    name = entry.name
                    if entry.is_file(follow_symlinks=False):
                        if name.endswith(endings) and want_file(name):
                            self._files.append(entry.path)
                    elif entry.is_dir(follow_symlinks=False):
                        if want_dir(name):
                            self._dirs.append(entry.path)
                        if name.endswith(endings) and want_file(name):
                            self._problems.append((entry.path, "it is a directory, expected a file"))
                        if self._enter(name):
                            inner.append(entry.path)
                    elif entry.is_symlink():
                        self._follow(entry, inner)
                    elif name.endswith(endings) and want_file(name):
                        self._problems.append((entry.path, "it is not a regular file"))
        except OSError as error:
            self._problems.append((folder, _cannot_list(error)))
        else:
            if empty:
                self._empty.append(folder)
        return inner

    def _follow(self, entry: os.DirEntry[str], inner: list[str]) -> None:
        wanted = entry.name.endswith(self._endings) and self._want_file(entry.name)
        try:
            is_dir = entry.is_dir()
            entry.stat()
        except OSError as error:
            if wanted or error.errno != errno.ENOENT:
                self._problems.append((entry.path, _cannot_follow(entry.path, error)))
            return
        if not is_dir:
            if wanted:
                self._files.append(entry.path)
            return
        if self._want_dir(entry.name):
            self._dirs.append(entry.path)
        if wanted:
            self._problems.append((entry.path, "it is a link to a directory, expected a file"))
        if not self._enter(entry.name):
            return
        target = os.path.realpath(entry.path)
        with self._changed:
            if any(_lies_in(target, known) or _lies_in(known, target) for known in self._roots):
                return
            self._roots.append(target)
        inner.append(entry.path)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _cannot_list(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "there is no such folder"
    if error.errno == errno.ENOTDIR:
        return "it is not a folder"
    return f"the folder cannot be listed: {error.strerror}"


def _cannot_follow(path: str, error: OSError) -> str:
    try:
        target = str(Path(path).readlink())
    except OSError:
        target = "?"
    if error.errno == errno.ENOENT:
        return f"it is a link to {target}, which does not exist"
    if error.errno == errno.ELOOP:
        return f"it is a link to {target}, which leads back to itself"
    return f"it is a link to {target}, which cannot be followed: {error.strerror}"
