"""Windows over a large scene, and the blending of their logits.

A model sees a scene through square windows that overlap. Where they do, its logits are averaged with
weights that fall off towards a window's edge, where a pixel has the least context. The windows of one row
are blended from left to right, and the rows from top to bottom, so that memory holds only the overlap with
the row above and the window to the left, however tall the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.messages import Message

Floats = NDArray[np.float32]
MIN_WEIGHT = 1e-3
"""Where the ramp of weights starts, one pixel beyond the window: within it, no weight is zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Windows along one axis of a scene.

    Attributes:
        length: Of the scene, in pixels.
        size: Of a window, in pixels; at most ``length``.
        starts: Where each window begins, ascending from 0; the last one ends where the scene ends.
    """

    length: int
    size: int
    starts: tuple[int, ...]

    def settled(self, index: int) -> tuple[int, int]:
        """Return the range that window ``index`` is the last to add to: from its start to the next one's."""
        stop = self.starts[index + 1] if index + 1 < len(self.starts) else self.length
        return self.starts[index], stop

    def first_reaching(self, index: int) -> int:
        """Return the first window that overlaps window ``index``, or that itself."""
        return next(i for i, start in enumerate(self.starts) if start + self.size > self.starts[index])

    def overlaps(self) -> tuple[int, ...]:
        """Return by how many pixels each window overlaps the next one."""
        return tuple(
            max(0, start + self.size - later)
            for start, later in zip(self.starts, self.starts[1:], strict=False)
        )

    def weights(self) -> Floats:
        """Return a window's weights, ``(size,)``: 1 inside, falling linearly over the least overlap."""
        overlap = min(self.overlaps(), default=0)
        weights = np.ones(self.size, np.float32)
        if overlap:
            ramp = np.linspace(MIN_WEIGHT, 1, overlap + 2, dtype=np.float32)[1:-1]
            weights[:overlap] = np.minimum(weights[:overlap], ramp)
            weights[-overlap:] = np.minimum(weights[-overlap:], ramp[::-1])
        return weights

    def total(self) -> Floats:
        """Return the sum of all windows' weights, of shape ``(length,)``."""
        total, weights = np.zeros(self.length, np.float32), self.weights()
        for start in self.starts:
            total[start : start + self.size] += weights
        return total


def plan_axis(length: int, size: int, overlap: int) -> Axis:
    """Cover an axis with the fewest windows that have the overlap, spread evenly.

    Args:
        length: Of the scene, in pixels.
        size: Of a window, in pixels. A scene that is shorter gets one window of its own length.
        overlap: The least of two neighbours, in pixels; at most half of ``size``.

    Raises:
        UsageError: The sizes do not fit each other.
    """
    if not (0 <= overlap <= size // 2 and size > 0 and length > 0):
        raise UsageError(
            Message(
                "Windows of {size} pixels cannot overlap by {overlap} over {length} pixels.",
                size, overlap, length,
            ),
            "Take an overlap of at most half of the window.",
        )  # fmt: skip
    if length <= size:
        return Axis(length=length, size=length, starts=(0,))
    steps = -(-(length - size) // (size - overlap))
    return Axis(
        length=length, size=size, starts=tuple((length - size) * i // steps for i in range(steps + 1))
    )


class Blender:
    """Blends the windows of a scene, one row of windows after another.

    Args:
        rows: The windows' vertical positions.
        columns: Their horizontal positions.
        num_classes: Channels of the logits.
    """

    def __init__(self, rows: Axis, columns: Axis, num_classes: int) -> None:
        self._rows, self._columns = rows, columns
        self._weights = rows.weights()[:, None] * columns.weights()
        self._totals = rows.total(), columns.total()
        # Sums over the rows of windows so far, of the lines that later rows will add to.
        overlap = max(rows.overlaps(), default=0)
        self._above = np.zeros((num_classes, overlap, columns.length), np.float32)
        self._num_above = 0

    def row(self, index: int, logits: Iterator[Floats | None]) -> Iterator[tuple[int, int, Floats]]:
        """Blend one row of windows.

        Rows must come one after another, but may begin anywhere: the results are right from the row on
        whose ``first_reaching`` they began with.

        Args:
            index: Which row.
            logits: For each window from left to right, float32 of shape ``(classes, height, width)``, which
                is modified; None for a window without data.

        Yields:
            First column, last column (exclusive), and logits of shape ``(classes, settled lines, columns)``
            that no other window will add to. They are weighted sums, not means (see :meth:`mean`); which
            class is highest is the same.
        """
        top, bottom = self._rows.settled(index)
        height = bottom - top
        reach = self._rows.size - height if bottom < self._rows.length else 0
        beside: Floats | None = None
        for number, found in enumerate(logits):
            left, right = self._columns.settled(number)
            width = right - left
            if found is None:
                found = np.zeros((len(self._above), self._rows.size, self._columns.size), np.float32)
            else:
                found *= self._weights
            if beside is not None:
                found[:, :, : beside.shape[2]] += beside
            beside = found[:, :, width:].copy() if right < self._columns.length else None
            settled = found[:, :, :width]
            settled[:, : self._num_above] += self._above[:, : self._num_above, left:right]
            self._above[:, :reach, left:right] = settled[:, height : height + reach]
            yield left, right, settled[:, :height]
        self._num_above = reach

    def mean(self, index: int, left: int, right: int, summed: Floats) -> Floats:
        """Return what :meth:`row` yielded, divided by the weights that went into it."""
        top, bottom = self._rows.settled(index)
        rows, columns = self._totals
        mean: Floats = summed / (rows[top:bottom, None] * columns[left:right])
        return mean
