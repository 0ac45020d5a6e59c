"""A data set of a stranger beside an honest run changes nothing, and what it tried is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from support.standin import StandIn, differences

pytestmark = pytest.mark.slow(scope_s=60)

MAX_ITERS = 8

TATTLE = """
import os
from pathlib import Path
Path({marker!r}).write_text(os.environ.get("KAGGLE_KEY", "no key"))
"""


def move_in(run: StandIn, marker: Path) -> Path:
    """Attach pictures with everything beside them that could be taken for code, a run or a record."""
    folder = run.root / "input" / "datasets" / "stranger" / "pictures"
    (folder / "images").mkdir(parents=True)
    shutil.copy(next((run.root / "input" / "scenes").rglob("*.png")), folder / "images")
    tattle = TATTLE.format(marker=str(marker))
    for name in ("pyproject.toml", "setup.cfg"):
        (folder / name).write_text("")
    for name in ("sitecustomize.py", "usercustomize.py", "at_iteration.py", "mmseg.py"):
        (folder / name).write_text(tattle)
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


def chain(root: Path, marker: Path | None) -> tuple[StandIn, subprocess.CompletedProcess[str]]:
    """Return a run of two sessions; before the second one the stranger moves in, if there is a marker."""
    run = StandIn.with_scenes(root, max_iters=MAX_ITERS, val_interval=4, environ={"KAGGLE_KEY": "secret"})
    first = run.train(stop=4)
    assert first.returncode == 0, first.stdout + first.stderr
    output = run.hand_over()
    if marker is not None:
        neighbour = move_in(run, marker)
        leave_a_higher_checkpoint(neighbour, next(output.rglob("iter_4.pth")))
    second = run.train("--resume", "require")
    assert second.returncode == 0, second.stdout + second.stderr
    return run, second


def test_a_hostile_neighbour_changes_no_bit_runs_nothing_and_is_told(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    alone, _ = chain(tmp_path / "alone", None)
    beside, second = chain(tmp_path / "beside", marker)
    assert not marker.exists(), marker.read_text()
    assert differences(alone.checkpoint(MAX_ITERS), beside.checkpoint(MAX_ITERS)) == []
    record = beside.record()
    assert record.previous[0]["run_id"] == record.run_id != "stranger"
    assert record.learned.threads == 1
    told = second.stdout + second.stderr
    assert "iter_470.pth" in told and "it is of another run" in told
    carried = {path.name for path in (beside.work_dir.path / "history").iterdir()}
    assert "session_001.json" in carried
    assert "passwd" not in str(carried)
