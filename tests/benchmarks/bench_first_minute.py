"""The first minute of a session: the notebook's first cell to its first step, cell by cell; and refusals.

    python tests/benchmarks/bench_first_minute.py [--against DIR] [--turns 3] [--json FILE]

The real notebook, run by papermill in a stand-in for /kaggle, with the shipped config (SegFormer-B2) on
generated scenes of 1024 x 1024, one image a batch so that a step is short. Measured is from the start of
the first cell to the moment before the first step, when its batch is there; training is then ended.
Fresh, and resumed from the checkpoint that one session has left. Then refusals that need no torch: by the
notebook where a resume is required and nothing is attached, and by the command for that and for a config
that does not exist.

``--against`` is a checkout of an earlier commit: its own notebook and kit take turns with this one's.
Without it only this one is measured.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from side_by_side import Row, by_turns, parser, show  # noqa: E402 - found by the lines above

from mapsage_kaggle.data.scenes import generate_scenes  # noqa: E402
from mapsage_kaggle.demo import StandIn  # noqa: E402
from mapsage_kaggle.paths import remove_tree  # noqa: E402
from mapsage_kaggle.processes import Child  # noqa: E402

GOAL_RATIO = 1 / 0.6
"""Of a resume, which is to take at most 20 s; a refusal is to take at most 5."""
PATIENCE_S = 300.0

CONFIG = """
_base_ = [{base!r}]
custom_imports = dict(imports=["stopwatch"], allow_failed_imports=False)
custom_hooks = [dict(type="Stopwatch", priority="VERY_LOW")]
train_dataloader = dict(batch_size=1)
"""
STOPWATCH = """
import os, time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Stopwatch(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if "STOPWATCH_FILE" in os.environ:
            with open(os.environ["STOPWATCH_FILE"], "w") as file:
                file.write(str(time.time()))
            time.sleep(600)  # until the benchmark ends it
"""


@dataclass(frozen=True)
class Side:
    """One kit: the folder of its checkout, and what its sessions have left."""

    tree: Path
    out: Path

    def run(
        self, *, resumed: bool, required: bool = False, limit_s: float | None = None
    ) -> tuple[float, dict[str, float]]:
        """Run the notebook until its first step, its refusal or, with a limit, its end.

        Returns:
            Seconds from its first cell to that moment, and those of each cell that ended before.
        """
        kaggle = StandIn(self.out)
        data = self.out / "data"
        kaggle.begin(data, self.out / "session_1" if resumed else None, nested=True)
        target, moment = self.out / "notebook.ipynb", self.out / "moment.txt"
        moment.unlink(missing_ok=True)
        env = {**kaggle.environment(), "PYTHONPATH": str(self.tree)}
        if limit_s is None:
            env["STOPWATCH_FILE"] = str(moment)
        parameters = {
            "CONFIG": kaggle.input / "datasets" / "someone" / data.name / "bench.py",
            "RESUME": "require" if resumed or required else "never",
            "GPUS": 0,
            "EVALUATE": False,
            "RESERVE": "5s",
            "SESSION_LIMIT": "1h" if limit_s is None else f"{limit_s:.0f}s",
        }
        command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
        command += [str(self.tree / "notebooks" / "mapsage_train.ipynb"), str(target)]
        for name, value in parameters.items():
            command += ["-p", name, str(value)]
        with (self.out / "log.txt").open("wb") as log:
            child = Child(command, cwd=kaggle.working, env=env, stdout=log, stderr=subprocess.STDOUT)
            try:
                end = time.monotonic() + PATIENCE_S + (limit_s or 0.0)
                while not child.ended() and not moment.exists():
                    if time.monotonic() > end:
                        raise SystemExit(f"Nothing has come in {PATIENCE_S:.0f} s: {self.out / 'log.txt'}")
                    time.sleep(0.05)
            finally:
                child.end()
        if limit_s is not None:
            kaggle.end(1)
            return 0.0, {}
        cells = _cells(target)
        first_s = min(begin for begin, _ in cells.values())
        if moment.exists():
            last_s = float(moment.read_text())
        elif required and not resumed:
            last_s = max(end for _, end in cells.values())
        else:
            raise SystemExit(f"Training has not begun: {self.out / 'log.txt'}")
        times = {name: end - begin for name, (begin, end) in cells.items() if end > begin}
        return last_s - first_s, times


def _cells(notebook: Path) -> dict[str, tuple[float, float]]:
    """Return when each cell that says so began and ended, by its last line; the end is 0 where it has not."""
    found = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        times = cell["metadata"].get("papermill", {})
        if cell["cell_type"] == "code" and times.get("start_time"):
            begin, end = (
                datetime.fromisoformat(text).timestamp() if text else 0.0
                for text in (times["start_time"], times.get("end_time"))
            )
            found["".join(cell["source"]).strip().splitlines()[-1]] = (begin, end)
    return found


def lay_out(out: Path) -> None:
    generate_scenes(out / "data", train=4, val=1, size=1024, seed=0)
    (out / "data" / "stopwatch.py").write_text(STOPWATCH)
    base = ROOT / "configs" / "train_earthvqa_kaggle.py"
    (out / "data" / "bench.py").write_text(CONFIG.format(base=str(base)))


def refuse_s(tree: Path, out: Path, arguments: Sequence[str]) -> float:
    """Return how long a command takes to refuse."""
    kaggle = StandIn(out)
    kaggle.begin(out / "data", None, nested=True)
    env = {**kaggle.environment(), "PYTHONPATH": str(tree)}
    begin_s = time.monotonic()
    command = [sys.executable, "-m", "mapsage_kaggle", "train", *arguments]
    done = subprocess.run(command, cwd=kaggle.working, env=env, capture_output=True, text=True, timeout=300)
    if done.returncode not in (2, 3, 4):
        raise SystemExit(f"{arguments}: no refusal (exit {done.returncode})\n{done.stdout}{done.stderr}")
    return time.monotonic() - begin_s


def main() -> int:
    made = parser(__doc__, turns=3)
    made.add_argument("--against", type=Path, metavar="DIR", help="a checkout of an earlier commit")
    options = made.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="first-minute-"))
    try:
        return measure(options, folder)
    finally:
        remove_tree(folder)


def measure(options: Any, folder: Path) -> int:
    trees = [(options.against or ROOT).resolve(), ROOT]
    sides = []
    for name, tree in zip(("before", "now"), trees, strict=True):
        side = Side(tree, folder / name)
        lay_out(side.out)
        sides.append(side)
    stock, ours = sides
    ours.run(resumed=False, limit_s=120.0)
    if stock.tree != ours.tree:
        shutil.copytree(ours.out / "session_1", stock.out / "session_1")
    rows, cells = [], {}
    for what, asked in (
        ("fresh: first cell to first step", {"resumed": False}),
        ("resumed: first cell to first step", {"resumed": True}),
        ("refused: nothing to resume", {"resumed": False, "required": True}),
    ):
        seen: dict[str, list[dict[str, float]]] = {"before": [], "now": []}

        def once(side: Side, name: str, asked: dict[str, bool] = asked, seen: Any = seen) -> float:
            total_s, times = side.run(**asked)
            seen[name].append(times)
            return total_s

        if stock.tree == ours.tree:
            now_s = [once(ours, "now") for _ in range(options.turns)]
            before_s = now_s
        else:
            before_s, now_s = by_turns(
                lambda once=once: once(stock, "before"),
                lambda once=once: once(ours, "now"),
                turns=options.turns,
            )
        goal = GOAL_RATIO if asked == {"resumed": True} else None
        rows.append(Row(what=what, unit="s", stock=before_s, ours=now_s, goal=goal))
        cells[what] = {
            name: {cell: round(statistics.median(run.get(cell, 0.0) for run in runs), 2) for cell in runs[-1]}
            for name, runs in seen.items()
            if runs
        }
    config = str(ROOT / "configs" / "train_earthvqa_kaggle.py")
    for what, arguments in (
        ("refused: no such config", ["nothing.py"]),
        ("refused: --resume require, nothing attached", [config, "--resume", "require"]),
    ):
        before_s, now_s = by_turns(
            lambda arguments=arguments: refuse_s(stock.tree, stock.out, arguments),
            lambda arguments=arguments: refuse_s(ours.tree, ours.out, arguments),
            turns=options.turns,
        )
        rows.append(Row(what=what, unit="s", stock=before_s, ours=now_s))
    title = (
        "The first minute: before (an earlier commit) against now" if options.against else "The first minute"
    )
    show(title, rows, file=options.json, cells=cells)
    for what, names in cells.items():
        print(f"\n{what}")
        for cell in names["now"]:
            print(
                "  "
                + "  ".join(f"{names[name].get(cell, 0.0):6.1f} s {name}" for name in names)
                + f"  {cell}"
            )
    return 0


if __name__ == "__main__":
    os.environ.pop("OMP_NUM_THREADS", None)
    sys.exit(main())
