"""Sessions that end in time: the clock, what it grants, and simulated sessions by the thousand."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from support.simulated import HOUR_S

from mapsage_kaggle.clock import SessionClock, format_duration, parse_duration_s
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.processes import process_start_s

DAY_S = 86400.0
ON_KAGGLE = {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}


# -- durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12h", 43200),
        ("10m", 600),
        ("1h30m", 5400),
        ("45s", 45),
        ("90", 90),
        (2.5, 2.5),
        ("1.5h", 5400),
        ("0", 0),
    ],
)
def test_durations_are_read(text: str | float, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "10 minutes", "-5m", "1d", "nan", -1.0, math.inf, math.nan])
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration_s(text)


def test_durations_are_shown_in_two_units() -> None:
    assert [format_duration(s) for s in (11105, 3600, 750, 8, 59.6, -3)] == [
        "3h 05m",
        "1h 00m",
        "12m 30s",
        "8s",
        "1m 00s",
        "0s",
    ]


def test_a_reserve_as_long_as_the_session_is_refused() -> None:
    with pytest.raises(UsageError, match=r"The reserve \(10m 00s\) leaves nothing of the session limit"):
        SessionClock(started_s=0.0, limit_s=600.0, reserve_s=600.0)


# -- when a session began


def proc_with(folder: Path, **started_s: float) -> Path:
    """Write a stand-in for /proc; a command name may hold blanks and parentheses, as in the real one."""
    for pid, seconds in started_s.items():
        name = pid.strip("_")
        (folder / name).mkdir(parents=True)
        fields = ["S", *["0"] * 18, str(round(seconds * os.sysconf("SC_CLK_TCK"))), *["0"] * 30]
        (folder / name / "stat").write_text(f"{name} (python (3) x) {' '.join(fields)}\n")
    return folder


def test_a_kernel_restarted_in_hour_11_is_granted_nothing(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, _1=500.0, self=500.0 + 11 * HOUR_S)
    clock = SessionClock.for_this_session(environ=ON_KAGGLE, proc=proc, now=lambda: 510.0 + 11 * HOUR_S)
    assert clock.elapsed_s() == pytest.approx(11 * HOUR_S + 10)
    assert clock.left_s() == pytest.approx(HOUR_S - 600 - 10)


def test_a_lowered_limit_does_not_make_the_container_too_old(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, _1=0.0, self=10 * HOUR_S)
    clock = SessionClock.for_this_session(
        limit_s=9 * HOUR_S, environ=ON_KAGGLE, proc=proc, now=lambda: 10 * HOUR_S
    )
    assert clock.left_s() < 0


@pytest.mark.parametrize(("age_s", "elapsed_s"), [(13 * HOUR_S, 13 * HOUR_S), (13 * HOUR_S + 0.5, 3.5)])
def test_a_container_is_believed_to_outlive_its_limit_by_an_hour(
    tmp_path: Path, age_s: float, elapsed_s: float
) -> None:
    proc = proc_with(tmp_path, _1=0.0, self=13 * HOUR_S - 3.0)
    clock = SessionClock.for_this_session(environ=ON_KAGGLE, proc=proc, now=lambda: age_s)
    assert clock.elapsed_s() == pytest.approx(elapsed_s)


def test_a_restart_after_the_limit_is_granted_nothing(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, _1=0.0, self=12.4 * HOUR_S)
    clock = SessionClock.for_this_session(environ=ON_KAGGLE, proc=proc, now=lambda: 12.5 * HOUR_S)
    assert clock.left_s() < 0


@pytest.mark.parametrize("environ", [{}, {**ON_KAGGLE, "MAPSAGE_KAGGLE_ROOT": "/somewhere"}])
def test_elsewhere_a_session_begins_with_the_process(tmp_path: Path, environ: dict[str, str]) -> None:
    proc = proc_with(tmp_path, _1=0.0, self=5000.0)
    clock = SessionClock.for_this_session(environ=environ, proc=proc, now=lambda: 5003.0)
    assert clock.elapsed_s() == pytest.approx(3.0)


@pytest.mark.parametrize("container_s", [-40 * DAY_S, 7000.0])
def test_a_start_that_cannot_be_the_containers_is_not_believed(tmp_path: Path, container_s: float) -> None:
    proc = proc_with(tmp_path, _1=container_s, self=5000.0)
    clock = SessionClock.for_this_session(environ=ON_KAGGLE, proc=proc, now=lambda: 5003.0)
    assert clock.elapsed_s() == pytest.approx(3.0)


def test_a_container_that_has_just_begun_is_believed(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, _1=5000.0, self=4000.0)
    clock = SessionClock.for_this_session(environ=ON_KAGGLE, proc=proc, now=lambda: 5000.0)
    assert clock.elapsed_s() == 0.0


def test_a_start_after_now_counts_as_now(tmp_path: Path) -> None:
    proc = proc_with(tmp_path, _1=7000.0, self=6000.0)
    clock = SessionClock.for_this_session(environ=ON_KAGGLE, proc=proc, now=lambda: 5003.0)
    assert clock.elapsed_s() == 0.0


def test_without_proc_a_session_begins_now(tmp_path: Path) -> None:
    assert process_start_s(1, proc=tmp_path) is None
    clock = SessionClock.for_this_session(environ=ON_KAGGLE, proc=tmp_path, now=lambda: 77.0)
    assert clock.elapsed_s() == 0.0
    assert clock.left_s() == 12 * HOUR_S - 600


def test_the_real_proc_tells_when_this_process_began() -> None:
    clock = SessionClock.for_this_session(environ={})
    assert 0 < clock.elapsed_s() < DAY_S
    assert clock.started_s == process_start_s()


# -- a real session


@pytest.mark.slow(scope_s=30)
def test_a_real_session_ends_by_the_clock_with_everything_saved(tmp_path: Path) -> None:
    from support.standin import StandIn

    real = StandIn.with_scenes(tmp_path)
    real.max_iters, real.val_interval = 5000, 20
    done = real.train("--session-limit", "60s", "--reserve", "35s")
    assert done.returncode == 0, done.stdout + done.stderr
    record = real.record()
    assert record.stop_reason == "deadline"
    assert record.timings_s["session"] <= 60
    assert record.checkpoint is not None
    assert record.checkpoint.iteration == record.end_iteration > 0
    assert real.events("iteration")[-1].data["plan"]["sessions_left"] > 0
    assert (record.learned.pace or {}).keys() >= {"iteration_s", "save_s", "copy_s", "finish_s"}
