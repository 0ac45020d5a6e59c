"""What saving costs training: the kit's way against mmengine's, on SegFormer-B2 with AdamW.

    python tests/benchmarks/bench_save.py [--rounds 7] [--folder DIR] [--json]

Each way runs in a process of its own, so that its peak memory is its own, on the same state: all
of mmengine's checkpoint with the optimizer's two moments. *Held up* is how long the thread that
trains cannot train. *Until proven* is how long it takes until the file is safe; mmengine proves
nothing, so its figure ends when the file is written, unflushed. *Slowed* is what a training-like
loop loses meanwhile to the writing in the background (the same number of iterations, with a save
and without). *By another process* is the control: what it loses to a process that only counts, for
as long as the save took. Where the two are equal, the processor is what is short, not Python's lock.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

WIDTH = [64, 128, 320, 512]
MODEL = {
    "type": "EncoderDecoder",
    "data_preprocessor": {"type": "SegDataPreProcessor"},
    "backbone": {
        "type": "MixVisionTransformer",
        "embed_dims": 64,
        "num_layers": [3, 4, 6, 3],
        "num_heads": [1, 2, 5, 8],
        "patch_sizes": [7, 3, 3, 3],
        "sr_ratios": [8, 4, 2, 1],
        "mlp_ratio": 4,
        "qkv_bias": True,
    },
    "decode_head": {
        "type": "SegformerHead",
        "in_channels": WIDTH,
        "in_index": [0, 1, 2, 3],
        "channels": 256,
        "num_classes": 8,
        "norm_cfg": {"type": "BN"},
        "loss_decode": {"type": "CrossEntropyLoss"},
    },
    "train_cfg": {},
    "test_cfg": {"mode": "whole"},
}


class NoData:
    """A data set that mmengine's Runner can ask for its length."""

    def __init__(self) -> None:
        self.metainfo = {"classes": tuple("abcdefgh")}

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return index


def build_runner(folder: Path) -> Any:
    """Return a Runner whose optimizer holds both moments of every weight."""
    import torch
    from mmengine.runner import Runner
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    torch.set_num_threads(1)
    register_all_modules(init_default_scope=True)
    runner = Runner(
        model=MODELS.build(MODEL),
        work_dir=str(folder),
        train_dataloader={
            "batch_size": 1,
            "dataset": NoData(),
            "sampler": {"type": "DefaultSampler", "_scope_": "mmengine"},
        },
        train_cfg={"by_epoch": False, "max_iters": 100},
        optim_wrapper={"optimizer": {"type": "AdamW", "lr": 6e-5}},
        param_scheduler=[{"type": "PolyLR", "by_epoch": False, "end": 100}],
        default_scope="mmseg",
        log_level=logging.WARNING,
        experiment_name="bench",
    )
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    for weight in runner.model.parameters():
        weight.grad = torch.zeros_like(weight)
    runner.optim_wrapper.optimizer.step()
    runner.optim_wrapper.optimizer.zero_grad(set_to_none=True)
    return runner


def full_state(runner: Any) -> dict[str, Any]:
    """Return what mmengine would save, on the device, uncopied."""
    return {
        "meta": {"iter": 1, "epoch": 0, "dataset_meta": NoData().metainfo},
        "state_dict": runner.model.state_dict(),
        "message_hub": runner.message_hub.state_dict(),
        "optimizer": runner.optim_wrapper.state_dict(),
        "param_schedulers": [scheduler.state_dict() for scheduler in runner.param_schedulers],
    }


def save_with_mmengine(runner: Any, folder: Path, rounds: int) -> dict[str, list[float]]:
    held_up, sizes = [], []
    for number in range(rounds):
        began = time.perf_counter()
        runner.save_checkpoint(str(folder), f"iter_{number}.pth", by_epoch=False)
        held_up.append(time.perf_counter() - began)
        sizes.append((folder / f"iter_{number}.pth").stat().st_size)
        (folder / f"iter_{number}.pth").unlink()
    return {"held_up_s": held_up, "until_safe_s": held_up, "size_bytes": sizes}


def save_with_the_kit(runner: Any, folder: Path, rounds: int) -> dict[str, list[float]]:
    import torch

    from mapsage_kaggle.checkpoints.host_copy import HostCopy
    from mapsage_kaggle.checkpoints.saver import BackgroundSaver
    from mapsage_kaggle.checkpoints.store import CheckpointStore

    held_up, until_safe, sizes = [], [], []
    host = HostCopy()
    with CheckpointStore(folder) as store:
        saver = BackgroundSaver(store)
        for number in range(rounds):
            began = time.perf_counter()
            saver.join()
            state = host.take(full_state(runner))
            saver.submit(
                f"iter_{number}.pth", lambda stream, s=state: torch.save(s, stream), iteration=number
            )
            held_up.append(time.perf_counter() - began)
            (ref,) = saver.wait()
            until_safe.append(time.perf_counter() - began)
            sizes.append(ref.size_bytes)
    return {"held_up_s": held_up, "until_safe_s": until_safe, "size_bytes": sizes}


