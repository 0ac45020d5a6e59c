"""The notebook's training view, updated in place from a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.display.columns import aligned
from mapsage_kaggle.display.history import unlabelled_in
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Tone, from_template
from mapsage_kaggle.display.progress import Progress
from mapsage_kaggle.display.text import scores_text, size, unseen_text
from mapsage_kaggle.events import Event

if TYPE_CHECKING:
    from mapsage_kaggle.machine import GpuLoad

MIN_S = 0.5
"""Between two updates at least."""
IDLE_S = 5.0
"""Between two updates at most: ages and the time left change without events."""
CHART_S = 20.0
"""Between two charts: one costs a tenth of a second of a core, so this is half a percent of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One figure of the view, with its name and a small aside."""

    name: str
    value: str
    aside: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """One event as a person reads it."""

    moment: str
    iteration: str
    text: str
    tone: Tone = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPanel:
    """The view at one moment, without its chart.

    Attributes:
        aside: Iterations done, of how many.
        state: The present activity, in a few words.
        share: Progress of the run, 0 to 1.
        start_share: The same as the session began.
        reach_share: The same as this session will end, at its present pace; None where unknown.
        reach: That in words.
        notices: The last events, newest first.
    """

    title: str
    aside: str
    state: str
    tone: Tone
    share: float
    start_share: float = 0.0
    reach_share: float | None = None
    reach: str = ""
    tiles: tuple[Tile, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def html(self) -> str:
        """The figures, for above the chart."""
        return from_template("training.html.j2", panel=self)

    @property
    def events_html(self) -> str:
        """The events, for below the chart."""
        return from_template("events.html.j2", panel=self)

    @property
    def text(self) -> str:
        """The view for a log."""
        lines = [f"{self.title}: {self.state}  {self.aside}", f"  {self.reach}" if self.reach else ""]
        tiles = aligned([(tile.name, f"{tile.value}  {tile.aside}") for tile in self.tiles])
        lines += [f"  {line}" for line in tiles]
        lines += [f"  {item.moment}  {item.iteration}  {item.text}" for item in self.notices]
        return "\n".join(line for line in lines if line)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": self.text, "text/html": self.html + self.events_html}


def training_panel(
    progress: Progress,
    words: Words,
    *,
    now_s: float,
    asked: str = "",
    gpus: Sequence[GpuLoad] = (),
) -> TrainingPanel:
    """Return the view of a training at ``now_s``, in seconds since the epoch. Pure.

    ``asked`` is ``save`` or ``stop`` while that request is pending.
    """
    state, tone = _state(progress, words, asked)
    total = progress.max_iters or 1
    reach = progress.reach if progress.stage != "ended" else None
    return TrainingPanel(
        title=words("training"),
        aside=f"{progress.iteration:,} / {progress.max_iters:,}",
        state=state,
        tone=tone,
        share=progress.share,
        start_share=min(1.0, progress.start_iteration / total),
        reach_share=None if reach is None else reach / total,
        reach=_reach(progress, reach, words),
        tiles=tuple(_tiles(progress, words, now_s, gpus)),
        notices=tuple(_notice(event, words) for event in reversed(progress.notable)),
    )


def _state(progress: Progress, words: Words, asked: str) -> tuple[str, Tone]:
    if progress.stage == "ended":
        key = progress.reason if progress.reason in ("completed", "early", "deadline", "failed") else "user"
        return words(key), "bad" if key == "failed" else "good"
    if asked == "stop":
        return words("view_stopping"), "note"
    if asked == "save":
        return words("view_saving"), ""
    if progress.stage == "starting":
        return words("waiting"), ""
    if progress.stage == "validating":
        return words("view_validating", count=progress.validated_batches), ""
    return "", ""


def _reach(progress: Progress, reach: int | None, words: Words) -> str:
    """Return the forecast for the session and the run, in words."""
    if reach is None:
        return ""
    if reach >= progress.max_iters:
        parts = [words("view_reach_end")]
    else:
        parts = [words("view_reach", iteration=reach)]
        sessions = progress.plan.get("sessions_left")
        if isinstance(sessions, int):
            parts.append(words("view_sessions_left", count=sessions))
    for key, name in (("finish_s", "view_finish"), ("finish_by_quota_s", "view_finish_quota")):
        moment = progress.plan.get(key)
        if isinstance(moment, (int, float)):
            parts.append(words(name, date=time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment))))
    return " · ".join(parts)


def _tiles(progress: Progress, words: Words, now_s: float, gpus: Sequence[GpuLoad]) -> list[Tile]:
    tiles = []
    if progress.losses:
        smoothed = words("view_smoothed", value=progress.smooth[-1][1])
        tiles.append(Tile(name=words("loss"), value=f"{progress.losses[-1][1]:.4f}", aside=smoothed))
    if progress.lr is not None:
        tiles.append(Tile(name=words("lr"), value=f"{progress.lr:.2e}"))
    if progress.best is not None:
        last = progress.scores[-1][1] if progress.scores else progress.best[1]
        best = words("view_best", value=progress.best[1], iteration=progress.best[0])
        tiles.append(Tile(name="mIoU", value=f"{last:.2f} %", aside=best))
    if progress.iteration_s:
        waited = "" if progress.data_share is None else words("view_data", share=100 * progress.data_share)
        value = words("s_per_iteration", value=progress.iteration_s)
        tiles.append(Tile(name=words("pace"), value=value, aside=waited))
    left_s = progress.left_at(now_s)
    if left_s is not None and progress.stage != "ended":
        tiles.append(
            Tile(name=words("view_left"), value=format_duration(left_s), aside=words("view_left_of"))
        )
    tiles += [_gpu_tile(index, load, words) for index, load in enumerate(gpus)]
    if progress.memory_bytes and not gpus:
        tiles.append(Tile(name=words("view_gpu_memory"), value=size(progress.memory_bytes)))
    if progress.saved is not None:
        saved = progress.saved
        age = words("view_ago", age=format_duration(max(0.0, now_s - saved.time_s)))
        value, aside = f"{saved.iteration:,}", f"{age}, {size(saved.data.get('size_bytes') or 0)}"
        tiles.append(Tile(name=words("saved"), value=value, aside=aside))
    return tiles


def _gpu_tile(index: int, load: GpuLoad, words: Words) -> Tile:
    used = f"{load.used_bytes / 2**30:.1f} / {load.total_bytes / 2**30:.1f} GiB"
    busy = "" if load.busy is None else words("view_busy", share=100 * load.busy)
    return Tile(name=f"GPU {index}", value=used, aside=busy)


_TONES: dict[str, Tone] = {"warning": "note", "restart": "note", "ladder": "note", "failure": "bad"}


def _notice(event: Event, words: Words) -> Notice:
    data, tone = event.data, _TONES.get(event.event, "")
    if event.event == "validation":
        values = scores_text(data.get("metrics") or {})
        text = words("view_validated", values=values) + unseen_text(unlabelled_in(event), words)
        if data.get("best"):
            text, tone = f"{text} ★ {words('view_best_yet')}", "good"
    elif event.event == "resume":
        text = words.translate(data.get("verdict", ""))
    elif event.event in ("stop", "end"):
        text = words.translate(data.get("message") or "") or words(str(data.get("reason") or "user"))
    else:
        text = words.translate(data.get("message") or data.get("kind") or event.event)
    return Notice(
        moment=time.strftime("%H:%M:%S", time.gmtime(event.time_s)),
        iteration=f"{event.iteration:,}",
        text=text,
        tone=tone,
    )


class Surface(Protocol):
    """Where a view is shown."""

    def show(self, panel: TrainingPanel) -> None:
        """Show a panel in place of the last one."""

    def show_chart(self, png: bytes) -> None:
        """Show a chart in place of the last one."""


class DisplaySurface:
    """A cell output that is updated in place, for front ends without widgets."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def display(self) -> None:
        """Add an output to the running cell."""
        from IPython.display import display

        self._handles.append(display(display_id=True))  # type: ignore[no-untyped-call]

    def show(self, panel: TrainingPanel) -> None:
        """Show a panel in every output."""
        for handle in self._handles:
            handle.update(panel)

    def show_chart(self, png: bytes) -> None:
        """Do nothing: an output holds one thing, and resending a picture twice a second is expensive."""

    def close(self) -> None:
        """Do nothing: there are no buttons to hide."""


