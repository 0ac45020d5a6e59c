"""What the maps' notebook asks for by its parameters, and how its refusals name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.notebook import maps as notebook


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("in metres: --trained-gsd 0.3; or", "in metres: TRAINED_GSD = 0.3; or"),
        ("--scale and --gsd both say", "SCALE and GSD both say"),
        ("give --value-range LOW HIGH", "give VALUE_RANGE LOW HIGH"),
        ("--scaled is none of them", "--scaled is none of them"),
        ("--gsd {gsd} says nothing", "GSD {gsd} says nothing"),
    ],
)
def test_a_refusal_names_the_notebook_s_parameters(template: str, shown: str) -> None:
    assert notebook.in_parameters(template) == shown


def test_two_ways_to_say_a_scale_are_refused_in_the_notebook_s_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path))
    with pytest.raises(UsageError, match="SCALE and GSD both say"):
        notebook.maps("demo.py", scale=2.0, gsd=0.3)
