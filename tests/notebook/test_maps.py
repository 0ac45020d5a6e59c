"""What the maps' notebook asks for by its parameters, and how its refusals name them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Panel
from mapsage_kaggle.errors import DataError, UsageError
from mapsage_kaggle.imagery.sources import JOURNAL
from mapsage_kaggle.jobs.predict import SUBMISSION, PredictOptions
from mapsage_kaggle.jobs.subject import ModelOptions
from mapsage_kaggle.notebook import maps as notebook
from mapsage_kaggle.paths import KagglePaths


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


def test_each_try_at_a_submission_is_judged_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, shown = tmp_path / "made", list[Panel]()
    made.mkdir()
    (made / JOURNAL).touch()
    (tmp_path / "working").mkdir()
    complete = [False]

    def predict(model: ModelOptions, options: PredictOptions, told: Any) -> Any:
        if not complete[0]:
            raise DataError("1 image is missing.")
        with zipfile.ZipFile(made / SUBMISSION, "w") as archive:
            archive.writestr("Result/1.png", b"")
        return SimpleNamespace(files=(), refused=())

    monkeypatch.setattr(notebook, "predict", predict)
    monkeypatch.setattr(notebook, "show", shown.append)
    subject: Any = SimpleNamespace(options=ModelOptions(config=Path("c.py")), checkpoint=Path("best.pth"))
    options = PredictOptions(out=made, submission=True)
    session = notebook.MapsSession(subject, options, KagglePaths.below(tmp_path), Words("en"))
    for complete[0] in (False, True, False):
        session.predict()
        session.check()
    assert [panel.tone for panel in shown[1::2]] == ["bad", "good", "bad"]
    assert shown[1].lead == shown[5].lead == "1 image is missing."
    assert (tmp_path / "working" / SUBMISSION).is_file()
