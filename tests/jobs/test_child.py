"""Work after training runs in a child: what it is given, and how its words and its end come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support.standin import REPOSITORY

from mapsage_kaggle import errors
from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256
from mapsage_kaggle.config import requirements
from mapsage_kaggle.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    JobError,
    MachineError,
    MapsageError,
    UsageError,
)
from mapsage_kaggle.jobs.child import as_interrupted, run_child
from mapsage_kaggle.jobs.subject import ModelOptions, find_checkpoint, judge, open_subject
from mapsage_kaggle.paths import KagglePaths
from mapsage_kaggle.records import CheckpointRef, SessionRecord

DEMO = REPOSITORY / "configs" / "demo.py"


def write_weights(path: Path, value: float = 1.0, iteration: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"meta": {"iter": iteration}, "state_dict": {"w": torch.full((3,), value)}}, path)
    return path


# -- what it is given


@pytest.fixture
def paths(tmp_path: Path) -> KagglePaths:
    found = KagglePaths(input=tmp_path / "input", working=tmp_path / "working", temp=tmp_path / "temp")
    for folder in (found.input, found.working, found.temp):
        folder.mkdir()
    return found


def test_the_latest_best_goes_before_the_highest_iteration(paths: KagglePaths) -> None:
    work_dir = paths.work_dir(DEMO)
    for name in ("iter_20.pth", "best_mIoU_iter_8.pth", "best_mIoU_iter_12.pth"):
        write_weights(work_dir / name)

    assert find_checkpoint(work_dir, paths.input).name == "best_mIoU_iter_12.pth"
    (work_dir / "best_mIoU_iter_12.pth").unlink()
    (work_dir / "best_mIoU_iter_8.pth").unlink()
    assert find_checkpoint(work_dir, paths.input).name == "iter_20.pth"


def test_an_attached_output_is_taken_where_the_work_dir_has_nothing(paths: KagglePaths) -> None:
    there = write_weights(paths.input / "last" / "best_mIoU_iter_8.pth")

    assert find_checkpoint(paths.work_dir(DEMO), paths.input) == there


def attach(paths: KagglePaths, name: str, run_id: str, iteration: int) -> Path:
    """Attach an output with its best checkpoint, its manifest and its record."""
    folder = paths.input / name
    path = write_weights(folder / f"best_mIoU_iter_{iteration}.pth", iteration=iteration)
    ref = CheckpointRef(
        file=path.name, iteration=iteration, sha256=file_sha256(path), size_bytes=path.stat().st_size,
        metric="mIoU", value=0.5,
    )  # fmt: skip
    Manifest().with_file(ref).write(folder / "manifest.json")
    SessionRecord(run_id=run_id, fingerprint="", best=ref).write(folder / "session.json")
    return path


def test_a_stranger_s_best_with_a_higher_number_is_not_taken(paths: KagglePaths) -> None:
    mine = attach(paths, "mine", "aaa", 8)
    write_weights(paths.input / "pictures" / "best_acc_iter_999999.pth")

    assert find_checkpoint(paths.work_dir(DEMO), paths.input) == mine


def test_of_two_attached_runs_one_must_be_named(paths: KagglePaths) -> None:
    attach(paths, "mine", "aaa", 8)
    theirs = attach(paths, "theirs", "bbb", 12)

    with pytest.raises(CheckpointError, match=r"run bbb\): --run bbb"):
        find_checkpoint(paths.work_dir(DEMO), paths.input)
    assert find_checkpoint(paths.work_dir(DEMO), paths.input, run="bbb") == theirs


def test_no_checkpoint_anywhere_is_refused_with_the_places_searched(paths: KagglePaths) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(paths.work_dir(DEMO), paths.input)

    assert str(paths.work_dir(DEMO)) in str(caught.value)
    assert str(paths.input) in str(caught.value)


def test_a_missing_a_cut_and_a_changed_file_are_each_refused(tmp_path: Path) -> None:
    file = write_weights(tmp_path / "iter_8.pth")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        judge(tmp_path / "iter_9.pth")

    assert judge(file).sha256 is not None
    other = CheckpointRef(file="iter_8.pth", iteration=8, sha256="0" * 64, size_bytes=file.stat().st_size)
    Manifest().with_file(other).write(tmp_path / "manifest.json")
    with pytest.raises(CheckpointError, match="sha256"):
        judge(file)

    (tmp_path / "manifest.json").unlink()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is rejected"):
        judge(file)


def test_a_config_without_a_model_is_refused(paths: KagglePaths, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("default_scope = 'mmseg'\n")
    file = write_weights(tmp_path / "iter_8.pth")

    with pytest.raises(ConfigError, match="has no model"):
        open_subject(ModelOptions(config=tmp_path / "empty.py", checkpoint=file), paths=paths)


def test_a_package_that_the_model_needs_is_named(
    paths: KagglePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    (tmp_path / "other.py").write_text("model = dict(backbone=dict(type='mmpretrain.ConvNeXt'))\n")

    with pytest.raises(MachineError, match="needs the package mmpretrain"):
        open_subject(ModelOptions(config=tmp_path / "other.py"), paths=paths)


def test_no_threads_at_all_is_refused(paths: KagglePaths) -> None:
    with pytest.raises(UsageError, match="--threads 0"):
        open_subject(ModelOptions(config=DEMO, threads=0), paths=paths)


# -- how its words and its end come back


@pytest.fixture
def child(
    paths: KagglePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    """Run a body of code as a module of the engine's in a child."""
    modules = tmp_path / "modules"
    modules.mkdir()
    # What Python imports at its start adds a folder to the engine's jobs.
    (modules / "sitecustomize.py").write_text(
        f"import mapsage_kaggle.engine.jobs as jobs\njobs.__path__.append({str(modules)!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(modules))
    file = write_weights(tmp_path / "best_mIoU_iter_8.pth")
    options = ModelOptions(config=DEMO, checkpoint=file, device="cpu", threads=1)
    subject = open_subject(options, paths=paths)

    def run(body: str, on_event: Any = None, **job: Any) -> dict[str, Any]:
        source = "import os, signal, subprocess, sys, time\nfrom pathlib import Path\n"
        source += "def run(job, emit):\n" + textwrap.indent(textwrap.dedent(body), "    ")
        (modules / "trial.py").write_text(source)
        return run_child("trial", {**subject.job(), **job}, subject, on_event)

    run.subject = subject  # type: ignore[attr-defined]
    return run


def test_what_it_is_given_reaches_it_and_what_it_returns_comes_back(
    child: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    body = """
        from mapsage_kaggle.config.reading import read_config
        cfg = read_config(Path(job["config"]))
        return {"head": cfg.model.decode_head.type, "checkpoint": job["checkpoint"], "extra": job["extra"]}
    """

    found = child(body, extra=[1, 2])

    checkpoint = str(tmp_path / "best_mIoU_iter_8.pth")
    assert found == {"head": "SegformerHead", "checkpoint": checkpoint, "extra": [1, 2]}


def test_events_come_in_order_and_what_libraries_print_does_not_disturb_them(
    child: Callable[..., dict[str, Any]], paths: KagglePaths
) -> None:
    body = """
        for done in range(40):
            print("a library greets")
            os.write(1, b"{and from C}\\n")
            emit("progress", done=done, total=40)
        return {"num": 40}
    """
    events: list[Mapping[str, Any]] = []

    assert child(body, events.append) == {"num": 40}
    assert [event["done"] for event in events] == list(range(40))
    assert list(paths.temp.glob("trial-*")) == []


def test_a_file_name_that_is_not_utf_8_comes_back_as_it_is(child: Callable[..., dict[str, Any]]) -> None:
    name = os.fsdecode(b"caf\xe9.png")

    assert child('return {"name": job["name"]}', name=name) == {"name": name}


def test_its_refusal_is_the_parents_refusal(child: Callable[..., dict[str, Any]]) -> None:
    body = """
        from mapsage_kaggle.errors import CheckpointError
        raise CheckpointError("It does not fit.", "Take another.")
    """
    with pytest.raises(CheckpointError) as caught:
        child(body)

    assert (caught.value.problem, caught.value.remedy) == ("It does not fit.", "Take another.")
    assert caught.value.exit_code == errors.EXIT_CHECKPOINT


def test_a_fault_names_the_error_and_a_log_with_its_trace(child: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(JobError, match=r"trial failed: ZeroDivisionError: division by zero") as caught:
        child("return 1 / 0")

    log = Path(str(caught.value.remedy).removeprefix("The whole log is in ").rstrip("."))
    assert "Traceback" in log.read_text()
    assert caught.value.exit_code == errors.EXIT_TRAINING


def test_a_child_that_is_killed_is_told_with_its_last_words(child: Callable[..., dict[str, Any]]) -> None:
    body = """
        print("it was here")
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(JobError, match=r"exit code -9\)\.\n(.*\n)*  it was here"):
        child(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ModuleNotFoundError(name='rasterio')", r"rasterio is missing.*\[geo\]"),
        ("raise MemoryError()", "not enough memory"),
        ("Path('/proc/nowhere/x').write_text('')", "/proc/nowhere/x: No such file"),
    ],
)
def test_a_package_memory_or_disk_that_lacks_is_the_machines_fault(
    child: Callable[..., dict[str, Any]], body: str, words: str
) -> None:
    with pytest.raises(MachineError, match=words):
        child(body)


def test_scratch_space_that_cannot_be_written_is_named(
    child: Callable[..., dict[str, Any]], paths: KagglePaths
) -> None:
    paths.temp.rmdir()
    paths.temp.write_text("no folder")

    with pytest.raises(MachineError, match=f"scratch folder {paths.temp} cannot be written"):
        child("return {}")


def test_an_interruption_reaches_it_and_all_its_processes_end(
    child: Callable[..., dict[str, Any]], tmp_path: Path, paths: KagglePaths
) -> None:
    body = """
        below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        emit("started", pids=[os.getpid(), below.pid])
        try:
            time.sleep(600)
        finally:
            Path(job["out"]).write_text("put in order")
    """
    pids: list[int] = []

    def press_ctrl_c(event: Mapping[str, Any]) -> None:
        pids.extend(event["pids"])
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="Go on"), as_interrupted("Go on with the same command."):
        child(body, press_ctrl_c, out=str(tmp_path / "out"))

    assert (tmp_path / "out").read_text() == "put in order"
    wait_for(lambda: not any(alive(pid) for pid in pids))
    assert list(paths.temp.glob("trial-*")) == []


def test_it_ends_when_its_parent_is_killed(child: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    code = f"""
import subprocess, sys, time
from pathlib import Path
subprocess.Popen(
    [sys.executable, "-m", "mapsage_kaggle.engine.jobs.child", "trial", {str(tmp_path / "job.json")!r}],
    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
)
time.sleep(600)
"""
    child("return {}")  # writes the module; the next one waits
    waits = f"import os, time\ndef run(job, emit):\n    open({str(marker)!r}, 'w').write(str(os.getpid()))\n"
    (tmp_path / "modules" / "trial.py").write_text(waits + "    time.sleep(600)\n")
    (tmp_path / "job.json").write_text(json.dumps({}))
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(lambda: marker.exists() and marker.read_text() != "")
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()

    wait_for(lambda: not alive(int(marker.read_text())))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_every_kind_of_error_survives_the_way_back() -> None:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MapsageError)
    ]

    assert all(str(kind("A problem.", "A remedy.")) == "A problem. A remedy." for kind in kinds)
