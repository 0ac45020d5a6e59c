"""Stores of checkpoints, what is written into them, and whether all that they say agrees."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256
from mapsage_kaggle.checkpoints.retention import newest_of

Events = list[tuple[str, int, Mapping[str, Any]]]


def payload(text: str, size_bytes: int = 1000) -> Callable[[BinaryIO], None]:
    """Return a writer of bytes that depend on ``text``, in several writes."""
    data = random.Random(text).randbytes(size_bytes)

    def write(stream: BinaryIO) -> None:
        for start in range(0, size_bytes, max(1, size_bytes // 3)):
            stream.write(data[start : start + max(1, size_bytes // 3)])

    return write


def assert_agrees(folder: Path) -> None:
    """Manifest, ``last_checkpoint`` and the files tell the same."""
    manifest = Manifest.read(folder / "manifest.json")
    assert set(manifest.files) == {path.name for path in folder.glob("*.pth")}
    assert not manifest.pending
    for name, ref in manifest.files.items():
        assert (folder / name).stat().st_size == ref.size_bytes
        assert file_sha256(folder / name) == ref.sha256
    newest = newest_of(manifest.files.values())
    if newest:
        assert (folder / "last_checkpoint").read_text() == newest[0].file


def run_python(script: str, *arguments: str, check: bool = True) -> str:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        check=check,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        cwd=Path(__file__).resolve().parents[2],
    ).stdout
