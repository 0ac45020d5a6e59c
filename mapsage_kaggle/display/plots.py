"""The report's figures, drawn by matplotlib without its global state, so from any thread."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mapsage_kaggle.display.history import PastSession, series
from mapsage_kaggle.events import EventKind
from mapsage_kaggle.messages import Message
from mapsage_kaggle.records import complete_timings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mapsage_kaggle.display.locale.words import Words

DPI = 144
_MAX_ROWS_INCHES = 24.0
"""Rows of more sessions than fit become thinner."""

Say = Callable[[str], str]
"""Translates an English label into the figure's language."""

CJK_FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "SimHei",
    "Droid Sans Fallback",
    "Noto Serif CJK SC",
    "Noto Serif CJK JP",
    "Arial Unicode MS",
)
"""Fonts with simplified Chinese characters, the plainest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """The colours of a figure. Data colours follow Okabe and Ito, distinguishable with any colour vision."""

    paper: str
    ink: str
    faint: str
    band: str
    loss: str
    rate: str
    score: str
    other: str
    parts: tuple[str, ...]


LIGHT = Theme(
    paper="#ffffff",
    ink="#1c1e21",
    faint="#6b7078",
    band="#f3f4f6",
    loss="#0072b2",
    rate="#8a6d00",
    score="#009e73",
    other="#d55e00",
    parts=("#0072b2", "#7a5195", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#b8bcc2"),
)
DARK = Theme(
    paper="#16181c",
    ink="#e6e8eb",
    faint="#9aa0a8",
    band="#1e2126",
    loss="#56b4e9",
    rate="#e0c040",
    score="#2ec4a0",
    other="#ff8c42",
    parts=("#3a8fd0", "#a884c8", "#e69f00", "#7cc8f0", "#2ec4a0", "#d890b8", "#5a6068"),
)

ON_ANY = Theme(
    paper="none",
    ink="#80868e",
    faint="#80868e",
    band="#80868e20",
    loss="#2f8fd0",
    rate="#b08a00",
    score="#12a47c",
    other="#e0701a",
    parts=LIGHT.parts,
)
"""For a transparent picture, which a notebook shows in its light or its dark theme."""

ACTIVITIES: Mapping[str, str] = {
    "forward_backward": "forward and backward",
    "optimizer": "optimizer step",
    "waiting_for_data": "waiting for data",
    "validation": "validating",
    "saving": "saving",
    "start_up": "starting",
    "other": "everything else",
}
"""Labels of a session's activities, by their name in the record, in drawing order."""


def time_split(session: PastSession) -> dict[str, float]:
    """Return a session's seconds by activity; untimed ones are ``other``."""
    timings = {name: float(value or 0.0) for name, value in session.record.timings_s.items()}
    # Records of version 0.1 timed a step as a whole.
    timings.setdefault("forward_backward", timings.get("training_step", 0.0))
    split = complete_timings(timings, timings.get("session", 0.0))
    return {name: split[name] for name in ACTIVITIES}


def curves(sessions: Sequence[PastSession], theme: Theme = LIGHT, say: Say = str) -> bytes:
    """Draw loss, learning rate and mIoU over a run's sessions (oldest first), as PNG.

    Bands tell the sessions apart, and a dotted line marks where one took over from another.
    """
    figure, axes = _figure(theme, heights=(3.0, 1.2, 2.4), width=10.0, height=6.8)
    loss_axes, rate_axes, score_axes = axes
    loss = series(sessions, "iteration", "loss")
    if len(loss):
        thin = loss.thinned()
        loss_axes.plot(thin.iterations, thin.values, color=theme.loss, alpha=0.3, linewidth=0.8)
        smooth = loss.smoothed().thinned()
        loss_axes.plot(smooth.iterations, smooth.values, color=theme.loss, linewidth=1.8)
        loss_axes.set_ylim(bottom=0.0, top=_top(loss.values))
    _name(loss_axes, say("loss"), say("thin: as told, thick: running mean"), theme)
    rate = series(sessions, "iteration", "lr").thinned()
    if len(rate):
        rate_axes.plot(rate.iterations, rate.values, color=theme.rate, linewidth=1.6)
        rate_axes.set_ylim(bottom=0.0)
        rate_axes.locator_params(axis="y", nbins=3)
        rate_axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _name(rate_axes, say("learning rate"), "", theme)
    scores, aside = series(sessions, "validation", "metrics", "mIoU"), ""
    best = _draw_scores(score_axes, list(zip(scores.iterations, scores.values, strict=True)), theme)
    if best is not None:
        aside = say(Message("best {value} % at iteration {iteration}", f"{best[1]:.2f}", f"{best[0]:,}"))
    else:
        score_axes.text(
            0.5, 0.5, say("no validation yet"), transform=score_axes.transAxes, ha="center", va="center",
            color=theme.faint, fontsize=9,
        )  # fmt: skip
    _name(score_axes, "mIoU, %", aside, theme)
    _mark_sessions(axes, sessions, theme, say)
    score_axes.set_xlabel(say("iteration"), color=theme.faint, fontsize=9)
    return png(figure, theme)