def measure_slowdown(runner: Any, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Measure how much longer the same training-like work takes while the kit saves."""
    import torch

    from mapsage_kaggle.checkpoints.host_copy import HostCopy
    from mapsage_kaggle.checkpoints.saver import BackgroundSaver
    from mapsage_kaggle.checkpoints.store import CheckpointStore

    image = torch.randn(1, 3, 256, 256)

    def work(done: Callable[[], bool] | None, at_least: int) -> tuple[int, float]:
        began, count = time.perf_counter(), 0
        while count < at_least or (done is not None and not done()):
            runner.model.decode_head(runner.model.backbone(image)).mean().backward()
            count += 1
        return count, time.perf_counter() - began

    work(None, 3)
    host = HostCopy()
    host.take(full_state(runner))
    lost, lost_to_another = [], []
    with CheckpointStore(folder) as store:
        saver = BackgroundSaver(store)
        for number in range(rounds):
            state = host.take(full_state(runner))
            saver.submit(
                f"iter_{number}.pth", lambda stream, s=state: torch.save(s, stream), iteration=number
            )
            count, with_save_s = work(lambda: not saver.busy, 1)
            saver.wait()
            _, without_s = work(None, count)
            lost.append(with_save_s - without_s)
            counting = f"import time; end = time.time() + {with_save_s}\nwhile time.time() < end: pass"
            with subprocess.Popen([sys.executable, "-c", counting]) as other:
                count, with_other_s = work(lambda other=other: other.poll() is not None, 1)
            _, without_s = work(None, count)
            lost_to_another.append(with_other_s - without_s)
    return {"slowed_s": lost, "slowed_by_another_process_s": lost_to_another}


def peak_above(way: Callable[[], dict[str, list[float]]]) -> dict[str, Any]:
    """Run ``way`` and add the highest resident memory above what was there before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the build has freed must not hide what saving takes
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    peak_bytes, stop = 0, threading.Event()
    statm = Path("/proc/self/statm")

    def resident() -> int:
        return int(statm.read_text().split()[1]) * page_bytes

    before_bytes = resident()

    def watch() -> None:
        nonlocal peak_bytes
        while not stop.wait(0.005):
            peak_bytes = max(peak_bytes, resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    found: dict[str, Any] = way()
    stop.set()
    watcher.join()
    found["peak_above_bytes"] = peak_bytes - before_bytes
    found["max_resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


WAYS = {"mmengine": save_with_mmengine, "kit": save_with_the_kit, "slowdown": measure_slowdown}


def run_apart(way: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Measure one way in a process of its own."""
    command = [sys.executable, __file__, "--way", way, "--rounds", str(rounds), "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to save; a temporary folder otherwise")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--way", choices=sorted(WAYS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.way:
            runner = build_runner(folder / "runner")
            found = peak_above(lambda: WAYS[options.way](runner, folder / "saved", options.rounds))
            print("\n" + json.dumps(found))
            return
        found = {way: run_apart(way, folder, options.rounds) for way in WAYS}
    theirs, ours = found["mmengine"], found["kit"]
    median = {
        "size_mb": ours["size_bytes"][0] / 1e6,
        "held_up_s": {
            "mmengine": statistics.median(theirs["held_up_s"]),
            "kit": statistics.median(ours["held_up_s"]),
        },
        "first_held_up_s": {"mmengine": theirs["held_up_s"][0], "kit": ours["held_up_s"][0]},
        "until_safe_s": {
            "mmengine": statistics.median(theirs["until_safe_s"]),
            "kit": statistics.median(ours["until_safe_s"]),
        },
        "peak_above_mb": {
            "mmengine": theirs["peak_above_bytes"] / 1e6,
            "kit": ours["peak_above_bytes"] / 1e6,
        },
        "slowed_s": statistics.median(found["slowdown"]["slowed_s"]),
        "slowed_by_another_process_s": statistics.median(found["slowdown"]["slowed_by_another_process_s"]),
    }
    if options.json:
        print(json.dumps(median))
        return
    print(f"SegFormer-B2 with AdamW, {median['size_mb']:.0f} MB, median of {options.rounds} rounds, 1 thread")
    for key, unit in (
        ("held_up_s", "s"),
        ("first_held_up_s", "s"),
        ("until_safe_s", "s"),
        ("peak_above_mb", "MB"),
    ):
        a, b = median[key]["mmengine"], median[key]["kit"]
        print(f"  {key:16} mmengine {a:8.3f} {unit:2}   kit {b:8.3f} {unit:2}   ratio {a / b:6.2f}")
    print(
        f"  slowed_s         {median['slowed_s']:.3f} s lost by training to the background, a save; "
        f"{median['slowed_by_another_process_s']:.3f} s to another process for as long"
    )
    cost_s = median["held_up_s"]["kit"] + max(0.0, median["slowed_s"])
    print(f"  a save every 5 minutes costs {cost_s / 300:.3%} of training time")


if __name__ == "__main__":
    main()
