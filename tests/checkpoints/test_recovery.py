"""A work dir in order again at the start, whatever ended the last process."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from support.stores import Events, assert_agrees, names, real_checkpoint, save_iter, torch_writer

from mapsage_kaggle.checkpoints.manifest import Manifest, manifest_sha256
from mapsage_kaggle.checkpoints.recovery import remove_strays
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.records import CheckpointRef


def test_a_torn_manifest_is_rebuilt_from_what_verifies(store: CheckpointStore, events: Events) -> None:
    with store:
        for iteration in (10, 20):
            store.save(f"iter_{iteration}.pth", torch_writer(real_checkpoint(iteration)), iteration=iteration)
        best = store.save(
            "best_mIoU_iter_10.pth",
            torch_writer(real_checkpoint(10, score=0.5, optimizer=False)),
            iteration=10,
            metric="mIoU",
            value=0.5,
            make_last=False,
        )
        before = store.proven()
    manifest = store.path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    (store.path / "iter_30.pth").write_bytes((store.path / "iter_20.pth").read_bytes()[:-40])
    with store:
        assert store.proven() == before
        assert store.best() == best
    assert events[-1][:2] == ("warning", 0)
    assert "is rebuilt from what verifies" in events[-1][2]["message"]
    assert (store.path / "iter_30.pth").exists(), "a file that does not verify is not ours to delete"


def test_a_torn_manifest_is_told_of_once_though_nothing_is_left_to_list(
    store: CheckpointStore, events: Events
) -> None:
    store.path.mkdir()
    (store.path / "manifest.json").write_text("{")
    for _ in range(2):
        with store:
            assert store.proven() == ()
    assert [event[0] for event in events] == ["warning"]


def test_a_score_that_the_manifest_knows_is_kept_and_not_read_anew(store: CheckpointStore) -> None:
    write = torch_writer(real_checkpoint(10, optimizer=False))
    with store:
        best = store.save(
            "best_mIoU_iter_10.pth", write, iteration=10, metric="mIoU", value=0.5, make_last=False
        )
    with store:
        assert store.proven() == (best,)


def test_a_link_to_a_checkpoint_is_none_of_this_folder(store: CheckpointStore, tmp_path: Path) -> None:
    with (tmp_path / "elsewhere.pth").open("wb") as stream:
        torch_writer(real_checkpoint(10))(stream)
    store.path.mkdir()
    (store.path / "iter_10.pth").symlink_to(tmp_path / "elsewhere.pth")
    with store:
        assert store.proven() == ()


def test_a_missing_file_drops_out_of_the_manifest(store: CheckpointStore) -> None:
    with store:
        save_iter(store, 10)
        save_iter(store, 20)
    (store.path / "iter_20.pth").unlink()
    with store:
        assert [ref.iteration for ref in store.proven()] == [10]
    assert_agrees(store.path)


def test_leftovers_of_a_killed_save_are_removed_and_those_of_others_are_not(store: CheckpointStore) -> None:
    store.path.mkdir()
    for name in (
        "iter_10.pth.tmp",
        "manifest.json.abc.tmp",
        "last_checkpoint.abc.tmp",
        "session.json.abc.tmp",
    ):
        (store.path / name).write_bytes(b"half")
    with store:
        assert names(store.path) == {"session.json.abc.tmp", "work_dir.lock"}


def test_a_copied_in_checkpoint_is_proven_before_it_counts(store: CheckpointStore) -> None:
    import torch

    store.path.mkdir()
    torch.save(real_checkpoint(10), store.path / "iter_10.pth")
    torch.save(real_checkpoint(20, optimizer=False), store.path / "iter_20.pth")
    torch.save(real_checkpoint(40), store.path / "pretrained.pth")
    (store.path / "iter_30.pth").write_bytes(b"<html>")
    with store:
        assert [ref.file for ref in store.proven()] == ["iter_10.pth"]
        for iteration in (11, 12, 13):
            save_iter(store, iteration)
        assert {path.name for path in store.path.glob("*.pth")} == {
            *("iter_12.pth", "iter_13.pth"),
            *("iter_20.pth", "iter_30.pth", "pretrained.pth"),
        }, "of copied-in files, only what was proven may be deleted"


def test_a_pending_rename_is_covered_by_either_hash(store: CheckpointStore) -> None:
    with store:
        old = save_iter(store, 10)
    new = CheckpointRef(file="iter_10.pth", iteration=10, sha256="f" * 64, size_bytes=1000)
    path = store.path / "iter_10.pth"
    Manifest.read(store.path / "manifest.json").with_pending(new).write(store.path / "manifest.json")
    assert manifest_sha256(path) == old.sha256
    data = b"z" * 1000
    path.write_bytes(data)
    new = CheckpointRef(
        file="iter_10.pth", iteration=10, sha256=hashlib.sha256(data).hexdigest(), size_bytes=1000
    )
    Manifest({old.file: old}, {new.file: new}).write(store.path / "manifest.json")
    assert manifest_sha256(path) == new.sha256
    with store:
        assert store.proven() == (new,)
    assert_agrees(store.path)


def test_temporary_files_are_removed_once_nobody_can_be_writing_them(tmp_path: Path) -> None:
    young, old = tmp_path / "session.json.abc.tmp", tmp_path / "config.py.def.tmp"
    for path in (young, old):
        path.write_text("half")
    os.utime(young, (time.time() - 540.0,) * 2)
    os.utime(old, (time.time() - 600.5,) * 2)
    assert remove_strays(tmp_path) == []
    assert names(tmp_path) == {young.name}
    assert remove_strays(tmp_path, age_s=60.0) == []
    assert names(tmp_path) == set()
