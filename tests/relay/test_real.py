"""A relay whose sessions are the real notebook: papermill, torchrun, a training in a stand-in for Kaggle.

Only Kaggle itself is not real: the server of ``kaggle_server`` starts the sessions.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import warm
from support.kaggle_server import OWNER, KaggleServer, Version
from support.notebooks import write_kernel
from support.standin import differences

from mapsage_kaggle.data.scenes import generate_scenes
from mapsage_kaggle.events import read_events
from mapsage_kaggle.paths import ROOT_VARIABLE, WorkDir, replace_file
from mapsage_kaggle.records import SessionRecord

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_ITERS = 40
OVERRIDES = (
    f"train_cfg.max_iters={MAX_ITERS}", "train_cfg.val_interval=20", "train_dataloader.num_workers=0",
    "train_dataloader.persistent_workers=False", "train_dataloader.batch_size=2",
    "default_hooks.logger.interval=2",
)  # fmt: skip


@dataclass
class RealNotebook:
    """Runs a version's notebook as Kaggle does, below the version's folder.

    Attributes:
        stop_at: By session, the iteration at which the session is asked to stop, as its button does;
            ``kill`` in place of an iteration kills all of it, as Kaggle does at the limit.
    """

    home: Path
    stop_at: list[int | str] = field(default_factory=list)
    sessions: list[SessionRecord] = field(default_factory=list)

    def __call__(self, version: Version) -> str:
        stop = self.stop_at.pop(0) if self.stop_at else None
        root = version.folder
        (root / "temp").mkdir()
        for place, source in version.mounts.items():
            shutil.copytree(source, root / "input" / place)
        (root / "__notebook__.ipynb").write_text(version.request["text"])
        with (root / "log.txt").open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "papermill", "--no-progress-bar", str(root / "__notebook__.ipynb"),
                 str(version.output / "__notebook__.ipynb"), "-k", "python3"],
                cwd=version.output, env=self._environ(root), stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            files = WorkDir(version.output / "work_dirs" / "demo")
            killed = False
            while process.poll() is None:
                time.sleep(0.1)
                seen = max((event.iteration for event in read_events(files.events)), default=0)
                if stop == "kill" and files.path.is_dir() and list(files.path.glob("iter_*.pth")):
                    killed, stop = True, None
                    self._kill(process, files)
                elif isinstance(stop, int) and seen >= stop:
                    replace_file(files.stop_request, json.dumps({"action": "stop"}))
                    stop = None
        for line in (root / "log.txt").read_text(errors="replace").splitlines():
            version.say(line, "stderr")
        if files.session.is_file():
            self.sessions.append(SessionRecord.read(files.session))
        return "CANCEL_ACKNOWLEDGED" if killed else "COMPLETE" if process.returncode == 0 else "ERROR"

    def _environ(self, root: Path) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("KAGGLE")}
        return {
            **kept, "HOME": str(self.home), ROOT_VARIABLE: str(root), "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(REPOSITORY),
            "IPYTHONDIR": str(root / "temp" / "ipython"), "JUPYTER_PATH": str(self.home / "jupyter"),
        }  # fmt: skip

    def _kill(self, process: subprocess.Popen[bytes], files: WorkDir) -> None:
        pids = [int(event.data["pid"]) for event in read_events(files.events) if event.event == "start"]
        for pid in [process.pid, *pids]:
            try:
                os.killpg(os.getpgid(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()


@dataclass
class Rig:
    server: KaggleServer
    notebook: RealNotebook
    folder: Path

    def start(self, slug: str) -> subprocess.Popen[str]:
        more = [word for item in OVERRIDES for word in ("--set", item)]
        return subprocess.Popen(
            [sys.executable, "-m", "mapsage_kaggle", "relay", "demo.py", "--owner", OWNER, "--slug", slug,
             "--dataset", f"{OWNER}/scenes", "--machine", "none", "--session-limit", "20m",
             "--reserve", "10s", "--poll", "0.5s", "--state", str(self.folder / slug), *more],
            env=self.server.environment(self.folder / "home"), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, slug: str) -> str:
        process = self.start(slug)
        output, _ = process.communicate(timeout=540)
        assert process.returncode == 0, output
        return output

    def final(self, slug: str) -> dict[str, Any]:
        from mmengine.logging import HistoryBuffer

        from mapsage_kaggle.checkpoints.load import load_checkpoint

        path = self.versions(slug)[-1].output / "work_dirs" / "demo" / f"iter_{MAX_ITERS}.pth"
        return load_checkpoint(path, history_buffer=HistoryBuffer)

    def versions(self, slug: str) -> list[Version]:
        """Return the versions of the two notebooks of a chain, in their order."""
        found = [*self.server.versions.get(slug, []), *self.server.versions.get(f"{slug}-2", [])]
        return sorted(found, key=lambda version: version.begins_s)


@pytest.fixture
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    is_killed = request.node.get_closest_marker("soak") is not None
    write_kernel(tmp_path / "home" / "jupyter", sys.executable if is_killed else warm.python())
    notebook = RealNotebook(home=tmp_path / "home")
    with KaggleServer(tmp_path / "kaggle", notebook) as server:
        scenes = tmp_path / "kaggle" / "datasets" / "scenes"
        generate_scenes(scenes, train=6, val=2, size=128, seed=1)
        server.datasets[f"{OWNER}/scenes"] = scenes
        yield Rig(server=server, notebook=notebook, folder=tmp_path)


@pytest.mark.slow(scope_s=100)
def test_a_relay_of_four_real_sessions_ends_with_an_uninterrupted_runs_weights(rig: Rig) -> None:
    rig.notebook.stop_at = [6, 16, 26]
    output = rig.run("in-four-sessions")
    sessions, rig.notebook.sessions = rig.notebook.sessions, []
    assert [item.stop_reason for item in sessions] == ["user", "user", "user", "completed"], output
    assert [item.session_index for item in sessions] == [1, 2, 3, 4]
    assert len({item.run_id for item in sessions}) == 1
    ends = [item.end_iteration for item in sessions]
    assert [item.start_iteration for item in sessions] == [0, *ends[:-1]]
    assert ends[-1] == MAX_ITERS
    told = [version.parameters["EXPECT_ITERATION"] for version in rig.versions("in-four-sessions")]
    assert told == [None, *ends[:-1]]
    assert f"The run is complete, at iteration {MAX_ITERS}." in output
    assert rig.server.overlaps == []

    rig.run("in-one-session")
    assert [item.stop_reason for item in rig.notebook.sessions] == ["completed"]
    assert differences(rig.final("in-four-sessions"), rig.final("in-one-session")) == []


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_killed_relays_and_killed_sessions_end_with_the_same_weights(rig: Rig, seed: int) -> None:
    draw = random.Random(seed)
    rig.notebook.stop_at = [6, "kill", 28, 34]
    for _ in range(60):
        process = rig.start("in-many-sessions")
        try:
            output, _ = process.communicate(timeout=draw.uniform(1.0, 20.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            if draw.random() < 0.3:
                shutil.rmtree(rig.folder / "in-many-sessions", ignore_errors=True)
            continue
        assert process.returncode == 0, output
        break
    rig.run("in-many-sessions")
    # One that was pushed twice would begin again where the one before it began.
    starts = [item.start_iteration for item in rig.notebook.sessions]
    ends = [item.end_iteration for item in rig.notebook.sessions]
    assert starts == [0, *ends[:-1]]
    assert rig.server.overlaps == []

    rig.run("in-one-session")
    assert differences(rig.final("in-many-sessions"), rig.final("in-one-session")) == []
