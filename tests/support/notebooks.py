"""The notebook's cells, and a config small enough to run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


NOTEBOOK = ROOT / "notebooks" / "mapsage_train.ipynb"
SELFTEST = ROOT / "notebooks" / "mapsage_selftest.ipynb"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kit_cell(notebook: Any) -> str:
    return next(cell.source for cell in code_cells(notebook) if "def choose_kit" in cell.source)


def write_kernel(jupyter: Path, python: str | Path) -> None:
    """Describe, below a folder for ``JUPYTER_PATH``, a kernel ``python3`` that an interpreter is to run."""
    folder = jupyter / "kernels" / "python3"
    folder.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))


SMALL = [
    "train_cfg.max_iters=12",
    "train_cfg.val_interval=6",
    "param_scheduler.0.end=2",
    "param_scheduler.1.begin=2",
    "param_scheduler.1.end=12",
    "train_dataloader.batch_size=2",
    "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False",
]
