"""Which bands are red, green and blue is what a raster says of them, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mapsage_kaggle.errors import DataError
from mapsage_kaggle.imagery.bands import choose_bands

RGB, GREY = ("red", "green", "blue"), ("gray", "undefined", "undefined")
NONE = (None, None, None)
SCENE = Path("scene.tif")


@pytest.mark.parametrize(
    ("names", "descriptions", "bands", "is_told"),
    [
        (RGB, NONE, [1, 2, 3], False),
        (GREY, NONE, [1, 2, 3], False),
        (("gray",), ("red",), [1], False),
        (("gray", "alpha"), (None, None), [1], False),
        (("blue", "green", "red"), NONE, [3, 2, 1], False),
        (("undefined", "blue", "green", "red"), (None,) * 4, [4, 3, 2], False),
        (RGB, ("Red", "Green", "Blue"), [1, 2, 3], False),
        (RGB, ("blue", "green", "red"), [3, 2, 1], True),  # GDAL calls any three so
        (GREY, ("Blue (490 nm)", "Green (560 nm)", "Red (665 nm)"), [3, 2, 1], True),
        (GREY, ("B02", "B03", "B04"), [3, 2, 1], True),
        (GREY, ("S2A_B04", "S2A_B03", "S2A_B02"), [1, 2, 3], False),
        (("gray", *("undefined",) * 3), ("B02", "B03", "B04", "B08"), [3, 2, 1], True),
        (("gray", *("undefined",) * 3), ("coastal_blue", "blue", "green", "red"), [4, 3, 2], True),
        (("gray", *("undefined",) * 3), ("green", "red", "red edge", "blue"), [2, 1, 4], True),
        (RGB, ("red", None, None), [1, 2, 3], False),
        (GREY, ("Red (band 1)", "G", "Blue B1"), [1, 2, 3], False),
        (GREY, ("band 1", "band 2", "band 3"), [1, 2, 3], False),
    ],
)  # fmt: skip
def test_bands_are_taken_by_what_is_said_of_them(
    names: tuple[str, ...], descriptions: tuple[str | None, ...], bands: list[int], is_told: bool
) -> None:
    found, notice = choose_bands(SCENE, names, descriptions, None)
    assert found == bands
    assert (notice is not None) is is_told
    assert notice is None or f"{','.join(map(str, bands))} are read as red, green and blue" in notice


@pytest.mark.parametrize(
    ("names", "descriptions"),
    [
        (("blue", "green", "red"), ("red", "green", "blue")),
        (RGB, ("nir", "red", "green")),
        (GREY, ("nir", "red", "green")),
        (RGB, ("B08", "B11", "B12")),
        (RGB, ("B04", "B08", "B11")),
        (RGB, ("nir", "swir1", "pan")),
        (GREY, ("B2", "B3", "B4")),  # others on other satellites
        (GREY, ("near infra-red", "one", "two")),
        (("red", "green", "blue", "undefined"), ("red", "B8A", None, None)),
        (("gray", "red", "green", "blue"), ("red", "green", "blue", "nir")),
    ],
)
def test_what_contradicts_itself_is_refused_until_bands_are_named(
    names: tuple[str, ...], descriptions: tuple[str | None, ...]
) -> None:
    with pytest.raises(DataError, match=r"scene.tif has bands described as .*--bands R,G,B"):
        choose_bands(SCENE, names, descriptions, None)
    assert choose_bands(SCENE, names, descriptions, (3, 2, 1)) == ([3, 2, 1], None)


@pytest.mark.parametrize("names", [("gray", *("undefined",) * 3), ("blue", "undefined", "undefined")])
def test_what_nothing_says_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=r"nothing says which are red, green and blue"):
        choose_bands(SCENE, names, (None,) * len(names), None)
