"""What the supervisor costs training, and how soon the commands answer.

Run ``python tests/benchmarks/bench_supervisor.py``. It trains a small SegFormer on generated scenes for
some hundred iterations, by turns as a child of the supervisor and as the same torchrun command with
nobody watching, and prints for each the median time of an iteration, from the child's own events, and
for the supervisor the processor time that it took per second. Then it times ``--help`` and ``scan`` of a
small tree beside the interpreter's bare start, each in a fresh process.

The iterations are as short as they get (some tens of milliseconds on a core), so that a cost per
iteration would show; on a GPU they take 0.3 s and more.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from mapsage_kaggle.training.child import first_spec, launch_of
from mapsage_kaggle.training.options import Options
from mapsage_kaggle.training.prepare import discover
from mapsage_kaggle.training.prepare import prepare as prepare_session
from mapsage_kaggle.training.session import SessionRun

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))

from support.standin import StandIn  # noqa: E402 - found by the line above

from mapsage_kaggle.events import read_events  # noqa: E402
from mapsage_kaggle.paths import ROOT_VARIABLE, KagglePaths  # noqa: E402
from mapsage_kaggle.training.supervisor import Launch, Supervisor  # noqa: E402

TIMER = """
custom_imports["imports"].append("time_them")
custom_hooks.append(dict(type="TimeThem", priority="LOWEST"))
"""
TIMER_MODULE = '''
"""Writes down when each iteration ends."""
import time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class TimeThem(Hook):
    def before_train(self, runner):
        self.ends = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.ends.append(time.perf_counter())

    def after_train(self, runner):
        with open(runner.work_dir + "/ends.txt", "w") as stream:
            stream.writelines(f"{end!r}\\n" for end in self.ends)
'''


def prepare(run: StandIn, config: Path, threads: int = 1) -> tuple[SessionRun, Launch]:
    options = Options(config=config, resume="never", threads=threads, save_every_s=0.0)
    paths = KagglePaths.below(run.root)
    prepared = prepare_session(discover(options, paths=paths))
    session = SessionRun(prepared, Supervisor(prepared.work_dir, prepared.clock))
    session.begin()
    return session, launch_of(prepared, first_spec(prepared, session.record, session.learning))


def train(run: StandIn, config: Path, *, supervised: bool) -> tuple[float, float, float]:
    """Return the median and the mean of an iteration's milliseconds, and the supervisor's CPU s per s."""
    session, launch = prepare(run, config)
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    if supervised:
        outcome = session.supervisor.run(launch)
        assert outcome.kind == "done", outcome
    else:
        with subprocess.Popen(
            launch.command(), env=launch.environment(), stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        ) as process:  # fmt: skip
            process.wait()
        assert any(event.event == "stop" for event in read_events(run.work_dir.events))
    after, wall_s = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - begin
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ends = [float(line) for line in (run.work_dir.path / "ends.txt").read_text().split()]
    steps = [1000 * (end - start) for start, end in pairwise(ends[10:])]
    shutil.rmtree(run.work_dir.path)
    return statistics.median(steps), statistics.mean(steps), cpu_s / wall_s


def start_of(command: list[str], times: int) -> float:
    """Return the median milliseconds that a command takes."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        taken.append(1000 * (time.perf_counter() - begin))
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        never = arguments.iterations + 1
        run = StandIn.with_scenes(
            Path(name) / "kaggle", max_iters=arguments.iterations, val_interval=never, extra=TIMER
        )
        os.environ[ROOT_VARIABLE] = str(run.root)
        config = run.config()
        (config.parent / "time_them.py").write_text(TIMER_MODULE)
        print(f"{arguments.iterations} iterations a turn, one thread, no data workers")
        results: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
        for turn in range(arguments.turns):
            for supervised in ((True, False), (False, True))[turn % 2]:
                median, mean, cpu = train(run, config, supervised=supervised)
                results[supervised].append((median, mean, cpu))
                who = "supervised" if supervised else "alone     "
                print(f"  {who}  median {median:7.2f} ms  mean {mean:7.2f} ms an iteration")
        best = {who: min(median for median, _, _ in rows) for who, rows in results.items()}
        print(f"best median, supervised {best[True]:.2f} ms, alone {best[False]:.2f} ms: "
              f"{100 * (best[True] / best[False] - 1):+.1f} %")  # fmt: skip
        cpu = statistics.median(cpu for _, _, cpu in results[True])
        print(f"the supervisor takes {1000 * cpu:.1f} ms of a processor per second")

        kit = [sys.executable, "-m", "mapsage_kaggle"]
        times = 15
        bare = start_of([sys.executable, "-c", "pass"], times)
        print(f"start of the interpreter alone {bare:.0f} ms, and beyond it:")
        for what, command in (
            ("--help", [*kit, "--help"]),
            ("train --help", [*kit, "train", "--help"]),
            ("scan --json", [*kit, "scan", str(run.root / "input"), "--json"]),
            ("scan", [*kit, "scan", str(run.root / "input")]),
        ):
            print(f"  {what:<13} {start_of(command, times) - bare:6.0f} ms")


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
