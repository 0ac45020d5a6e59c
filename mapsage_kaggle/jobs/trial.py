"""Short sessions of a tiny model in scratch space, real ones: what the self-test looks at."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapsage_kaggle.clock import SessionClock, boot_time_s
from mapsage_kaggle.errors import TrainingError
from mapsage_kaggle.events import Event, read_events
from mapsage_kaggle.machine import Machine
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import KagglePaths, WorkDir, bundled
from mapsage_kaggle.processes import child_environment, module_command, run_for_json
from mapsage_kaggle.records import SessionRecord
from mapsage_kaggle.training.handle import train
from mapsage_kaggle.training.options import Options
from mapsage_kaggle.training.prepare import discover, prepare

MAX_ITERS, VAL_INTERVAL = 12, 5
DATA = """
_base_ = [{base!r}]
custom_imports = dict(
    imports=["mapsage_kaggle.engine.register", "mapsage_kaggle.engine.planted"], allow_failed_imports=False
)
custom_hooks = [dict(type="Planted", **{planted!r})]
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={data!r}))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root={data!r}))
test_dataloader = val_dataloader
"""
DRAWING = f"""
model = dict(
    backbone=dict(drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2), decode_head=dict(dropout_ratio=0.1)
)
train_dataloader.update(batch_size=4)
train_cfg = dict(max_iters={MAX_ITERS}, val_interval={VAL_INTERVAL})
default_hooks = dict(logger=dict(interval=4), checkpoint=dict(interval={VAL_INTERVAL}))
"""
"""Everything that draws, draws."""
TO_ROUNDING = f"""{DRAWING}
model["backbone"].update(drop_rate=0.0, attn_drop_rate=0.0, drop_path_rate=0.0)
model["decode_head"].update(
    dropout_ratio=0.0, norm_cfg=dict(type="GN", num_groups=4), loss_decode=dict(avg_non_ignore=True)
)
"""
"""No draw in the model, norms per sample: its batch may be split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A run of its own, in a folder that stands for ``/kaggle``.

    Attributes:
        root: That folder.
        lines: Of its config, after those that all have.
        base: The config that is trained, of the kit's own.
    """

    root: Path
    data: Path
    machine: Machine
    lines: str = DRAWING
    base: str = "demo.py"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def paths(self) -> KagglePaths:
        return KagglePaths.below(self.root)

    @property
    def work_dir(self) -> WorkDir:
        return WorkDir(self.paths.work_dir(Path("selftest.py")))

    @property
    def checkpoint(self) -> Path:
        return self.work_dir.path / f"iter_{MAX_ITERS}.pth"

    def config(self, **planted: Any) -> Path:
        """Write its config, with what is planted, and return where."""
        for folder in (self.paths.input, self.paths.working, self.paths.temp):
            folder.mkdir(parents=True, exist_ok=True)
        planted["folder"] = str(self.root)
        base = str(bundled("configs") / self.base)
        path = self.root / "code" / "selftest.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(DATA.format(base=base, planted=planted, data=str(self.data)) + self.lines, "utf-8")
        return path

    def train(self, *, ends: str = "completed", **planted: Any) -> SessionRecord:
        """Run a session as any other, and return its record.

        Raises:
            MapsageError: It failed, or ended in another way.
        """
        options = Options(
            config=self.config(**planted),
            save_every_s=0.0,
            report=False,
            **{"gpus": 0, "threads": 1, **self.options},
        )
        clock = SessionClock(started_s=boot_time_s(), limit_s=3600.0, reserve_s=5.0)
        record = train(prepare(discover(options, paths=self.paths), machine=self.machine, clock=clock))
        if record.stop_reason != ends:
            template = "A session ended as {reason}: {message}"
            raise TrainingError(Message(template, record.stop_reason, record.message))
        return record

    def hand_over(self) -> None:
        """Mount what the last session left as a read-only input, and empty the working folder."""
        target = self.paths.input / "notebooks" / "someone" / "selftest"
        target.parent.mkdir(parents=True)
        shutil.move(self.paths.working, target)
        for path in [*target.rglob("*"), target]:
            path.chmod(0o555 if path.is_dir() else 0o444)

    def events(self, kind: str) -> list[Event]:
        return [event for event in read_events(self.work_dir.events) if event.event == kind]

    def compared(self, other: Trial) -> dict[str, Any]:
        command = module_command("mapsage_kaggle.engine.compare", str(self.checkpoint), str(other.checkpoint))
        env = child_environment(threads=1, scratch=self.paths.temp, gpus=False)
        return dict(run_for_json(command, timeout_s=120.0, env=env))
