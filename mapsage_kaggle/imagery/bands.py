"""Which bands of a raster are red, green and blue: by their descriptions and their colour interpretation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mapsage_kaggle.errors import DataError
from mapsage_kaggle.messages import Message

COLOURS = ("red", "green", "blue")
_NAMES = {**{colour: colour for colour in COLOURS}, "b02": "blue", "b03": "green", "b04": "red"}
"""Colours by words of a description. Sentinel-2's band numbers have a zero; without it, they may be those of
another satellite, and mean other bands."""
_OF_OTHERS = frozenset({"edge", "infra", "near", "coastal", "i", "ii"})
"""Words with which a colour's name means another band: red edge, near infra-red, coastal blue, green I."""

_NO_COLOUR = re.compile(r"b\d\d?a?|nir.*|.*swir.*|.*edge|.*infra.*|pan|panchro.*|thermal|tir\d*")
"""Words that name another band, where no colour is named. So does a number without a zero."""


def choose_bands(
    path: Path, names: Sequence[str], descriptions: Sequence[str | None], chosen: Sequence[int] | None
) -> tuple[list[int], Message | None]:
    """Return the bands to read (one for grey or a palette, or red, green and blue), and a notice if need be.

    ``names`` are the bands' colour interpretations, as rasterio calls them; ``chosen`` are the bands that a
    person names, None to go by the raster.

    Raises:
        DataError: A chosen band does not exist; or nothing tells the bands, or what does is contradictory.
    """
    if chosen is not None:
        if any(band > len(names) for band in chosen):
            raise DataError(
                Message(
                    "{path} has {count} bands ({names}), not band {band}.",
                    path, len(names), ", ".join(names), max(chosen),
                ),
                "Choose others: --bands R,G,B, counted from 1.",
            )  # fmt: skip
        return list(chosen), None
    seen = [band for band, name in enumerate(names, start=1) if name != "alpha"]
    interpreted = {name: band for band, name in enumerate(names, start=1) if name in COLOURS}
    described = _described(descriptions)
    if len(seen) == 1:
        return seen, None
    if set(described) == set(COLOURS):
        # GDAL calls any three bands of 8 bits red, green and blue: that alone contradicts nothing.
        if interpreted != {"red": 1, "green": 2, "blue": 3}:
            _check(path, names, descriptions, described, interpreted)
        bands = [described[colour] for colour in COLOURS]
        if bands == seen:
            return bands, None
        return bands, Message(
            "{path} has bands described as {names}: {bands} are read as red, green and blue. --bands R,G,B "
            "says others.",
            path, _listed(descriptions), ",".join(map(str, bands)),
        )  # fmt: skip
    if len(seen) == 3 and all(seen.index(band) == COLOURS.index(name) for name, band in interpreted.items()):
        interpreted = dict(zip(COLOURS, seen, strict=True))
    _check(path, names, descriptions, described, interpreted)
    if set(interpreted) == set(COLOURS):
        return [interpreted[colour] for colour in COLOURS], None
    raise DataError(
        Message(
            "{path} has {count} bands ({names}), and nothing says which are red, green and blue.",
            path, len(names), ", ".join(names),
        ),
        "Say it: --bands R,G,B, counted from 1.",
    )  # fmt: skip


def _described(descriptions: Sequence[str | None]) -> dict[str, int]:
    """Return the colours that exactly one band's description names, with their bands."""
    colours = [_colour_of(text or "") for text in descriptions]
    return {name: colours.index(name) + 1 for name in COLOURS if colours.count(name) == 1}


def _colour_of(description: str) -> str | None:
    words = _words(description)
    found = {_NAMES[word] for word in words if word in _NAMES}
    return found.pop() if len(found) == 1 and not words & _OF_OTHERS else None


def _is_no_colour(description: str) -> bool:
    """Whether a description names another band than red, green and blue."""
    return _colour_of(description) is None and any(map(_NO_COLOUR.fullmatch, _words(description)))


def _words(description: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", description.casefold()))


def _check(
    path: Path,
    names: Sequence[str],
    descriptions: Sequence[str | None],
    described: Mapping[str, int],
    interpreted: Mapping[str, int],
) -> None:
    """Refuse a raster whose descriptions contradict the colours that its bands would be read as.

    Raises:
        DataError: They do.
    """
    others = {band for band, text in enumerate(descriptions, start=1) if _is_no_colour(text or "")}
    if any(described.get(colour, band) != band or band in others for colour, band in interpreted.items()):
        raise DataError(
            Message(
                "{path} has bands described as {texts}, and their colour interpretation is {names}: "
                "which are red, green and blue?",
                path, _listed(descriptions), ", ".join(names),
            ),
            "Say it: --bands R,G,B, counted from 1.",
        )  # fmt: skip


def _listed(descriptions: Sequence[str | None]) -> str:
    return ", ".join(text or "nothing" for text in descriptions)
