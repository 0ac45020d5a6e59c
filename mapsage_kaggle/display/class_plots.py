"""Figures by class: the confusion matrix, and each class's IoU over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.display.plots import DPI, LIGHT, Say, Theme, boundary_lines, png, restrain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colour = Sequence[int]
"""Red, green and blue, 0 to 255."""

_MAX_NUMBERED = 20
"""With more classes than this the cells of a confusion matrix are too small for numbers."""


def confusion_picture(
    counts: Sequence[Sequence[int]],
    classes: Sequence[str],
    palette: Sequence[Colour] | None = None,
    theme: Theme = LIGHT,
    say: Say = str,
) -> bytes:
    """Draw a confusion matrix, normalised by truth, as PNG.

    ``counts`` are pixels by true class (row) and predicted class (column), ``C`` x ``C``; one more row and
    column, for what is no class, may follow, and are drawn where they are not empty. Without a ``palette``
    there are no swatches. ``say`` translates the labels, not the names of classes.

    Raises:
        ValueError: The matrix is not square, or does not fit the names.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    length = len(counts)
    if any(len(row) != length for row in counts) or length - len(classes) not in (0, 1):
        raise ValueError(f"{length} rows of counts do not fit {len(classes)} classes")
    names = list(classes)
    if length > len(classes):
        if sum(counts[-1]) + sum(row[-1] for row in counts):
            names.append(say("no class"))
        else:
            counts = [row[:-1] for row in counts[:-1]]
    totals = [sum(row) for row in counts]
    shares = [
        [100.0 * value / total if total else float("nan") for value in row]
        for row, total in zip(counts, totals, strict=True)
    ]
    size = len(names)
    cell = 0.62 if size <= 10 else max(0.3, 6.2 / size)
    letters = max(map(len, names))
    left, right, top, bottom = 0.75 + 0.085 * letters, 1.15, 0.45, 0.75 + 0.06 * letters
    width, height = left + cell * size + right, top + cell * size + bottom
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.paper)
    box = (left / width, bottom / height, cell * size / width, cell * size / height)
    axes = figure.add_axes(box)
    colours = LinearSegmentedColormap.from_list("share", [theme.paper, theme.loss])
    axes.imshow(shares, cmap=colours, vmin=0.0, vmax=100.0)
    restrain(axes, theme, ticks=8.5 if size <= _MAX_NUMBERED else 7)
    axes.grid(visible=False)
    axes.set_xticks([index - 0.5 for index in range(size + 1)], minor=True)
    axes.set_yticks([index - 0.5 for index in range(size + 1)], minor=True)
    axes.grid(which="minor", color=theme.paper, linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(pad=13 if palette else 6)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks(range(size), names, rotation=35, ha="right", rotation_mode="anchor", color=theme.ink)
    axes.set_yticks(range(size), names, color=theme.ink)
    axes.set_ylabel(say("truth"), color=theme.faint, fontsize=9)
    axes.set_xlabel(say("prediction"), color=theme.faint, fontsize=9)
    axes.set_title(
        say("share of each true class, %"), loc="left", color=theme.ink, fontsize=10, fontweight="bold", pad=8
    )
    axes.text(
        size - 0.35, -0.62, say("of all pixels"), color=theme.faint, fontsize=8.5, ha="left", va="bottom"
    )
    _numbers(axes, shares, totals, theme)
    for index, colour in enumerate(palette or ()):
        for spot in ((-0.62 / max(1.0, cell / 0.62), index), (index, size - 0.36)):
            _swatch(axes, spot, colour, theme)
    return png(figure, theme)


def _numbers(axes: Axes, shares: Sequence[Sequence[float]], totals: Sequence[int], theme: Theme) -> None:
    """Write each share into its cell, where there is room, and each class's share of all pixels beside it."""
    size = len(totals)
    pixels = sum(totals) or 1
    for row, total in enumerate(totals):
        drawn = f"{100.0 * total / pixels:.1f} %"
        axes.text(size - 0.35, row, drawn, color=theme.faint, fontsize=8.5, ha="left", va="center")
        for column, share in enumerate(shares[row] if size <= _MAX_NUMBERED else ()):
            if share == share:  # not NaN: the class occurs
                axes.text(
                    column,
                    row,
                    "0" if share == 0 else "<0.1" if share < 0.1 else f"{share:.1f}",
                    color=theme.paper if share > 55.0 else theme.ink if share >= 1.0 else theme.faint,
                    fontsize=8.5 if size <= 10 else 6.5,
                    ha="center",
                    va="center",
                    fontweight="bold" if row == column else "normal",
                )


def _swatch(axes: Axes, spot: tuple[float, float], colour: Colour, theme: Theme, **where: Any) -> None:
    axes.plot(
        *spot, marker="s", markersize=7, color=[value / 255 for value in colour],
        markeredgecolor=theme.faint, markeredgewidth=0.6, linestyle="none", clip_on=False, zorder=6, **where,
    )  # fmt: skip


def iou_picture(
    scored: Sequence[tuple[int, Mapping[str, float | None]]],
    palette: Mapping[str, Colour] | None = None,
    theme: Theme = LIGHT,
    say: Say = str,
    *,
    boundaries: Sequence[int] = (),
) -> bytes:
    """Draw IoU over the iterations, a small figure for each class on the same axes, as PNG.

    ``scored`` holds iteration and IoU by class, as fractions, None where a class did not occur;
    ``boundaries`` are the iterations at which one session took over from another.
    """
    from matplotlib.figure import Figure

    names = list(scored[-1][1])
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    height = 0.55 + 1.35 * rows
    figure = Figure(figsize=(10.0, height), dpi=DPI, facecolor=theme.paper)
    grid = {
        "left": 0.045, "right": 0.985, "top": 1.0 - 0.3 / height, "bottom": 0.45 / height,
        "hspace": 0.42, "wspace": 0.13,
    }  # fmt: skip
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, gridspec_kw=grid)
    for index, axes in enumerate(panels.flat):
        restrain(axes, theme, ticks=8)
        if index >= len(names):
            axes.set_axis_off()
            continue
        drawn = [(iteration, scores.get(names[index])) for iteration, scores in scored]
        points = [(iteration, 100.0 * value) for iteration, value in drawn if value is not None]
        boundary_lines(axes, boundaries, theme, linewidth=0.8)
        title = f"{names[index]}  –"
        if points:
            few = len(points) <= 30
            axes.plot(
                *zip(*points, strict=True),
                color=theme.score,
                linewidth=1.5,
                marker="o" if few else None,
                markersize=3,
            )
            axes.fill_between(*zip(*points, strict=True), color=theme.score, alpha=0.12, linewidth=0)
            title = f"{names[index]}  {points[-1][1]:.1f} %"
        axes.set_title(title, loc="left", color=theme.ink, fontsize=9, pad=4, x=0.055 if palette else 0.0)
        if palette and names[index] in palette:
            _swatch(axes, (0.02, 1.1), palette[names[index]], theme, transform=axes.transAxes)
    first = panels.flat[0]
    first.set_ylim(0.0, 100.0)
    first.set_yticks([0, 50, 100])
    first.locator_params(axis="x", nbins=4, integer=True)
    first.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.text(0.985, 0.05 / height, say("iteration"), color=theme.faint, fontsize=8.5, ha="right")
    return png(figure, theme)
