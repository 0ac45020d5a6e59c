"""How the kit's cost grows with its input: training images, classes, sessions, files, pixels of a scene.

    python tests/benchmarks/bench_growth.py [--only images] [--largest]

Each quantity is measured at three sizes, each in a process of its own: seconds of processors and the most
memory. *Power* is the exponent ``p`` of ``cost ~ size ** p`` between the two larger sizes: 1 where the cost
grows as its input does, less where a fixed part outweighs it. Without ``--largest`` the third size, which
takes minutes to lay out, is left out where it has a million files.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

SIZES = {
    "images": (2_500, 25_000, 250_000),
    "classes": (10**2, 100**2, 1_000**2),
    "sessions": (10, 100, 1_000),
    "files": (10_000, 100_000, 1_000_000),
    "scene": (1_000**2, 2_000**2, 4_000**2),
}
UNITS = {
    "images": "training images", "classes": "pairs of classes", "sessions": "sessions of 400 events",
    "files": "files below the inputs", "scene": "pixels",
}  # fmt: skip
_MOST_LINKS = 30_000
FASTER = 1.25
"""A power above this is told: the cost grows faster than its input."""


class Steps:
    """Seconds of processors by what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        self.seconds[name] = time.process_time() - begin


# -- what is measured, each in its own process


def images(count: int, folder: Path, steps: Steps) -> None:
    """Find, check and digest a data set, and plan its cache."""
    from mmseg.registry import DATASETS
    from mmseg.utils import register_all_modules

    import mapsage_kaggle.engine.register  # noqa: F401
    from mapsage_kaggle.config.reading import read_config
    from mapsage_kaggle.config.replacements import faster_pipeline
    from mapsage_kaggle.data.datasets import check_data
    from mapsage_kaggle.data.find import find_data
    from mapsage_kaggle.data.scenes import generate_scenes
    from mapsage_kaggle.engine.contents import TrainingData
    from mapsage_kaggle.engine.fast.plan import plan_cache

    register_all_modules()
    root = folder / "input" / "somebody-s-earthvqa"
    generate_scenes(root, train=1, val=1, size=64, seed=0)
    for kind in ("images_png", "masks_png"):
        _multiply(root / "Train" / kind, count)
    cfg = read_config(REPOSITORY / "configs" / "demo.py")
    with steps.step("find the data set"):
        found = find_data(cfg, folder / "input")
    with steps.step("check before training"):
        check_data(root, 8)
    options = dict(cfg.train_dataloader.dataset.to_dict(), data_root=str(next(iter(found.values()))))
    options["pipeline"], *_ = faster_pipeline(options["pipeline"], cache_dir=folder / "cache", scope="mmseg")
    with steps.step("build (mmsegmentation)"):
        dataset = DATASETS.build(options)
        assert len(dataset) == count
    with steps.step("digest of the names"):
        data = TrainingData(dataset)
    with steps.step("state, compared on a resume"):
        data.compare(data.state())
    with steps.step("plan the cache"):
        assert plan_cache([dataset]) is not None


def classes(count: int, folder: Path, steps: Steps) -> None:
    """Count the pixels of a validation image, and score."""
    import torch

    count = math.isqrt(count)
    from mapsage_kaggle.engine.metric import confusion_matrix
    from mapsage_kaggle.metrics import score

    torch.manual_seed(0)
    prediction, label = torch.randint(count, (2, 1024, 1024))
    with steps.step("count 10 images of 1024 x 1024"):
        for _ in range(10):
            counts = confusion_matrix(prediction, label, count, 255 if count < 255 else 65_535)
    with steps.step("score"):
        score(counts.numpy(), [f"class {index}" for index in range(count)], num_images=10)


def sessions(count: int, folder: Path, steps: Steps, *, num_events: int = 400) -> None:
    """Read the sessions of a run back, and draw its report."""
    from mapsage_kaggle.display.history import read_sessions
    from mapsage_kaggle.display.report import write_report
    from mapsage_kaggle.training.history import pack_history

    for index in range(1, count + 1):
        _write_session(folder, index, count, num_events)
    with steps.step("pack the history"):
        pack_history(folder / "history")
    with steps.step("read it back"):
        assert len(read_sessions([folder])) == count
    with steps.step("draw the report"):
        write_report([folder], out=folder / "out")


def files(count: int, folder: Path, steps: Steps) -> None:
    """Look through the inputs for checkpoints."""
    from mapsage_kaggle.checkpoints.scan import scan

    for start in range(0, count, 1000):
        place = folder / "datasets" / f"area_{start}"
        place.mkdir(parents=True)
        for index in range(1000):
            os.close(os.open(place / f"{index}.png", os.O_CREAT | os.O_WRONLY))
    (folder / "iter_8000.pth").write_bytes(b"x")
    with steps.step("scan"):
        assert len(scan(folder).files) == 1


