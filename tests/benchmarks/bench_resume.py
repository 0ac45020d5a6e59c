"""How long a resume takes to its first new iteration: the kit, the fork's sampler skip, stock mmengine.

    python tests/benchmarks/bench_resume.py [--stock DIR] [--tiles DIR] [--rounds 3] [--json]

The real config (SegFormer-B2 with AdamW; images of 1024 x 1024, resized, cropped and distorted, 4 a
batch, by 2 data workers) on two LoveDA tiles, fresh and at iterations 100, 8,000 and 40,000.
Measured from the start of the training process until the first batch has
reached the model: what follows, the iteration itself, is the same for all. All resume from the same
file, one that the kit has made after one iteration, with its iteration changed.

mmengine 0.10.7 fetches every batch that was trained on once more. It is measured once, fresh and at
100, and a straight line through the two gives its other figures. It runs where ``--stock`` names a folder
made by ``pip install --no-deps --target DIR mmengine==0.10.7``.

Peak memory: of the training process, resumed, before its first iteration and after two of one image.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapsage_kaggle.config.patch import PatchContext, apply_patch, plan_patch, write_config
from mapsage_kaggle.config.reading import read_config

os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[2]
AT = (0, 100, 8_000, 40_000)
MEASURED_STOCK = (0, 100)

CONFIG = """
_base_ = [{base!r}]
custom_imports = dict(imports=["stopwatch"], allow_failed_imports=False)
custom_hooks = [dict(type="Stopwatch", priority="VERY_LOW")]
model = dict(backbone=dict(init_cfg=None), decode_head=dict(norm_cfg=dict(type="BN")))
dataset = dict(
    type="BaseSegDataset", data_root={data!r}, img_suffix=".png", seg_map_suffix=".png",
    reduce_zero_label=True, metainfo=dict(classes=list("abcdefgh")), _delete_=True,
)
train_dataloader = dict(dataset=dict(
    dataset, data_prefix=dict(img_path="Train/images_png", seg_map_path="Train/masks_png"),
    pipeline={{{{_base_.train_pipeline}}}},
))
val_dataloader = dict(dataset=dict(
    dataset, data_prefix=dict(img_path="Val/images_png", seg_map_path="Val/masks_png"),
    pipeline={{{{_base_.val_pipeline}}}},
))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=80000)
"""

# The moment is told by a file, at whose end the process is: nothing is trained.
STOPWATCH = '''
"""Tells when the first batch has come, and how much memory that and the training after it took."""
import json, os, time
from pathlib import Path
import mmengine
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

def peak_bytes():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024

@HOOKS.register_module()
class Stopwatch(Hook):
    told = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.told is None:
            self.told = dict(moment_s=time.time(), iteration=runner.iter, peak_bytes=peak_bytes())
            self.told["version"] = mmengine.__version__
            self.begin = runner.iter
        self.leave(runner)

    def leave(self, runner):
        if runner.iter - self.begin == int(os.environ["STOPWATCH_ITERATIONS"]):
            self.told["later_peak_bytes"] = peak_bytes()
            if "STOPWATCH_STOP" in os.environ:
                Path(runner.work_dir, "stop_request.json").write_text(json.dumps({"action": "stop"}))
                return
            Path(os.environ["STOPWATCH_FILE"]).write_text(json.dumps(self.told))
            os._exit(0)
'''

THEIRS = """
import sys, torch, cv2
torch.set_num_threads(1); cv2.setNumThreads(0)
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile(sys.argv[1])
cfg.work_dir = sys.argv[2]
if len(sys.argv) > 3:
    cfg.load_from, cfg.resume = sys.argv[3], True
