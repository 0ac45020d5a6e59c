"""A session beside attached folders that would like to be code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.standin import StandIn

DUMP = """
import json, os, pathlib, sys, mmseg
seen = {"mmseg": mmseg.__file__, "path": sys.path, "environ": sorted(os.environ)}
pathlib.Path(MARKER).write_text(json.dumps(seen))
"""


@pytest.mark.slow
def test_nothing_attached_runs_in_any_child_and_none_sees_a_key(tmp_path: Path) -> None:
    run = StandIn.with_scenes(tmp_path / "kaggle", max_iters=8, val_interval=8)
    inputs, ran, seen = run.root / "input", tmp_path / "ran", tmp_path / "seen.json"
    for folder in (inputs / "pictures", inputs / "output" / "mmsegmentation"):
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").touch()
        for name in ("sitecustomize.py", "usercustomize.py", "torch.py", "mmseg.py"):
            (folder / name).write_text(f"open({str(ran)!r}, 'a').write(__file__)\n")
    run.environ.update(KAGGLE_KEY="secret", WANDB_API_KEY="secret", SOME_TOKEN="passed")
    run.config()
    (run.root / "code" / "dump.py").write_text(DUMP.replace("MARKER", repr(str(seen))))
    extra = "custom_imports = dict(imports=['at_iteration', 'dump'], allow_failed_imports=False)"
    done = run.train("--pass-env", "SOME_TOKEN", config_extra=extra)
    assert done.returncode == 0, done.stderr
    assert not ran.exists(), ran.read_text()
    found = json.loads(seen.read_text())
    assert not found["mmseg"].startswith(str(run.root))
    assert not [place for place in found["path"] if place.startswith(str(inputs))]
    assert {"KAGGLE_KEY", "WANDB_API_KEY", "SOME_TOKEN"} & set(found["environ"]) == {"SOME_TOKEN"}
