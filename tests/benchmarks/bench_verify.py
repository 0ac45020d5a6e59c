"""How fast a checkpoint is judged and loaded, beside ``torch.load``.

Run ``python tests/benchmarks/bench_verify.py``. It builds SegFormer-B2 with mmseg, takes one
optimizer step and saves it as mmengine does (297 MB), or takes a file that is given. Each figure
comes from a fresh process, so that imports and memory are those of one call.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_CASES = {
    "header": "from mapsage_kaggle.checkpoints.inspect import inspect\n"
    "def work(): return inspect(path, full=False)",
    "full": "import numpy\n"
    "from mapsage_kaggle.checkpoints.inspect import inspect\n"
    "def work(): return inspect(path)",
    "load": "import torch\n"
    "from mapsage_kaggle.checkpoints.load import load_checkpoint\n"
    "def work(): return load_checkpoint(path)",
    "torch.load": "import torch\n"
    "from mmengine.logging import HistoryBuffer\n"
    "def work(): return torch.load(path, weights_only=False)",
    "torch.load, mapped": "import torch\n"
    "from mmengine.logging import HistoryBuffer\n"
    "def work(): return torch.load(path, weights_only=False, mmap=True)",
    "sha256 alone": "import hashlib\n"
    "def work():\n"
    "    digest, buffer = hashlib.sha256(), bytearray(2**18)\n"
    "    with path.open('rb', buffering=0) as stream:\n"
    "        while count := stream.readinto(buffer): digest.update(memoryview(buffer)[:count])\n"
    "    return digest.hexdigest()",
}

_MEASURE = """
import json, resource, sys, time
from pathlib import Path
path = Path(sys.argv[1])
{work}
def resident():
    return int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1]) * 1024
before = resident()
open('/proc/self/clear_refs', 'w').write('5')
started, used = time.perf_counter(), time.process_time()
result = work()
took, cpu = time.perf_counter() - started, time.process_time() - used
peak = int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]) * 1024
print(json.dumps([took, cpu, peak - before]))
"""


def write_segformer_b2(
    path: Path, *, embed_dims: int = 64, num_layers: tuple[int, ...] = (3, 4, 6, 3)
) -> None:
    """Save a SegFormer-B2 for 7 classes after one optimizer step, through mmengine's own Runner."""
    import torch
    from mmengine.logging import MessageHub
    from mmengine.optim import OptimWrapper
    from mmengine.runner import Runner
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    norm = {"type": "BN", "requires_grad": True}
    model = MODELS.build(
        {
            "type": "EncoderDecoder",
            "data_preprocessor": {"type": "SegDataPreProcessor"},
            "backbone": {
                "type": "MixVisionTransformer",
                "embed_dims": embed_dims,
                "num_layers": num_layers,
                "num_heads": (1, 2, 5, 8),
                "patch_sizes": (7, 3, 3, 3),
                "sr_ratios": (8, 4, 2, 1),
                "out_indices": (0, 1, 2, 3),
                "mlp_ratio": 4,
                "qkv_bias": True,
            },
            "decode_head": {
                "type": "SegformerHead",
                "in_channels": [embed_dims * n for n in (1, 2, 5, 8)],
                "in_index": [0, 1, 2, 3],
                "channels": 256,
                "num_classes": 7,
                "norm_cfg": norm,
                "loss_decode": {"type": "CrossEntropyLoss"},
            },
            "train_cfg": {},
            "test_cfg": {"mode": "whole"},
        }
    )
    batch = [{"a": torch.zeros(1)}]
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model,
            folder,
            train_dataloader={"dataset": batch, "batch_size": 1, "sampler": {"type": "InfiniteSampler"}},
            train_cfg={"by_epoch": False, "max_iters": 40000},
            optim_wrapper=OptimWrapper(torch.optim.AdamW(model.parameters(), lr=6e-5)),
            param_scheduler=[
                {"type": "LinearLR", "start_factor": 1e-6, "by_epoch": False, "begin": 0, "end": 1500},
                {"type": "PolyLR", "eta_min": 0.0, "begin": 1500, "end": 40000, "by_epoch": False},
            ],
            experiment_name=f"bench_verify_{os.getpid()}",
            log_level="ERROR",
        )
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        runner.optim_wrapper.step()
        hub = MessageHub.get_current_instance()
        for name in ("lr", "loss", "decode.loss_ce", "decode.acc_seg", "time", "data_time", "grad_norm"):
            for step in range(800):
                hub.update_scalar(f"train/{name}", 1.0 / (1 + step))
        runner.train_loop._iter = 8000
        runner.save_checkpoint(str(path.parent), path.name, by_epoch=False, meta={"epoch": 0, "iter": 8000})


def measure(case: str, path: Path) -> tuple[float, float, int]:
    """Return seconds, seconds of processors, and additional peak bytes of one call in a fresh process."""
    script = _MEASURE.format(work=_CASES[case])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    took, cpu, peak = json.loads(done.stdout.strip().splitlines()[-1])
    return float(took), float(cpu), int(peak)


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, help="a checkpoint to use instead of a fresh SegFormer-B2")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file
        if path is None:
            path = Path(folder) / "iter_8000.pth"
            write_segformer_b2(path)
        size_bytes = path.stat().st_size
        path.read_bytes()  # into the page cache: the code is measured, not the disk
        print(f"{path.name}: {size_bytes / 1e6:.0f} MB, {os.cpu_count()} CPUs")
        results: dict[str, list[tuple[float, float, int]]] = {case: [] for case in _CASES}
        for _ in range(arguments.repeats):
            for case in _CASES:  # interleaved, so that a busy moment does not hit one case alone
                results[case].append(measure(case, path))
        print(
            f"{'case':<20} {'median ms':>10} {'best ms':>9} {'CPU ms':>8} {'GB/s, best':>11} "
            f"{'of torch.load':>14} {'extra MB':>9}"
        )
        reference = statistics.median(took for took, _, _ in results["torch.load"])
        for case, runs in results.items():
            median = statistics.median(took for took, _, _ in runs)
            best = min(took for took, _, _ in runs)
            cpu = statistics.median(used for _, used, _ in runs)
            extra = max(peak for _, _, peak in runs)
            print(
                f"{case:<20} {median * 1e3:>10.1f} {best * 1e3:>9.1f} {cpu * 1e3:>8.1f} "
                f"{size_bytes / best / 1e9:>11.2f} {median / reference:>14.2f} {extra / 1e6:>9.1f}"
            )


if __name__ == "__main__":
    main()
