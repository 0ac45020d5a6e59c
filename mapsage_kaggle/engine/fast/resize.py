"""Resize only the part of an image that a crop will keep, with the bits of resizing it whole."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np


class Box(NamedTuple):
    """A window in the resized image, in pixels; the ends are not part of it."""

    top: int
    bottom: int
    left: int
    right: int

    def within(self, size: tuple[int, int]) -> Box:
        """Return the box cut at the borders of an image of ``(width, height)``, as slicing would."""
        width, height = size
        return Box(self.top, min(self.bottom, height), self.left, min(self.right, width))


def resize_window(image: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    """Return ``cv2.resize(image, size)[box]``, bilinear, without resizing what is not needed.

    OpenCV computes each output pixel from its distance to the top left corner, in single precision.
    So what lies below and right of the box can be cut off beforehand without changing a bit; what
    lies above and left of it cannot.

    Args:
        image: uint8 of shape ``(height, width)`` or ``(height, width, channels)``.
        size: Width and height of the whole resized image.
        box: What is wanted of it, within its borders.
    """
    resized: np.ndarray | None = image
    if image.shape[1::-1] != size:
        resized = _corner(image, size, box) if window_resize_is_exact() else None
    if resized is None:
        resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return resized[box.top : box.bottom, box.left : box.right]


def _corner(image: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray | None:
    """Return the top left part of the resized image that holds the box; None where that cannot be had."""
    height, width = image.shape[:2]
    scale_x, scale_y = size[0] / width, size[1] / height
    columns, rows = _needed(box.right, scale_x, width), _needed(box.bottom, scale_y, height)
    part = round(columns * scale_x), round(rows * scale_y)
    # OpenCV would copy what does not change in size.
    if part == (columns, rows) or part[0] < box.right or part[1] < box.bottom:
        return None
    # With the factors instead of a size, OpenCV takes them as they are.
    return cv2.resize(image[:rows, :columns], None, fx=scale_x, fy=scale_y, interpolation=cv2.INTER_LINEAR)


def _needed(stop: int, scale: float, length: int) -> int:
    """Return how many source pixels outputs up to ``stop`` depend on, and one to spare."""
    return min(length, max(math.floor((stop - 0.5) / scale - 0.5) + 3, math.ceil(stop / scale)))


class NearestWindows:
    """Windows of ``cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)``, one at a time.

    Args:
        labels: uint8 of shape ``(height, width)``.
        size: Width and height of the whole resized image.
    """

    def __init__(self, labels: np.ndarray, size: tuple[int, int]) -> None:
        self.labels = labels
        self._same = labels.shape[::-1] == size
        self._whole: np.ndarray | None = None
        if self._same:
            return
        if not nearest_is_exact():
            self._whole = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
            return
        self._columns = _nearest(size[0], labels.shape[1])
        self._rows = _nearest(size[1], labels.shape[0])

    def window(self, box: Box) -> np.ndarray:
        """Return the window, contiguous or a view of the labels."""
        if self._same or self._whole is not None:
            whole = self.labels if self._whole is None else self._whole
            return whole[box.top : box.bottom, box.left : box.right]
        rows, columns = self._rows[box.top : box.bottom], self._columns[box.left : box.right]
        # Both the rows and the columns ascend: the part that is read is small, and so is what is taken.
        part = self.labels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        rows, columns = rows - rows[0], columns - columns[0]
        # Taking whole rows is much faster than single pixels of each: two transpositions cost less.
        if len(rows) < part.shape[0]:
            return cv2.transpose(cv2.transpose(part.take(rows, axis=0)).take(columns, axis=0))
        return cv2.transpose(cv2.transpose(part).take(columns, axis=0)).take(rows, axis=0)


def _nearest(size: int, length: int) -> np.ndarray:
    """Return the source position of each output pixel, as OpenCV rounds it."""
    step = 1.0 / (size / length)
    return np.minimum(np.floor(np.arange(size) * step).astype(np.intp), length - 1)


# Sides before and after: up, down, by half, by next to nothing, odd ones, one side only. Where
# positions get large, single precision has the fewest bits left; a strip shows that as well as a square.
_TRIALS: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = (
    ((64, 64), (97, 97)),
    ((64, 64), (128, 128)),
    ((64, 64), (32, 32)),
    ((65, 63), (32, 31)),
    ((200, 150), (201, 151)),
    ((150, 200), (149, 199)),
    ((128, 96), (128, 131)),
    ((97, 61), (53, 211)),
    ((1024, 9), (1337, 13)),
    ((9, 1024), (17, 2048)),
    ((1024, 9), (517, 7)),
    ((1024, 9), (1999, 11)),
    ((2048, 5), (3001, 6)),
)


def _boxes(size: tuple[int, int], draws: np.random.RandomState) -> list[Box]:
    width, height = size
    found = [Box(0, height, 0, width), Box(0, 1, 0, 1), Box(height - 1, height, width - 1, width)]
    for _ in range(3):
        top, left = draws.randint(0, height), draws.randint(0, width)
        found.append(Box(top, draws.randint(top + 1, height + 1), left, draws.randint(left + 1, width + 1)))
    return found


@functools.cache
def window_resize_is_exact() -> bool:
    """Return whether the installed OpenCV gives a cut image the same bits, tried on random images."""
    draws = np.random.RandomState(0)
    for (width, height), size in _TRIALS:
        image = draws.randint(0, 256, (height, width, 3)).astype(np.uint8)
        whole = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        for box in _boxes(size, draws):
            found = _corner(image, size, box)
            window = slice(box.top, box.bottom), slice(box.left, box.right)
            if found is not None and not np.array_equal(found[window], whole[window]):
                return False
    return True


@functools.cache
def nearest_is_exact() -> bool:
    """Return whether the installed OpenCV rounds to the nearest pixel as assumed here."""
    draws = np.random.RandomState(0)
    for (width, height), size in _TRIALS:
        labels = draws.randint(0, 256, (height, width)).astype(np.uint8)
        whole = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        rows, columns = _nearest(size[1], height), _nearest(size[0], width)
        if not np.array_equal(labels[rows][:, columns], whole):
            return False
    return True