Runner.from_cfg(cfg).train()
"""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where one run of the benchmark keeps its files.

    Attributes:
        folder: For all of them.
        stock: Where mmengine 0.10.7 lies; None to leave it out.
    """

    folder: Path
    stock: Path | None

    @property
    def config(self) -> Path:
        """The config that all train."""
        return self.folder / "code" / "bench.py"

    def checkpoint(self, iteration: int) -> Path | None:
        """Return what to resume from; None for nothing."""
        return self.folder / f"iter_{iteration}.pth" if iteration else None

    def lay_out(self, tiles: Path) -> None:
        """Write the config and mount the tiles as a data set of two images."""
        data = self.folder / "data"
        for split in ("Train", "Val"):
            for kind in ("images_png", "masks_png"):
                (data / split / kind).mkdir(parents=True)
                for file in (tiles / kind).glob("*.png"):
                    shutil.copyfile(file, data / split / kind / file.name)
        self.config.parent.mkdir()
        base = REPOSITORY / "configs" / "train_earthvqa_kaggle.py"
        self.config.write_text(CONFIG.format(base=str(base), data=str(data)))
        (self.config.parent / "stopwatch.py").write_text(STOPWATCH)

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg",
            "STOPWATCH_ITERATIONS": "0", "STOPWATCH_FILE": str(self.folder / "told.json"), **variables,
        }  # fmt: skip

    def measure(self, command: list[str], env: Mapping[str, str], iteration: int) -> dict[str, Any]:
        """Run a training process until it has told; return what it told, and the seconds until then."""
        told = self.folder / "told.json"
        told.unlink(missing_ok=True)
        log = self.folder / "log.txt"
        began = time.time()
        with log.open("wb") as stream:
            subprocess.run(
                command, env=env, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, check=False,
                timeout=900,
            )  # fmt: skip
        if not told.is_file():
            raise SystemExit(f"{command} has not come to its first iteration:\n{log.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(told.read_text())
        assert found["iteration"] == iteration, found
        return {**found, "seconds": found["moment_s"] - began}

    def with_kit(
        self, iteration: int, *, overrides: tuple[str, ...] = (), **variables: str
    ) -> dict[str, Any]:
        """Start the kit's training child as its supervisor does."""
        command, env = self.launch(iteration, overrides=overrides, **variables)
        return self.measure(command, env, iteration)

    def launch(
        self, iteration: int, *, overrides: tuple[str, ...] = (), **variables: str
    ) -> tuple[list[str], dict[str, str]]:
        """Plan a child of the kit; return its command line and environment."""
        from mapsage_kaggle.clock import boot_time_s
        from mapsage_kaggle.config.modules import CodePlaces
        from mapsage_kaggle.records import SessionRecord
        from mapsage_kaggle.spec import ChildSpec
        from mapsage_kaggle.training.supervisor import Launch

        work_dir = self.folder / "kit"
        shutil.rmtree(work_dir, ignore_errors=True)
        work_dir.mkdir()
        checkpoint = self.checkpoint(iteration)
        cfg = read_config(self.config, overrides)
        facts = PatchContext(
            work_dir=work_dir, num_cpus=os.cpu_count() or 1, checkpoint=checkpoint,
            action="resume" if checkpoint else "fresh",
        )  # fmt: skip
        patch = plan_patch(cfg, self.config, facts)
        write_config(apply_patch(cfg, patch), patch, work_dir)
        SessionRecord(
            run_id="bench", fingerprint=patch.fingerprint, start_iteration=iteration,
            end_iteration=iteration, max_iters=patch.max_iters,
        ).write(work_dir / "session.json")  # fmt: skip
        spec = self.folder / "child.json"
        ChildSpec(
            config=work_dir / "config.py", work_dir=work_dir, clock_started_s=boot_time_s(), limit_s=3600.0,
            reserve_s=60.0, action=facts.action, run_id="bench", fingerprint=patch.fingerprint,
            checkpoint=checkpoint, checkpoint_sha256=_sha256(checkpoint) if checkpoint else None,
            expect_iteration=iteration or None, save_every_s=0.0,
        ).write(spec)  # fmt: skip
        launch = Launch(
            spec=spec, work_dir=work_dir, code=CodePlaces(last=(self.config.parent,)), scratch=self.folder
        )
        return launch.command(), launch.environment(self.environment(**variables))

    def with_mmengine(self, iteration: int, *, stock: bool) -> dict[str, Any]:
        """Start mmengine's own Runner: the fork that is installed, or the last upstream release."""
        checkpoint = self.checkpoint(iteration)
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            THEIRS,
            str(self.config),
            str(self.folder / "theirs"),
        ]
        command += [str(checkpoint)] if checkpoint else []
        paths = [str(self.stock)] if stock else []
        env = self.environment(
            PYTHONPATH=os.pathsep.join([*paths, str(self.config.parent)]),
            TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1",
        )
        found = self.measure(command, env, iteration)
        assert (found["version"] == "0.10.7") == stock, found
        return found

    def make_checkpoints(self) -> int:
        """Train one iteration, and say of copies of its checkpoint that they are later; return the bytes."""
        import torch

        small = ("train_dataloader.batch_size=1", "val_cfg=None", "val_dataloader=None", "val_evaluator=None")
        command, env = self.launch(0, overrides=small, STOPWATCH_STOP="1")
        subprocess.run(command, env=env, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        made = self.folder / "kit" / "iter_1.pth"
        state: dict[str, Any] = torch.load(made, weights_only=False)
        for iteration in AT[1:]:
            state["meta"]["iter"] = iteration
            state["message_hub"]["runtime_info"]["iter"] = iteration
            for scheduler in state["param_schedulers"]:
                scheduler["last_step"] = iteration
                scheduler["_global_step"] = iteration + 1
            for moments in state["optimizer"]["state"].values():
                moments["step"].fill_(iteration)
            torch.save(state, self.folder / f"iter_{iteration}.pth")
        return made.stat().st_size


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(bench: Bench, rounds: int) -> dict[str, Any]:
    """Measure all, one after another in each round, so that a busy spell hits all alike."""
    num_bytes = bench.make_checkpoints()
    seconds: dict[str, dict[int, list[float]]] = {}
    for number in range(rounds):
        for iteration in AT:
            found = {
                "kit": bench.with_kit(iteration)["seconds"],
                "fork": bench.with_mmengine(iteration, stock=False)["seconds"],
            }
            if bench.stock is not None and iteration in MEASURED_STOCK and number == 0:
                found["stock"] = bench.with_mmengine(iteration, stock=True)["seconds"]
            for way, value in found.items():
                seconds.setdefault(way, {}).setdefault(iteration, []).append(value)
            print(f"  {iteration:6} {found}", file=sys.stderr)
    median = {
        way: {at: statistics.median(values) for at, values in by_iteration.items()}
        for way, by_iteration in seconds.items()
    }
    if "stock" in median:
        begin, end = (median["stock"][at] for at in MEASURED_STOCK)
        for at in AT[2:]:
            median["stock"][at] = begin + (end - begin) / MEASURED_STOCK[1] * at
    one_image = ("train_dataloader.batch_size=1",)
    memory = bench.with_kit(AT[-1], overrides=one_image, STOPWATCH_ITERATIONS="2")
    return {
        "size_bytes": num_bytes,
        "median_s": median,
        "all_s": seconds,
        "kit_ratio": median["kit"][AT[-1]] / median["kit"][0],
        "peak_bytes": {"resume": memory["peak_bytes"], "training": memory["later_peak_bytes"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stock", type=Path, help="the folder with mmengine 0.10.7")
    parser.add_argument(
        "--tiles", type=Path, default=REPOSITORY.parent / "shared" / "data" / "loveda",
        help="the folder with LoveDA tiles of 1024 x 1024 in images_png and masks_png",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not any((options.tiles / "images_png").glob("*.png")):
        print(f"left out: there are no LoveDA tiles in {options.tiles}; name their folder with --tiles")
        return
    if options.stock is not None and not (options.stock / "mmengine" / "version.py").is_file():
        parser.error(f"{options.stock} holds no mmengine")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(folder=Path(name), stock=options.stock)
        bench.lay_out(options.tiles)
        found = run(bench, options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    megabytes = found["size_bytes"] / 1e6
    print(f"SegFormer-B2 with AdamW, checkpoint of {megabytes:.0f} MB, median of {options.rounds} rounds")
    print("  seconds to the first new iteration at " + "".join(f"{at:>10,}" for at in AT))
    for way, name in (("kit", "kit"), ("fork", "fork, sampler skip"), ("stock", "mmengine 0.10.7")):
        if way in found["median_s"]:
            print(f"  {name:37} " + "".join(f"{found['median_s'][way][at]:10.1f}" for at in AT))
        else:
            print(f"  {name:37} left out: name the folder that holds it with --stock")
    if "stock" in found["median_s"]:
        print(f"  (mmengine 0.10.7 beyond {MEASURED_STOCK[1]}: extrapolated from 0 and {MEASURED_STOCK[1]})")
    print(f"  kit at {AT[-1]:,} against fresh: {found['kit_ratio']:.2f}")
    peak = {name: value / 1e9 for name, value in found["peak_bytes"].items()}
    print(f"  peak memory: {peak['resume']:.2f} GB at the resume, {peak['training']:.2f} GB with training")


if __name__ == "__main__":
    main()
