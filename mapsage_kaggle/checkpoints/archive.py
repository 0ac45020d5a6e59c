"""Reads the zip file that ``torch.save`` writes, strictly: every byte is accounted for.

``torch.load`` and ``zipfile`` are lenient: they read what the central directory points at and never
compare a checksum unless asked. A checkpoint has one right shape (entries stored one after the
other, then the directory, then the end), so that anything else can be told as damage.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from mapsage_kaggle.outside import open_regular, visible

_CHUNK_BYTES = 2**20
_NUM_BUFFERS = 4
_MAX_DIRECTORY_BYTES = 8 * 2**20
_MAX_ENTRIES = 50_000
_MAX_NAME_BYTES = 300
_FLAGS = frozenset({0, 0x8, 0x800, 0x808})
"""A descriptor that follows the data, a name in UTF-8; any other asks for encryption or patching."""

_MARK = 2**32 - 1
"""Stands in 32 bits for a number that needs more, given elsewhere."""

_ALIGNMENT_BYTES = 64
"""To multiples of which torch.save moves the content of every entry."""

_IDENTITY = ".data/serialization_id"
_FOLDER = 0x10
"""MS-DOS' attribute, by which torch's reader knows a folder."""

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


class DamagedError(ValueError):
    """The file is not a whole checkpoint; the message says in what way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file inside the archive.

    Attributes:
        name: Without the archive's own folder: ``data.pkl``, ``data/0``, ...
        crc32: That its content must have.
        stamp: Version, flags, method and time, which header and directory must agree on.
    """

    name: str
    full_name: bytes
    size_bytes: int
    crc32: int
    header_start: int
    stamp: tuple[int, ...] = ()


class Source:
    """Bytes that can be read at any position, from one descriptor opened once.

    A path that is replaced while it is being read does not matter: the descriptor keeps the file.

    Raises:
        OSError: The path cannot be opened, or leads to something other than a regular file.
    """

    def __init__(self, source: Path | BinaryIO) -> None:
        self._descriptor: int | None = None
        self._stream: BinaryIO | None = None
        if isinstance(source, Path):
            with open_regular(source) as stream:
                self._descriptor = os.dup(stream.fileno())
            self.size_bytes = os.fstat(self._descriptor).st_size
        else:
            self._stream = source
            self.size_bytes = source.seek(0, io.SEEK_END)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill ``buffer`` from ``offset`` on; return how many bytes there were."""
        done = 0
        while done < len(buffer):
            if self._descriptor is not None:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            else:
                assert self._stream is not None
                self._stream.seek(offset + done)
                count = getattr(self._stream, "readinto")(buffer[done:])  # noqa: B009 - not in BinaryIO's stub
            if not count:
                break
            done += count
        return done

    def read(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at ``offset``.

        Raises:
            DamagedError: There are fewer.
        """
        if offset < 0 or size < 0 or offset + size > self.size_bytes:
            raise DamagedError(f"it refers to bytes {offset} to {offset + size}, but has {self.size_bytes}")
        if self._descriptor is not None and size < 2**30:
            content = os.pread(self._descriptor, size, offset)
            if len(content) == size:
                return content
        buffer = bytearray(size)
        if self.read_into(offset, memoryview(buffer)) != size:
            raise DamagedError("it became shorter while it was read")
        return bytes(buffer)


class Archive:
    """The directory of a checkpoint's zip file.

    The source must stay open while the archive is used.

    Raises:
        DamagedError: There is no intact directory, or one that ``torch.save`` would not write.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.directory_start, count, self._tail = _read_tail(source)
        self.entries = _parse_directory(self._tail, count, self.directory_start)
        self.by_name = {entry.name: entry for entry in self.entries}
        if self.entries and not any(entry.crc32 for entry in self.entries):
            raise DamagedError(
                "it was saved without checksums (torch.serialization.set_crc32_options(False)), "
                "so that damage cannot be told: save it again with them"
            )

    def read(self, name: str, *, limit_bytes: int) -> bytes:
        """Return the content of one entry, its checksum compared.

        Raises:
            DamagedError: It is missing, larger than ``limit_bytes`` or damaged.
        """
        entry = self.by_name.get(name)
        if entry is None:
            raise DamagedError(f"the archive has no {name}")
        if entry.size_bytes > limit_bytes:
            raise DamagedError(f"{name} has {entry.size_bytes} bytes, at most {limit_bytes} are read")
        header = self.source.read(entry.header_start, _LOCAL.size)
        start = entry.header_start + _check_local(entry, header)
        names = self.source.read(entry.header_start + _LOCAL.size, len(entry.full_name))
        _check_local_name(entry, names)
        content = self.source.read(start, entry.size_bytes)
        _check_crc(entry, zlib.crc32(content))
        return content

    def sweep(self, take: Callable[[Entry, Iterator[memoryview]], None]) -> str:
        """Read the whole file once, from its first byte to its last, and prove every byte of it.

        Args:
            take: Is given each entry in file order with its content, piece by piece. A piece is
                valid until the next one is asked for; what ``take`` leaves is read all the same.

        Returns:
            The sha256 of the file.

        Raises:
            DamagedError: A checksum differs, or there are bytes that belong to nothing.
        """
        repacked = False
        with Reader(self.source) as reader:
            for entry in self.entries:
                if reader.position != entry.header_start:
                    raise DamagedError(
                        f"{entry.name} begins at byte {entry.header_start}, expected {reader.position}: "
                        "something lies between the entries, or one overlaps another"
                    )
                header = reader.take(_LOCAL.size)
                rest = _check_local(entry, header) - _LOCAL.size
                _check_local_name(entry, reader.take(rest)[: len(entry.full_name)])
                repacked = repacked or reader.position % _ALIGNMENT_BYTES != 0
                pieces = reader.pieces(entry.size_bytes)
                take(entry, pieces)
                for _ in pieces:
                    pass
                _check_crc(entry, pieces.crc32)
                if _LOCAL.unpack(header)[2] & 0x8:
                    self._check_descriptor(entry, reader)
            if reader.position != self.directory_start:
                raise DamagedError(f"bytes {reader.position} to {self.directory_start} belong to no entry")
            if reader.take(len(self._tail)) != self._tail:
                raise DamagedError("it changed while it was read")
            if repacked:
                self._check_identity()
            return reader.finish()

    def _check_identity(self) -> None:
        """Compare the content with the identity that torch (from 2.1 on) gave it when it was saved.

        A zip tool that exchanges two storages writes right checksums for them. The last half of the
        identity chains the checksums of all entries in order. How is torch's own affair, so that
        only files that were certainly not left as torch wrote them are held to it.
        """
        if _IDENTITY not in self.by_name:
            return
        identity = self.read(_IDENTITY, limit_bytes=64)
        chained = 0
        for entry in self.entries:
            if entry.name != _IDENTITY:
                mixed = entry.crc32 + 0x9E3779B9 + (chained << 6) + (chained >> 2)
                chained = (chained ^ mixed) & (2**64 - 1)
        if len(identity) == 40 and identity[20:] != b"%020d" % chained:
            raise DamagedError("it was packed again after it was saved, and its content changed")

    def _check_descriptor(self, entry: Entry, reader: Reader) -> None:
        """Compare the copy of checksum and sizes that follows the data where the header has none."""
        long = entry.size_bytes >= _MARK
        expected = b"PK\x07\x08" + struct.pack("<L", entry.crc32)
        expected += struct.pack("<2Q" if long else "<2L", entry.size_bytes, entry.size_bytes)
        if reader.take(len(expected)) != expected:
            raise DamagedError(f"{entry.name}: what follows its data contradicts the directory")


class Reader:
    """Reads a source from start to end, hashing in a second thread while the caller works.

    Few buffers travel between the two: enough that neither waits for the other, and each so large that
    handing it over costs little beside hashing it.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        self._to_hash: SimpleQueue[memoryview | None] = SimpleQueue()
        for _ in range(_NUM_BUFFERS):
            self._free.put(memoryview(bytearray(_CHUNK_BYTES)))
        self._offset = 0
        self._sha256 = hashlib.sha256()
        self._hasher = threading.Thread(target=self._hash, name="sha256", daemon=True)
        self._chunk = memoryview(b"")
        self._whole: memoryview | None = None
        self._at = 0
        self.position = 0

    def __enter__(self) -> Reader:
        self._hasher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._to_hash.put(None)
        self._hasher.join()

    def _hash(self) -> None:
        while (chunk := self._to_hash.get()) is not None:
            self._sha256.update(chunk)
            self._free.put(chunk)

    def next_piece(self, limit: int) -> memoryview:
        """Return the next bytes, at least one and at most ``limit``; valid until the next call."""
        if self._at == len(self._chunk):
            self._fill()
        piece = self._chunk[self._at : self._at + limit]
        self._at += len(piece)
        self.position += len(piece)
        return piece

    def take(self, size: int) -> bytes:
        if self._at + size <= len(self._chunk):
            start = self._at
            self._at += size
            self.position += size
            return bytes(self._chunk[start : self._at])
        parts = bytearray()
        while len(parts) < size:
            parts += self.next_piece(size - len(parts))
        return bytes(parts)

    def pieces(self, size_bytes: int) -> Pieces:
        """Return the next ``size_bytes`` bytes, to be gone through piece by piece."""
        return Pieces(self, size_bytes)

    def finish(self) -> str:
        """Return the sha256 of all that was read; the source must be at its end."""
        if self.position != self._source.size_bytes:
            raise DamagedError(
                f"{self._source.size_bytes - self.position} bytes follow the end of the archive"
            )
        self.__exit__()
        return self._sha256.hexdigest()

    def _fill(self) -> None:
        left = self._source.size_bytes - self._offset
        if left <= 0:
            raise DamagedError("it ends in the middle of an entry")
        buffer = self._free.get()
        if len(buffer) != _CHUNK_BYTES:  # only the last chunk is shorter, and nothing follows it
            buffer = memoryview(bytearray(_CHUNK_BYTES))
        chunk = buffer[: min(left, _CHUNK_BYTES)]
        if self._source.read_into(self._offset, chunk) != len(chunk):
            raise DamagedError("it became shorter while it was read")
        self._offset += len(chunk)
        self._chunk, self._at = chunk, 0
        self._to_hash.put(chunk)


class Pieces:
    """The content of one entry, piece by piece, its checksum computed on the way."""

    def __init__(self, reader: Reader, size_bytes: int) -> None:
        self._reader = reader
        self._left = size_bytes
        self.crc32 = 0

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        if not self._left:
            raise StopIteration
        piece = self._reader.next_piece(self._left)
        self._left -= len(piece)
        self.crc32 = zlib.crc32(piece, self.crc32)
        return piece


def _read_tail(source: Source) -> tuple[int, int, bytes]:
    """Return where the directory starts, how many entries it has, and all bytes from there on."""
    size = source.size_bytes
    if size < _END.size:
        raise DamagedError(f"it has {size} bytes, too few for any checkpoint")
    end = source.read(size - _END.size, _END.size)
    magic, disk, first_disk, here, count, length, start, comment = _END.unpack(end)
    if magic != b"PK\x05\x06" or comment:
        raise DamagedError("the end of the zip archive is missing: the file was cut off or overwritten there")
    if disk or first_disk or here != count:
        raise DamagedError("its end speaks of a zip archive in several parts")
    stop = size - _END.size
    locator_start = stop - _LOCATOR64.size
    locator = source.read(locator_start, _LOCATOR64.size) if locator_start >= _END64.size else b""
    if locator[:4] == b"PK\x06\x07":
        _, first_disk64, end64_start, disks = _LOCATOR64.unpack(locator)
        if end64_start + _END64.size != locator_start or disks != 1 or first_disk64:
            raise DamagedError("the end of the zip archive is damaged")
        magic, length64, _, _, disk, first_disk, here, count64, size64, start64 = _END64.unpack(
            source.read(end64_start, _END64.size)
        )
        if magic != b"PK\x06\x06" or length64 != _END64.size - 12 or disk or first_disk or here != count64:
            raise DamagedError("the end of the zip archive is damaged")
        for short, whole, limit in (
            (count, count64, 0xFFFF),
            (length, size64, _MARK),
            (start, start64, _MARK),
        ):
            if short != min(whole, limit):
                raise DamagedError("the two ends of the zip archive contradict each other")
        count, length, start, stop = count64, size64, start64, end64_start
    if start + length != stop:
        raise DamagedError("the directory of the zip archive is not where its end says")
    if length > _MAX_DIRECTORY_BYTES:
        raise DamagedError(f"the directory of the zip archive has {length} bytes, more than any checkpoint")
    return start, count, source.read(start, size - start)


def _parse_directory(tail: bytes, count: int, directory_start: int) -> tuple[Entry, ...]:
    if count * _CENTRAL.size > len(tail):
        raise DamagedError(f"its directory cannot hold {count} entries")
    if count > _MAX_ENTRIES:
        raise DamagedError(f"it has {count} entries, more than any checkpoint")
    entries: list[Entry] = []
    names: set[str] = set()
    at = 0
    for _ in range(count):
        entry, at = _parse_entry(tail, at, directory_start)
        entries.append(entry)
        if entry.full_name.partition(b"/")[0] != entries[0].full_name.partition(b"/")[0]:
            raise _not_in_one_folder(entry.full_name)
        # torch does not tell upper from lower case.
        if entry.name.lower() in names:
            raise DamagedError(
                f"two entries have the name {entry.name}: which one counts would depend on the reader"
            )
        names.add(entry.name.lower())
    if not tail.startswith((b"PK\x05\x06", b"PK\x06\x06"), at):
        raise DamagedError("the directory of the zip archive has more in it than its entries")
    entries.sort(key=lambda entry: entry.header_start)
    return tuple(entries)


def _parse_entry(tail: bytes, at: int, directory_start: int) -> tuple[Entry, int]:
    """Return the entry at ``at`` of the directory, and where the next one begins."""
    if at + _CENTRAL.size > len(tail):
        raise DamagedError("the directory of the zip archive is cut off")
    fields = _CENTRAL.unpack_from(tail, at)
    magic, flags, method, crc32, stamp = fields[0], fields[3], fields[4], fields[7], fields[2:7]
    num_name, num_extra, num_comment = fields[10:13]
    if magic != b"PK\x01\x02":
        raise DamagedError("the directory of the zip archive is damaged")
    if num_name > _MAX_NAME_BYTES:
        raise DamagedError(f"an entry has a name of {num_name} bytes; torch writes short ones")
    at += _CENTRAL.size
    full_name = tail[at : at + num_name]
    extra = tail[at + num_name : at + num_name + num_extra]
    packed, size, header_start = _long_sizes(fields[8], fields[9], fields[16], extra)
    _, slash, rest = full_name.partition(b"/")
    shown = _shown(full_name)
    if not rest.isascii() or not rest.decode("ascii").isprintable():
        raise DamagedError(f"an entry has the name {shown}; torch writes plain ones")
    if flags not in _FLAGS or fields[13]:
        raise DamagedError(f"{shown} is encrypted or in another part, which torch.save never does")
    if fields[15] & _FOLDER:
        raise DamagedError(f"{shown} is marked as a folder, so that torch would read nothing in its place")
    if method != 0 or packed != size:
        raise DamagedError(
            f"{shown} is compressed, which torch.save never does: another kind of zip file, or a bomb"
        )
    if header_start + _LOCAL.size + num_name + size > directory_start:
        raise DamagedError(f"{shown} reaches beyond the end of the file's data")
    if not slash or not rest:
        raise _not_in_one_folder(full_name)
    entry = Entry(
        name=rest.decode("ascii"),
        full_name=full_name,
        size_bytes=size,
        crc32=crc32,
        header_start=header_start,
        stamp=stamp,
    )
    return entry, at + num_name + num_extra + num_comment


def _not_in_one_folder(full_name: bytes) -> DamagedError:
    shown = _shown(full_name)
    return DamagedError(
        f"it is a zip file, but not a checkpoint: {shown} does not lie in one folder with the rest"
    )


def _shown(name: bytes) -> str:
    return f"'{visible(name.decode('utf-8', 'surrogateescape'), 80)}'"


def _long_sizes(packed: int, size: int, start: int, extra: bytes) -> tuple[int, int, int]:
    """Return sizes and offset with those that do not fit 32 bits taken from the zip64 field."""
    if _MARK not in (packed, size, start):
        return packed, size, start
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            try:
                found = [next(numbers) if short == _MARK else None for short in (size, packed, start)]
            except StopIteration:
                break
            if any(number is not None and number < _MARK for number in found):
                raise DamagedError("an entry says of its size that it is large, and it is not")
            shorts = zip(found, (size, packed, start), strict=True)
            size, packed, start = (short if number is None else number for number, short in shorts)
            return packed, size, start
        at += 4 + length
    raise DamagedError("an entry of more than 4 GB lacks its sizes")


def _check_local(entry: Entry, header: bytes) -> int:
    """Compare a local header with the directory; return how far behind its start the content begins."""
    magic, *stamp, crc32, packed, size, num_name, num_extra = _LOCAL.unpack(header)
    if magic != b"PK\x03\x04" or tuple(stamp) != entry.stamp or num_name != len(entry.full_name):
        raise DamagedError(f"{entry.name}: its header is damaged")
    later = stamp[1] & 0x8 and (crc32, packed, size) == (0, 0, 0)
    if not later and (crc32 != entry.crc32 or packed not in (entry.size_bytes, _MARK) or size != packed):
        raise DamagedError(f"{entry.name}: its header contradicts the directory")
    return int(_LOCAL.size + num_name + num_extra)


def _check_local_name(entry: Entry, name: bytes) -> None:
    if name != entry.full_name:
        raise DamagedError(f"{entry.name}: its header has the name {_shown(name)}: exchanged or overwritten")


def _check_crc(entry: Entry, crc32: int) -> None:
    if crc32 != entry.crc32:
        raise DamagedError(
            f"{entry.name}: its data is damaged: checksum {crc32:08x}, expected {entry.crc32:08x}"
        )
