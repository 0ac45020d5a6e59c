"""How fast a session goes, and what still fits into it."""

from __future__ import annotations

import bisect
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from mapsage_kaggle.clock import SessionClock

OUTPUT_S_PER_BYTE = 120.0 / 1e9
"""Kaggle needs about 2 minutes to save 1 GB of output after the last cell."""
GPU_QUOTA_S = 30 * 3600.0
"""Kaggle's GPU time a week; it begins anew on Saturday, 00:00 UTC."""
_WEEK_S = 7 * 86400.0
_FIRST_SATURDAY_S = 2 * 86400.0  # 1970 began on a Thursday


class Samples:
    """A window of measured durations, asked for a slow percentile rather than a mean.

    A plan made from means is late every second time. The window lets a machine that becomes
    slower (a shared disk, a warm card) be noticed within ``window`` measurements, and the slowest
    of the last few lets it be noticed at once.

    One thread may add while others read.
    """

    def __init__(self, window: int = 256, *, lately: int = 16) -> None:
        self._values: deque[float] = deque()
        self._window = window
        self._lately: deque[float] = deque(maxlen=lately)
        self._slowest_lately = 0.0
        self._sum = 0.0
        # Replaced by each measurement, never changed: whoever reads it reads one state.
        self._ordered: list[float] = []

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, seconds: float) -> None:
        ordered = self._ordered.copy()
        self._values.append(seconds)
        self._sum += seconds
        bisect.insort(ordered, seconds)
        if len(ordered) > self._window:
            oldest = self._values.popleft()
            self._sum -= oldest
            del ordered[bisect.bisect_left(ordered, oldest)]
        self._lately.append(seconds)
        self._slowest_lately = max(self._lately)
        self._ordered = ordered

    def slow(self, quantile: float = 0.95, default: float = 0.0) -> float:
        """Return the given quantile (nearest rank, upwards), or ``default`` without measurements."""
        ordered = self._ordered
        if not ordered:
            return default
        return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]

    def slowest_lately(self, default: float = 0.0) -> float:
        """Return the 95th percentile, or the slowest of the last few where that is more."""
        return max(self.slow(), self._slowest_lately) if self._ordered else default

    def fastest(self) -> float:
        """Return the shortest, or 0 without measurements."""
        return self._ordered[0] if self._ordered else 0.0

    def median(self, default: float = 0.0) -> float:
        return self.slow(0.5, default)

    def mean(self, default: float = 0.0) -> float:
        ordered = self._ordered
        return self._sum / len(ordered) if ordered else default


