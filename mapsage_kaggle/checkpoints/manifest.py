"""``manifest.json``: the size and sha256 of each proven checkpoint of a work dir."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapsage_kaggle.checkpoints.names import kind_of
from mapsage_kaggle.outside import MAX_PATH, open_regular, read_json, stamp_of, visible
from mapsage_kaggle.paths import WorkDir, replace_file
from mapsage_kaggle.records import CheckpointRef

SCHEMA = 1
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``manifest.json`` says: the proven files, and one that was about to be renamed into place.

    Attributes:
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
            document = read_json(path)
            if int(document["schema"]) > SCHEMA:
                raise ValueError(f"schema {document['schema']} is newer than {SCHEMA}")
            return cls(
                files=_refs_from_json(document["files"]),
                pending=_refs_from_json(document.get("pending", {})),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {visible(str(error))}"
            raise ValueError(f"{visible(path, MAX_PATH)} is no readable manifest: {reason}") from error

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
        pending = {name: other for name, other in self.pending.items() if name != ref.file}
        return Manifest({**self.files, ref.file: ref}, pending)

    def with_pending(self, ref: CheckpointRef) -> Manifest:
        """Return a manifest that expects ``ref`` under its name, beside what is listed there now."""
        return Manifest(self.files, {**self.pending, ref.file: ref})

    def without(self, names: Iterable[str]) -> Manifest:
        gone = set(names)
        return Manifest(
            {name: ref for name, ref in self.files.items() if name not in gone},
            {name: ref for name, ref in self.pending.items() if name not in gone},
        )

    def settled_in(self, folder: Path) -> Manifest:
        """Return what it would say had the last save been finished: files that are there."""
        files: dict[str, CheckpointRef] = {}
        for name in {**self.files, **self.pending}:
            refs = (self.files.get(name), self.pending.get(name))
            try:
                size_bytes = (folder / name).stat().st_size
            except OSError:
                continue
            fitting = [ref for ref in refs if ref is not None and ref.size_bytes == size_bytes]
            if name in self.pending and fitting:
                sha256 = file_sha256(folder / name)
                fitting = [ref for ref in fitting if ref.sha256 == sha256]
            if fitting:
                files[name] = fitting[0]
        return Manifest(files)


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
        str(name): CheckpointRef.from_json({**entry, "file": name})
        for name, entry in document.items()
        if entry.get("proven", True)
    }


def manifest_sha256(checkpoint: Path) -> str | None:
    """Return the sha256 that the manifest beside a checkpoint states for it, or None where none does.

    A kill between a rename and the manifest's update leaves two hashes for one name, the listed
    and the pending one. Then the file's size decides, and its bytes where the sizes are equal; a
    file that is neither gets the listed hash, which it will fail.
    """
    path = WorkDir(checkpoint.parent).manifest
    stamp = stamp_of(path)
    manifest = _read_once(path, stamp) if stamp is not None else None
    if manifest is None:
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
        return pending.sha256 if file_sha256(checkpoint) == pending.sha256 else listed.sha256
    except OSError:
        return listed.sha256


@functools.lru_cache(maxsize=8)
def _read_once(path: Path, stamp: tuple[int, ...]) -> Manifest | None:
    """Read a manifest once for all checkpoints beside it, of which there may be very many."""
    try:
        return Manifest.read(path)
    except (OSError, ValueError):
        return None


def file_sha256(path: Path, *, from_disk: bool = False) -> str:
    """Hash a file; ``from_disk`` first asks the kernel to forget what it has of it in memory."""
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with open_regular(path) as stream:
        if from_disk:
            with contextlib.suppress(OSError):
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while count := stream.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()
