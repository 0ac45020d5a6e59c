"""When to save by the clock, so that a hard kill loses minutes and saving costs next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

from mapsage_kaggle.clock import Samples

EVERY_S = 300.0
LONGEST_S = 1800.0
MAX_COST = 0.005


class SaveSchedule:
    """Says when the next save by time is due.

    The interval is ``every_s``, or as much longer as it takes for the measured cost of a save to
    stay below ``max_cost`` of the training time, but never more than ``longest_s``: on a machine
    so slow, losing hours would cost more than saving does.

    Args:
        every_s: Seconds between saves where they are cheap.
        max_cost: The part of training time that saving may take.
        longest_s: Seconds between saves at most.
        now: The clock, in seconds; injected in tests.
    """

    def __init__(
        self,
        *,
        every_s: float = EVERY_S,
        max_cost: float = MAX_COST,
        longest_s: float = LONGEST_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (every_s > 0 and 0 < max_cost <= 1 and longest_s >= every_s):
            raise ValueError(f"no schedule: every_s={every_s}, max_cost={max_cost}, longest_s={longest_s}")
        self._every_s = every_s
        self._max_cost = max_cost
        self._longest_s = longest_s
        self._now = now
        self._costs = Samples(8)
        self._last_s = now()

    @property
    def interval_s(self) -> float:
        """Seconds between two saves, by what the last ones cost."""
        return min(self._longest_s, max(self._every_s, self._costs.mean() / self._max_cost))

    def due(self) -> bool:
        """Tell whether the interval has passed since the last save of any kind."""
        return self._now() - self._last_s >= self.interval_s

    def left_s(self) -> float:
        """Return how long it is to the next save; negative where it is overdue."""
        return self._last_s + self.interval_s - self._now()

    def saved(self, *, cost_s: float) -> None:
        """Note a save, by time or by iteration: the clock starts anew.

        Args:
            cost_s: How long training was held up by it, plus what it lost to the writing in the
                background where that is known.
        """
        self._costs.add(cost_s)
        self._last_s = self._now()

    def failed(self) -> None:
        """Note a save that failed: the next one is tried after the usual interval, not at once."""
        self._last_s = self._now()
