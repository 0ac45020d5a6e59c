"""Disks that are full: what GDAL and SQLite write in C meets them as well."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mapsage_kaggle.imagery import parts, polygons, writing
from mapsage_kaggle.imagery.journal import Journal
from mapsage_kaggle.imagery.sources import JOURNAL


@contextmanager
def limited_files(size_bytes: int) -> Iterator[None]:
    """Let no file of this process get longer; Python has SIGXFSZ ignored, so that writing fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(0, size_bytes), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def used_bytes(folder: Path) -> int:
    """Return how much is in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """Let maps below a folder take no more than so much; one file is written at a time."""
    replacing, add, lock = writing.replacing, Journal.add, threading.Lock()

    @contextmanager
    def begun(path: Path, *arguments: Any) -> Iterator[Path]:
        with lock, limited_files(size_bytes - used_bytes(folder)), replacing(path, *arguments) as temporary:
            yield temporary

    def added(journal: Journal, *arguments: Any) -> None:
        file = folder / JOURNAL
        there = file.stat().st_size if file.is_file() else 0
        with lock, limited_files(there + size_bytes - used_bytes(folder)):
            add(journal, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        for module in (writing, parts, polygons):
            patch.setattr(module, "replacing", begun)
        patch.setattr(Journal, "add", added)
        yield