def _draw_scores(axes: Axes, scores: Sequence[tuple[int, float]], theme: Theme) -> tuple[int, float] | None:
    """Draw iteration and score, with a star at the best of them, which is returned."""
    if not scores:
        axes.set_yticks([])
        return None
    axes.plot(*zip(*scores, strict=True), color=theme.score, linewidth=1.6, marker="o", markersize=4.5)
    best = max(scores, key=lambda item: item[1])
    axes.plot(
        *best, color=theme.other, marker="*", markersize=13, linestyle="none",
        markeredgecolor=theme.paper, markeredgewidth=0.8, zorder=5,
    )  # fmt: skip
    axes.set_ylim(0.0, min(100.0, best[1] * 1.2 + 3.0))
    return best


def time_bars(sessions: Sequence[PastSession], theme: Theme = LIGHT, say: Say = str) -> bytes:
    """Draw how each of a run's sessions (oldest first) spent its time, one bar per session, as PNG."""
    from mapsage_kaggle.clock import format_duration

    figure, axes, every = _rows(theme, sessions, each=0.32)
    splits = [time_split(session) for session in sessions]
    longest = max((sum(split.values()) for split in splits), default=1.0) or 1.0
    unit, unit_s = _unit_of(longest)
    begins = [0.0] * len(splits)
    for (name, label), colour in zip(ACTIVITIES.items(), cycle(theme.parts), strict=False):
        ends = [begin + split.get(name, 0.0) / unit_s for begin, split in zip(begins, splits, strict=True)]
        bars = [Bar(row, begin, end) for row, (begin, end) in enumerate(zip(begins, ends, strict=True))]
        edge = theme.paper if every == 1 else "none"  # thin rows would be all outline
        _draw_bars(axes, bars, (-0.31, 0.31), colour=colour, edge=edge, label=say(label))
        begins = ends
    for row, split in list(enumerate(splits))[::every]:
        axes.text(
            begins[row] + 0.008 * longest / unit_s,
            row,
            format_duration(sum(split.values())),
            va="center",
            color=theme.faint,
            fontsize=8.5,
        )
    axes.set_xlim(0.0, 1.09 * longest / unit_s)
    _name_rows(axes, sessions, every, say(Message("time, {unit}", unit)), theme, say)
    _legend(axes, len(ACTIVITIES), theme)
    return png(figure, theme)


PHASES: Mapping[str, tuple[str, int]] = {
    "training": ("training", 0),
    "validating": ("validating", 3),
    "starting": ("starting", 5),
    "starting again": ("starting again after a fault", 2),
    "ending": ("ending", 6),
}
"""The phases of a session: label, and index of the colour among a theme's parts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A stretch of a session: one of ``PHASES``, in seconds since the session's start."""

    phase: str
    begin_s: float
    end_s: float


def timeline(session: PastSession) -> list[Span]:
    """Return a session's phases in order, without gaps, as far as its events tell."""
    record = session.record
    spans: list[Span] = []
    phase, since_s = "starting", 0.0

    def turn(to: str, at_s: float) -> None:
        nonlocal phase, since_s
        at_s = max(at_s, since_s)
        if to != phase:
            if at_s > since_s:
                spans.append(Span(phase=phase, begin_s=since_s, end_s=at_s))
            phase, since_s = to, at_s

    turns: dict[EventKind, str] = {
        "training": "training", "validation_start": "validating", "validation": "training",
        "failure": "starting again", "restart": "starting again", "stop": "ending", "end": "ending",
    }  # fmt: skip
    last_s = 0.0
    for event in session.events:
        at_s = event.time_s - record.started_s
        last_s = max(last_s, at_s)
        if event.event in turns:
            turn(turns[event.event], at_s)
        elif event.event == "iteration" and phase == "validating":
            turn("training", at_s)  # the validation was aborted
    end_s = record.ended_s - record.started_s if record.ended_s is not None else last_s
    if end_s > since_s:
        spans.append(Span(phase=phase, begin_s=since_s, end_s=end_s))
    return spans


