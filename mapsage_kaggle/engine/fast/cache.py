"""Decoded images in scratch space, shared by data workers, ranks and restarts, so that none is decoded twice.

Each source file has one entry, a file of its own. It is written under another name and renamed when it is
complete, it has a checksum that every process verifies once, and it names the state of the source file that
it was made from. What does not match is made anew; where nothing can be kept, images are decoded each time,
with one warning.

Entries lie in a folder that is named after what they were made by: this format and the versions of the
decoding libraries, another of which may give other pixels. The folders of others are removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import re
import shutil
import struct
import time
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmcv
import mmseg
import numpy as np
import PIL

from mapsage_kaggle.engine.fast.warnings import warn_once
from mapsage_kaggle.machine import ram_bytes
from mapsage_kaggle.messages import Message

VERSION = 1
"""Of the entries' format and content; entries of another version are made anew."""

RESERVE_BYTES = 4_000_000_000
"""What the cache leaves free on its disk: checkpoints, logs and other programs need some."""

_LIBRARIES = (
    f"cv2 {cv2.__version__} pillow {PIL.__version__} mmcv {mmcv.__version__} mmseg {mmseg.__version__}"
)
_FOLDER_NAME = re.compile(r"v\d+-[0-9a-f]{16}")
_MAGIC = b"MAPSAGEd"
_HEADER = struct.Struct("<8sI32sIIIIQ")
_HEADER_CHECK = struct.Struct("<I")
_OFFSET = 128
_ABANDONED_S = 3600.0
_SETTLED_S = 2.0
"""The coarsest resolution of file times: two writes within it may look the same."""
_PASSING = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EINTR})
"""Transient errors: an image is not kept, but the next one may be."""
_IN_MEMORY = ("tmpfs", "ramfs")
_MOUNTS = Path("/proc/mounts")
_CGROUP = Path("/sys/fs/cgroup")
_CACHED = ("active_file", "inactive_file")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    identity: bytes
    shape: tuple[int, ...]
    checksum: int

    def header(self) -> bytes:
        sides = (*self.shape, 0, 0, 0)[:3]
        body = _HEADER.pack(
            _MAGIC, VERSION, self.identity, len(self.shape), *sides, self.checksum
        )  # fmt: skip
        return (body + _HEADER_CHECK.pack(zlib.crc32(body))).ljust(_OFFSET, b"\0")

    @classmethod
    def of_header(cls, data: bytes | mmap.mmap) -> _Entry | None:
        body = bytes(data[: _HEADER.size])
        (check,) = _HEADER_CHECK.unpack(data[_HEADER.size : _HEADER.size + _HEADER_CHECK.size])
        magic, version, identity, num_sides, *sides, checksum = _HEADER.unpack(body)
        if magic != _MAGIC or version != VERSION or check != zlib.crc32(body) or num_sides not in (2, 3):
            return None
        return cls(identity=identity, shape=tuple(sides[:num_sides]), checksum=checksum)


