"""Keeping checkpoints: what is saved is proven, and what was proven is never lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import BinaryIO
from unittest.mock import Mock

import pytest
from support.stores import (
    Events,
    assert_agrees,
    names,
    payload,
    real_checkpoint,
    run_python,
    save_iter,
    torch_writer,
)

from mapsage_kaggle.checkpoints import store as store_module
from mapsage_kaggle.checkpoints.choose import choose
from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256, manifest_sha256
from mapsage_kaggle.checkpoints.proving import SaveFailed
from mapsage_kaggle.checkpoints.scan import scan
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.records import CheckpointRef

# --- a save -----------------------------------------------------------------------------------


def test_a_save_is_listed_with_size_and_hash_and_named_last(store: CheckpointStore) -> None:
    with store:
        ref = save_iter(store, 10)
    data = (store.path / "iter_10.pth").read_bytes()
    assert ref.sha256 == hashlib.sha256(data).hexdigest()
    assert ref.size_bytes == len(data) == 1000
    entry = json.loads((store.path / "manifest.json").read_text())["files"]["iter_10.pth"]
    assert entry == {
        "size_bytes": 1000,
        "sha256": ref.sha256,
        "iteration": 10,
        "kind": "iter",
        "metric": None,
        "value": None,
        "proven": True,
    }
    assert (store.path / "last_checkpoint").read_text() == "iter_10.pth"
    assert names(store.path) == {"iter_10.pth", "manifest.json", "last_checkpoint", "work_dir.lock"}


def test_each_step_of_a_save_is_on_the_disk_before_the_next(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        size = f" {path.stat().st_size}" if path.name.endswith(".pth.tmp") else ""
        steps.append(f"sync {path.name.split('.json')[0].split('_checkpoint.')[0]}{size}")

    def replace(self: Path, target: Path) -> Path:
        steps.append(f"rename to {target.name}")
        return real_replace(self, target)

    with store:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)
        save_iter(store, 10)
    manifest = ["sync manifest", "rename to manifest.json", "sync work"]
    assert steps == [
        "sync iter_10.pth.tmp 1000",
        *manifest,
        "rename to iter_10.pth",
        "sync work",
        *manifest,
        "sync last",
        "rename to last_checkpoint",
        "sync work",
    ]


def test_torch_saves_straight_into_the_store_and_reads_it_back(store: CheckpointStore) -> None:
    import torch

    state = real_checkpoint(10)
    with store:
        store.save("iter_10.pth", torch_writer(state), iteration=10)
    loaded = torch.load(store.path / "iter_10.pth", weights_only=True)
    assert torch.equal(loaded["state_dict"]["weight"], state["state_dict"]["weight"])


def test_a_best_checkpoint_is_not_named_last(store: CheckpointStore) -> None:
    with store:
        save_iter(store, 10)
        store.save(
            "best_mIoU_iter_20.pth", payload("b"), iteration=20, metric="mIoU", value=0.5, make_last=False
        )
        assert store.best() == store.proven()[-1]
        assert store.newest() == store.proven()[0]
    assert (store.path / "last_checkpoint").read_text() == "iter_10.pth"


def save_best(store: CheckpointStore, iteration: int, value: float) -> Path:
    name = f"best_mIoU_iter_{iteration}.pth"
    store.save(name, payload(name), iteration=iteration, metric="mIoU", value=value, make_last=False)
    return store.path / name


def test_a_best_that_is_what_was_proven_stays_the_best(store: CheckpointStore) -> None:
    with store:
        save_best(store, 8, 50.0)
        assert store.drop_damaged_best() == ()
        assert store.best() is not None


@pytest.mark.parametrize("how", ["bit", "gone"])
def test_a_best_whose_content_has_changed_is_the_best_no_more(store: CheckpointStore, how: str) -> None:
    with store:
        path = save_best(store, 8, 50.0)
        save_iter(store, 8)
        if how == "bit":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        else:
            path.unlink()
        [told] = store.drop_damaged_best()
        assert told.startswith("best_mIoU_iter_8.pth is no longer what was proven")
        assert store.best() is None
    assert list(Manifest.read(store.path / "manifest.json").files) == ["iter_8.pth"]


def test_a_better_best_replaces_the_old_one(store: CheckpointStore) -> None:
    with store:
        for iteration, value in ((10, 0.4), (20, 0.5)):
            store.save(
                f"best_mIoU_iter_{iteration}.pth",
                payload(str(value)),
                iteration=iteration,
                metric="mIoU",
                value=value,
                make_last=False,
            )
    assert {path.name for path in store.path.glob("*.pth")} == {"best_mIoU_iter_20.pth"}
    assert_agrees(store.path)


def test_saving_without_the_lock_is_refused(store: CheckpointStore) -> None:
    with pytest.raises(MachineError, match="not locked"):
        save_iter(store, 10)


@pytest.mark.parametrize("name", ["../iter_1.pth", ".iter_1.pth", "iter_1.pth.tmp", "sub/iter_1.pth"])
def test_only_plain_checkpoint_names_are_written(store: CheckpointStore, name: str) -> None:
    with store, pytest.raises(ValueError, match="no plain checkpoint name"):
        store.save(name, payload("x"), iteration=1)


def test_a_disk_that_does_not_keep_the_bytes_is_noticed(store: CheckpointStore, events: Events) -> None:
    """The writer spoils what it has written, behind the store's back."""

    def write(stream: BinaryIO) -> None:
        stream.write(b"x" * 3_000_000)
        with (store.path / "iter_20.pth.tmp").open("r+b") as spoiler:
            spoiler.write(b"y")

    with store:
        save_iter(store, 10)
        with pytest.raises(SaveFailed, match="reads back as"):
            store.save("iter_20.pth", write, iteration=20)
    assert [event[0] for event in events] == ["checkpoint", "warning"]
    assert not (store.path / "iter_20.pth.tmp").exists()
    assert_agrees(store.path)


