"""Finds every checkpoint below a folder, by name. Opens none of them."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapsage_kaggle.checkpoints.names import ENDINGS, LAST_CHECKPOINT, Kind, iteration_of, likely_kind_of
from mapsage_kaggle.messages import text_of
from mapsage_kaggle.outside import read_bytes, visible
from mapsage_kaggle.paths import KagglePaths
from mapsage_kaggle.walk import WalkResult, walk

_MAX_NAME_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundCheckpoint:
    """A file whose name is a checkpoint's. What is in it is another question.

    Attributes:
        path: Where it was found; a link's own path.
        kind: ``iter``, ``best``, ``latest``, ``last_checkpoint`` or ``epoch``.
        iteration: As its name, or the name it leads to, says; None where that says none.
        size_bytes: Of the checkpoint, also for a link or a ``last_checkpoint`` that leads to it.
        source: The attached source that it lies in: ``alice/mapsage-train``, ``my-dataset``.
        target: The checkpoint that ``latest.pth`` or ``last_checkpoint`` leads to; else ``path``.
    """

    path: Path
    kind: Kind
    iteration: int | None
    size_bytes: int
    source: str
    target: Path

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "kind": self.kind,
            "iteration": self.iteration,
            "size_bytes": self.size_bytes,
            "source": self.source,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """A place that looked like a checkpoint, or like a folder of them, and is none."""

    path: Path
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "reason": self.reason}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanReport:
    """What lies below a folder.

    Attributes:
        files: The checkpoints by name, sorted by path.
        rejected: What is not as it should be, sorted by path.
    """

    root: Path
    files: tuple[FoundCheckpoint, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "files": [item.to_json() for item in self.files],
            "rejected": [item.to_json() for item in self.rejected],
        }


def scan(
    root: Path,
    *,
    wait_s: float = 0.0,
    on_wait: Callable[[str], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> ScanReport:
    """Return every checkpoint below ``root``, at any depth. Nothing it meets is fatal.

    A source whose mount is missing or empty, as it can be right after it was attached, is waited for:
    ``wait_s`` at most, and ``on_wait`` is told in one sentence.
    """
    deadline = now() + wait_s
    pause_s = 0.5
    while True:
        found = walk(root, want_file=lambda name: likely_kind_of(name) != "other", endings=ENDINGS)
        absent = _absent(root, found)
        left_s = deadline - now()
        if not absent or left_s <= 0:
            break
        if on_wait is not None:
            on_wait(f"Waiting for {absent} to be mounted: still empty, {left_s:.0f} s left.")
        sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 2, 8.0)
    return _report(root, found)


def _absent(root: Path, found: WalkResult) -> str:
    """Name the sources that look as if their mount had not come up yet."""
    if found.num_listings == 1 and any(problem.path == root for problem in found.problems):
        return "" if root.exists() else str(root)
    anchor = _anchor(root)
    mounts = [path for path in found.empty_dirs if _is_mount(path.absolute().relative_to(anchor).parts)]
    return ", ".join(map(str, mounts))


_MOUNT_DEPTHS = {"notebooks": 3, "datasets": 3, "models": 6, "competitions": 2}
"""How deep the sources of each kind are mounted, in the layout with one folder for each kind."""


def _is_mount(parts: tuple[str, ...]) -> bool:
    """Tell a source's own folder, or one above it, from a folder inside of a source."""
    return len(parts) <= _MOUNT_DEPTHS.get(parts[0], 1) if parts else True


def _report(root: Path, found: WalkResult) -> ScanReport:
    anchor = _anchor(root)
    files: list[FoundCheckpoint] = []
    rejected = [Rejected(path=problem.path, reason=problem.reason) for problem in found.problems]
    for path in found.files:
        try:
            files.append(_found(path, anchor))
        except _NotOneError as error:
            rejected.append(Rejected(path=path, reason=text_of(error)))
        except OSError as error:
            rejected.append(Rejected(path=path, reason=f"it cannot be read: {error.strerror}"))
    rejected.sort(key=lambda item: str(item.path))
    return ScanReport(root=root, files=tuple(files), rejected=tuple(rejected))


class _NotOneError(Exception):
    """A name that promised a checkpoint; the message says what is there instead."""


def _found(path: Path, anchor: Path) -> FoundCheckpoint:
    target = path
    kind = likely_kind_of(path.name)
    if kind == LAST_CHECKPOINT:
        target = _named_in(path)
        status = target.stat()
    else:
        status = path.stat()
        if kind == "latest" and path.is_symlink():
            target = path.parent / path.readlink()
    if not stat.S_ISREG(status.st_mode):
        raise _NotOneError("it is not a regular file")
    if status.st_size == 0:
        raise _NotOneError("it is empty" if target == path else f"it leads to {target.name}, which is empty")
    return FoundCheckpoint(
        path=path,
        kind=kind,
        iteration=iteration_of(target.name),
        size_bytes=status.st_size,
        source=_source(path, anchor),
        target=target,
    )


def _named_in(path: Path) -> Path:
    """Return the checkpoint that a ``last_checkpoint`` names, looked for beside it.

    mmengine writes the absolute path of the machine it ran on, which is not this one.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise _NotOneError("it is not a regular file")
    name = name_in(path)
    if name is None:
        raise _NotOneError("it does not hold the name of a checkpoint")
    target = path.parent / name
    if not target.exists():
        raise _NotOneError(f"it leads nowhere: there is no {visible(name)} beside it")
    return target


def name_in(path: Path) -> str | None:
    """Return the file name in a ``last_checkpoint``; None where it holds none.

    Raises:
        OSError: It cannot be read.
    """
    try:
        text = read_bytes(path, _MAX_NAME_BYTES).decode("utf-8").strip()
    except ValueError:
        return None
    name = text.replace("\\", "/").rpartition("/")[2]
    return name if name not in ("", ".", "..") and "\n" not in text and "\0" not in text else None


def _anchor(root: Path) -> Path:
    attached = KagglePaths.from_environment().input
    absolute = root.absolute()
    return attached if absolute.is_relative_to(attached) else absolute


def _source(path: Path, anchor: Path) -> str:
    folders = path.absolute().relative_to(anchor).parts[:-1]
    if not folders:
        return anchor.name
    depth = _MOUNT_DEPTHS.get(folders[0], 0)
    return "/".join(folders[1:depth]) if depth and len(folders) >= min(depth, 3) else folders[0]