def timelines(sessions: Sequence[PastSession], theme: Theme = LIGHT, say: Say = str) -> bytes:
    """Draw the phases and checkpoints of a run's sessions (oldest first), one row per session, as PNG."""
    figure, axes, every = _rows(theme, sessions, each=0.4)
    timelines = [timeline(session) for session in sessions]
    unit, unit_s = _unit_of(max((spans[-1].end_s for spans in timelines if spans), default=1.0))
    num_labels = 0
    for phase, (label, colour) in PHASES.items():
        bars = [
            Bar(row, span.begin_s / unit_s, span.end_s / unit_s)
            for row, spans in enumerate(timelines)
            for span in spans
            if span.phase == phase
        ]
        num_labels += bool(bars)
        _draw_bars(axes, bars, (-0.3, 0.14), colour=theme.parts[colour], edge="none", label=say(label))
    marks: dict[EventKind, tuple[str, str, str]] = {
        "checkpoint": ("|", theme.ink, "a checkpoint proven"),
        "restart": ("X", theme.other, "a restart"),
    }
    for kind, (marker, colour_of_mark, label) in marks.items():
        at = [
            ((event.time_s - session.record.started_s) / unit_s, row + 0.29)
            for row, session in enumerate(sessions)
            for event in session.of(kind)
        ]
        if at:
            num_labels += 1
            axes.plot(
                *zip(*at, strict=True), linestyle="none", marker=marker, markersize=5.5,
                color=colour_of_mark, label=say(label),
            )  # fmt: skip
    axes.set_xlim(left=0.0)
    when = say(Message("time since the session's start, {unit}", unit))
    _name_rows(axes, sessions, every, when, theme, say)
    _legend(axes, max(1, num_labels), theme)
    return png(figure, theme)


class Bar(NamedTuple):
    """A stretch of a row, in the units of the axes."""

    row: int
    begin: float
    end: float


def _rows(theme: Theme, sessions: Sequence[PastSession], *, each: float) -> tuple[Figure, Axes, int]:
    """Return a figure with one row per session, and the step between rows that have room for a name."""
    height = 0.9 + min(each * len(sessions), _MAX_ROWS_INCHES)
    figure, [axes] = _figure(theme, heights=(1.0,), width=10.0, height=height, bottom=0.5 / height)
    return figure, axes, max(1, math.ceil(0.2 * len(sessions) / _MAX_ROWS_INCHES))


def _draw_bars(
    axes: Axes, bars: Sequence[Bar], span: tuple[float, float], *, colour: str, edge: str, label: str
) -> None:
    """Draw bars of one colour as one artist: a patch for each would take a second per thousand.

    A bar extends over ``span`` around the middle of its row. Without bars the legend gets no entry.
    """
    from matplotlib.collections import PolyCollection

    if not bars:
        return
    low, high = span
    corners = [
        [(begin, row + low), (end, row + low), (end, row + high), (begin, row + high)]
        for row, begin, end in bars
    ]
    axes.add_collection(
        PolyCollection(corners, facecolors=colour, edgecolors=edge, linewidths=0.8, label=label)
    )
    axes.autoscale_view()


def boundary_lines(axes: Axes, at: Sequence[float], theme: Theme, *, linewidth: float) -> None:
    """Draw a dotted line over the whole height at each of some iterations, as one artist."""
    axes.vlines(
        at, 0.0, 1.0, transform=axes.get_xaxis_transform(), colors=theme.faint, linewidths=linewidth,
        linestyles=":",
    )  # fmt: skip


def _unit_of(longest_s: float) -> tuple[str, float]:
    """Return the unit for durations up to a longest one, and its length in seconds."""
    return ("h", 3600.0) if longest_s >= 5400 else ("min", 60.0) if longest_s >= 90 else ("s", 1.0)


def _name_rows(
    axes: Axes, sessions: Sequence[PastSession], every: int, unit: str, theme: Theme, say: Say
) -> None:
    names = [say(Message("session {index}", item.record.session_index)) for item in sessions[::every]]
    axes.set_yticks(range(0, len(sessions), every), names)
    axes.set_ylim(len(sessions) - 0.5, -0.5)
    axes.set_xlabel(unit, color=theme.faint, fontsize=9)
    axes.grid(axis="y", visible=False)


