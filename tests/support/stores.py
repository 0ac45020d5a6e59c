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
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.records import CheckpointRef

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


def real_checkpoint(iteration: int, *, score: float | None = None, optimizer: bool = True) -> dict[str, Any]:
    """Return the parts that mmengine saves, small."""
    import torch

    torch.manual_seed(iteration)
    state: dict[str, Any] = {
        "meta": {"iter": iteration, "epoch": 0, "seed": 0},
        "state_dict": {"weight": torch.randn(8, 8)},
        "message_hub": {"log_scalars": {}, "runtime_info": {"iter": iteration}, "resumed_keys": {}},
    }
    if score is not None:
        state["message_hub"]["runtime_info"]["best_score"] = score
    if optimizer:
        state["optimizer"] = {"state": {0: {"exp_avg": torch.randn(8, 8)}}, "param_groups": [{"lr": 1.0}]}
        state["param_schedulers"] = [{"last_step": iteration}]
    return state


def torch_writer(state: Mapping[str, Any]) -> Callable[[BinaryIO], None]:
    def write(stream: BinaryIO) -> None:
        import torch

        torch.save(state, stream)

    return write


def save_iter(store: CheckpointStore, iteration: int, size_bytes: int = 1000) -> CheckpointRef:
    return store.save(f"iter_{iteration}.pth", payload(str(iteration), size_bytes), iteration=iteration)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
