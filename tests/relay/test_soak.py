"""A thousand random weeks: faults, kills, lost disks, two machines, and no broken promise."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support.relay_weeks import Ended, KilledError, Week, week

from mapsage_kaggle.errors import EXIT_DONE

HOUR = 3600.0
WEEKS = int(os.environ.get("RELAY_WEEKS", "1000"))
AT_ONCE = 20
"""Weeks in one test, so that each has its name and the whole its progress."""
FAULTS = ("429", "429 1800", "503", "500", "drop", "lost", "lost 502", "html", "401", "403", "400")
ENDINGS = (
    "ok", "ok", "ok", "failed after progress", "killed", "cancelled late", "late 10m", "damaged",
    "truncated", "crashed", "killed, no output", "uploads", "no progress",
)  # fmt: skip


def live_a_week(found: Week, draw: random.Random) -> None:
    """Let one or two machines run a chain through whatever is drawn, and see that it gets to its end."""
    machines = ("laptop", "server") if draw.random() < 0.4 else ("laptop",)
    rate = draw.choice([0.0, 0.01, 0.05, 0.15])
    kills = draw.choice([0.0, 0.0, 0.005, 0.02])
    found.notebook.script = ["ok", *(draw.choice(ENDINGS) for _ in range(draw.randrange(6)))]
    found.server.processing_s = draw.choice([60.0, 600.0, 2.2 * HOUR])
    found.server.queue_s = draw.choice([0.0, 300.0, 3 * HOUR])
    found.server.stale_versions = draw.choice([0.0, 0.0, 600.0])
    if draw.random() < 0.3:
        found.server.quota_s = 108_000.0
    found.server.any_fault = lambda _: draw.choice(FAULTS) if draw.random() < rate else ""

    def kill(number: int, method: str, when: str) -> None:
        if draw.random() < kills:
            raise KilledError

    found.server.on_request = kill
    again = 0
    for _ in range(1500):
        machine = draw.choice(machines)
        if draw.random() < 0.01:
            found.lose(machine)
        try:
            ended = found.once(machine, again=again > 0, from_nothing=found.consented)
            again = 0
        except KilledError:
            continue
        if not isinstance(ended, Ended):
            found.clock.sleep(draw.uniform(0.2, 1.5) * HOUR)
            continue
        if ended.exit_code == EXIT_DONE:
            return
        # A person reads it, agrees and starts it again; the accidents end at some time.
        again += 1
        found.consented = "--from-nothing" in ended.text or found.consented
        rate, kills = rate / 2, kills / 2
        found.clock.sleep(HOUR)
    raise AssertionError(f"It never ends.\n{found.output.getvalue()[-4000:]}")


@pytest.mark.soak
@pytest.mark.parametrize("first", range(0, WEEKS, AT_ONCE))
def test_random_weeks_break_no_promise(first: int, tmp_path: Path) -> None:
    for seed in range(first, min(first + AT_ONCE, WEEKS)):
        try:
            with week(tmp_path / str(seed)) as found:
                live_a_week(found, random.Random(seed))
        except AssertionError as error:
            raise AssertionError(f"week {seed}: {error}") from error


@pytest.mark.slow(scope_s=15)
@pytest.mark.parametrize("seed", range(5))
def test_a_random_week_breaks_no_promise(seed: int, tmp_path: Path) -> None:
    with week(tmp_path) as found:
        live_a_week(found, random.Random(seed))