def _legend(axes: Axes, columns: int, theme: Theme) -> None:
    """Put the legend above the axes, in a row."""
    if not axes.get_legend_handles_labels()[0]:
        return
    legend = axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=1.0,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    for text in legend.get_texts():
        text.set_color(theme.ink)


def progress_chart(
    losses: Sequence[tuple[int, float]],
    smooth: Sequence[tuple[int, float]],
    scores: Sequence[tuple[int, float]],
    *,
    begin: int,
    end: int,
) -> bytes:
    """Draw loss and mIoU of a running session side by side, as a transparent PNG without words.

    ``losses`` and ``smooth`` are iteration and loss, ``scores`` iteration and mIoU in percent, the best of
    which gets a star. The axes run from iteration ``begin`` to ``end``.
    """
    from matplotlib.figure import Figure

    theme = ON_ANY
    figure = Figure(figsize=(8.4, 1.9), dpi=110)
    grid = {"left": 0.055, "right": 0.975, "top": 0.95, "bottom": 0.14, "wspace": 0.14}
    loss_axes, score_axes = figure.subplots(1, 2, gridspec_kw=grid)
    for axes in (loss_axes, score_axes):
        restrain(axes, theme, ticks=7.5)
        axes.set_xlim(begin, max(end, begin + 1))
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="y", nbins=4)
    loss_axes.plot(*zip(*losses, strict=True), color=theme.loss, alpha=0.35, linewidth=0.8)
    loss_axes.plot(*zip(*smooth, strict=True), color=theme.loss, linewidth=1.6)
    loss_axes.set_ylim(bottom=0.0, top=_top([value for _, value in losses]))
    _draw_scores(score_axes, scores, theme)
    return png(figure, theme)


NO_DATA_COLOUR = (64, 64, 64)
_SAMPLE_PX = 320


