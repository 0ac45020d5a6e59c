"""A running training's events, folded into the state that a view shows. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mapsage_kaggle.events import Event, EventKind

Stage = Literal["starting", "training", "validating", "ended"]

MAX_POINTS = 400
"""Loss points that are kept; beyond that every second one is dropped."""
MAX_SCORES = 200
MAX_NOTABLE = 8
SMOOTHING_S = 120.0
"""The longest time constant of the smoothed loss, however often the loss is reported."""
SMOOTHING_SHARE = 0.1
"""The same as a share of the time so far, so that a short training's curve does not lag."""
_TOLD: tuple[EventKind, ...] = (
    "resume",
    "validation",
    "warning",
    "restart",
    "failure",
    "ladder",
    "upload",
    "stop",
    "end",
)


@dataclass(kw_only=True, slots=True)
class Progress:
    """One session's progress. Bounded: it holds as much after twelve hours as after one.

    Attributes:
        start_iteration: Where the session began.
        max_iters: Where the run ends.
        iteration: Iterations done.
        losses: Iteration and loss, thinned evenly.
        smooth: Iteration and smoothed loss, at the same places.
        scores: Iteration and mIoU, in percent, of this session's validations.
        best: The best of them, or of the sessions before: iteration, mIoU in percent.
        lr: None before the first iteration.
        iteration_s: Mean seconds per iteration, waiting for data included.
        data_share: Smoothed share of an iteration that is spent waiting for data.
        left_s: Time left in the session, the reserve not counted, at ``last_event_s``.
        last_event_s: When the last iteration was reported, in seconds since the epoch.
        began_s: When the first one was.
        plan: The forecast, by the names of :class:`mapsage_kaggle.pace.SessionPlan`.
        memory_bytes: The most that torch has held on rank 0's GPU; None without one.
        saved: What told of the newest proven checkpoint.
        validated_batches: Batches done in the validation that is running.
        notable: The last events that a person should read, oldest first.
        reason: Why it stopped; empty while it runs.
    """

    start_iteration: int = 0
    max_iters: int = 0
    iteration: int = 0
    stage: Stage = "starting"
    losses: list[tuple[int, float]] = field(default_factory=list)
    smooth: list[tuple[int, float]] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    best: tuple[int, float] | None = None
    lr: float | None = None
    iteration_s: float | None = None
    data_share: float | None = None
    left_s: float | None = None
    last_event_s: float = 0.0
    began_s: float = 0.0
    plan: Mapping[str, Any] = field(default_factory=dict)
    memory_bytes: int | None = None
    saved: Event | None = None
    validated_batches: int = 0
    notable: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_NOTABLE))
    reason: str = ""

    def take(self, event: Event) -> None:
        if event.event in ("validation_start", "validation", "checkpoint"):
            # Iterations are reported only now and then.
            self.iteration = max(self.iteration, event.iteration)
        kind, data = event.event, event.data
        if kind == "training":
            self._training(event)
        elif kind == "iteration":
            self._iteration(event)
        elif kind in ("validation_start", "validating"):
            self.stage, self.validated_batches = "validating", int(data.get("batches") or 0)
        elif kind == "validation":
            self._validation(event)
        elif kind == "checkpoint" and data.get("metric") is None:
            self.saved = event
        elif kind == "restart":
            self.stage = "starting"
        elif kind in ("stop", "end"):
            self.iteration = event.iteration
            self.end(str(data.get("reason", "")))
        if event.event in _TOLD:
            self.notable.append(event)

    @property
    def share(self) -> float:
        """Progress of the run, 0 to 1."""
        return min(1.0, self.iteration / self.max_iters) if self.max_iters else 0.0

    @property
    def reach(self) -> int | None:
        """Where this session will end, at its present pace; None before anything was measured."""
        found = self.plan.get("reach")
        return min(int(found), self.max_iters) if isinstance(found, (int, float)) else None

    def left_at(self, now_s: float) -> float | None:
        """Return the session's seconds left at a moment (since the epoch); None where unknown."""
        return None if self.left_s is None else max(0.0, self.left_s - max(0.0, now_s - self.last_event_s))

    def end(self, reason: str) -> None:
        self.stage, self.reason = "ended", reason

    # -- by kind of event

    def _training(self, event: Event) -> None:
        self.stage = "training"
        self.iteration = event.iteration
        self.max_iters = int(event.data.get("max_iters") or self.max_iters)
        # Training went back to a checkpoint: what came after it is trained and reported again.
        for points in (self.losses, self.smooth, self.scores):
            while points and points[-1][0] > event.iteration:
                points.pop()

    def _iteration(self, event: Event) -> None:
        data = event.data
        self.stage = "training"
        self.iteration = event.iteration
        loss = _number(data.get("loss"))
        if loss is not None:
            self._add_loss(event, loss)
        self.lr = _number(data.get("lr")) if data.get("lr") is not None else self.lr
        self.iteration_s = _number(data.get("iteration_s")) or self.iteration_s
        waited = _number(data.get("data_s"))
        if waited is not None and self.iteration_s:
            share = min(1.0, waited / self.iteration_s)
            self.data_share = share if self.data_share is None else 0.8 * self.data_share + 0.2 * share
        self.left_s, self.last_event_s = _number(data.get("left_s")), event.time_s
        if isinstance(data.get("plan"), Mapping):
            self.plan = data["plan"]
        if data.get("memory_bytes"):
            self.memory_bytes = int(data["memory_bytes"])

    def _add_loss(self, event: Event, loss: float) -> None:
        if self.smooth:
            over_s = min(SMOOTHING_S, max(1.0, SMOOTHING_SHARE * (event.time_s - self.began_s)))
            weight = 1.0 - math.exp(-max(0.0, event.time_s - self.last_event_s) / over_s)
            mean = self.smooth[-1][1] + weight * (loss - self.smooth[-1][1])
        else:
            mean, self.began_s = loss, event.time_s
        self.losses.append((event.iteration, loss))
        self.smooth.append((event.iteration, mean))
        if len(self.losses) > MAX_POINTS:
            del self.losses[-2::-2], self.smooth[-2::-2]

    def _validation(self, event: Event) -> None:
        self.stage = "training"
        metrics = event.data.get("metrics")
        score = _number(metrics.get("mIoU")) if isinstance(metrics, Mapping) else None
        if score is None:
            return
        self.scores.append((event.iteration, score))
        del self.scores[:-MAX_SCORES]
        if self.best is None or score > self.best[1]:
            self.best = (event.iteration, score)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
