"""The stumbles of a first run, in the notebook as a batch session runs it: a sentence, and no traceback."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from support import warm
from support.fresh import Fresh
from support.notebooks import SMALL, Papermill, code_cells

from mapsage_kaggle.data.scenes import generate_scenes

pytestmark = pytest.mark.slow(scope_s=60)

WITHOUT_THE_KIT = """#!{python}
import runpy, sys
sys.meta_path[:] = [item for item in sys.meta_path if "editable" not in repr(item).lower()]
sys.path[:] = [place for place in sys.path if place != {root!r}]
sys.argv[:] = sys.argv[2:]
runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def kaggle(tmp_path: Path) -> Papermill:
    for name in ("working", "temp"):
        (tmp_path / name).mkdir()
    generate_scenes(tmp_path / "input" / "scenes", train=4, val=2, size=64, seed=0)
    return Papermill(tmp_path, warm.python())


def refused(run: Papermill, **parameters: Any) -> str:
    """Run the notebook, which must be refused by a sentence and nothing more; return that."""
    done = run(**parameters)
    assert done.code != 0
    [error] = [item for item in done.outputs() if item.output_type == "error"]
    assert len(error.traceback) == 1
    assert "Traceback" not in error.traceback[0]
    assert "mapsage_kaggle/" not in done.log
    trained = [cell for cell in code_cells(done.saved) if "session.train()" in cell.source]
    assert [cell.execution_count for cell in trained] == [None]
    return str(error.traceback[0])


def test_without_the_kit_it_is_told_what_to_attach(kaggle: Papermill) -> None:
    python = kaggle.root / "python"
    python.write_text(WITHOUT_THE_KIT.format(python=sys.executable, root=str(kaggle.repository)))
    python.chmod(0o755)
    kaggle.python = python
    told = refused(kaggle)
    assert "The kit is not attached. Add Input: the data set that `mapsage-kaggle bundle` has made" in told
    assert str(kaggle.root / "input" / "scenes") in told


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"CONFIG": "train_earthqva"}, "train_earthvqa_kaggle"),
        ({"LANGUAGE": "cn"}, "There are no texts in 'cn'. Choose one of en, zh."),
    ],
    ids=["config", "language"],
)
def test_a_typo_is_refused_before_anything_is_installed(
    kaggle: Papermill, tmp_path: Path, parameters: dict[str, str], sentence: str
) -> None:
    """In a Python that lacks what training needs, so that an install would begin."""
    fresh = Fresh(tmp_path / "venv", lacking={"addict", "ftfy", "yapf", "mapsage-kaggle"})
    kaggle.python = fresh.python
    kaggle.environ["PIP_LOG"] = str(tmp_path / "pip.log")
    assert sentence in refused(kaggle, **parameters)
    assert not (tmp_path / "pip.log").exists()


def test_without_a_gpu_a_batch_session_of_kaggle_s_is_refused(kaggle: Papermill) -> None:
    kaggle.at_start("import mapsage_kaggle.machine as machine; machine.on_kaggle = lambda environ=None: True")
    told = refused(kaggle, GPUS="auto")
    assert "Kaggle gave this session no GPU that torch can use, and 12 iterations are left" in told
    assert "a verified phone number; or set GPUS = 0 to train on the CPU all the same." in told


def test_a_remedy_names_parameters_and_preflight_the_missing_weights(kaggle: Papermill) -> None:
    weights = "model.pretrained=https://host/mit_b2.pth"
    told = refused(kaggle, RESUME="require", OVERRIDES=[*SMALL, weights])
    assert told.endswith('Attach the output of the session before, or start anew with RESUME = "never".')
    assert "--resume" not in told
    saved = (kaggle.root / "working" / "__notebook__.ipynb").read_text()
    assert "mit_b2.pth is not attached" in saved


def test_loveda_beside_earthvqa_s_config_is_told_its_own_config(kaggle: Papermill) -> None:
    scenes = kaggle.root / "input" / "scenes"
    for split in ("Train", "Val"):
        shutil.move(scenes / split, scenes / "Urban")
        (scenes / split).mkdir()
        shutil.move(scenes / "Urban", scenes / split / "Urban")
    told = refused(kaggle, CONFIG="train_earthvqa", OVERRIDES=[])
    assert f"only {scenes} (loveda layout)" in told
    assert "choose the config for this one: train_loveda_kaggle.py" in told
