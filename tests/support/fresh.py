"""A Python of its own to install into."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


class Fresh:
    """A virtual environment that has what Kaggle's image has, and nothing else of the stack.

    The packages present, pip among them, are linked from this interpreter's: nothing large is copied.
    """

    def __init__(self, folder: Path, *, lacking: set[str]) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        (self.site,) = (folder / "lib").glob("python3.*/site-packages")
        here = Path(str(metadata.distribution("torch").locate_file("")))
        for distribution in metadata.distributions(path=[str(here)]):
            if canonicalize_name(distribution.metadata["Name"]) not in lacking:
                self._link(distribution, here)

    def _link(self, distribution: metadata.Distribution, here: Path) -> None:
        tops = {Path(str(path)).parts[0] for path in distribution.files or []}
        for top in tops - {"..", "bin", "__pycache__"}:
            if not (self.site / top).exists() and not top.startswith("__editable__"):
                (self.site / top).symlink_to(here / top)

    def install(
        self, inputs: Path, config: Path, *, before: str = "", offline: bool | None = True, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        code = f"""
{before}
import dataclasses, json
from pathlib import Path
import mapsage_kaggle.setup.install as kit
report = kit.install(inputs=Path({str(inputs)!r}), offline={offline}, config=Path({str(config)!r}))
print(json.dumps(dataclasses.asdict(report), default=str))
"""
        return subprocess.run(
            [self.python, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environ},
        )