def _few() -> Samples:
    return Samples(16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the time that is left allows at an iteration boundary.

    Attributes:
        stop: Training ends here.
        validate: A validation that is due is run; without it, where one is due, it is owed.
        skip: A validation that is due is left out for good: no session is long enough for it.
    """

    stop: bool
    validate: bool
    skip: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionPlan:
    """Where a run is going at its present pace.

    Attributes:
        reach: The iteration at which this session will end.
        sessions_left: How many more sessions the run needs; None where a session does no iteration.
        finish_s: When the run is finished if each session follows at once, in seconds since the
            epoch (UTC).
        finish_by_quota_s: The same within Kaggle's GPU hours a week; None without a GPU.
    """

    reach: int
    sessions_left: int | None
    finish_s: float | None
    finish_by_quota_s: float | None

    def to_json(self) -> dict[str, float | int | None]:
        return {name: None if value is None else round(value) for name, value in asdict(self).items()}


def quota_date_s(now_s: float, needed_s: float, *, used_s: float, quota_s: float = GPU_QUOTA_S) -> float:
    """Return when ``needed_s`` of GPU time will have been had, in seconds since the epoch (UTC).

    ``used_s`` is GPU time used in this week, ``quota_s`` GPU time a week.
    """
    # What is left of this week's time cannot exceed what is left of the week.
    saturday_s = week_start_s(now_s) + _WEEK_S
    this_week_s = min(max(0.0, quota_s - used_s), saturday_s - now_s)
    if needed_s <= this_week_s:
        return now_s + needed_s
    rest_s = needed_s - this_week_s
    weeks = math.ceil(rest_s / quota_s) - 1
    return saturday_s + weeks * _WEEK_S + (rest_s - weeks * quota_s)


def decaying_maximum(before: float | None, measured: float) -> float:
    """Return what to expect of a cost that is measured once a session: it rises at once and falls slowly."""
    return measured if before is None else max(measured, 0.75 * before + 0.25 * measured)


def week_start_s(now_s: float) -> float:
    """Return when the quota's present week began, in seconds since the epoch (UTC)."""
    return now_s - (now_s - _FIRST_SATURDAY_S) % _WEEK_S


@dataclass(kw_only=True)
class Pace:
    """What things cost on this machine, measured as they happen, and what still fits.

    Until something has been measured, ``expected`` stands in: what an earlier session measured, or
    a safe guess. Its keys are those of :meth:`learned`.

    Attributes:
        expected: Seconds, by name: ``iteration_s``, ``validation_s``, ``save_s``, ``best_s``,
            ``copy_s``, ``finish_s``.
        iteration: Seconds per iteration, waiting for data included, pauses for saving and
            validation not.
        validation: Seconds per validation.
        save: Seconds from the start of writing a resumable checkpoint until it is proven.
        best: The same for a best checkpoint, which holds the weights alone.
        copy: Seconds that training is held up for the copy that is then written.
        output_bytes: What Kaggle will have to save.
        checkpoint_bytes: What one more checkpoint adds to that.
        best_bytes: What a new best checkpoint adds to that.
        validation_iterations: How many iterations a validation is taken to last as long as, where
            none has been measured.
        late_share: The part of the reserve that a validation which overruns may use before it is
            left: its work is lost then.
    """

    expected: Mapping[str, float] = field(default_factory=dict)
    iteration: Samples = field(default_factory=Samples)
    validation: Samples = field(default_factory=_few)
    save: Samples = field(default_factory=_few)
    best: Samples = field(default_factory=_few)
    copy: Samples = field(default_factory=_few)
    output_bytes: float = 0.0
    checkpoint_bytes: float = 0.0
    best_bytes: float = 0.0
    validation_iterations: float = 0.0
    late_share: float = 0.25
    _writing_since_s: float | None = field(default=None, init=False, repr=False)
    _writing_best: bool = field(default=False, init=False, repr=False)
    _iteration_when_validated_s: tuple[float, float] = field(default=(0.0, 0.0), init=False, repr=False)

    # -- measuring

    def guess(self, **seconds: float) -> None:
        """Set safe guesses for what neither this session nor an earlier one has measured."""
        self.expected = {**seconds, **self.expected}

    def validated(self, seconds: float) -> None:
        self._iteration_when_validated_s = (self.iteration.median(), self.iteration.slow(0.75))
        self.validation.add(seconds)

    def left_validation(self, seconds: float) -> None:
        if not self.knows_validation or seconds > self.validation_s():
            self.expected = {**self.expected, "validation_s": seconds}

    def write_begins(self, now_s: float, *, best: bool = False) -> None:
        self._writing_best = best
        self._writing_since_s = now_s

    def write_ends(self, now_s: float) -> None:
        """Note that it is proven. Called by the thread that writes; not for a write that failed."""
        since_s, self._writing_since_s = self._writing_since_s, None
        if since_s is not None:
            (self.best if self._writing_best else self.save).add(now_s - since_s)

    def learned(self) -> dict[str, float]:
        measured = {
            "iteration_s": self.iteration.median(),
            "validation_s": self.validation.slowest_lately(),
            "save_s": self.save.slowest_lately(),
            "best_s": self.best.slowest_lately(),
            "copy_s": self.copy.slowest_lately(),
        }
        known = {**self.expected, **{name: seconds for name, seconds in measured.items() if seconds > 0}}
        return {name: round(float(seconds), 4) for name, seconds in known.items()}

    # -- what things cost

    def iteration_s(self) -> float:
        return self.iteration.slowest_lately(self.expected.get("iteration_s", 1.0))

    def validation_s(self) -> float:
        """Return what one validation costs when it is slow.

        A validation is measured rarely. If iterations have become slower since, so that half of
        them take longer than three quarters did then, it is taken to have become slower alike.
        """
        if self.validation:
            seconds, (then_s, noise_s) = self.validation.slowest_lately(), self._iteration_when_validated_s
        elif "validation_s" in self.expected:
            seconds, then_s = self.expected["validation_s"], self.expected.get("iteration_s", 0.0)
            noise_s = 1.1 * then_s
        else:
            # Where nothing at all is known it is tried: it is left if it takes too long.
            return self.validation_iterations * self.iteration.median(self.expected.get("iteration_s", 0.0))
        now_s = self.iteration.median()
        return seconds * now_s / then_s if now_s > noise_s > 0 else seconds

    @property
    def knows_validation(self) -> bool:
        """Whether a validation's length has been measured, here or in an earlier session."""
        return bool(self.validation) or "validation_s" in self.expected

    def save_s(self) -> float:
        return self.save.slowest_lately(self.expected.get("save_s", 5.0))

    def best_s(self) -> float:
        return min(self.save_s(), self.best.slowest_lately(self.expected.get("best_s", self.save_s())))

    def copy_s(self) -> float:
        """Return for how long a save holds up training when it is slow, waiting for another not counted."""
        return self.copy.slowest_lately(self.expected.get("copy_s", 0.0))

    def finish_s(self, clock: SessionClock) -> float:
        """Return what the end costs after the last save: the child's exit, the report, the record."""
        return self.expected.get("finish_s", min(20.0, 0.02 * clock.limit_s))

    def _ending_s(self, clock: SessionClock, num_checkpoints: int, other_bytes: float = 0.0) -> float:
        """Return what the end costs with so many more checkpoints, Kaggle's saving of the output included."""
        num_bytes = self.output_bytes + num_checkpoints * self.checkpoint_bytes + other_bytes
        return self.finish_s(clock) + num_bytes * OUTPUT_S_PER_BYTE

    def writing_left_s(self, clock: SessionClock) -> float:
        """Return how long writing goes on in the background; 0 where nothing is written, or it is overdue."""
        since_s = self._writing_since_s
        if since_s is None:
            return 0.0
        usual_s = self.best_s() if self._writing_best else self.save_s()
        return max(0.0, usual_s - (clock.now() - since_s))

    def closing_s(self, clock: SessionClock, *, saved: bool = False, ahead_s: float = 0.0) -> float:
        """Return what a stop in good order costs, Kaggle's saving of the output included.

        Args:
            clock: The session's time.
            saved: The present state is saved, or being saved, already.
            ahead_s: For a stop that comes after so many seconds, in which writing goes on.
        """
        writing_s = max(0.0, self.writing_left_s(clock) - ahead_s)
        if not saved:
            # The copy is made while the checkpoint before it is still being written.
            writing_s = max(writing_s, self.copy_s()) + self.save_s()
        return writing_s + self._ending_s(clock, 0 if saved else 1)

    # -- deciding

    def iteration_needs_s(self, clock: SessionClock, *, save_due: bool, saved: bool, stride: int) -> float:
        """Return what must be left for one more iteration and then a stop in good order.

        Args:
            clock: The session's time.
            save_due: The state before the iteration is saved first.
            saved: That state is saved already.
            stride: Iterations until training may stop again: gradient accumulation holds several.
        """
        training_s = self.iteration_s() * stride
        if not save_due or saved:
            return training_s + self.closing_s(clock, ahead_s=training_s)
        first_s = max(self.writing_left_s(clock), self.copy_s())
        waiting_s = max(0.0, self.save_s() - training_s)
        after_s = max(waiting_s, self.copy_s()) + self.save_s()
        return first_s + training_s + after_s + self._ending_s(clock, 2)

    def validation_needs_s(self, clock: SessionClock, *, saved: bool) -> float:
        """Return what must be left for a validation and then a stop in good order.

        Before it the state is saved, unless it is already; after it the best checkpoint may be
        written, and the state once more, with the score.
        """
        validation_s = self.validation_s()
        before_s = 0.0 if saved else max(self.writing_left_s(clock), self.copy_s())
        writing_s = self.writing_left_s(clock) if saved else self.save_s()
        after_s = max(0.0, writing_s - validation_s) + self.copy_s() + self.best_s() + self.save_s()
        # A little on top, since the last validation need not have been a slow one; so little that
        # all the saving that is foreseen around a validation is not more than one save too much.
        spare_s = self.save.fastest() - self.best_s() - 2 * self.copy_s()
        margin_s = max(0.0, min(0.1 * validation_s, spare_s))
        return before_s + validation_s + margin_s + after_s + self._ending_s(clock, 1, self.best_bytes)

    def decide(
        self,
        clock: SessionClock,
        *,
        validation_due: bool,
        save_due: bool = False,
        saved: bool = False,
        may_stop: bool = True,
        stride: int = 1,
        whole_s: float = math.inf,
    ) -> Verdict:
        """Return what the time that is left allows at an iteration boundary.

        A validation for which not even a whole session is long enough would end every session
        where it is due. So it is left out if its length has been measured. If it is only guessed it
        is tried: that measures it.

        Args:
            clock: The session's time.
            validation_due: The schedule asks for a validation here.
            save_due: The save schedule asks for a checkpoint here.
            saved: The present state is saved already.
            may_stop: False inside a gradient accumulation.
            stride: Iterations until training may stop again.
            whole_s: The most that is ever left for a validation, at the start of a session.
        """
        left_s, skip = clock.left_s(), False
        if validation_due:
            needs_s = self.validation_needs_s(clock, saved=saved)
            too_long = needs_s > whole_s
            validate = left_s >= needs_s or (too_long and not self.knows_validation)
            skip = too_long and not validate
            if not skip:
                return Verdict(stop=not validate, validate=validate)
        fits = left_s >= self.iteration_needs_s(clock, save_due=save_due or skip, saved=saved, stride=stride)
        return Verdict(stop=may_stop and not fits, validate=False, skip=skip)

    def must_leave_validation(self, clock: SessionClock) -> bool:
        """Tell whether a validation that is running is so late that it must be left, and owed.

        Its score would still have to be saved, which leaving it spares.
        """
        after_s = self.closing_s(clock, saved=True) + self.copy_s() + self.best_s() + self.save_s()
        return clock.left_s() + self.late_share * clock.reserve_s < after_s

    # -- planning

    def plan(
        self,
        clock: SessionClock,
        *,
        iteration: int,
        max_iters: int,
        val_interval: int = 0,
        start_up_s: float = 0.0,
        time_s: float | None = None,
        quota_used_s: float | None = None,
    ) -> SessionPlan:
        """Return where the run is going at its mean pace.

        Args:
            clock: The session's time.
            iteration: Iterations done.
            max_iters: Where the run ends.
            val_interval: Iterations between validations, 0 for none.
            start_up_s: How long a session takes to its first iteration.
            time_s: Now, in seconds since the epoch.
            quota_used_s: GPU time used in this week, this session's included; None without a GPU.
        """
        now_s = time.time() if time_s is None else time_s
        closing_s = self.closing_s(clock)
        left_s = clock.left_s()
        reach = iteration + self.iterations_in(
            left_s - closing_s, iteration=iteration, val_interval=val_interval
        )
        if reach >= max_iters:
            needed_s = self.time_for(max_iters, iteration=iteration, val_interval=val_interval) + closing_s
            return self._plan(max_iters, 0, now_s, needed_s, quota_used_s)
        session_s = clock.limit_s - clock.reserve_s
        usable_s = session_s - start_up_s - closing_s
        each = self.iterations_in(usable_s, iteration=reach, val_interval=val_interval)
        if each <= 0:
            return SessionPlan(reach=reach, sessions_left=None, finish_s=None, finish_by_quota_s=None)
        sessions = math.ceil((max_iters - reach) / each)
        begin = reach + (sessions - 1) * each
        last_s = start_up_s + closing_s
        last_s += self.time_for(max_iters, iteration=begin, val_interval=val_interval)
        return self._plan(
            reach, sessions, now_s, max(0.0, left_s) + (sessions - 1) * session_s + last_s, quota_used_s
        )

    @staticmethod
    def _plan(reach: int, sessions: int, now_s: float, needed_s: float, used_s: float | None) -> SessionPlan:
        return SessionPlan(
            reach=reach,
            sessions_left=sessions,
            finish_s=now_s + needed_s,
            finish_by_quota_s=None if used_s is None else quota_date_s(now_s, needed_s, used_s=used_s),
        )

    def _mean_costs_s(self) -> tuple[float, float]:
        """Return what an iteration and what a validation with its saves cost on average."""
        iteration_s = self.iteration.mean(self.expected.get("iteration_s", 0.0))
        guess_s = self.validation_iterations * iteration_s
        validation_s = self.validation.mean(self.expected.get("validation_s", guess_s))
        copies_s = 2 * self.copy.mean(self.expected.get("copy_s", 0.0))
        return iteration_s, validation_s + copies_s

    def iterations_in(self, seconds: float, *, iteration: int, val_interval: int = 0) -> int:
        """Return how many iterations ``seconds`` hold at the mean pace, with the validations among them.

        A validation that is due at ``iteration`` is still to come.
        """
        iteration_s, validation_s = self._mean_costs_s()
        if iteration_s <= 0:
            return 0
        first = max(0, int(seconds / iteration_s))
        if val_interval <= 0:
            return first
        to_boundary = -iteration % val_interval if iteration else val_interval
        # A validation is begun only where a slow one fits, though it costs the mean.
        slow_s = max(validation_s, self.validation_s() + self.best_s() + self.copy_s())
        if seconds - to_boundary * iteration_s < slow_s:
            return min(first, to_boundary)
        seconds -= to_boundary * iteration_s + validation_s
        cycle_s = val_interval * iteration_s + validation_s
        cycles = max(0, int((seconds - (slow_s - validation_s)) / cycle_s))
        # At a boundary whose validation does not fit the session ends.
        rest = min(val_interval, int((seconds - cycles * cycle_s) / iteration_s))
        return to_boundary + cycles * val_interval + rest

    def time_for(self, end: int, *, iteration: int, val_interval: int) -> float:
        """Return how long it takes from ``iteration`` to ``end`` at the mean pace, validations counted.

        A validation that is due at ``iteration`` is still to come.
        """
        iteration_s, validation_s = self._mean_costs_s()
        validations = 0
        if val_interval > 0 and end > iteration:
            # The last iteration is validated wherever it lies.
            validations = -(-end // val_interval) - max(0, iteration - 1) // val_interval
        return (end - iteration) * iteration_s + validations * validation_s
