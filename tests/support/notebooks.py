"""The notebook's cells, and a config small enough to run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


NOTEBOOK = ROOT / "notebooks" / "mapsage_train.ipynb"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kit_cell(notebook: Any) -> str:
    return next(cell.source for cell in code_cells(notebook) if "def choose_kit" in cell.source)


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