class LiveView:
    """An event sink that keeps a surface up to date, from a thread of its own.

    Handling an event costs the supervising thread next to nothing; drawing keeps to fixed intervals. ``best``
    is the best validation so far: iteration and mIoU in percent. ``gpu_load`` queries the GPUs; None where
    there are none.
    """

    def __init__(
        self,
        surface: Surface,
        words: Words,
        *,
        start_iteration: int = 0,
        max_iters: int = 0,
        best: tuple[int, float] | None = None,
        gpu_load: Callable[[], Sequence[GpuLoad]] | None = None,
    ) -> None:
        self._surface = surface
        self._words = words
        self._progress = Progress(
            start_iteration=start_iteration, iteration=start_iteration, max_iters=max_iters, best=best
        )
        self._gpu_load = gpu_load
        self._gpus: Sequence[GpuLoad] = ()
        self._asked = ""
        self._chart_next = 0.0
        self._charted: tuple[int, int, int] | None = None
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._draw()
        self._thread = threading.Thread(target=self._keep_up, name="mapsage-view", daemon=True)
        self._thread.start()

    def handle(self, event: Event) -> None:
        """Accept an event; it is shown within about half a second."""
        with self._lock:
            self._progress.take(event)
            if event.event == "checkpoint" and self._asked == "save":
                self._asked = ""
        self._changed.set()

    def asked(self, action: str) -> None:
        """Show a ``save`` or ``stop`` as requested, until it has happened."""
        with self._lock:
            if self._asked != "stop":
                self._asked = action
        self._changed.set()

    def close(self, *, reason: str = "") -> None:
        """Show the final state and end the thread; ``reason`` is the session record's."""
        if reason:
            with self._lock:
                self._progress.end(reason)
        self._closed.set()
        self._changed.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def panel(self) -> TrainingPanel:
        with self._lock:
            return training_panel(
                self._progress, self._words, now_s=time.time(), asked=self._asked, gpus=self._gpus
            )

    # -- the thread

    def _keep_up(self) -> None:
        closing = False
        while not closing:
            self._closed.wait(MIN_S)
            self._changed.wait(IDLE_S - MIN_S)
            self._changed.clear()
            closing = self._closed.is_set()  # read before drawing, so that the last event is drawn
            self._draw()

    def _draw(self) -> None:
        """Show the panel, and the chart when it is due."""
        if self._gpu_load is not None and not self._closed.is_set():
            self._gpus = self._gpu_load()
        self._surface.show(self.panel())
        now = time.monotonic()
        if (now >= self._chart_next or self._closed.is_set()) and self._draw_chart():
            self._chart_next = now + CHART_S

    def _draw_chart(self) -> bool:
        """Draw the chart; return whether there was anything new to draw."""
        from mapsage_kaggle.display.plots import progress_chart

        with self._lock:
            progress = self._progress
            charted = (len(progress.losses), progress.iteration, len(progress.scores))
            losses, smooth, scores = tuple(progress.losses), tuple(progress.smooth), tuple(progress.scores)
            last = max(progress.iteration, progress.reach or 0)
        if len(losses) < 2 or charted == self._charted:
            return False
        self._charted = charted
        begin = self._progress.start_iteration
        self._surface.show_chart(progress_chart(losses, smooth, scores, begin=begin, end=last))
        return True
