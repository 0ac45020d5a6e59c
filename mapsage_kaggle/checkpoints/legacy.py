"""Reads the format that ``torch.save`` wrote before torch 1.6: pickles, then raw storages.

It has no directory and no checksums, so that damage inside a tensor cannot be told. Pretrained
weights of those years are still handed round in it; checkpoints to resume from never were.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from mapsage_kaggle.checkpoints.allowed import StorageInfo, UnsafeError
from mapsage_kaggle.checkpoints.archive import DamagedError, Entry, Reader, Source
from mapsage_kaggle.checkpoints.unpickle import MAX_PICKLE_BYTES, interpret_one

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number 0x1950a86a20f9469cfc6c, with which each such file begins."""

_PROTOCOL_VERSION = 1001
_FIRST_LOOK_BYTES = 4 * 2**20


class LegacyArchive:
    """A checkpoint file of the old format, with the same face as ``Archive``.

    The source must stay open while the archive is used.

    Raises:
        DamagedError: It is cut off, or its parts contradict each other.
        UnsafeError: A pickle in it asks for something that no checkpoint needs.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        # The pickles are small, and nothing says how long they are.
        for limit_bytes in (_FIRST_LOOK_BYTES, MAX_PICKLE_BYTES):
            head = source.read(0, min(source.size_bytes, limit_bytes))
            try:
                keys, storages = self._read(head)
                break
            except (DamagedError, UnsafeError):
                if limit_bytes >= min(source.size_bytes, MAX_PICKLE_BYTES):
                    raise
        self.entries = self._lay_out(keys, storages)
        self.by_name = {entry.name: entry for entry in self.entries}

    def _read(self, head: bytes) -> tuple[Any, dict[str, StorageInfo]]:
        """Read the pickles at the beginning; return the keys of the storages, and the storages by key."""
        version, at, _ = interpret_one(head, len(MAGIC))
        if type(version) is not int or version != _PROTOCOL_VERSION:
            raise DamagedError(f"it has another version of the legacy format than {_PROTOCOL_VERSION}")
        machine, at, _ = interpret_one(head, at)
        if type(machine) is not dict or machine.get("little_endian") is not True:
            raise DamagedError("it was written on a big-endian machine, or its header is damaged")
        start = at
        self.tree, at, storages = interpret_one(head, start)
        self.pickle = head[start:at]
        keys, self._data_start, _ = interpret_one(head, at)
        self._head = head[: self._data_start]
        return keys, storages

    def _lay_out(self, keys: Any, storages: dict[str, StorageInfo]) -> tuple[Entry, ...]:
        if (
            type(keys) is not list
            or len(keys) != len(storages)
            or {key for key in keys if type(key) is str} != set(storages)
        ):
            raise DamagedError("the storages in it are not those that its pickle names")
        entries: list[Entry] = []
        at = self._data_start
        for key in keys:
            (count,) = struct.unpack("<q", self.source.read(at, 8))
            if count != storages[key].num_elements:
                raise DamagedError(
                    f"storage {key} has {count} elements, expected {storages[key].num_elements}"
                )
            size_bytes = storages[key].size_bytes
            name = storages[key].entry
            entries.append(
                Entry(name=name, full_name=name.encode(), size_bytes=size_bytes, crc32=0, header_start=at)
            )
            at += 8 + size_bytes
        if at != self.source.size_bytes:
            raise DamagedError(
                f"it has {self.source.size_bytes} bytes, expected {at}: it was cut off or added to"
            )
        return tuple(entries)

    def sweep(self, take: Callable[[Entry, Iterator[memoryview]], None]) -> str:
        """Read the whole file once; see ``Archive.sweep``. There are no checksums to compare.

        Raises:
            DamagedError: It changed or became shorter while it was read.
        """
        with Reader(self.source) as reader:
            if reader.take(len(self._head)) != self._head:
                raise DamagedError("it changed while it was read")
            for entry in self.entries:
                reader.take(8)
                pieces = reader.pieces(entry.size_bytes)
                take(entry, pieces)
                for _ in pieces:
                    pass
            return reader.finish()


def is_legacy(head: bytes) -> bool:
    return head.startswith(MAGIC)
