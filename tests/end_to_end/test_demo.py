"""The demo: the whole chain on this machine, and what it leaves alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mapsage_kaggle.demo import MARKER, NUM_SESSIONS, Speed, StandIn, demo
from mapsage_kaggle.display.history import read_sessions
from mapsage_kaggle.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    with pytest.raises(UsageError, match="something that the demo did not make"):
        demo(tmp_path)
    assert thesis.read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [thesis]


def test_a_limit_has_room_for_the_overhead_and_the_reserve() -> None:
    assert Speed(overhead_s=20.0, iteration_s=0.5).limit_s(100) == 20 + 50 + 10


@pytest.mark.parametrize(
    ("nested", "data", "output"),
    [
        (False, "scenes", "mapsage-train"),
        (True, "datasets/someone/scenes", "notebooks/someone/mapsage-train"),
    ],
)
def test_sources_are_mounted_read_only_in_either_layout(
    tmp_path: Path, nested: bool, data: str, output: str
) -> None:
    for name in ("scenes", "earlier"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    kaggle = StandIn(tmp_path)
    for _ in range(2):  # the second time over the read-only folders of the first
        kaggle.begin(tmp_path / "scenes", tmp_path / "earlier", nested=nested)
        for place, text in ((data, "scenes"), (output, "earlier")):
            file = kaggle.input / place / "file"
            assert file.read_text() == text
            assert file.stat().st_mode & 0o222 == 0
            assert file.parent.stat().st_mode & 0o222 == 0


def start_demo(out: Path, home: Path) -> subprocess.Popen[str]:
    home.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "mapsage_kaggle", "demo", "--out", str(out)],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow(scope_s=260)
# Four minutes on two idle cores; the limits adapt to slower ones.
@pytest.mark.timeout(1800)
def test_three_sessions_end_by_their_limits_and_the_last_one_completes_the_run(tmp_path: Path) -> None:
    out, home = tmp_path / "demo", tmp_path / "home"
    process = start_demo(out, home)
    text, _ = process.communicate()
    assert process.returncode == 0, text

    sessions = read_sessions([max(out.glob("session_*"))])
    records = [session.record for session in sessions]
    assert len(records) >= NUM_SESSIONS
    assert {record.stop_reason for record in records[:-1]} == {"deadline"}
    assert records[-1].stop_reason == "completed"
    assert [record.start_iteration for record in records[1:]] == [
        record.end_iteration for record in records[:-1]
    ]
    assert len({record.run_id for record in records}) == 1
    # "resume verified" is said only where iteration, optimizer, schedulers and data position were checked.
    for session in sessions[1:]:
        assert "resume verified" in session.of("resume")[0].data["verdict"]
    best = records[-1].best
    assert best is not None
    assert best.value is not None
    assert best.value > 50.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "home"]
    assert list(home.rglob("*")) == []
    # What the README prints works right after it.
    readme = (ROOT / "mapsage_kaggle" / "README.md").read_text(encoding="utf-8")
    [command] = re.findall(r"^mapsage-kaggle (evaluate configs/demo\.py .*)$", readme, re.MULTILINE)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = subprocess.run(
        [sys.executable, "-m", "mapsage_kaggle", *command.split()],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "best_mIoU_iter_" in done.stdout


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_the_demo_can_run_again(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    process = start_demo(out, tmp_path / "home")
    assert process.stdout is not None
    # Until the first iteration of the first session has been told.
    for line in process.stdout:
        if "loss" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    for _ in range(100):  # torchrun and the data workers follow their worker
        if not processes_below(out):
            break
        time.sleep(0.1)
    assert processes_below(out) == []
    assert (out / MARKER).is_file()


def processes_below(folder: Path) -> list[str]:
    """Return the command lines that name a folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found
