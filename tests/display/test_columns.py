"""Columns that line up in a terminal, whatever is written in them."""

from __future__ import annotations

import pytest

from mapsage_kaggle.display.columns import aligned, columns
from mapsage_kaggle.display.text import table


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", 0), ("class", 5), ("类别", 4), ("ＩｏＵ", 6), ("e\u0301", 1), ("道路 road", 9)],
)
def test_a_chinese_character_takes_two_columns_and_an_accent_none(text: str, expected: int) -> None:
    assert columns(text) == expected


def test_columns_line_up_over_chinese_names() -> None:
    lines = aligned([("类别", "IoU"), ("road", "1"), ("建筑物", "20")], right={1})
    assert lines == ["类别    IoU", "road      1", "建筑物   20"]
    assert {columns(line) for line in lines} == {11}


def test_numbers_stand_to_the_right_and_texts_to_the_left() -> None:
    assert table([("a", 1.5), ("long", None)], ("类别", "值")).splitlines() == [
        "类别   值", "----  ---", "a     1.5", "long    -",
    ]  # fmt: skip
