"""Long chains of short sessions that are stopped, killed and damaged at random: ``make soak``."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from children import Children, DirectRun
from standin import StandIn, differences, workers_alive

pytestmark = pytest.mark.soak

SEED = 20261123
SESSIONS = 30

# Dies at the n-th file event in the work dir, counted from 1; the number comes from a file, once.
KILLER = '''
"""Kills this process at a chosen file event of its saves."""
import os, signal, sys
from pathlib import Path

order = Path(__file__).with_name("kill_at")
if order.exists():
    die_at, count = int(order.read_text()), 0
    order.unlink()
    real_fsync = os.fsync

    def event():
        global count
        count += 1
        if count == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name, arguments):
        if name in ("os.rename", "os.remove") and "work_dirs" in str(arguments[0]):
            event()
        elif name == "open" and "work_dirs" in str(arguments[0]) and str(arguments[0]).endswith(".tmp"):
            event()

    def fsync(descriptor):
        event()
        real_fsync(descriptor)
        event()

    os.fsync = fsync
    sys.addaudithook(audit)
'''


def test_training_killed_at_every_file_event_of_its_saves_loses_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    extra = 'custom_imports["imports"].append("killer")\ndefault_hooks["checkpoint"]["interval"] = 3\n'
    with Children() as children:

        def new(name: str) -> tuple[StandIn, Path]:
            run = StandIn.with_scenes(tmp_path / name, max_iters=6, val_interval=6, size=64)
            config = run.config(extra=extra)
            (config.parent / "killer.py").write_text(KILLER)
            return run, config

        whole, config = new("whole")
        assert DirectRun(whole, children).train(config) == 0, whole.work_dir.log.read_text()
        number, lost = 0, 0
        while True:
            number += 1
            run, config = new(f"kill_{number:03d}")
            (config.parent / "kill_at").write_text(str(number))
            code = DirectRun(run, children).train(config)
            if code == 0:
                break
            assert code == -signal.SIGKILL, run.work_dir.log.read_text()
            proven = max((event.iteration for event in run.events("checkpoint")), default=0)
            assert DirectRun(run, children).train(config) == 0, run.work_dir.log.read_text()
            resumed = max((event.iteration for event in run.events("resume")), default=0)
            lost += resumed < proven
            assert differences(whole.checkpoint(6), run.checkpoint(6)) == []
            assert list(run.work_dir.path.glob("*.tmp")) == []
    print(f"killed at {number - 1} file events, work lost {lost} times, {time.monotonic() - began:.0f} s")
    assert number > 30
    assert lost == 0


def damage_newest(folder: Path) -> str:
    """Flip a byte in the middle of the newest checkpoint of an output; return its name."""
    files = sorted(folder.rglob("iter_*.pth"), key=lambda path: int(path.stem[5:]))
    newest = files[-1]
    newest.chmod(0o644)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0x40
    newest.write_bytes(content)
    newest.chmod(0o444)
    return newest.name


def one_session(run: StandIn, draw: random.Random, at: int) -> str:
    """Run one session that ends about iteration ``at``, in a way that is drawn; return the way."""
    way = draw.choices(("stop", "kill child", "kill supervisor", "sigterm"), (5, 5, 1, 1))[0]
    workers = draw.choice((0, 1, 2, 3))
    if way in ("stop", "kill child"):
        planted: dict[str, int | str] = {"stop": at} if way == "stop" else {"kill": at, "stop": at + 1}
        if way == "kill child":
            planted["once"] = str(run.root / f"killed-{at}")
        done = run.train(workers=workers, **planted)
        assert done.returncode == 0, done.stdout + done.stderr
        return way
    process = run.start(workers=workers)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if any(event.iteration >= at for event in run.events("iteration")):
            break
        time.sleep(0.02)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL if way == "kill supervisor" else signal.SIGTERM)
    process.communicate(timeout=120)
    while workers_alive(run.work_dir.path) and time.monotonic() < end:
        time.sleep(0.1)
    assert workers_alive(run.work_dir.path) == []
    return way


def soak(run: StandIn) -> int:
    """Run sessions of one run until it is complete; return how many there were."""
    draw, began, told = random.Random(SEED), time.monotonic(), []
    at, damaged = 0, False
    for number in range(1, 4 * SESSIONS):
        at += draw.randint(1, 4)
        told.append(one_session(run, draw, at))
        record = run.record()
        assert bool(run.events("ladder")) == damaged
        if record.end_iteration >= run.max_iters and record.owed_validation is None:
            print(f"{number} sessions in {time.monotonic() - began:.0f} s: {sorted(told)}")
            return number
        at = max(at, record.end_iteration)
        output = run.hand_over()
        damaged = draw.random() < 0.2 and len(list(output.rglob("iter_*.pth"))) > 1
        if damaged:
            told.append(f"damaged {damage_newest(output)}")
            at -= 4
    raise AssertionError(f"not complete after {number} sessions: {told}")


def test_thirty_random_sessions_equal_one(tmp_path: Path) -> None:
    options = {"max_iters": 4 * SESSIONS, "val_interval": 20}
    whole = StandIn.with_scenes(tmp_path / "whole", **options)
    assert whole.train().returncode == 0
    cut = StandIn.with_scenes(tmp_path / "cut", **options)
    assert soak(cut) >= SESSIONS
    last = options["max_iters"]
    assert differences(whole.checkpoint(last), cut.checkpoint(last)) == []
