"""What it costs that threads wait awake for a while, as by default, or asleep (``OMP_WAIT_POLICY``).

Run ``python tests/benchmarks/bench_waiting.py``. It trains a small SegFormer on generated scenes, a thread
for each core, by turns with either policy, first with the cores to itself and then beside as many busy
processes as there are cores. It prints the time of an iteration (the fastest tenth, which others disturb
least, the median and the mean) and the processor time that the whole child took, its start included; of the
turns the better one each.
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
from itertools import pairwise
from pathlib import Path

from bench_supervisor import ROOT, TIMER, TIMER_MODULE, prepare
from support.standin import StandIn

from mapsage_kaggle.events import read_events
from mapsage_kaggle.paths import ROOT_VARIABLE

WARM_UP = 10
BUSY = "while True: pass"


def train(run: StandIn, config: Path, policy: str) -> tuple[float, float, float, float]:
    """Return an iteration's ms, fastest tenth, median and mean, and the child's CPU seconds."""
    _, launch = prepare(run, config, threads=len(os.sched_getaffinity(0)))
    env = {name: value for name, value in launch.environment().items() if name != "OMP_WAIT_POLICY"}
    if policy != "default":
        env["OMP_WAIT_POLICY"] = policy
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (run.root / "log").open("wb") as log, subprocess.Popen(
        launch.command(), env=env, stdin=subprocess.PIPE,
        stdout=log, stderr=log, start_new_session=True,
    ) as process:  # fmt: skip
        process.wait()
    assert any(event.event == "stop" for event in read_events(run.work_dir.events)), run.root / "log"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ends = [float(line) for line in (run.work_dir.path / "ends.txt").read_text().split()]
    steps = [1000 * (end - start) for start, end in pairwise(ends[WARM_UP:])]
    shutil.rmtree(run.work_dir.path)
    return statistics.quantiles(steps, n=10)[0], statistics.median(steps), statistics.mean(steps), cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=80)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        never = arguments.iterations + 1
        run = StandIn.with_scenes(
            Path(name) / "kaggle", max_iters=arguments.iterations, val_interval=never, extra=TIMER
        )
        os.environ[ROOT_VARIABLE] = str(run.root)
        config = run.config()
        (config.parent / "time_them.py").write_text(TIMER_MODULE)
        print(f"{arguments.iterations} iterations a turn on {cores} threads, load {os.getloadavg()[0]:.1f}")
        for others in (0, cores):
            busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(others)]
            rows: dict[str, list[tuple[float, ...]]] = {"default": [], "PASSIVE": []}
            try:
                for turn in range(arguments.turns):
                    for policy in sorted(rows, reverse=turn % 2 == 1):
                        rows[policy].append(train(run, config, policy))
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
            print("with the cores to itself" if not others else f"beside {others} busy processes")
            for policy, taken in rows.items():
                tenth, median, mean, cpu = (min(column) for column in zip(*taken, strict=True))
                print(f"  {policy:<7}  fastest tenth {tenth:.1f}, median {median:.1f}, mean {mean:.1f} ms; "
                      f"{cpu:.1f} s of CPU in all")  # fmt: skip


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