class DecodedCache:
    """Decoded uint8 images by source file.

    An entry stands for a source's path, size and times and for how it was decoded. The source is checked each
    time, so that a file replaced under the same name is noticed at once. A file that has changed within the
    last two seconds is not kept: another change might not show in its times.

    Args:
        folder: Where the cache lies, in an existing scratch space. It is made when the first entry is
            written.
        reserve_bytes: What stays free on that disk, and of the memory where it is a disk in memory.

    Attributes:
        entries: Below ``folder``, where the entries of this version lie.
        share: Of how many of the files entries are written, from 0 to 1. Which ones follows from their names.
    """

    def __init__(self, folder: Path, *, reserve_bytes: int = RESERVE_BYTES) -> None:
        made_by = hashlib.blake2b(_LIBRARIES.encode(), digest_size=8).hexdigest()
        self.folder = folder
        self.entries = folder / f"v{VERSION}-{made_by}"
        self.reserve_bytes = reserve_bytes
        self.stores = True
        self.share = 1.0
        self._proven: dict[Path, tuple[int, int, int]] = {}
        self._is_open = False
        self._in_memory = False
        self._held: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a process that it is sent to, opens the folder itself.
        return {**vars(self), "_is_open": False, "_held": None}

    def get(self, source: Path, manner: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """Return what ``decode`` gives for ``source``, from the cache where it holds it.

        Args:
            source: The file that is decoded.
            manner: All that ``decode`` depends on besides the file.
            decode: Decodes it. What it raises, this raises.

        Returns:
            The decoded image; read-only where it comes from the cache.
        """
        before = _state(source)
        if before is None:
            return decode()
        is_settled = _is_settled(before, now_s())
        path = self._path(source, manner)
        identity = hashlib.blake2b(
            repr((VERSION, str(source), manner, before)).encode(), digest_size=32
        ).digest()
        found = self._read(path, identity)
        if found is not None:
            return found
        image = decode()
        # A file that changed while it was read is in no known state.
        wanted = self.stores and int(path.stem[:8], 16) < self.share * (1 << 32) and is_settled
        if wanted and _cacheable(image) and _state(source) == before:
            self._write(path, identity, image)
        return image

    def room(self) -> tuple[int, str]:
        """Return how many bytes all entries may take, existing ones included, and what sets that limit.

        What other versions have left is removed first. On a disk, what does not stay in memory would be read
        again page by page: the limit is the lesser of what the disk has free and what the memory holds.

        Returns:
            The bytes, and ``disk`` or ``memory``; 0 where the folder's parent is missing.
        """
        parent = self.folder.parent
        if not parent.is_dir():
            return 0, "disk"
        self._remove_others()
        held_bytes = sum(_size(path) for path in self.entries.glob("*/*.raw"))
        on_disk = shutil.disk_usage(parent).free + held_bytes - self.reserve_bytes
        available = _available_memory_bytes()
        if available is not None:
            in_memory = max(available - self.reserve_bytes, available // 2)
            # Files of a disk in memory are not available memory any more; a disk's cached pages are.
            in_memory += held_bytes if _file_system(parent) in _IN_MEMORY else 0
            if in_memory < on_disk:
                return in_memory, "memory"
        return max(0, on_disk), "disk"

    def _path(self, source: Path, manner: str) -> Path:
        # As the file system spells it: a name need not be text.
        key = os.fsencode(source) + b"\0" + manner.encode()
        name = hashlib.blake2b(key, digest_size=16).hexdigest()
        return self.entries / name[:2] / f"{name}.raw"

    # -- reading

    def _read(self, path: Path, identity: bytes) -> np.ndarray | None:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if status.st_size <= _OFFSET:
                return None
            mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return None
        finally:
            os.close(descriptor)
        entry = _Entry.of_header(mapped)
        if entry is None or entry.identity != identity:
            return None
        if status.st_size != _OFFSET + int(np.prod(entry.shape, dtype=np.int64)):
            return None
        payload = memoryview(mapped)[_OFFSET:]
        written = status.st_ino, status.st_mtime_ns, status.st_size
        if self._proven.get(path) != written:
            if zlib.crc32(payload) != entry.checksum:
                return None
            self._proven[path] = written
        return np.frombuffer(payload, np.uint8).reshape(entry.shape)

    # -- writing

    def _write(self, path: Path, identity: bytes, image: np.ndarray) -> None:
        data = np.ascontiguousarray(image)
        try:
            try:
                self._put(path, identity, data)
            except FileNotFoundError:  # the folder was removed: it is made again, once
                self._is_open = False
                self._put(path, identity, data)
        except OSError as error:
            if error.errno not in _PASSING:
                self._stop(f"{error.strerror or error}")

    def _put(self, path: Path, identity: bytes, data: np.ndarray) -> None:
        self._open()
        short = self._lacks(data.nbytes)
        if short:
            self._stop(short)
            return
        path.parent.mkdir(exist_ok=True)
        entry = _Entry(identity=identity, shape=data.shape, checksum=zlib.crc32(data.data))
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        try:
            with temporary.open("xb") as stream:
                stream.write(entry.header())
                stream.write(data.data)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _open(self) -> None:
        """Make the folders, and remove other versions and what killed processes have left half written."""
        if self._is_open:
            return
        # Not its parents: a config from another machine names no scratch space of this one.
        self.folder.mkdir(exist_ok=True)
        self.entries.mkdir(exist_ok=True)
        self._hold()
        self._remove_others()
        now = now_s()
        for leftover in self.entries.glob("*/*.tmp"):
            # Another process may be faster, or be another user's.
            with contextlib.suppress(OSError):
                if now - leftover.stat().st_mtime > _ABANDONED_S:
                    leftover.unlink()
        self._in_memory = _file_system(self.folder) in _IN_MEMORY
        self._is_open = True

    def _hold(self) -> None:
        """Keep other versions from removing this one's entries, for as long as this object lives."""
        descriptor = os.open(self.entries, os.O_RDONLY | os.O_DIRECTORY)
        if self._held is None:
            self._held = descriptor
            weakref.finalize(self, os.close, descriptor)
        else:  # the folder has been made again
            os.dup2(descriptor, self._held, inheritable=False)
            os.close(descriptor)
        # Where it cannot be locked, it may be removed while it is in use: entries are then made anew.
        with contextlib.suppress(OSError):
            fcntl.flock(self._held, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _remove_others(self) -> None:
        """Remove other versions' folders, but for those that a process holds."""
        with contextlib.suppress(OSError), os.scandir(self.folder) as found:
            others = [
                Path(item.path)
                for item in found
                if _FOLDER_NAME.fullmatch(item.name)
                and item.name != self.entries.name
                and item.is_dir(follow_symlinks=False)
            ]
            for other in others:
                _remove(other)

    def _lacks(self, size_bytes: int) -> str:
        """Return why an entry of this size does not fit; empty where it does."""
        free_bytes = shutil.disk_usage(self.folder).free
        if free_bytes - size_bytes < self.reserve_bytes:
            reserve = f"{self.reserve_bytes / 1e9:.1f}"
            return Message(
                "its disk has {free} GB left, of which {reserve} stay free",
                f"{free_bytes / 1e9:.1f}",
                reserve,
            )
        if self._in_memory:
            available_bytes = _available_memory_bytes()
            if available_bytes is not None and available_bytes - size_bytes < self.reserve_bytes:
                return Message(
                    "it lies in memory, of which {available} GB are left and {reserve} stay free",
                    f"{available_bytes / 1e9:.1f}",
                    f"{self.reserve_bytes / 1e9:.1f}",
                )
        return ""

    def _stop(self, reason: str) -> None:
        self.stores = False
        warn_once(
            f"cache {self.folder}",
            Message(
                "The cache of decoded images in {folder} takes no more: {why}. What it lacks is "
                "decoded each time, which is slower and changes nothing else.",
                self.folder,
                reason,
            ),
        )


def _remove(folder: Path) -> None:
    """Remove a folder of entries that no process holds, and nothing in it that is not the cache's."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for part in [*folder.iterdir()]:
                if part.is_symlink():
                    continue
                for entry in (*part.glob("*.raw"), *part.glob("*.tmp")):
                    with contextlib.suppress(OSError):
                        entry.unlink()
                with contextlib.suppress(OSError):
                    part.rmdir()
            folder.rmdir()
        finally:
            os.close(descriptor)


def _cacheable(image: np.ndarray) -> bool:
    return (
        isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3) and image.size > 0
    )


def _state(source: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is replaced or rewritten; None where it cannot be read."""
    try:
        status = source.stat()
    except (OSError, ValueError):
        return None
    # The time of the inode's change cannot be set back, as that of the content's can.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_settled(state: tuple[int, ...], now: float) -> bool:
    """Return whether another change of the file would show in its times."""
    *_, content_s, inode_s = (time_ns / 1e9 for time_ns in state)
    # A content's time may be set far ahead, as by an archive from another time zone; that proves nothing.
    return now - inode_s >= _SETTLED_S and not 0 <= now - content_s < _SETTLED_S


def now_s() -> float:
    return time.time()


def _file_system(folder: Path) -> str:
    """Return the kind of file system that a folder lies on; empty where it is unknown."""
    best, kind = "", ""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    resolved = str(folder.resolve())
    for line in lines:
        _, mount, this_kind, *_ = line.split(" ")
        mount = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), mount)
        inside = mount == "/" or resolved == mount or resolved.startswith(mount + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, this_kind
    return kind


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process was faster
        return 0


def _available_memory_bytes() -> int | None:
    """Return the machine's available memory, but no more than the container's; None where unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return max(0, min(int(line.split()[1]) * 1024, ram_bytes() - _container_used_bytes()))
    return None


def _container_used_bytes() -> int:
    """Return what the container holds of its memory, but for a disk's cached pages; 0 where unknown."""
    for version, usage in ((_CGROUP, "memory.current"), (_CGROUP / "memory", "memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            used = int((version / usage).read_text())
            found = dict(line.split() for line in (version / "memory.stat").read_text().splitlines())
            cached = (found.get(f"total_{name}", found.get(name, 0)) for name in _CACHED)
            return max(0, used - sum(map(int, cached)))
    return 0
