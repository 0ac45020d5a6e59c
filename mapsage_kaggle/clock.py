"""How much time a session has, what fits into the rest of it, and when a run will be finished.

What holds. Training, validating and saving are begun only if they, at their slow measured cost, and
a stop in good order after them end before the limit less the reserve. So a session is past that
moment by no more than what its last iteration or validation and the saves after it took beyond the
slowest that was measured lately, and past the limit only if this excess, a stall, is longer than
the reserve. A validation is moreover left, and owed, when it is late itself. A session whose
timings are stationary ends at most one (slow) iteration or validation and one (slow) save early.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import on_kaggle
from mapsage_kaggle.processes import process_start_s

DEFAULT_LIMIT_S = 12 * 3600.0
DEFAULT_RESERVE_S = 10 * 60.0
_SLACK_S = 3600.0
"""By how much a container may outlive its limit before its age is not believed."""

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration_s(text: str | float) -> float:
    """Return seconds from ``"12h"``, ``"10m"``, ``"1h30m"``, ``"45s"`` or a plain number of seconds.

    Raises:
        UsageError: The text is no duration, or a negative one.
    """
    if isinstance(text, (int, float)):
        seconds = float(text)
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)([hms]?)", text.strip())
        if not parts or "".join(number + unit for number, unit in parts) != text.strip():
            raise UsageError(
                Message("{text} is not a duration.", repr(text)), "Write it as 12h, 10m, 1h30m or 45s."
            )
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise UsageError(Message("{text} is not a duration: it must be finite and not negative.", repr(text)))
    return seconds


def format_duration(seconds: float) -> str:
    """Return ``3h 05m``, ``12m 30s`` or ``8s``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, seconds_left = divmod(rest, 60)
    if hours:
        return f"{hours}h {minutes:02d}m"
    if minutes:
        return f"{minutes}m {seconds_left:02d}s"
    return f"{seconds_left}s"


def boot_time_s() -> float:
    """Return seconds since the machine booted: never set back, and the same in every process."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionClock:
    """The time that a session has. Counts from the container's start, not from the command's.

    Attributes:
        started_s: When the session began, in ``now``'s seconds.
        limit_s: How long the platform lets it live.
        reserve_s: What is kept free at its end, for whatever was not foreseen.
        now: The clock; injected in tests.
    """

    started_s: float
    limit_s: float = DEFAULT_LIMIT_S
    reserve_s: float = DEFAULT_RESERVE_S
    now: Callable[[], float] = boot_time_s

    def __post_init__(self) -> None:
        if self.reserve_s >= self.limit_s:
            raise UsageError(
                Message(
                    "The reserve ({reserve}) leaves nothing of the session limit ({limit}).",
                    format_duration(self.reserve_s),
                    format_duration(self.limit_s),
                ),
                "Choose a longer limit or a shorter reserve.",
            )

    @classmethod
    def for_this_session(
        cls,
        *,
        limit_s: float = DEFAULT_LIMIT_S,
        reserve_s: float = DEFAULT_RESERVE_S,
        environ: Mapping[str, str] | None = None,
        proc: Path = Path("/proc"),
        now: Callable[[], float] = boot_time_s,
    ) -> SessionClock:
        """Return the clock of the session that this process runs in.

        On Kaggle a session begins with its container, process 1, so that a kernel restarted in
        hour 11 is granted nothing. Elsewhere, and in a stand-in for ``/kaggle``, it begins with
        this process. A start that lies in the future, or further back than any session lives,
        cannot be the container's (some sandboxes report the host's), so this process's is taken
        instead. A limit that the user lowered does not make a container too old.
        """
        environ = os.environ if environ is None else environ
        moment = now()
        oldest_s = max(limit_s, DEFAULT_LIMIT_S) + _SLACK_S
        started = process_start_s(1, proc=proc) if on_kaggle(environ) else None
        if started is None or not 0 <= moment - started <= oldest_s:
            started = process_start_s(proc=proc)
        started = moment if started is None else min(started, moment)
        return cls(started_s=started, limit_s=limit_s, reserve_s=reserve_s, now=now)

    @property
    def deadline_s(self) -> float:
        """When everything must be written, in ``now``'s seconds."""
        return self.started_s + self.limit_s - self.reserve_s

    def elapsed_s(self) -> float:
        return self.now() - self.started_s

    def left_s(self) -> float:
        """Return how long it is to the deadline; negative when that is past."""
        return self.deadline_s - self.now()
