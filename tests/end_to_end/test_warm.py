"""A worker that was ready before its session was planned computes what one that is started computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.standin import REPOSITORY, StandIn, differences

PROGRAM = """
import sys
from mapsage_kaggle import cli, processes

become = processes.WarmPython.become
def told(*arguments):
    done = become(*arguments)
    print("became the worker:", done)
    return done
processes.WarmPython.become = told
if sys.argv.pop(1) == "cold":
    processes.warm_up = lambda *arguments, **options: None
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow(scope_s=30)
def test_a_worker_that_was_ready_computes_the_same_bits(tmp_path: Path) -> None:
    runs = {}
    for kind in ("warm", "cold"):
        run = runs[kind] = StandIn.with_scenes(tmp_path / kind, max_iters=6, val_interval=3)
        done = subprocess.run(
            [
                sys.executable, "-c", PROGRAM, kind, "train", str(run.config(workers=1)), "--threads", "1",
                "--session-limit", "10m", "--reserve", "10s",
            ],
            env=run.environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("became the worker: True" in done.stdout) == (kind == "warm")
    warm, cold = (run.checkpoint(6) for run in runs.values())
    assert differences(warm, cold) == []
