"""Where a session's time goes: the shipped config on tiles of real size, by the kit and by mmsegmentation.

Run ``python tests/benchmarks/bench_session.py --minutes 30``. The kit's side is the command itself,
``mapsage-kaggle train`` with a session limit, and what is told is the time split of its record. The other
side is mmengine's own runner with the config's stock parts, stopped by the clock after as long, which saves
as often (every five minutes and at the end). Both sides' time counts from the start of their process.
Images are 1024 x 1024: those below ``--data``, in ``images_png`` and ``masks_png``, or else generated scenes,
under as many names as ``--images`` says. The goal: at least 95 % of the time outside validation in training
steps. A short stretch has more of its time in its start than a session of hours.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mapsage_kaggle.config.reading import read_config

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from side_by_side import Row, by_turns, parser, show  # noqa: E402 - found by the lines above

from mapsage_kaggle.data.scenes import generate_scenes  # noqa: E402
from mapsage_kaggle.paths import ROOT_VARIABLE, WorkDir  # noqa: E402
from mapsage_kaggle.records import SessionRecord, complete_timings, share_of_steps  # noqa: E402

CONFIG = ROOT / "configs" / "train_earthvqa_kaggle.py"
GOAL = 0.95
SAVE_EVERY_S = 300.0


def lay_out(folder: Path, source: Path | None, num_images: int) -> None:
    """Make a data set of EarthVQA's shape, each of its few tiles under many names."""
    tiles = folder / "tiles"
    if source is None:
        generate_scenes(tiles, train=4, val=1, size=1024, seed=0)
        source = tiles / "Train"
    images = sorted((source / "images_png").glob("*.png"))
    for split, count in (("Train", num_images), ("Val", 2)):
        for name in ("images_png", "masks_png"):
            target = folder / "input" / "scenes" / split / name
            target.mkdir(parents=True)
            for index in range(count):
                shutil.copyfile(source / name / images[index % len(images)].name, target / f"{index:05d}.png")