def test_an_error_of_the_writer_leaves_nothing_behind(store: CheckpointStore) -> None:
    def write(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise KeyError("a bug")

    with store:
        save_iter(store, 10)
        with pytest.raises(KeyError):
            store.save("iter_20.pth", write, iteration=20)
        assert_agrees(store.path)
    assert names(store.path) == {"iter_10.pth", "manifest.json", "last_checkpoint", "work_dir.lock"}


# --- a full disk ------------------------------------------------------------------------------


def fill_disk_for(store: CheckpointStore, name: str) -> None:
    """Let the next temporary file of this name meet a disk that is really full."""
    (store.path / f"{name}.tmp").symlink_to("/dev/full")


def test_a_full_disk_costs_the_second_newest_and_the_save_is_retried(
    store: CheckpointStore, events: Events
) -> None:
    with store:
        save_iter(store, 10)
        save_iter(store, 20)
        fill_disk_for(store, "iter_30.pth")
        save_iter(store, 30)
    assert {path.name for path in store.path.glob("*.pth")} == {"iter_20.pth", "iter_30.pth"}
    assert_agrees(store.path)
    assert [event[0] for event in events] == ["checkpoint"] * 2 + ["retention", "warning", "checkpoint"]
    assert "The disk is full: deleted iter_10.pth to save iter_30.pth." in events[3][2]["message"]


def test_what_is_handed_on_is_whole_where_the_disk_was_full_at_first(
    store: CheckpointStore, tmp_path: Path
) -> None:
    attached = tmp_path / "attached" / "iter_30.pth"
    attached.parent.mkdir()
    attached.write_bytes(os.urandom(3_000_000))
    with store:
        save_iter(store, 10)
        save_iter(store, 20)
        fill_disk_for(store, "iter_30.pth")
        ref = store.hand_on(attached, iteration=30, sha256=file_sha256(attached))
        assert (ref.iteration, store.newest()) == (30, ref)
    assert (store.path / "iter_30.pth").read_bytes() == attached.read_bytes()
    assert_agrees(store.path)


def test_another_file_than_was_resumed_is_not_handed_on(store: CheckpointStore, tmp_path: Path) -> None:
    attached = tmp_path / "iter_30.pth"
    attached.write_bytes(b"changed meanwhile")
    with store:
        with pytest.raises(SaveFailed, match="it is not the file that was recorded"):
            store.hand_on(attached, iteration=30, sha256="0" * 64)
        assert store.newest() is None


def test_a_full_disk_that_the_writer_hides_is_still_told_as_full(store: CheckpointStore) -> None:
    """Torch's zip writer may answer the disk's error with a RuntimeError about a position."""

    def write(stream: BinaryIO) -> None:
        try:
            stream.write(b"x" * 3_000_000)
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0") from None

    with store:
        save_iter(store, 10)
        fill_disk_for(store, "iter_20.pth")
        with pytest.raises(SaveFailed, match="No space left on device") as caught:
            store.save("iter_20.pth", write, iteration=20)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_a_disk_that_fails_otherwise_costs_no_checkpoint(store: CheckpointStore) -> None:
    def write(stream: BinaryIO) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with store:
        save_iter(store, 10)
        save_iter(store, 20)
        with pytest.raises(SaveFailed, match="Input/output error"):
            store.save("iter_30.pth", write, iteration=30)
    assert {path.name for path in store.path.glob("*.pth")} == {"iter_10.pth", "iter_20.pth"}


@pytest.mark.parametrize(
    ("error", "said"), [(OSError(errno.EIO, "Input/output error"), "Input/output"), (OSError("odd"), "odd")]
)
def test_a_disk_that_fails_as_a_file_gets_its_name_costs_no_checkpoint(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    with store:
        save_iter(store, 10)
        with monkeypatch.context() as patched:
            patched.setattr(store_module, "sync_folder", Mock(side_effect=error))
            with pytest.raises(SaveFailed, match=rf"iter_20\.pth could not be published: {said}"):
                save_iter(store, 20)
        assert {ref.file for ref in store.proven()} >= {"iter_10.pth"}


def test_an_interrupt_while_a_file_gets_its_name_is_an_interrupt(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store:
        save_iter(store, 10)
        with monkeypatch.context() as patched:
            patched.setattr(store_module, "sync_folder", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                save_iter(store, 20)
        save_iter(store, 30)
    assert "iter_30.pth" in {ref.file for ref in store.proven()}


def test_a_full_disk_under_torchs_own_writer_is_told_as_full(store: CheckpointStore) -> None:
    import torch

    with store:
        save_iter(store, 10)
        fill_disk_for(store, "iter_20.pth")
        with pytest.raises(SaveFailed, match="No space left on device"):
            store.save("iter_20.pth", torch_writer({"big": torch.zeros(3, 1_000_000)}), iteration=20)


def test_a_disk_that_stays_full_keeps_the_newest_and_raises(store: CheckpointStore, events: Events) -> None:
    def write(stream: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with store:
        save_iter(store, 10)
        save_iter(store, 20)
        with pytest.raises(SaveFailed, match="untouched"):
            store.save("iter_30.pth", write, iteration=30)
        assert_agrees(store.path)
        assert [ref.iteration for ref in store.proven()] == [20]
        save_iter(store, 40)
    assert_agrees(store.path)
    assert [event[0] for event in events].count("warning") == 2


def test_an_event_log_on_the_full_disk_does_not_fail_a_save(tmp_path: Path) -> None:
    def tell(*_: object) -> None:
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"x")

    with CheckpointStore(tmp_path, on_event=tell) as store:
        assert save_iter(store, 10).iteration == 10


# --- the lock ---------------------------------------------------------------------------------


def test_a_second_process_is_locked_out_and_told_by_whom(store: CheckpointStore) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from mapsage_kaggle.checkpoints.store import CheckpointStore\n"
        "try: CheckpointStore(Path(sys.argv[1])).lock(wait_s=0.0)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    with store:
        result = run_python(script, str(store.path))
    assert f"MachineError The folder {store.path} is in use by process {os.getpid()}" in result
    assert run_python(script, str(store.path)) == ""


def test_a_worker_that_outlives_the_trainer_does_not_hold_the_lock(tmp_path: Path) -> None:
    """The trainer forks a worker, as data loaders do, and dies; the next process can start."""
    script = (
        "import os, sys, time; from pathlib import Path\n"
        "from mapsage_kaggle.checkpoints.store import CheckpointStore\n"
        "store = CheckpointStore(Path(sys.argv[1])); store.lock(wait_s=0.0)\n"
        "pid = os.fork()\n"
        "if pid == 0: os.close(1); os.close(2); time.sleep(60); os._exit(0)\n"
        "print(pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    worker = int(run_python(script, str(tmp_path), check=False))
    try:
        with CheckpointStore(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


# --- where training starts --------------------------------------------------------------------


def test_what_lies_ahead_of_the_start_is_set_aside_until_training_has_passed_it(
    store: CheckpointStore,
) -> None:
    with store:
        save_iter(store, 10)
        save_iter(store, 20)
        assert store.start_at(10) == ("iter_20.pth",)
        assert_agrees(store.path)
        save_iter(store, 15)
        assert (store.path / "iter_20.pth.aside").exists()
        assert store.newest() == store.proven()[-1]
        save_iter(store, 20)
        assert not (store.path / "iter_20.pth.aside").exists()
    assert_agrees(store.path)


def test_what_was_set_aside_stays_while_no_checkpoint_can_be_resumed(store: CheckpointStore) -> None:
    with store:
        save_iter(store, 1)
        save_best(store, 1, 0.5)
        assert store.start_at(0) == ("iter_1.pth",), "a score was reached"
        save_best(store, 2, 0.6)
        assert (store.path / "iter_1.pth.aside").exists()
        save_iter(store, 1)
        assert not (store.path / "iter_1.pth.aside").exists()


# --- carrying over ----------------------------------------------------------------------------


@pytest.fixture
def attached(tmp_path: Path) -> Path:
    """A best checkpoint in a read-only input."""
    folder = tmp_path / "input"
    folder.mkdir()
    path = folder / "best_mIoU_iter_40.pth"
    path.write_bytes(b"the best" * 100)
    path.chmod(0o444)
    folder.chmod(0o555)
    return path


def test_the_best_of_an_earlier_session_is_carried_over_writable(
    store: CheckpointStore, attached: Path
) -> None:
    with store:
        ref = store.carry_over(attached, iteration=40, metric="mIoU", value=0.5, sha256=file_sha256(attached))
    copy = store.path / attached.name
    assert ref is not None
    assert ref == store.best()
    assert copy.read_bytes() == attached.read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o644
    assert not (store.path / "last_checkpoint").exists()


def test_a_best_that_is_not_the_recorded_file_is_not_carried_over(
    store: CheckpointStore, attached: Path
) -> None:
    with store, pytest.raises(SaveFailed, match="its record says 0000"):
        store.carry_over(attached, iteration=40, metric="mIoU", value=0.5, sha256="0" * 64)
    assert not list(store.path.glob("*.pth*"))


def test_a_file_that_is_not_what_the_manifest_beside_it_says_is_not_copied(
    store: CheckpointStore, tmp_path: Path
) -> None:
    source = tmp_path / "best_mIoU_iter_40.pth"
    source.write_bytes(b"the best")
    ref = CheckpointRef(file=source.name, iteration=40, sha256="0" * 64, size_bytes=8)
    Manifest({ref.file: ref}).write(tmp_path / "manifest.json")
    with store:
        with pytest.raises(SaveFailed, match="0000"):
            store.carry_over(source, iteration=40, metric="mIoU", value=0.5)
        with pytest.raises(SaveFailed, match="0000"):
            store.hand_on(source, iteration=40)
        assert store.proven() == ()


def test_a_carried_best_takes_the_place_of_a_worse_one(store: CheckpointStore, attached: Path) -> None:
    with store:
        save_best(store, 30, 0.4)
        assert store.carry_over(attached, iteration=40, metric="mIoU", value=0.5) == store.best()
    assert [path.name for path in store.path.glob("*.pth")] == [attached.name]


def test_a_best_that_cannot_be_read_is_told_as_such(store: CheckpointStore, tmp_path: Path) -> None:
    with store, pytest.raises(SaveFailed, match=r"best_mIoU_iter_1\.pth"):
        store.carry_over(tmp_path / "best_mIoU_iter_1.pth", iteration=1, metric="mIoU", value=0.5)


def test_a_better_best_is_not_overwritten_by_a_carried_one(store: CheckpointStore, attached: Path) -> None:
    with store:
        store.save(
            "best_mIoU_iter_50.pth", payload("b"), iteration=50, metric="mIoU", value=0.6, make_last=False
        )
        assert store.carry_over(attached, iteration=40, metric="mIoU", value=0.5) is None
    assert [path.name for path in store.path.glob("*.pth")] == ["best_mIoU_iter_50.pth"]


# --- retention --------------------------------------------------------------------------------


def test_milestones_that_fit_are_kept_newest_first(tmp_path: Path) -> None:
    with CheckpointStore(tmp_path, budget_bytes=4000, milestones_every=10) as store:
        for iteration in (5, 10, 15, 20, 25, 30, 35):
            save_iter(store, iteration)
        assert [ref.iteration for ref in store.proven()] == [10, 20, 30, 35]
        save_iter(store, 40)
        assert [ref.iteration for ref in store.proven()] == [20, 30, 35, 40]
    assert_agrees(tmp_path)


# --- killed at every file event ---------------------------------------------------------------

KILLED_SAVES = r"""
import os, shutil, signal, sys
from pathlib import Path
from mapsage_kaggle.checkpoints.store import CheckpointStore

out = Path(sys.argv[1])
template = out / "template"

def content(text):
    return (out / f"content_{text}").read_bytes()

def write(text):
    def writer(stream):
        data = content(text)
        for start in range(0, len(data), 1_100_000):
            stream.write(data[start:start + 1_100_000])
            event("write")
    return writer

with CheckpointStore(template) as store:
    for i in (10, 20):
        store.save(f"iter_{i}.pth", lambda stream: stream.write(content(str(i))), iteration=i)
    store.save("best_mIoU_iter_10.pth", lambda s: s.write(content("b10")), iteration=10, metric="mIoU",
               value=0.4, make_last=False)

count, die_at, log = 0, None, None

def event(name):
    global count
    if die_at is None:
        return
    count += 1
    if count == die_at:
        os.write(log, f"killed at {name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

def audit(name, arguments):
    if name in ("os.rename", "os.remove", "os.truncate", "fcntl.flock"):
        event(name)
    elif name == "open" and str(folder) in str(arguments[0]):
        event("open")

def session():
    with CheckpointStore(folder) as store:
        store.save("iter_30.pth", write("30"), iteration=30)
        os.write(log, b"iter_30\n")
        store.save("best_mIoU_iter_30.pth", write("b30"), iteration=30, metric="mIoU", value=0.5,
                   make_last=False)
        os.write(log, b"best_30\n")
        store.save("iter_30.pth", write("30again"), iteration=30)
        os.write(log, b"again_30\n")

real_fsync = os.fsync
def fsync(descriptor):
    event("fsync before")
    real_fsync(descriptor)
    event("fsync after")
os.fsync = fsync

for number in range(1, 1000):
    folder = out / f"kill_{number:03d}"
    shutil.copytree(template, folder)
    pid = os.fork()
    if pid == 0:
        log = os.open(out / f"kill_{number:03d}.log", os.O_WRONLY | os.O_CREAT)
        sys.addaudithook(audit)
        die_at = number
        session()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        print(number - 1)
        sys.exit(os.waitstatus_to_exitcode(status))
sys.exit(9)
"""


@pytest.fixture(scope="module")
def killed_saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with one work dir for each file event that its process was killed at."""
    import torch

    folder = tmp_path_factory.mktemp("killed")
    for text, iteration, score in (
        ("10", 10, None),
        ("20", 20, None),
        ("30", 30, None),
        ("30again", 30, 0.5),
        ("b10", 10, 0.4),
        ("b30", 30, 0.5),
    ):
        state = real_checkpoint(iteration, score=score, optimizer=not text.startswith("b"))
        state["state_dict"]["big"] = torch.randn(600_000)
        torch.save(state, folder / f"content_{text}")
    num_events = int(run_python(KILLED_SAVES, str(folder)))
    assert num_events > 60
    return folder


def test_a_kill_at_any_file_event_of_a_save_loses_nothing_proven(killed_saves: Path) -> None:
    good = {file_sha256(path): path.name.partition("_")[2] for path in killed_saves.glob("content_*")}
    places = set()
    for log_file in sorted(killed_saves.glob("kill_*.log")):
        folder, log = log_file.with_suffix(""), log_file.read_text().splitlines()
        if not log[-1].startswith("killed"):
            continue  # the last one, which was left alone
        places.add(log[-1])
        # As the next session finds it in its read-only input.
        last = folder / (folder / "last_checkpoint").read_text()
        assert good[manifest_sha256(last) or ""] == good[file_sha256(last)], log
        assert all(file_sha256(path) in good for path in folder.glob("*.pth")), log
        choice = choose(inspect=inspect, inputs=scan(folder).files, resume="require")
        assert choice.inspection is not None
        assert choice.inspection.iteration in ((30,) if "iter_30" in log else (20, 30)), log
        assert choice.steps_down == (), log
        # As the next process on this machine finds it.
        with CheckpointStore(folder) as store:
            assert not list(folder.glob("*.tmp")), log
            listed = {ref.file: good[ref.sha256] for ref in store.proven()}
            best = store.best()
            assert best is not None, log
            assert listed[best.file] == ("b30" if best.iteration == 30 else "b10"), log
            assert best.iteration == 30 or "best_30" not in log, log
            save_iter(store, 40)
        assert_agrees(folder)
    assert places == {
        f"killed at {place}"
        for place in ("write", "fsync before", "fsync after", "open", "os.rename", "os.remove", "fcntl.flock")
    } | {"killed at os.truncate"}
