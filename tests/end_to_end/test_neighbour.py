"""A data set of a stranger beside an honest run changes nothing, and what it tried is told."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support.standin import StandIn, differences

pytestmark = pytest.mark.slow(scope_s=30)

MAX_ITERS = 8

DUMP = """
import json, os, pathlib, sys, mmseg
seen = {"mmseg": mmseg.__file__, "path": sys.path, "environ": sorted(os.environ)}
pathlib.Path(MARKER).write_text(json.dumps(seen))
"""

TATTLE = """
import os
from pathlib import Path
Path({marker!r}).write_text(__file__ + " saw " + os.environ.get("KAGGLE_KEY", "no key"))
"""


def move_in(run: StandIn, marker: Path) -> Path:
    """Attach pictures with everything beside them that could be taken for code, a run or a record."""
    folder = run.root / "input" / "datasets" / "stranger" / "pictures"
    (folder / "images").mkdir(parents=True)
    shutil.copy(next((run.root / "input" / "scenes").rglob("*.png")), folder / "images")
    tattle = TATTLE.format(marker=str(marker))
    for name in ("pyproject.toml", "setup.cfg"):
        (folder / name).write_text("")
    package = folder / "mmsegmentation"
    package.mkdir()
    (package / "pyproject.toml").touch()
    for name in ("sitecustomize.py", "usercustomize.py", "at_iteration.py", "mmseg.py", "torch.py"):
        for place in (folder, package):
            (place / name).write_text(tattle)
    (folder / "tattle.pth").write_text(f"import pathlib; exec({tattle!r})\n")
    for package in ("mmseg", "mapsage_kaggle"):
        (folder / "code" / package).mkdir(parents=True)
        (folder / "code" / package / "__init__.py").write_text(tattle)
    with zipfile.ZipFile(folder / "prettytable-999-py3-none-any.whl", "w") as wheel:
        wheel.writestr("prettytable.py", tattle)
    return folder


def leave_a_higher_checkpoint(folder: Path, ours: Path) -> None:
    """Put a checkpoint of another run with this config there, further on, under a record that lies."""
    state = torch.load(ours, weights_only=False)
    state["meta"]["iter"] = 470
    state["message_hub"]["runtime_info"] |= {"iter": 470, "mapsage_run_id": "stranger"}
    for weight in state["state_dict"].values():
        weight.zero_()
    torch.save(state, folder / "iter_470.pth")
    record = json.loads((ours.parent / "session.json").read_text())
    record["best"] = {
        "file": "../../secret.pth",
        "iteration": 470,
        "sha256": "",
        "size_bytes": 1,
        "value": 1e9,
    }
    record |= {"run_id": "stranger", "learned": {"threads": 100_000, "micro_batch": -1}}
    (folder / "session.json").write_text(json.dumps(record))
    (folder / "history").mkdir()
    (folder / "history" / "session_001.json").symlink_to("/etc/passwd")
    os.mkfifo(folder / "events.jsonl")


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """A run by itself, and the same one with a stranger's data set beside it in its second session."""

    alone: StandIn
    beside: StandIn
    told: str
    marker: Path
    seen: dict[str, Any]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Neighbourhood:
    folder = tmp_path_factory.mktemp("neighbours")
    alone, _ = chain(folder / "alone", None)
    beside, told = chain(folder / "beside", folder / "it ran")
    seen = json.loads((beside.root / "seen.json").read_text())
    return Neighbourhood(alone=alone, beside=beside, told=told, marker=folder / "it ran", seen=seen)


def chain(root: Path, marker: Path | None) -> tuple[StandIn, str]:
    """Return a run of two sessions; before the second one the stranger moves in, if there is a marker."""
    run = StandIn.with_scenes(root, max_iters=MAX_ITERS, val_interval=4)
    run.extra = "custom_imports = dict(imports=['at_iteration', 'dump'], allow_failed_imports=False)"
    run.environ.update(KAGGLE_KEY="secret", WANDB_API_KEY="secret", SOME_TOKEN="passed")
    run.config()
    (root / "code" / "dump.py").write_text(DUMP.replace("MARKER", repr(str(root / "seen.json"))))
    first = run.train(stop=4)
    assert first.returncode == 0, first.stdout + first.stderr
    output = run.hand_over()
    if marker is not None:
        neighbour = move_in(run, marker)
        leave_a_higher_checkpoint(neighbour, next(output.rglob("iter_4.pth")))
        run.cold = True
    second = run.train("--resume", "require", "--pass-env", "SOME_TOKEN")
    assert second.returncode == 0, second.stdout + second.stderr
    return run, second.stdout + second.stderr


def test_nothing_that_is_attached_runs_in_any_child(there: Neighbourhood) -> None:
    assert not there.marker.exists(), there.marker.read_text()
    assert not there.seen["mmseg"].startswith(str(there.beside.root))
    inputs = str(there.beside.root / "input")
    assert not [place for place in there.seen["path"] if place.startswith(inputs)]


def test_no_child_sees_a_key_that_is_not_passed_on(there: Neighbourhood) -> None:
    given = {"KAGGLE_KEY", "WANDB_API_KEY", "SOME_TOKEN"}
    assert given & set(there.seen["environ"]) == {"SOME_TOKEN"}


def test_a_neighbour_changes_no_bit_of_a_run_and_its_checkpoint_is_told(there: Neighbourhood) -> None:
    ends = [run.checkpoint(MAX_ITERS) for run in (there.alone, there.beside)]
    assert differences(*ends) == []
    record = there.beside.record()
    assert record.previous[0]["run_id"] == record.run_id != "stranger"
    assert record.learned.threads == 1
    assert "iter_470.pth" in there.told and "it is of another run" in there.told


def test_a_neighbour_s_history_is_not_carried_along(there: Neighbourhood) -> None:
    carried = {path.name for path in (there.beside.work_dir.path / "history").iterdir()}
    assert "session_001.json" in carried
    assert "passwd" not in str(carried)
