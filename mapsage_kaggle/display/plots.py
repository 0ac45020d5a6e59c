"""The report's figures, by matplotlib; drawn without its global state, so from any thread."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.display.history import Series, Session, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 144


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """The colours of a figure. Those of data are Okabe and Ito's, told apart with any colour vision."""

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
    parts=("#0072b2", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#b8bcc2"),
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
    parts=("#3a8fd0", "#e69f00", "#7cc8f0", "#2ec4a0", "#d890b8", "#5a6068"),
)

ACTIVITIES: Mapping[str, str] = {
    "training_step": "training",
    "waiting_for_data": "waiting for data",
    "validation": "validating",
    "saving": "saving",
    "start_up": "starting",
    "rest": "everything else",
}
"""What a session's time goes into, by its name in the record; in the order in which it is drawn."""


def time_split(session: Session) -> dict[str, float]:
    """Return a session's seconds by activity; what nobody counted is ``rest``."""
    timings = session.record.timings_s
    split = {name: float(timings.get(name, 0.0)) for name in ACTIVITIES if name != "rest"}
    split["rest"] = max(0.0, float(timings.get("session", 0.0)) - sum(split.values()))
    return split


def curves(sessions: Sequence[Session], theme: Theme = LIGHT) -> bytes:
    """Draw loss, learning rate and mIoU over all sessions, as PNG.

    Bands tell the sessions apart, and a dotted line stands where one took over from the other.
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
    _name(loss_axes, "loss", "thin: as told, thick: running mean", theme)
    rate = series(sessions, "iteration", "lr").thinned()
    if len(rate):
        rate_axes.plot(rate.iterations, rate.values, color=theme.rate, linewidth=1.6)
        rate_axes.set_ylim(bottom=0.0)
        rate_axes.locator_params(axis="y", nbins=3)
        rate_axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _name(rate_axes, "learning rate", "", theme)
    _draw_scores(score_axes, series(sessions, "validation", "metrics", "mIoU"), theme)
    _mark_sessions(axes, sessions, theme)
    score_axes.set_xlabel("iteration", color=theme.faint, fontsize=9)
    return _png(figure, theme)


def _draw_scores(axes: Axes, scores: Series, theme: Theme) -> None:
    if len(scores):
        axes.plot(
            scores.iterations, scores.values, color=theme.score, linewidth=1.6, marker="o", markersize=4.5
        )
        best = max(range(len(scores)), key=lambda index: scores.values[index])
        spot = (scores.iterations[best], scores.values[best])
        axes.plot(
            *spot,
            color=theme.other,
            marker="*",
            markersize=13,
            linestyle="none",
            markeredgecolor=theme.paper,
            markeredgewidth=0.8,
            zorder=5,
        )
        left = best > 0.7 * len(scores)
        axes.annotate(
            f"best {spot[1]:.1f} % at {spot[0]:,}",
            spot,
            xytext=(-9 if left else 9, 5),
            textcoords="offset points",
            ha="right" if left else "left",
            color=theme.ink,
            fontsize=9,
        )
        axes.set_ylim(0.0, min(100.0, max(scores.values) * 1.2 + 3.0))
    else:
        axes.text(
            0.5,
            0.5,
            "no validation yet",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=theme.faint,
            fontsize=9,
        )
        axes.set_yticks([])
    _name(axes, "mIoU, %", "on the validation images", theme)


def time_bars(sessions: Sequence[Session], theme: Theme = LIGHT) -> bytes:
    """Draw what each session's time went into, one bar a session, as PNG."""
    from mapsage_kaggle.clock import format_duration

    height = 0.9 + 0.32 * len(sessions)
    figure, [axes] = _figure(theme, heights=(1.0,), width=10.0, height=height, bottom=0.5 / height)
    splits = [time_split(session) for session in sessions]
    longest = max((sum(split.values()) for split in splits), default=1.0) or 1.0
    unit, unit_s = ("h", 3600.0) if longest >= 5400 else ("min", 60.0) if longest >= 90 else ("s", 1.0)
    for row, split in enumerate(splits):
        begin = 0.0
        for (name, label), colour in zip(ACTIVITIES.items(), theme.parts, strict=True):
            width = split[name] / unit_s
            axes.barh(
                row,
                width,
                left=begin,
                height=0.62,
                color=colour,
                edgecolor=theme.paper,
                linewidth=0.8,
                label=label if row == 0 else None,
            )
            begin += width
        axes.text(
            begin + 0.008 * longest / unit_s,
            row,
            format_duration(sum(split.values())),
            va="center",
            color=theme.faint,
            fontsize=8.5,
        )
    axes.set_yticks(range(len(sessions)), [f"session {item.record.session_index}" for item in sessions])
    axes.set_ylim(len(sessions) - 0.5, -0.5)
    axes.set_xlim(0.0, 1.09 * longest / unit_s)
    axes.set_xlabel(f"time, {unit}", color=theme.faint, fontsize=9)
    axes.grid(axis="y", visible=False)
    legend = axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(ACTIVITIES),
        frameon=False,
        fontsize=8.5,
        handlelength=1.0,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    for text in legend.get_texts():
        text.set_color(theme.ink)
    return _png(figure, theme)


# -- parts of them


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
        item.set_facecolor(theme.paper)
        item.set_axisbelow(True)
        item.grid(axis="both", color=theme.faint, alpha=0.18, linewidth=0.6)
        item.tick_params(colors=theme.faint, labelsize=8.5, length=0)
        for side, spine in item.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(theme.faint)
    if len(axes) > 1:
        axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure, axes


def _name(axes: Axes, name: str, aside: str, theme: Theme) -> None:
    axes.set_title(name, loc="left", color=theme.ink, fontsize=10, fontweight="bold", pad=5)
    if aside:
        axes.set_title(aside, loc="right", color=theme.faint, fontsize=8.5, pad=5)


def _mark_sessions(axes: Sequence[Axes], sessions: Sequence[Session], theme: Theme) -> None:
    last = sessions[-1].record
    end = max([last.max_iters, *(item.record.end_iteration for item in sessions)], default=1) or 1
    for item in axes:
        item.set_xlim(0, end)
    for number, session in enumerate(sessions):
        record = session.record
        if record.end_iteration <= record.start_iteration:
            continue
        for item in axes:
            if number % 2 == 1:
                item.axvspan(
                    record.start_iteration, record.end_iteration, color=theme.band, zorder=0, linewidth=0
                )
            if number > 0:
                item.axvline(record.start_iteration, color=theme.faint, linewidth=1.0, linestyle=":")
        if record.end_iteration - record.start_iteration >= 0.04 * end:
            axes[0].text(
                record.start_iteration + 0.006 * end,
                0.97,
                f"session {record.session_index}" if len(sessions) < 9 else str(record.session_index),
                transform=axes[0].get_xaxis_transform(),
                va="top",
                color=theme.faint,
                fontsize=8.5,
            )


def _top(values: Sequence[float]) -> float:
    """Return an upper limit that a few wild values do not push up."""
    ordered = sorted(values)
    usual = ordered[min(len(ordered) - 1, int(0.995 * len(ordered)))]
    return max(usual * 1.12, 1e-9)


def _png(figure: Any, theme: Theme) -> bytes:
    buffer = io.BytesIO()
    # No version in it: the same events give the same bytes.
    figure.savefig(buffer, format="png", facecolor=theme.paper, metadata={"Software": None})
    return buffer.getvalue()
