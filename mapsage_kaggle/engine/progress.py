"""Progress events: now and then, the mean of the iterations since the last one, and the forecast."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.runner import Runner

from mapsage_kaggle.engine.control import Control


class Progress:
    """Collects what iterations give until the next event of them is due.

    Attributes:
        start_up_s: How long a session takes to its first iteration.
        gpu_used_s: GPU time that the run's earlier sessions have used this week.
    """

    def __init__(self, control: Control) -> None:
        self.start_up_s = 0.0
        self.gpu_used_s = 0.0
        self._control = control
        self._began = time.monotonic()
        self._last_told = 0.0
        self._losses: dict[str, list[float]] = {}
        self._peak_bytes: int | None = None

    def add(self, losses: Mapping[str, float], *, peak_bytes: int | None) -> None:
        for name, value in losses.items():
            self._losses.setdefault(name, []).append(value)
        if peak_bytes is not None:
            self._peak_bytes = max(peak_bytes, self._peak_bytes or 0)

    def is_due(self, *, every_s: float | None = None, at_once: bool = False) -> bool:
        """Return whether an event is due, and if so count it as emitted.

        ``every_s`` are the seconds between two: by default half a second at first, and ten in the end. With
        ``at_once`` one is due in any case.
        """
        now = time.monotonic()
        if every_s is None:
            every_s = min(10.0, max(0.5, (now - self._began) / 200))
        if not at_once and now - self._last_told < every_s:
            return False
        self._last_told = now
        return True

    def take(self, runner: Runner, iteration: int, data_s: float, step_s: float) -> dict[str, Any]:
        """Return the data of the event after ``iteration``, and begin a new interval.

        ``data_s`` is what the iteration waited for data, ``step_s`` all else in it.
        """
        pace, clock = self._control.pace, self._control.clock
        mean = {name: round(sum(values) / len(values), 6) for name, values in self._losses.items() if values}
        self._losses.clear()
        rates = runner.optim_wrapper.get_lr()
        data: dict[str, Any] = {
            **mean,
            "lr": rates["lr"][0] if isinstance(rates.get("lr"), list) else None,
            "iteration_s": round(pace.iteration.mean(data_s + step_s), 4),
            "data_s": round(data_s, 4),
            "left_s": round(clock.left_s(), 1),
        }
        # One iteration is no pace.
        if len(pace.iteration) > 1:
            plan = pace.plan(
                clock,
                iteration=iteration,
                max_iters=runner.max_iters,
                val_interval=(runner.val_interval or 0) if runner.val_loop is not None else 0,
                start_up_s=self.start_up_s,
                quota_used_s=self.gpu_used_s + clock.elapsed_s() if torch.cuda.is_available() else None,
            )
            data |= {"iterations_left": plan.reach - iteration, "plan": plan.to_json()}
        if self._peak_bytes is not None:
            data["memory_bytes"], self._peak_bytes = self._peak_bytes, None
        return data
