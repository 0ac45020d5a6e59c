"""A stand-in for ``/kaggle`` below a temporary folder, and sessions run in it as a person would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.events import Event, read_events
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import SessionRecord
from support import warm

REPOSITORY = Path(__file__).resolve().parents[2]
WITH_TORCH = {"train", "evaluate", "average", "predict", "export"}
"""The commands that start children that import torch."""

STOP_HOOK = '''
"""Asks for a stop at chosen iterations, by the file that a person would use."""
import json, os, signal
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class AtIteration(Hook):
    def __init__(self, stop=None, kill=None, fail=None, memory=None, poison=None, once=None):
        self.at = dict(stop=stop, kill=kill, fail=fail, memory=memory, poison=poison)
        self.once = once  # a file that says that it has happened already

    def _now(self, kind, runner):
        if self.at[kind] != runner.iter + 1:
            return False
        if self.once is not None:
            marker = Path(self.once + "-" + kind)
            if marker.exists():
                return False
            marker.touch()
        return True

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self._now("fail", runner):
            raise RuntimeError("a fault that was planted")
        if self._now("memory", runner):
            raise MemoryError("a fault that was planted")
        if self._now("poison", runner):
            next(runner.model.parameters()).data.fill_(float("nan"))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self._now("stop", runner):
            Path(runner.work_dir, "stop_request.json").write_text(json.dumps({"action": "stop"}))
        if self._now("kill", runner):
            os.kill(os.getpid(), signal.SIGKILL)
'''

CONFIG = """
_base_ = [{base!r}]
custom_imports = dict(imports=["at_iteration"], allow_failed_imports=False)
custom_hooks = [dict(type="AtIteration", **{faults!r})]
model = dict(
    backbone=dict(drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2, embed_dims=8),
    decode_head=dict(in_channels=[8, 16, 32, 48], channels=16, dropout_ratio=0.1),
)
train_dataloader = dict(
    batch_size=4, num_workers={workers}, persistent_workers={workers} > 0,
    dataset=dict(pipeline=[
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        dict(type="RandomResize", scale=(128, 128), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.75),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
        dict(type="PackSegInputs"),
    ]),
)
model["data_preprocessor"] = dict(size=(64, 64))
val_dataloader = dict(num_workers=0, persistent_workers=False)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=5),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=5, end={max_iters}),
]
train_cfg = dict(max_iters={max_iters}, val_interval={val_interval})
default_hooks = dict(logger=dict(interval=4), checkpoint=dict(interval={val_interval}))
{extra}
"""


@dataclass
class StandIn:
    """A root with generated scenes attached, in which sessions are run one after another.

    Its processes are forks of one that has imported torch and mmsegmentation, see ``support.warm``; with
    ``cold`` each is started as on Kaggle, and is a child of the one that started it.
    """

    root: Path
    max_iters: int = 24
    val_interval: int = 10
    base: Path = REPOSITORY / "configs" / "demo.py"
    extra: str = ""
    environ: dict[str, str] = field(default_factory=dict)
    cold: bool = False

    @classmethod
    def with_scenes(
        cls, root: Path, *, train: int = 6, val: int = 2, size: int = 128, **options: Any
    ) -> StandIn:
        for name in ("input", "working", "temp"):
            (root / name).mkdir(parents=True)
        generate_scenes(root / "input" / "scenes", train=train, val=val, size=size, seed=1)
        return cls(root=root, **options)

    @property
    def work_dir(self) -> WorkDir:
        return WorkDir(self.root / "working" / "work_dirs" / "small")

    def config(self, *, workers: int = 0, extra: str = "", **faults: Any) -> Path:
        folder = self.root / "code"
        folder.mkdir(exist_ok=True)
        (folder / "at_iteration.py").write_text(STOP_HOOK)
        path = folder / "small.py"
        path.write_text(
            CONFIG.format(
                base=str(self.base), faults=faults, workers=workers, max_iters=self.max_iters,
                val_interval=self.val_interval, extra=self.extra + "\n" + extra,
            )
        )  # fmt: skip
        return path

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "MAPSAGE_KAGGLE_ROOT": str(self.root),
            "OMP_NUM_THREADS": "1",
            **self.environ,
        }

    def command(self, *arguments: str | Path) -> list[str]:
        python = warm.python() if arguments[0] in WITH_TORCH and not self.cold else sys.executable
        return [python, "-m", "mapsage_kaggle", *map(str, arguments)]

    def run(self, *arguments: str | Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), env=self.environment(), cwd=REPOSITORY, capture_output=True,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def train(
        self, *arguments: str | Path, workers: int = 0, config_extra: str = "", **faults: Any
    ) -> subprocess.CompletedProcess[str]:
        config = self.config(workers=workers, extra=config_extra, **faults)
        return self.run(
            "train", config, "--threads", "1", "--session-limit", "10m", "--reserve", "10s",
            "--save-every", "0", *arguments,
        )  # fmt: skip

    def start(self, *arguments: str | Path, workers: int = 0, **faults: Any) -> subprocess.Popen[str]:
        config = self.config(workers=workers, **faults)
        return subprocess.Popen(
            self.command("train", config, "--threads", "1", "--save-every", "0", *arguments),
            env=self.environment(), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def hand_over(self, name: str = "notebooks/alice/mapsage") -> Path:
        """Mount what the last session left as a read-only input, and empty the working folder."""
        target = self.root / "input" / name
        if target.exists():
            make_writable(target)
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(str(self.root / "working"), target)
        (self.root / "working").mkdir()
        for path in [*target.rglob("*"), target]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        return target

    def record(self) -> SessionRecord:
        return SessionRecord.read(self.work_dir.session)

    def events(self, kind: str | None = None) -> list[Event]:
        return [event for event in read_events(self.work_dir.events) if kind in (None, event.event)]

    def checkpoint(self, iteration: int) -> dict[str, Any]:
        from mmengine.logging import HistoryBuffer

        from mapsage_kaggle.checkpoints.load import load_checkpoint

        path = self.work_dir.path / f"iter_{iteration}.pth"
        return load_checkpoint(path, history_buffer=HistoryBuffer)


def make_writable(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)


def workers_alive(work_dir: Path) -> list[int]:
    """Return the processes that still belong to the sessions of a work dir."""
    found = []
    for event in read_events(WorkDir(work_dir).events):
        if event.event == "start":
            pid = int(event.data["pid"])
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                continue
            found.append(pid)
    return found


def processes_of(root: Path) -> list[int]:
    """Return every process that was started for a stand-in: supervisor, torchrun, ranks, data workers.

    Each has inherited the stand-in's root in its environment. One that has ended and is not yet
    waited for has no environment any more.
    """
    wanted = f"MAPSAGE_KAGGLE_ROOT={root}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue  # ended meanwhile, or not ours
    return sorted(found)


def none_left(root: Path, timeout_s: float = 90.0) -> bool:
    """Tell whether every process of a stand-in ends within some time."""
    end = time.monotonic() + timeout_s
    while left := processes_of(root):
        if time.monotonic() > end:
            print(f"still running: {left}")
            return False
        time.sleep(0.1)
    return True


def kill_group(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return where two checkpoints differ in what a resume restores; bit for bit."""
    import torch

    problems: list[str] = []

    def compare(a: Any, b: Any, where: str) -> None:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            if a.shape != b.shape or not torch.equal(a, b):
                problems.append(where)
        elif isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                problems.append(f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}")
            for key in a.keys() & b.keys():
                compare(a[key], b[key], f"{where}.{key}")
        elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            if len(a) != len(b):
                problems.append(f"{where}: {len(a)} and {len(b)} items")
            for index, pair in enumerate(zip(a, b, strict=False)):
                compare(*pair, f"{where}.{index}")
        elif a != b:
            problems.append(f"{where}: {a!r} and {b!r}")

    for part in ("state_dict", "optimizer", "param_schedulers", "ema_state_dict"):
        compare(first.get(part), second.get(part), part)
    compare(first["meta"]["iter"], second["meta"]["iter"], "meta.iter")
    hubs = [checkpoint["message_hub"] for checkpoint in (first, second)]
    for name in ("best_score", "best_ckpt", "mapsage_owed_validation"):
        compare(hubs[0]["runtime_info"].get(name), hubs[1]["runtime_info"].get(name), name)
    histories = [hub["log_scalars"]["train/loss"] for hub in hubs]
    # mmengine's HistoryBuffer where mmengine has been imported, else the kit's description of it.
    losses = [(item.log if hasattr(item, "log") else item.data[0]).tolist() for item in histories]
    compare(losses[0], losses[1], "train/loss")
    return problems


def to_json(text: str) -> Any:
    return json.loads(text)
