"""Text width in terminal columns: an East Asian wide character takes two."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence


def columns(text: str) -> int:
    """Return how many terminal columns a text takes."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(map(bool, map(unicodedata.combining, text)))


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Return rows of cells as lines with aligned columns, those in ``right`` to the right."""
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        parts = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - columns(cell))
            parts.append(space + cell if index in right else cell + space)
        lines.append("  ".join(parts).rstrip())
    return lines