def scene(count: int, folder: Path, steps: Steps) -> None:
    """Map one large image, with every output, as a person types the command."""
    command = [sys.executable, str(REPOSITORY / "tests" / "benchmarks" / "bench_scene.py"), "--json"]
    command += ["--side", str(math.isqrt(count)), "--window", "512", "--threads", "1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    steps.seconds["predict"] = used.ru_utime + used.ru_stime
    steps.seconds["memory"] = json.loads(done.stdout.splitlines()[-1])["memory_bytes"] / 1e6


MEASURES: dict[str, Callable[[int, Path, Steps], None]] = {
    "images": images, "classes": classes, "sessions": sessions, "files": files, "scene": scene,
}  # fmt: skip


def _multiply(folder: Path, count: int) -> None:
    """Make ``count`` files of the one in a folder, few of them with content of their own."""
    content = next(folder.iterdir()).read_bytes()
    next(folder.iterdir()).unlink()
    for index in range(count):
        path = folder / f"{index}.png"
        if index % _MOST_LINKS == 0:
            path.write_bytes(content)
            origin = path
        else:
            os.link(origin, path)


def _write_session(folder: Path, index: int, count: int, num_events: int) -> None:
    from mapsage_kaggle.events import Event
    from mapsage_kaggle.records import CheckpointRef, SessionRecord

    begin_s, length = 1_790_000_000.0 + 50_000 * index, 10 * num_events
    start, end = length * (index - 1), length * index
    told = [Event(event="training", iteration=start, time_s=begin_s)]
    for number in range(1, num_events):
        data = {"loss": 1.0 / number, "lr": 6e-5, "grad_norm": 1.0, "iteration_s": 0.25, "memory_mb": 3000}
        at, time_s = start + 10 * number, begin_s + 60 * number
        told.append(Event(event="iteration", iteration=at, time_s=time_s, data=data))
        if number % 100 == 0:
            table = {f"class {item}": {"IoU": 0.5, "Acc": 0.5} for item in range(8)}
            scores = {"metrics": {"mIoU": 50.0, "aAcc": 80.0}, "per_class": table}
            told.append(Event(event="validation", iteration=at, time_s=time_s + 1, data=scores))
    told.append(Event(event="stop", iteration=end, time_s=begin_s + 40_000))
    record = SessionRecord(
        run_id="0123456789ab", fingerprint="fedcba9876543210", session_index=index, start_iteration=start,
        end_iteration=end, max_iters=length * count, stop_reason="deadline", exit_code=0,
        checkpoint=CheckpointRef(file=f"iter_{end}.pth", iteration=end, sha256="ab" * 32, size_bytes=1),
        started_s=begin_s, ended_s=begin_s + 40_000, timings_s={"session": 40_000.0},
    )  # fmt: skip
    place = folder if index == count else folder / "history"
    place.mkdir(parents=True, exist_ok=True)
    number = "" if index == count else f"_{index:03d}"
    record.write(place / f"session{number}.json")
    (place / f"events{number}.jsonl").write_text("".join(event.to_line() for event in told))


# -- around it


def measure(what: str, size: int, place: Path | None) -> dict[str, float]:
    """Measure one size in a fresh process; return seconds by step, and ``memory`` in MB."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        command = [sys.executable, __file__, "--one", f"{what}:{size}", "--folder", folder]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environ, text=True, check=True)
        return {name: float(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def power(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Return the exponent with which a cost grew between the two larger sizes."""
    return math.log(max(costs[-1], 1e-6) / max(costs[-2], 1e-6)) / math.log(sizes[-1] / sizes[-2])


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=SIZES)
    parser.add_argument("--largest", action="store_true", help="a million files, too")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder otherwise")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, _, size = options.one.partition(":")
        steps = Steps()
        MEASURES[what](int(size), options.folder, steps)
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"memory": peak_mb, **steps.seconds}))
        return
    print("| what | sizes | cost | power |\n| --- | --- | --- | ---: |")
    for what in [options.only] if options.only else SIZES:
        sizes = [size for size in SIZES[what] if what != "files" or size < 1_000_000 or options.largest]
        found = [measure(what, size, options.folder) for size in sizes]
        for step in found[0]:
            costs = [item[step] for item in found]
            unit = "MB" if step == "memory" else "s"
            shown = ", ".join(f"{cost:.0f}" if unit == "MB" else f"{cost:.3g}" for cost in costs)
            grown = power(sizes, costs)
            mark = " faster than its input" if grown > FASTER else ""
            print(
                f"| {step} | {', '.join(f'{size:,}' for size in sizes)} {UNITS[what]} | {shown} {unit} "
                f"| {grown:.2f}{mark} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
