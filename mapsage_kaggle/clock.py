"""How much time a session has, and what fits into the rest of it."""

from __future__ import annotations

import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mapsage_kaggle.errors import UsageError

DEFAULT_LIMIT_S = 12 * 3600.0
DEFAULT_RESERVE_S = 10 * 60.0
OUTPUT_S_PER_BYTE = 120.0 / 1e9
"""Kaggle needs about 2 minutes to save 1 GB of output after the last cell."""

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
            raise UsageError(f"{text!r} is not a duration.", "Write it as 12h, 10m, 1h30m or 45s.")
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise UsageError(f"{text!r} is not a duration: it must be finite and not negative.")
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


def process_start_s(pid: int | Literal["self"] = "self") -> float | None:
    """Return when a process started, in :func:`boot_time_s` seconds; None where that cannot be read.

    Source: field 22 of ``/proc/<pid>/stat``, in clock ticks since boot (``man 5 proc``).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        ticks = int(stat.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK")


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
                f"The reserve ({format_duration(self.reserve_s)}) leaves nothing of the session limit "
                f"({format_duration(self.limit_s)}).",
                "Choose a longer limit or a shorter reserve.",
            )

    @classmethod
    def for_this_session(
        cls,
        *,
        limit_s: float = DEFAULT_LIMIT_S,
        reserve_s: float = DEFAULT_RESERVE_S,
        environ: Mapping[str, str] | None = None,
    ) -> SessionClock:
        """Return the clock of the session that this process runs in.

        On Kaggle a session begins with its container, process 1, so that a kernel restarted in
        hour 11 is granted nothing. Elsewhere, and in a stand-in for ``/kaggle``, it begins with
        this process. A start that lies in the future or further back than the limit cannot be
        the container's (some sandboxes report the host's), so this process's is taken instead.
        """
        environ = os.environ if environ is None else environ
        now = boot_time_s()
        on_kaggle = "KAGGLE_KERNEL_RUN_TYPE" in environ and "MAPSAGE_KAGGLE_ROOT" not in environ
        started = process_start_s(1) if on_kaggle else None
        if started is None or not 0 <= now - started <= limit_s:
            started = process_start_s()
        if started is None or started > now:
            started = now
        return cls(started_s=started, limit_s=limit_s, reserve_s=reserve_s)

    @property
    def deadline_s(self) -> float:
        """When everything must be written, in ``now``'s seconds."""
        return self.started_s + self.limit_s - self.reserve_s

    def elapsed_s(self) -> float:
        """Return how long the session has lived."""
        return self.now() - self.started_s

    def left_s(self) -> float:
        """Return how long it is to the deadline; negative when that is past."""
        return self.deadline_s - self.now()


class Samples:
    """A window of measured durations, asked for a slow percentile rather than a mean.

    A plan made from means is late every second time. The window lets a machine that becomes
    slower (a shared disk, a warm card) be noticed within ``window`` measurements.
    """

    def __init__(self, window: int = 256) -> None:
        self._values: deque[float] = deque(maxlen=window)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, seconds: float) -> None:
        """Take one measurement."""
        self._values.append(seconds)

    def slow(self, quantile: float = 0.95, default: float = 0.0) -> float:
        """Return the given quantile (nearest rank, upwards), or ``default`` without measurements."""
        if not self._values:
            return default
        ordered = sorted(self._values)
        return ordered[min(len(ordered) - 1, math.ceil(quantile * len(ordered)) - 1)]

    def mean(self, default: float = 0.0) -> float:
        """Return the mean, or ``default`` without measurements."""
        return sum(self._values) / len(self._values) if self._values else default


Action = Literal["go", "stop"]


@dataclass(kw_only=True)
class Pace:
    """What things cost on this machine, measured as they happen.

    Attributes:
        iteration: Seconds per iteration, waiting for data included, pauses for saving and
            validation not.
        validation: Seconds per validation.
        save: Seconds from the decision to save until the checkpoint is proven.
        finish_s: What the end of a session costs beyond the last save: the child's exit, the
            report, the record.
    """

    iteration: Samples = field(default_factory=Samples)
    validation: Samples = field(default_factory=lambda: Samples(16))
    save: Samples = field(default_factory=lambda: Samples(16))
    finish_s: float = 5.0

    def closing_s(self, output_bytes: float = 0.0) -> float:
        """Return what a stop costs: one slow save, the finish, and Kaggle's saving of the output."""
        return self.save.slow(1.0, default=5.0) + self.finish_s + output_bytes * OUTPUT_S_PER_BYTE

    def fits_iteration(self, clock: SessionClock, output_bytes: float = 0.0) -> bool:
        """Tell whether one more iteration, and then a stop in good order, fit before the deadline."""
        return clock.left_s() >= self.iteration.slow(default=1.0) + self.closing_s(output_bytes)

    def fits_validation(self, clock: SessionClock, output_bytes: float = 0.0) -> bool:
        """Tell whether a validation, and then a stop in good order, fit before the deadline."""
        return clock.left_s() >= self.validation.slow(1.0, default=0.0) * 1.1 + self.closing_s(output_bytes)

    def iterations_left(
        self, clock: SessionClock, *, val_interval: int = 0, output_bytes: float = 0.0
    ) -> int:
        """Return how many more iterations this session will do at the mean pace, validations counted."""
        per_iteration = self.iteration.mean()
        if val_interval > 0:
            per_iteration += self.validation.mean() / val_interval
        if per_iteration <= 0:
            return 0
        return max(0, int((clock.left_s() - self.closing_s(output_bytes)) / per_iteration))
