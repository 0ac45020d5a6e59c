"""Windows cover a scene, and blending them gives what adding everything up gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.imagery.windows import Axis, Blender, Floats, plan_axis


@given(st.integers(1, 300), st.integers(2, 64), st.data())
def test_windows_cover_the_axis_and_overlap_as_asked(length: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    axis = plan_axis(length, size, overlap)

    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.size == length
    assert axis.size == min(length, size)
    assert all(found >= overlap for found in axis.overlaps())
    assert (axis.total() > 0).all()
    fewest = 1 if length <= size else -(-(length - size) // (size - overlap)) + 1
    assert len(axis.starts) == fewest


def test_an_overlap_of_more_than_half_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot overlap by 65"):
        plan_axis(1000, 128, 65)


def everything(rows: Axis, columns: Axis, fields: dict[tuple[int, int], Floats]) -> Floats:
    """Blend in the plainest way: add every weighted window to an array of the whole scene."""
    classes = next(iter(fields.values())).shape[0]
    total = np.zeros((classes, rows.length, columns.length))
    weights = np.zeros((rows.length, columns.length))
    window = np.outer(rows.weights(), columns.weights())
    for (row, column), field in fields.items():
        top, left = rows.starts[row], columns.starts[column]
        total[:, top : top + rows.size, left : left + columns.size] += field * window
        weights[top : top + rows.size, left : left + columns.size] += window
    return (total / weights).astype(np.float32)


def blended(rows: Axis, columns: Axis, fields: dict[tuple[int, int], Floats], first: int = 0) -> Floats:
    classes = next(iter(fields.values())).shape[0]
    blender = Blender(rows, columns, classes)
    result = np.full((classes, rows.length, columns.length), np.nan, np.float32)

    def logits(row: int) -> Iterator[Floats]:
        for column in range(len(columns.starts)):
            yield fields[row, column].copy()

    for row in range(first, len(rows.starts)):
        top, bottom = rows.settled(row)
        for left, right, summed in blender.row(row, logits(row)):
            result[:, top:bottom, left:right] = blender.mean(row, left, right, summed)
    return result


def random_fields(rows: Axis, columns: Axis, seed: int) -> dict[tuple[int, int], Floats]:
    draws = np.random.RandomState(seed)
    return {
        (row, column): draws.standard_normal((3, rows.size, columns.size)).astype(np.float32)
        for row in range(len(rows.starts))
        for column in range(len(columns.starts))
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(4, 24), st.integers(0, 2**16), st.data())
def test_blending_row_by_row_is_the_weighted_mean_of_all_windows(
    height: int, width: int, size: int, seed: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    rows, columns = plan_axis(height, size, overlap), plan_axis(width, size, overlap)
    fields = random_fields(rows, columns, seed)

    np.testing.assert_allclose(
        blended(rows, columns, fields), everything(rows, columns, fields), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize("height", [61, 64, 65, 90])
def test_going_on_from_a_row_gives_the_same_bits_as_never_having_stopped(height: int) -> None:
    rows, columns = plan_axis(height, 16, 5), plan_axis(50, 16, 5)
    fields = random_fields(rows, columns, seed=3)
    whole = blended(rows, columns, fields)

    for row, start in enumerate(rows.starts):
        again = blended(rows, columns, fields, first=rows.first_reaching(row))
        np.testing.assert_array_equal(again[:, start:], whole[:, start:])


def test_one_window_that_nothing_is_known_of_leaves_its_neighbours_alone() -> None:
    rows, columns = plan_axis(16, 16, 4), plan_axis(28, 16, 4)
    blender = Blender(rows, columns, 2)
    field = np.ones((2, 16, 16), np.float32)

    parts = list(blender.row(0, iter([field, None])))

    assert [(left, right) for left, right, _ in parts] == [(0, 12), (12, 28)]
    assert (parts[0][2] > 0).all()
    assert (parts[1][2][:, :, 4:] == 0).all()
