"""Writes true checkpoints with the real mmengine and mmseg, in a process of their own.

``python real_checkpoints.py FOLDER`` writes into it:

- ``tiny/``: the work dir of a run of 8 iterations with validation, best score and averaged weights;
- ``segformer/iter_8000.pth``: a very small SegFormer after one optimizer step, saved by the Runner.
"""

from __future__ import annotations

import functools
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def entry_data(path: Path, name: str) -> tuple[int, int]:
    """Return where an entry's content lies in the file, and its size."""
    with zipfile.ZipFile(path) as archive:
        info = next(item for item in archive.infolist() if item.filename.endswith("/" + name))
    raw = path.read_bytes()
    num_name, num_extra = struct.unpack_from("<2H", raw, info.header_offset + 26)
    return info.header_offset + 30 + num_name + num_extra, info.file_size


@functools.cache
def real_checkpoints() -> Path:
    """Return a folder with them, made once in this process. Copy before changing anything."""
    folder = Path(tempfile.mkdtemp(prefix="real_checkpoints_"))
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise RuntimeError(
            f"the real checkpoints could not be made:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return folder


def _tiny_run(folder: Path) -> None:
    import numpy as np
    import torch
    from mmengine.evaluator import BaseMetric
    from mmengine.model import BaseModel
    from mmengine.runner import Runner
    from torch import nn

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.bn = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 2)

        def forward(self, images, labels=None, mode="tensor"):  # type: ignore[no-untyped-def]
            scores = self.fc(self.bn(self.conv(images)).mean((2, 3)))
            if mode == "loss":
                return {"loss": nn.functional.cross_entropy(scores, labels)}
            return [scores]

    class Data(torch.utils.data.Dataset):  # type: ignore[type-arg]
        metainfo = {"classes": ("background", "building"), "palette": [[255, 255, 255], [255, 0, 0]]}  # noqa: RUF012

        def __len__(self) -> int:
            return 16

        def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
            return torch.full((3, 8, 8), index / 16), index % 2

    class Metric(BaseMetric):
        def process(self, data_batch, data_samples) -> None:  # type: ignore[no-untyped-def]
            self.results.append(1)

        def compute_metrics(self, results):  # type: ignore[no-untyped-def]
            return {"mIoU": np.float32(50.25)}

    def loader(sampler: dict[str, object]) -> dict[str, object]:
        return {
            "dataset": Data(),
            "batch_size": 2,
            "sampler": sampler,
            "num_workers": 0,
            "collate_fn": {"type": "default_collate"},
        }

    Runner(
        Model(),
        str(folder),
        train_dataloader=loader({"type": "InfiniteSampler", "shuffle": True}),
        val_dataloader=loader({"type": "DefaultSampler", "shuffle": False}),
        val_cfg={},
        val_evaluator=[Metric()],
        train_cfg={"by_epoch": False, "max_iters": 8, "val_interval": 4},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 1e-3}},
        param_scheduler=[
            {"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "begin": 0, "end": 4},
            {"type": "MultiStepLR", "milestones": [5, 6], "by_epoch": False},
            {"type": "PolyLR", "eta_min": 0.0, "begin": 4, "end": 8, "by_epoch": False},
        ],
        default_hooks={
            "checkpoint": {"type": "CheckpointHook", "by_epoch": False, "interval": 4, "save_best": "mIoU"}
        },
        custom_hooks=[{"type": "EMAHook"}],
        randomness={"seed": 3},
        log_level="ERROR",
    ).train()


def _main(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from bench_verify import write_segformer_b2

    _tiny_run(folder / "tiny")
    (folder / "segformer").mkdir()
    write_segformer_b2(folder / "segformer" / "iter_8000.pth", embed_dims=8, num_layers=(1, 1, 1, 1))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
