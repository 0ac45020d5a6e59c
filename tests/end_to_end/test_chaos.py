"""Killed at the events of its saves by ckpt-chaos, whose authors publish how others fare (``make soak``)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.standin import REPOSITORY, StandIn

TOOL = "ckpt-chaos==0.1.8"
POINTS = 42
"""With one run that is not killed, as many as its authors make."""

# The tool arms the first Python process. Here that is the supervisor, which saves nothing: what the tool
# says goes on to the worker under other names, and a shell stands in front.
COMMAND = """
for name in WATCH LOG CRASH_AT MODE; do
    eval "value=\\${CKPT_CHAOS_$name-}"
    [ -z "$value" ] || export "ARM_$name=$value"
    unset "CKPT_CHAOS_$name"
done
export ARM_SUPERVISOR=$$
exec "$PYTHON" -m mapsage_kaggle train "$CONFIG" --work-dir "$1" --threads 1 --save-every 0 \\
    --session-limit 10m --reserve 10s --pass-env ARM_WATCH --pass-env ARM_LOG --pass-env ARM_CRASH_AT \\
    --pass-env ARM_MODE --pass-env ARM_SUPERVISOR
"""

# As the machine dies: with the worker, the supervisor, which would start it again.
ARM = """
import os, signal
if os.environ.get("ARM_WATCH"):
    from ckpt_chaos import inject
    end = os._exit
    def end_all(code):
        if code != 137:  # a way out that the kit takes itself
            end(code)
        os.kill(int(os.environ["ARM_SUPERVISOR"]), signal.SIGKILL)
        end(code)
    inject.os._exit = end_all
    at = os.environ.get("ARM_CRASH_AT")
    inject.arm(
        os.environ["ARM_WATCH"], int(at) if at else None, os.environ.get("ARM_MODE", "before"),
        os.environ["ARM_LOG"] + ".rank0", torn_python=True,
    )
"""

# Weights, optimizer, schedule and histories, without what tells one session from another.
RESULT = """
import hashlib, sys
from pathlib import Path
from mapsage_kaggle.checkpoints.load import load_checkpoint
found = load_checkpoint(Path(sys.argv[1]) / "iter_6.pth")
digest = hashlib.sha256()
for part in ("state_dict", "optimizer", "param_schedulers"):
    digest.update(repr(found[part]).encode() if part != "state_dict" else b"".join(
        name.encode() + tensor.numpy().tobytes() for name, tensor in found[part].items()))
print(digest.hexdigest())
"""


@pytest.mark.soak
def test_a_session_killed_at_any_event_of_its_saves_goes_on_as_if_uncut(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tool, TOOL], check=True
    )
    run = StandIn.with_scenes(tmp_path / "kaggle", train=4, val=1, max_iters=6, val_interval=2)
    config = run.config(extra='custom_imports["imports"].append("arm")\n')
    (config.parent / "arm.py").write_text(ARM)
    files = {"train.sh": COMMAND, "result.py": RESULT}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    done = subprocess.run(
        [
            sys.executable, "-m", "ckpt_chaos", "run", "--work", tmp_path / "chaos", "--jobs", "1",
            "--max-points", str(POINTS), "--checkpoint-glob", "iter_*.pth",
            "--step-regex", r"(?:resume verified: iteration|complete already, at iteration) (\d+)",
            "--result-cmd", f"{sys.executable} {tmp_path / 'result.py'} {{out}}",
            "--", "sh", tmp_path / "train.sh", "{out}",
        ],
        env={
            **run.environment(), "PYTHON": sys.executable, "CONFIG": str(config),
            "PYTHONPATH": os.pathsep.join((str(tool), str(REPOSITORY))),
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout[-20_000:], done.stderr[-4000:])
    assert done.returncode == 0
    assert re.search(r"^PASS: (\d+)$", done.stdout, re.MULTILINE)[1] == str(POINTS + 1)  # type: ignore[index]
