"""What the supervisor costs training: its processor time, per second and per iteration.

    python tests/benchmarks/bench_supervisor.py

Trains a small model in a stand-in for ``/kaggle`` and reads, from ``/proc``, how much of the processor
the supervising command used in the steady state, beside what the training child used.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from standin import StandIn

SECONDS = 20.0


def cpu_s(pid: int) -> float:
    """Return the processor time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def newest_iteration(run: StandIn) -> int:
    """Return the iteration of the newest event."""
    return max((event.iteration for event in run.events("iteration")), default=0)


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        run = StandIn.with_scenes(Path(folder) / "kaggle", max_iters=100_000, val_interval=100_000)
        process = run.start()
        try:
            while newest_iteration(run) < 20:
                if process.poll() is not None:
                    raise SystemExit(f"training ended: {process.communicate()[0]}")
                time.sleep(0.2)
            child = int(run.events("start")[0].data["pid"])
            before = time.monotonic(), cpu_s(process.pid), cpu_s(child), newest_iteration(run)
            time.sleep(SECONDS)
            after = time.monotonic(), cpu_s(process.pid), cpu_s(child), newest_iteration(run)
        finally:
            process.terminate()
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
    wall_s, supervisor_s, child_s = (after[index] - before[index] for index in range(3))
    iterations = after[3] - before[3]
    figures = {
        "wall_s": round(wall_s, 1),
        "iterations": iterations,
        "iteration_ms": round(1000 * wall_s / iterations, 2),
        "supervisor_cpu_percent": round(100 * supervisor_s / wall_s, 2),
        "supervisor_ms_per_iteration": round(1000 * supervisor_s / iterations, 3),
        "child_cpu_percent": round(100 * child_s / wall_s, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    for name, value in figures.items():
        print(f"{name:30} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
