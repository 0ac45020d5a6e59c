"""The training view of a notebook: one panel, brought up to date in place."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.display.panels import Panel
from mapsage_kaggle.display.text import headline, size
from mapsage_kaggle.display.words import Words
from mapsage_kaggle.events import Event

LEAST_S = 0.5
"""Not more than two updates a second."""
_LAST_LINES = 8


class LiveView:
    """A sink that keeps one panel of a notebook's output up to date.

    The output holds one panel however long training takes.

    Args:
        start_iteration: Where the session begins.
        max_iters: Where the run ends.
        language: Of the panel.
        publish: Shows a panel in place of the last one; by default in the running notebook.
    """

    def __init__(
        self,
        *,
        start_iteration: int,
        max_iters: int,
        language: str = "en",
        publish: Callable[[Panel], None] | None = None,
    ) -> None:
        self._words = Words(language)
        self._start = start_iteration
        self._iteration = start_iteration
        self._max_iters = max_iters
        self._facts: dict[str, str] = {}
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._shown_at = float("-inf")
        self._publish = publish or _in_place()
        self._publish(self.panel())

    def handle(self, event: Event) -> None:
        """Take an event; show it at once where it is rare, else twice a second at most."""
        words, data = self._words, event.data
        self._iteration = max(self._iteration, event.iteration)
        if event.event == "iteration":
            self._take_numbers(data)
        elif event.event == "checkpoint" and data.get("metric") is None:
            moment = time.strftime("%H:%M:%S", time.localtime(event.time_s))
            self._facts[words("saved")] = f"{data.get('file')}, {size(data.get('size_bytes'))}, {moment}"
        line = headline(event)
        # The newest checkpoint stands among the facts already.
        if line and event.event != "checkpoint":
            self._lines.append(line)
        now = time.monotonic()
        if event.event in ("stop", "end", "failure", "restart") or now - self._shown_at >= LEAST_S:
            self._shown_at = now
            self._publish(self.panel())

    def _take_numbers(self, data: Any) -> None:
        words = self._words
        if data.get("loss") is not None:
            self._facts[words("loss")] = f"{data['loss']:.4f}"
        if data.get("lr") is not None:
            self._facts[words("lr")] = f"{data['lr']:.3g}"
        if data.get("iteration_s"):
            self._facts[words("pace")] = words("s_per_iteration", value=data["iteration_s"])
        if data.get("left_s") is not None:
            self._facts[words("left")] = format_duration(data["left_s"])

    def panel(self) -> Panel:
        """Return the panel as it stands."""
        words = self._words
        return Panel(
            title=words("training"),
            aside=f"{self._iteration:,} / {self._max_iters:,}",
            lead="" if self._facts or self._lines else words("waiting"),
            share=self._iteration / self._max_iters if self._max_iters else None,
            facts=tuple(self._facts.items()),
            tail=tuple(self._lines),
        )


def _in_place() -> Callable[[Panel], None]:
    """Return a function that shows its panel where it showed the last one."""
    from IPython.display import display

    handle = display(display_id=True)  # type: ignore[no-untyped-call]

    def publish(panel: Panel) -> None:
        handle.update(panel)

    return publish
