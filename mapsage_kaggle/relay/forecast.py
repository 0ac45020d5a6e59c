"""What a relay would do: sessions, iterations, hours, quota, and the date of the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.pace import Pace, quota_date_s
from mapsage_kaggle.relay.client import Quota
from mapsage_kaggle.relay.decide import Settings
from mapsage_kaggle.relay.journal import Journal

ASSUMED_ITERATION_S = 1.0
ASSUMED_VALIDATION_S = 600.0
START_UP_S = 300.0
"""From a session's start to its first iteration: installation, looking at the data."""
CLOSING_S = 300.0
"""From its last iteration to its end: saving, the report, Kaggle's saving of the output."""
MAX_SESSIONS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """One session of the plan.

    Attributes:
        start: The iteration it goes on from.
        end: The iteration it gets to.
        seconds: How long it takes, start-up and end included.
    """

    start: int
    end: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All sessions that are still to come.

    Attributes:
        legs: In their order.
        assumed: What had to be assumed, for people; empty where all was measured.
        reaches_end: False where the number of sessions does not suffice.
        finish_s: When the last one ends if each follows at once, in seconds since the epoch.
        finish_by_quota_s: The same within the weekly GPU quota; None without a GPU.
    """

    legs: tuple[Leg, ...]
    assumed: str
    reaches_end: bool
    finish_s: float
    finish_by_quota_s: float | None

    @property
    def needed_s(self) -> float:
        return sum(leg.seconds for leg in self.legs)


def plan(
    *,
    start: int,
    end: int,
    session_limit_s: float,
    reserve_s: float,
    pace: Mapping[str, float],
    val_interval: int = 0,
    most_sessions: int | None = None,
    now_s: float,
    quota: Quota | None = None,
) -> Plan:
    """Return the sessions from ``start`` to ``end``; ``pace`` has the names of ``Pace.learned``.

    Without a GPU there is no ``quota``.
    """
    assumed = []
    if "iteration_s" not in pace:
        assumed.append(f"{ASSUMED_ITERATION_S:.2f} s an iteration")
    if "validation_s" not in pace and val_interval:
        assumed.append(f"{format_duration(ASSUMED_VALIDATION_S)} a validation")
    assumed.append(
        f"{format_duration(START_UP_S)} to start and {format_duration(CLOSING_S)} to end a session"
    )
    costs = Pace(expected={"iteration_s": ASSUMED_ITERATION_S, "validation_s": ASSUMED_VALIDATION_S, **pace})
    usable_s = session_limit_s - reserve_s - START_UP_S - CLOSING_S
    legs: list[Leg] = []
    iteration = start
    most = min(MAX_SESSIONS, MAX_SESSIONS if most_sessions is None else most_sessions)
    while iteration < end and len(legs) < most:
        count = costs.iterations_in(usable_s, iteration=iteration, val_interval=val_interval)
        if count <= 0:
            break
        reach = min(end, iteration + count)
        train_s = costs.time_for(reach, iteration=iteration, val_interval=val_interval)
        seconds = min(session_limit_s - reserve_s, START_UP_S + CLOSING_S + train_s)
        legs.append(Leg(start=iteration, end=reach, seconds=seconds))
        iteration = reach
    needed_s = sum(leg.seconds for leg in legs)
    by_quota = None
    if quota is not None and quota.allowed_s:
        used_s = quota.allowed_s - quota.left_s
        by_quota = quota_date_s(now_s, needed_s, used_s=used_s, quota_s=quota.allowed_s)
    return Plan(
        legs=tuple(legs),
        assumed=", ".join(assumed),
        reaches_end=iteration >= end,
        finish_s=now_s + needed_s,
        finish_by_quota_s=by_quota,
    )


def plan_text(found: Plan, *, end: int, quota_left_s: float | None) -> str:
    lines = ["session      from        to   iterations      time"]
    for number, leg in enumerate(found.legs, start=1):
        lines.append(
            f"{number:7d}  {leg.start:8,d}  {leg.end:8,d}  {leg.end - leg.start:11,d}  "
            f"{format_duration(leg.seconds):>8}"
        )
    if not found.legs:
        lines.append("      -  nothing to do" if found.reaches_end else "      -  no iteration fits")
    lines.append("")
    lines.append(f"assumed    {found.assumed}")
    lines.append(f"time       {format_duration(found.needed_s)} in {len(found.legs)} session(s)")
    if quota_left_s is not None:
        lines.append(f"quota      {format_duration(quota_left_s)} of GPU time left this week")
    if not found.reaches_end:
        lines.append(f"end        iteration {end:,} is not reached by these sessions")
    else:
        lines.append(f"end        iteration {end:,}, {_date(found.finish_s)} if each follows at once")
        if found.finish_by_quota_s is not None:
            lines.append(f"           {_date(found.finish_by_quota_s)} within the weekly quota")
    return "\n".join(lines)


def still_to_come(
    journal: Journal, settings: Settings, *, reserve_s: float, quota: Quota | None, now_s: float
) -> str:
    """Return what is still to come of a run, in one sentence; empty where that is not known."""
    end = min((item for item in (journal.end, settings.until) if item), default=0)
    start = journal.hand_over.iteration if journal.hand_over else 0
    if not journal.pace or start >= end:
        return ""
    found = plan(
        start=start,
        end=end,
        session_limit_s=settings.session_limit_s,
        reserve_s=reserve_s,
        pace=journal.pace,
        now_s=now_s,
        quota=quota,
    )
    if not found.legs or not found.reaches_end:
        return ""
    finish = _date(found.finish_by_quota_s or found.finish_s)
    left = format_duration(found.needed_s)
    return f" Still to come: {len(found.legs)} session(s), {left}, until {finish}."


def summary_text(journal: Journal, *, on_gpu: bool) -> str:
    sessions = journal.sessions
    futile_s = sum(item.seconds for item in sessions if item.verdict not in ("completed", "progress"))
    hours = sum(item.seconds for item in sessions) / 3600.0
    kind = "GPU hours" if on_gpu else "hours"
    return "\n".join(
        [
            f"sessions   {journal.num_sessions}",
            f"{kind:<10} {hours:.1f}, {futile_s / 3600.0:.1f} of them gained nothing",
            f"best       {journal.best or 'no score yet'}",
            f"address    https://www.kaggle.com/code/{journal.owner}/{journal.slug}",
        ]
    )


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
