"""The self-test with its real sessions: what holds, what a planted fault makes of it, and its notebook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from support import warm
from support.notebooks import ROOT, SELFTEST, code_cells, write_kernel

from mapsage_kaggle.jobs.selftest import selftest

pytestmark = pytest.mark.slow(scope_s=170)
PYTHON = sys.executable
LONG_S = 900.0
"""The machine may be busy with other things."""

UNSEEDED = """
import time
from mapsage_kaggle.engine import seeding
derive = seeding.derive
seeding.derive = lambda domain, seed, *position: derive(domain, seed, *position, time.time_ns())
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for ``/kaggle``, with nothing attached."""
    for name in ("input", "working", "temp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("MAPSAGE_KAGGLE_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "executable", warm.python())
    return tmp_path


def test_on_this_machine_everything_that_can_be_measured_holds(root: Path) -> None:
    test = selftest(limit_s=LONG_S)
    found = {name: finding.state for name, finding in test.findings.items()}
    messages = [finding.message for finding in test.findings.values()]
    half = {name: state for name, state in found.items() if "float16" in name}
    assert found == {
        "machine": "measured", "kaggle": "not measured", **half, "exact float32": "holds",
        "exact float32 deterministic": "holds", "killed": "holds", "memory": "holds", "ranks": "holds",
        "step": "measured",
    }, messages  # fmt: skip
    assert test.exit_code == 0
    assert json.loads((root / "working" / "selftest.json").read_text()) == json.loads(
        json.dumps(test.to_json() | {"seconds": json.loads(test.file.read_text())["seconds"]})
    )
    assert [path.name for path in (root / "working").iterdir()] == ["selftest.json"]
    assert list((root / "temp").glob("selftest-*")) == []


def test_a_run_whose_seeds_are_not_by_position_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    code = tmp_path_factory.mktemp("code")
    (code / "unseeded.py").write_text(UNSEEDED)
    monkeypatch.setenv("PYTHONPATH", str(code))
    lines = 'custom_imports["imports"].append("unseeded")\n'
    test = selftest(only=["exact float32"], limit_s=LONG_S, lines=lines)
    finding = test.findings["exact float32"]
    assert (finding.state, test.exit_code) == ("does not hold", 5), finding.message
    assert finding.message.startswith("Cut differs from uncut in ")
    assert "The record says: bit for bit." in finding.message


def test_the_notebook_prints_each_finding_and_leaves_the_file(root: Path) -> None:
    write_kernel(root / "jupyter", warm.python())
    environ = {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "JUPYTER_PATH": str(root / "jupyter")}
    environ |= {"IPYTHONDIR": str(root / "jupyter" / "ipython"), "PYTHONPATH": str(ROOT)}
    saved = root / "working" / "__notebook__.ipynb"
    parameters = root / "parameters.json"
    parameters.write_text(json.dumps({"ONLY": ["step"], "LIMIT": "15m", "LANGUAGE": "zh"}))
    done = subprocess.run(
        [PYTHON, "-m", "papermill", "--no-progress-bar", "-f", parameters, SELFTEST, saved],
        env={**os.environ, **environ}, cwd=root / "working", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = "".join(
        output.get("text", "")
        for cell in code_cells(nbformat.read(saved, as_version=4))
        for output in cell.outputs
    )
    assert "· step: 已测量" in printed
    document = json.loads((root / "working" / "selftest.json").read_text())
    step = document["findings"][-1]
    assert (document["state"], step["name"]) == ("done", "step")
    assert step["figures"]["kit"]["step_ms"] > 0 and step["figures"]["stock"]["step_ms"] > 0