def data_picture(
    samples: Sequence[tuple[Path, Path]],
    pixels: Sequence[int],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> bytes:
    """Draw the share of each class, and images with their masks, in the data set's own colours, as PNG.

    ``samples`` are image and mask files: class *c* is stored as *c* + 1, and 0 is no data. ``pixels`` counts
    each mask value, no data first. Colours are 0 to 255.
    """
    from matplotlib.figure import Figure

    theme = ON_ANY
    columns = max(1, len(samples))
    figure = Figure(figsize=(3.2 + 1.65 * columns, 3.4), dpi=100)
    grid = figure.add_gridspec(
        2, 1 + columns, width_ratios=[1.9, *[1.65] * columns],
        left=0.2 - 0.022 * columns, right=0.995, top=0.99, bottom=0.015, wspace=0.05, hspace=0.05,
    )  # fmt: skip
    bars = figure.add_subplot(grid[:, 0])
    restrain(bars, theme, ticks=8.5)
    total = sum(pixels[1:]) or 1
    shares = [100.0 * count / total for count in pixels[1:]]
    colours = [tuple(value / 255 for value in colour) for colour in palette]
    bars.barh(range(len(classes)), shares, color=colours, edgecolor=theme.ink, linewidth=0.6, height=0.72)
    for row, share in enumerate(shares):
        bars.text(share + 0.02 * max(shares), row, f"{share:.1f} %", va="center", color=theme.ink, fontsize=8)
    bars.set_yticks(range(len(classes)), classes)
    bars.set_xticks([])
    bars.set_xlim(0.0, 1.35 * max(shares))
    bars.set_ylim(len(classes) - 0.4, -0.6)
    bars.grid(visible=False)
    for column, (image, mask) in enumerate(samples, start=1):
        for row, pixels_shown in enumerate((_thumbnail(image), _coloured(mask, palette))):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(pixels_shown, interpolation="nearest")
            axes.set_axis_off()
    return png(figure, theme)


def _thumbnail(path: Path) -> Any:
    """Return an image, uint8 of shape ``(H, W, 3)``, no side longer than ``_SAMPLE_PX``."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_SAMPLE_PX, _SAMPLE_PX))
    return np.asarray(small)


def _coloured(path: Path, palette: Sequence[tuple[int, int, int]]) -> Any:
    """Return a mask in the colours of its classes, uint8 of shape ``(H, W, 3)``."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as picture:
        step = max(1, -(-max(picture.size) // _SAMPLE_PX))
        values = np.asarray(picture)[::step, ::step]
    table = np.full((256, 3), NO_DATA_COLOUR, dtype=np.uint8)
    table[1 : 1 + len(palette)] = palette
    return table[values]


# -- parts of them


def restrain(axes: Axes, theme: Theme, *, ticks: float) -> None:
    """Reduce the axes to a faint grid, the base line and the tick labels."""
    axes.set_facecolor(theme.paper)
    axes.set_axisbelow(True)
    axes.grid(axis="both", color=theme.faint, alpha=0.18, linewidth=0.6)
    axes.tick_params(colors=theme.faint, labelsize=ticks, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.faint)


def _figure(
    theme: Theme, *, heights: Sequence[float], width: float, height: float, bottom: float | None = None
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.paper)
    grid = figure.subplots(
        len(heights),
        1,
        sharex=True,
        squeeze=False,
        gridspec_kw={
            "height_ratios": list(heights),
            "hspace": 0.24,
            "left": 0.075,
            "right": 0.985,
            "top": 1.0 - 0.32 / height,
            "bottom": bottom or 0.47 / height,
        },
    )
    axes = [row[0] for row in grid]
    for item in axes:
        restrain(item, theme, ticks=8.5)
    if len(axes) > 1:
        axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure, axes


def _name(axes: Axes, name: str, aside: str, theme: Theme) -> None:
    axes.set_title(name, loc="left", color=theme.ink, fontsize=10, fontweight="bold", pad=5)
    if aside:
        axes.set_title(aside, loc="right", color=theme.faint, fontsize=8.5, pad=5)


def _mark_sessions(axes: Sequence[Axes], sessions: Sequence[PastSession], theme: Theme, say: Say) -> None:
    last = sessions[-1].record
    end = max([last.max_iters, *(item.record.end_iteration for item in sessions)], default=1) or 1
    for item in axes:
        item.set_xlim(0, end)
    trained = [
        (number, item.record)
        for number, item in enumerate(sessions)
        if item.record.end_iteration > item.record.start_iteration
    ]
    bands = [
        (item.start_iteration, item.end_iteration - item.start_iteration)
        for number, item in trained
        if number % 2 == 1
    ]
    for item in axes:
        item.broken_barh(
            bands, (0.0, 1.0), transform=item.get_xaxis_transform(), color=theme.band, zorder=0, linewidth=0
        )
        boundary_lines(
            item, [record.start_iteration for number, record in trained if number > 0], theme, linewidth=1.0
        )
    for _, record in trained:
        if record.end_iteration - record.start_iteration >= 0.04 * end:
            axes[0].text(
                record.start_iteration + 0.006 * end,
                0.97,
                say(Message("session {index}", record.session_index))
                if len(sessions) < 9
                else str(record.session_index),
                transform=axes[0].get_xaxis_transform(),
                va="top",
                color=theme.faint,
                fontsize=8.5,
            )


@cache
def cjk_families() -> tuple[str, ...]:
    """Return the first installed font with Chinese characters; empty where there is none.

    matplotlib falls back to it glyph by glyph. Of a font collection it reads the first face alone, which for
    Noto CJK is the Japanese one; it has the simplified characters too.
    """
    from matplotlib.font_manager import fontManager

    known = {font.name for font in fontManager.ttflist}
    return tuple([name for name in CJK_FAMILIES if name in known][:1])


def labels_in(words: Words) -> Say:
    """Return the translation of a figure's labels; English where no font has the characters."""
    return words.translate if words.language == "en" or cjk_families() else str


def _top(values: Sequence[float]) -> float:
    """Return an upper limit that a few outliers do not push up."""
    ordered = sorted(values)
    usual = ordered[min(len(ordered) - 1, int(0.995 * len(ordered)))]
    return max(usual * 1.12, 1e-9)


def png(figure: Figure, theme: Theme) -> bytes:
    """Render a figure as PNG, with fonts that have the characters of its texts."""
    from matplotlib.text import Text

    families = ["DejaVu Sans", *cjk_families()]
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
        if "$" in text.get_text():
            text.set_parse_math(False)  # part of a name, not a formula
    buffer = io.BytesIO()
    # No version in it: the same events give the same bytes.
    figure.savefig(buffer, format="png", facecolor=theme.paper, metadata={"Software": None})
    return buffer.getvalue()
