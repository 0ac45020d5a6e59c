"""The notebook's cells, and a config small enough to run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[2]


NOTEBOOK = ROOT / "notebooks" / "mapsage_train.ipynb"
SELFTEST = ROOT / "notebooks" / "mapsage_selftest.ipynb"
MAPS = ROOT / "notebooks" / "mapsage_maps.ipynb"


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How papermill ended, the notebook that it has saved, and what it said."""

    code: int
    saved: Any
    log: str

    def outputs(self) -> list[Any]:
        return [output for cell in code_cells(self.saved) for output in cell.outputs]


@dataclass
class Papermill:
    """Runs the notebook below a stand-in for ``/kaggle`` as Kaggle does."""

    root: Path
    python: str | Path = sys.executable
    environ: dict[str, str] = field(default_factory=dict)
    repository: Path = ROOT

    def __call__(self, **parameters: Any) -> Run:
        write_kernel(self.root / "jupyter", self.python)
        defaults = {
            "CONFIG": "demo.py", "OVERRIDES": SMALL, "SESSION_LIMIT": "10m", "RESERVE": "10s", "GPUS": 0,
            "EVALUATE": False,
        }  # fmt: skip
        yaml, saved = self.root / "parameters.yaml", self.root / "working" / "__notebook__.ipynb"
        yaml.write_text(json.dumps({**defaults, **parameters}))
        command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-f", str(yaml)]
        done = subprocess.run(
            [*command, str(NOTEBOOK), str(saved)],
            env=kernel_environment(self.root, "Batch") | self.environ,
            cwd=self.root / "working",
            capture_output=True,
            text=True,
            check=False,
        )
        return Run(code=done.returncode, saved=nbformat.read(saved, as_version=4), log=done.stderr)

    def at_start(self, code: str) -> None:
        """Have the kernel run this before the first cell."""
        folder = self.root / "jupyter" / "ipython" / "profile_default" / "startup"
        folder.mkdir(parents=True)
        (folder / "00.py").write_text(code)


def kernel_environment(root: Path, run_type: str) -> dict[str, str]:
    """Return the environment of a kernel below a stand-in for ``/kaggle``."""
    return {
        **os.environ,
        "MAPSAGE_KAGGLE_ROOT": str(root),
        "KAGGLE_KERNEL_RUN_TYPE": run_type,
        "JUPYTER_PATH": str(root / "jupyter"),
        "IPYTHONDIR": str(root / "jupyter" / "ipython"),
        "PYTHONPATH": str(ROOT),
    }