def train_with_kit(root: Path, limit_s: float, overrides: Sequence[str]) -> dict[str, float]:
    """Train by the command for as long; return the record's time split."""
    for name in ("working", "temp"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    command = [
        sys.executable, "-W", "ignore", "-m", "mapsage_kaggle", "train", str(CONFIG), "--resume", "never",
        "--session-limit", f"{limit_s:.0f}s", "--reserve", "5s",
        *(part for override in overrides for part in ("--set", override)),
    ]  # fmt: skip
    environment = {**os.environ, ROOT_VARIABLE: str(root)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise SystemExit(done.stdout[-4000:])
    record = SessionRecord.read(WorkDir(root / "working" / "work_dirs" / CONFIG.stem).session)
    return {**record.timings_s, "iterations": record.end_iteration}


def train_with_stock(root: Path, limit_s: float, overrides: Sequence[str]) -> dict[str, float]:
    """Train by mmengine's own runner for as long, in a process of its own; return its time split."""
    work_dir = root / "stock"
    shutil.rmtree(work_dir, ignore_errors=True)
    command = [sys.executable, "-W", "ignore", __file__, "--stock", str(time.time()), "--minutes",
               str(limit_s / 60), "--folder", str(root), "--set", *overrides]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(done.stdout[-4000:])
    return json.loads((work_dir / "times.json").read_text())  # type: ignore[no-any-return]


def stock(root: Path, began_s: float, limit_s: float, overrides: Sequence[str]) -> None:
    """Train with the config's stock parts until the time is up, and write down where it went."""
    import torch
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS
    from mmengine.runner import Runner

    import mapsage_kaggle.engine.register  # noqa: F401 - its data sets

    work_dir = root / "stock"

    @HOOKS.register_module()
    class StopWatch(Hook):
        priority = "LOWEST"

        def __init__(self) -> None:
            self.times = dict.fromkeys(("waiting_for_data", "forward_backward", "saving"), 0.0)
            self.times["start_up"] = time.time() - began_s
            self.last_s = self.saved_s = time.time()

        def _lap(self, name: str) -> float:
            now = time.time()
            self.times[name] += now - self.last_s
            self.last_s = now
            return now

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            # The first batch waits for the data workers' start.
            self._lap("waiting_for_data" if runner.iter else "start_up")

        def after_train_iter(
            self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
        ) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = self._lap("forward_backward")
            is_over = now - began_s >= limit_s
            if is_over or now - self.saved_s >= SAVE_EVERY_S:
                runner.save_checkpoint(str(work_dir), f"iter_{runner.iter + 1}.pth", by_epoch=False)
                self.saved_s = self._lap("saving")
            if is_over:
                times = complete_timings(self.times, time.time() - began_s)
                (work_dir / "times.json").write_text(json.dumps({**times, "iterations": runner.iter + 1}))
                runner.train_loop.stop_training = True

    data_root = str(root / "input" / "scenes")
    cfg = read_config(CONFIG, [f"work_dir={work_dir}", *overrides])
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = data_root
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.model.backbone.init_cfg = None
    cfg.model.decode_head.norm_cfg.type = "BN"
    cfg.custom_hooks = [{"type": "StopWatch"}]
    Runner.from_cfg(cfg).train()


def main() -> None:
    options = parser(__doc__, turns=1)
    options.add_argument("--minutes", type=float, default=30.0, help="how long each side trains")
    options.add_argument("--stock-minutes", type=float, help="how long the stock side trains, if not as long")
    options.add_argument("--images", type=int, default=200)
    options.add_argument("--data", type=Path, help="a folder with images_png and masks_png")
    options.add_argument("--folder", type=Path, help="scratch space; a temporary folder otherwise")
    options.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the config")
    options.add_argument("--stock", type=float, help="for the benchmark's own use")
    arguments = options.parse_args()
    limit_s = 60 * arguments.minutes
    stock_limit_s = 60 * (arguments.stock_minutes or arguments.minutes)
    if arguments.stock is not None:
        stock(arguments.folder, arguments.stock, limit_s, arguments.set)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        lay_out(root, arguments.data, arguments.images)
        splits: dict[str, list[dict[str, float]]] = {"stock": [], "kit": []}

        def measure(side: str, train: Any, side_limit_s: float) -> float:
            splits[side].append(train(root, side_limit_s, arguments.set))
            return share_of_steps(splits[side][-1]) or 0.0

        sides = (
            partial(measure, "stock", train_with_stock, stock_limit_s),
            partial(measure, "kit", train_with_kit, limit_s),
        )
        shares = by_turns(*sides, turns=arguments.turns, warm_up=0)
    percent = [[100 * share for share in found] for found in shares]
    what = "share of steps in the time outside validation"
    rows = [Row(what=what, unit="%", stock=percent[0], ours=percent[1], more_is_better=True)]
    for what, name, unit in (
        ("starting", "start_up", "s"), ("waiting for data", "waiting_for_data", "s"),
        ("saving", "saving", "s"), ("all else", "other", "s"), ("iterations an hour", "", "1/h"),
    ):  # fmt: skip
        figures = [
            [3600 * x["iterations"] / x["session"] if not name else max(x[name], 0.01) for x in splits[side]]
            for side in ("stock", "kit")
        ]
        rows.append(Row(what=what, unit=unit, stock=figures[0], ours=figures[1], more_is_better=not name))
    model = "SegFormer-B2 of the shipped config" + (", changed by --set" if arguments.set else "")
    title = f"A session of {arguments.minutes:g} minutes, {model} (goal {GOAL:.0%})"
    title += f", stock {arguments.stock_minutes:g} minutes" if arguments.stock_minutes else ""
    show(title, rows, file=arguments.json, splits=splits, overrides=arguments.set)


if __name__ == "__main__":
    main()
