"""The verdict on checkpoints, true ones and ones damaged in one way each; and their loading."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.real_checkpoints import entry_data, real_checkpoints

from mapsage_kaggle.checkpoints.inspect import Inspection, compare_shapes, inspect
from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.errors import CheckpointError
from mapsage_kaggle.records import TrainedScale

Change = Callable[[dict[str, Any]], Any]


def changed(path: Path, change: Change, **how: Any) -> Path:
    """Load a true checkpoint, change it, and save it to the same path as torch does."""
    import mmengine.logging  # noqa: F401 - the histories become mmengine's own again

    tree = load_checkpoint(path)
    result = change(tree)
    torch.save(tree if result is None else result, path, **how)
    return path


def rejection(path: Path, **arguments: Any) -> str:
    found = inspect(path, **arguments)
    assert found.verdict == "rejected", found
    return "; ".join(found.problems)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(
    path: Path,
    entries: dict[str, bytes],
    compression: int = zipfile.ZIP_STORED,
    without: str = ".data/serialization_id",
) -> Path:
    """Pack entries anew. Without the identity, as files of torch before 2.1 are."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            if not without or not name.endswith(without):
                archive.writestr(name, data)
    return path


# True files


def test_a_true_checkpoint_is_resumable_without_a_problem(tiny: Path) -> None:
    found = inspect(tiny / "iter_8.pth")
    assert (found.verdict, found.problems, found.iteration, found.full) == ("resumable", (), 8, True)


def test_a_true_checkpoint_tells_about_its_run(tiny: Path) -> None:
    found = inspect(tiny / "iter_8.pth")
    assert found.seed == 3
    assert found.classes == ("background", "building")
    assert found.best_score == 50.25
    assert found.best_ckpt is not None
    assert found.best_ckpt.endswith("best_mIoU_iter_4.pth")
    assert found.mmengine_version is not None
    assert found.run_id is None


def test_the_sha256_is_that_of_the_file(tiny: Path) -> None:
    import hashlib

    assert (
        inspect(tiny / "iter_8.pth").sha256 == hashlib.sha256((tiny / "iter_8.pth").read_bytes()).hexdigest()
    )


def test_a_best_file_is_weights_only(tiny: Path) -> None:
    found = inspect(tiny / "best_mIoU_iter_4.pth")
    assert (found.verdict, found.iteration) == ("weights-only", 4)
    assert found.problems == (
        "it has no optimizer, param_schedulers: a resume would silently start those afresh",
    )


def test_a_segformer_checkpoint_of_the_runner_is_resumable() -> None:
    found = inspect(real_checkpoints() / "segformer/iter_8000.pth")
    assert (found.verdict, found.iteration, found.problems) == ("resumable", 8000, ())


def test_the_header_alone_gives_the_same_verdict_without_a_sha256(tiny: Path) -> None:
    found = inspect(tiny / "iter_8.pth", full=False)
    assert (found.verdict, found.iteration, found.sha256, found.full) == ("resumable", 8, None, False)


def test_the_kits_own_keys_are_read(copy: Path) -> None:
    def note(tree: dict[str, Any]) -> None:
        tree["message_hub"]["runtime_info"].update(
            mapsage_run_id="0123456789ab",
            mapsage_fingerprint="f00",
            mapsage_owed_validation=8,
            mapsage_stopped_by="EarlyStoppingHook",
            mapsage_scale={"factor": 2.0, "low": 1.0, "high": 4.0},
        )

    found = inspect(changed(copy, note))
    assert (found.run_id, found.fingerprint, found.owed_validation) == ("0123456789ab", "f00", 8)
    assert found.stopped_by == "EarlyStoppingHook"
    assert found.scale == TrainedScale(factor=2.0, low=1.0, high=4.0)
    assert found.verdict == "resumable"


def test_the_numpy_1_layout_is_understood(copy: Path) -> None:
    """numpy 1 names its module numpy.core; the file is rewritten with that name, two bytes shorter."""
    entries = members(copy)
    pickle_name = next(name for name in entries if name.endswith("data.pkl"))
    assert b"numpy._core.multiarray" in entries[pickle_name]
    entries[pickle_name] = entries[pickle_name].replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    found = inspect(rewrite(copy, entries))
    assert (found.verdict, found.best_score) == ("resumable", 50.25)
    assert isinstance(load_checkpoint(copy)["message_hub"]["runtime_info"]["best_score"], np.float32)


@pytest.mark.parametrize("layout", ["bare", "wrapped", "module", "with meta"])
def test_pretrained_weights_are_weights_only(tmp_path: Path, layout: str) -> None:
    weights = {"conv.weight": torch.ones(4, 3), "conv.bias": torch.zeros(4)}
    trees: dict[str, Any] = {
        "bare": weights,
        "wrapped": {"state_dict": weights},
        "module": {"state_dict": {f"module.{key}": value for key, value in weights.items()}},
        "with meta": {"state_dict": weights, "meta": {"config": "model = dict()", "CLASSES": ("a",)}},
    }
    torch.save(trees[layout], tmp_path / "mit_b2.pth")
    assert inspect(tmp_path / "mit_b2.pth").verdict == "weights-only"


def test_parameters_and_half_precision_are_understood(tmp_path: Path) -> None:
    tree = {
        "state_dict": {
            "parameter": torch.nn.Parameter(torch.ones(2, 3)),
            "half": torch.ones(5, dtype=torch.float16),
            "bf": torch.ones(5, dtype=torch.bfloat16),
            "long": torch.tensor(7),
            "view": torch.arange(12.0).reshape(3, 4).t()[1:3],
            "empty": torch.empty(0, 3),
            "unsigned": torch.ones(3, dtype=torch.uint16),
        }
    }
    torch.save(tree, tmp_path / "w.pth")
    assert inspect(tmp_path / "w.pth").verdict == "weights-only"
    loaded = load_checkpoint(tmp_path / "w.pth")["state_dict"]
    for key, value in tree["state_dict"].items():
        assert torch.equal(loaded[key], value), key
        assert loaded[key].stride() == value.stride(), key


def test_a_container_that_holds_itself_is_looked_through_once(copy: Path) -> None:
    def close(tree: dict[str, Any]) -> None:
        tree["meta"]["again"] = tree["meta"]

    assert inspect(changed(copy, close)).verdict == "resumable"


def test_what_a_message_hub_may_hold_is_understood(copy: Path) -> None:
    values = {
        "float32": np.float32(1.5),
        "int64": np.int64(-3),
        "bool": np.bool_(True),
        "text": np.str_("mIoU"),
        "complex": np.complex128(1 + 2j),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
        "texts": np.array(["a", "bc"]),
        "bytes": b"\x00\xff",
        "set": {1, 2},
        "slice": slice(1, None, 2),
        "complex number": 1j,
        "long": 2**70,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "tensor": torch.tensor(2.5, dtype=torch.float64),
    }
    changed(copy, lambda tree: tree["message_hub"]["runtime_info"].update(values))
    assert inspect(copy).verdict == "resumable"
    loaded = load_checkpoint(copy)["message_hub"]["runtime_info"]
    for key, value in values.items():
        assert np.array_equal(loaded[key], value), key
        if key != "size":  # a tuple, of which torch.Size is a kind
            assert type(loaded[key]) is type(value), key


def test_an_array_of_objects_is_refused(copy: Path) -> None:
    changed(copy, lambda tree: tree["meta"].update(x=np.array([{}], dtype=object)))
    assert "numpy.dtype is called with ('O8', False, True), which no checkpoint does" in rejection(copy)


# Inspection needs no torch


def test_inspection_needs_no_torch(tiny: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from mapsage_kaggle.checkpoints.inspect import inspect\n"
        "print(inspect(Path(sys.argv[1])).verdict)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny / "iter_8.pth")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.stdout == "resumable\n"


# Files that are something else


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04", "it has 4 bytes, too few for any checkpoint"),
        (
            b"<!DOCTYPE html><html>...",
            "it is a web page, not a checkpoint: a download went wrong; fetch it again",
        ),
        (b"  \n<html>", "it is a web page, not a checkpoint: a download went wrong; fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer, not the checkpoint"),
        (b"\0" * 5000, "it begins with zeros: it was never written out"),
        (b"\x89PNG\r\n", "it is not a file that torch.save writes: it begins with '\\x89PNG\\x0d\\x0a'"),
        (b"\x80\x02}.", "it is a bare pickle, not a file that torch.save writes"),
    ],
    ids=["empty", "four bytes", "html", "html after space", "lfs", "zeros", "png", "bare pickle"],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "iter_8.pth").write_bytes(data)
    assert rejection(tmp_path / "iter_8.pth").startswith(reason)


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    assert rejection(tmp_path / "iter_8.pth") == "it cannot be read: No such file or directory"


def test_what_is_no_regular_file_is_rejected_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path, tmp_path / "pipe.pth", Path("/dev/zero")):
        assert rejection(path) == "it cannot be read: it is not a regular file"


def test_another_zip_file_is_no_checkpoint(tmp_path: Path) -> None:
    path = rewrite(tmp_path / "a.pth", {"word/document.xml": b"<x/>", "[Content_Types].xml": b"<x/>"})
    assert rejection(path) == (
        "it is a zip file, but not a checkpoint: "
        "'[Content_Types].xml' does not lie in one folder with the rest"
    )


def test_numpys_zip_file_is_no_checkpoint(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    assert "it is a zip file, but not a checkpoint" in rejection(tmp_path / "a.npz")


def test_a_zip_bomb_is_rejected_before_it_unfolds(copy: Path) -> None:
    entries = {**members(copy), "archive/bomb": b"\0" * 10_000_000}
    path = rewrite(copy, entries, zipfile.ZIP_DEFLATED)
    assert "is compressed, which torch.save never does: another kind of zip file, or a bomb" in rejection(
        path
    )


def test_a_torchscript_program_is_no_checkpoint(copy: Path) -> None:
    rewrite(copy, {**members(copy), "archive/constants.pkl": b"\x80\x02)."})
    assert rejection(copy) == "it is a TorchScript program, not a checkpoint"


def test_a_pickle_of_another_kind_of_value_is_rejected(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "a.pth")
    assert rejection(tmp_path / "a.pth") == "it holds a list, expected a dictionary"


def test_a_checkpoint_without_weights_is_rejected(copy: Path) -> None:
    changed(copy, lambda tree: tree.pop("state_dict") and None)
    assert rejection(copy).startswith("it has no weights: expected a state_dict, found meta, message_hub")
    assert len(inspect(copy, shapes={"fc.weight": (2, 4)}).problems) == 1, "that says it all"


# Damage


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_rejected(copy: Path, keep: float) -> None:
    data = copy.read_bytes()
    copy.write_bytes(data[: int(len(data) * keep)])
    assert "the end of the zip archive is missing" in rejection(copy)
    assert "the end of the zip archive is missing" in rejection(copy, full=False)


def test_bytes_after_the_end_are_rejected(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes() + b"more")
    assert "the end of the zip archive is missing" in rejection(copy)


def test_bytes_before_the_start_are_rejected(copy: Path) -> None:
    copy.write_bytes(b"PK\x03\x04more" + copy.read_bytes())
    assert rejection(copy) == "the end of the zip archive is damaged"


def test_one_flipped_bit_in_a_tensor_is_named_by_its_entry(copy: Path) -> None:
    start, size = entry_data(copy, "data/0")
    data = bytearray(copy.read_bytes())
    data[start + size // 2] ^= 0x10
    copy.write_bytes(data)
    assert rejection(copy).startswith("data/0: its data is damaged: checksum ")
    with pytest.raises(CheckpointError, match="data/0: its data is damaged"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("after", "offset", "reason"),
    [
        (b"PK\x07\x08", 4, "data.pkl: what follows its data contradicts the directory"),
        (b"PK\x07\x08", 8, "data.pkl: what follows its data contradicts the directory"),
        (b"PK\x03\x04", 6, "data.pkl: its header is damaged"),
        (b"PK\x03\x04", 10, "data.pkl: its header is damaged"),
        (b"PK\x03\x04", 14, "data.pkl: its header contradicts the directory"),
        (
            b"PK\x03\x04",
            30,
            "data.pkl: its header has the name 'brchive/data.pkl': exchanged or overwritten",
        ),
    ],
    ids=["checksum behind", "size behind", "flags", "time", "checksum before", "name"],
)
def test_what_is_written_twice_must_agree(copy: Path, after: bytes, offset: int, reason: str) -> None:
    data = bytearray(copy.read_bytes())
    data[data.index(after) + offset] ^= 3
    copy.write_bytes(data)
    assert rejection(copy) == reason


def test_bytes_hidden_between_entries_are_rejected(copy: Path) -> None:
    entries = members(copy)
    with zipfile.ZipFile(copy, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
            if name.endswith("byteorder"):
                assert archive.fp is not None
                archive.fp.write(b"hidden")
                archive.start_dir = archive.fp.tell()
    assert rejection(copy).endswith("something lies between the entries, or one overlaps another")


def test_two_entries_of_one_name_are_rejected(copy: Path) -> None:
    with zipfile.ZipFile(copy, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data/0", b"0" * 432)
    assert rejection(copy) == "two entries have the name data/0: which one counts would depend on the reader"


def test_exchanged_directory_entries_are_rejected(copy: Path) -> None:
    raw = copy.read_bytes()
    start = raw.index(b"PK\x01\x02")
    body = raw[start:].replace(b"archive/data/2", b"archive/data/X")
    body = body.replace(b"archive/data/3", b"archive/data/2").replace(b"archive/data/X", b"archive/data/3")
    copy.write_bytes(raw[:start] + body)
    assert "exchanged or overwritten" in rejection(copy) or "data/" in rejection(copy, full=False)


def test_storages_exchanged_by_a_zip_tool_are_told_by_the_identity(copy: Path) -> None:
    entries = members(copy)
    assert inspect(rewrite(copy, entries, without="")).verdict == "resumable"
    first, second = (f"archive/data/{key}" for key in (1, 2))
    assert len(entries[first]) == len(entries[second])
    entries[first], entries[second] = entries[second], entries[first]
    assert entries != members(copy)
    assert rejection(rewrite(copy, entries, without="")) == (
        "it was packed again after it was saved, and its content changed"
    )


def test_a_file_saved_without_checksums_says_so(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": {"w": torch.ones(3)}}, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert rejection(tmp_path / "w.pth").startswith("it was saved without checksums")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("data/1", None, "its storage data/1 is not in the archive"),
        ("data/0", b"0" * 428, "its storage data/0 has 428 bytes, expected 432"),
        ("data/999", b"0000", "nothing in it refers to data/999: it does not belong to this pickle"),
    ],
    ids=["missing", "short", "unused"],
)
def test_storages_that_are_not_the_pickle_s_are_rejected_and_not_loaded(
    copy: Path, name: str, content: bytes | None, reason: str
) -> None:
    entries = members(copy)
    if content is None:
        del entries[f"archive/{name}"]
    else:
        entries[f"archive/{name}"] = content
    path = rewrite(copy, entries)
    assert reason in rejection(path)
    with pytest.raises(CheckpointError, match=re.escape(reason)):
        load_checkpoint(path)


def test_a_big_endian_file_is_rejected(copy: Path) -> None:
    entries = {**members(copy), "archive/byteorder": b"big"}
    assert rejection(rewrite(copy, entries)).startswith("it was written on a big-endian machine")


# Content


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(copy: Path, value: float, dtype: torch.dtype) -> None:
    def spoil(tree: dict[str, Any]) -> None:
        weight = tree["state_dict"]["fc.weight"].to(dtype)
        weight[1, 2] = value
        tree["state_dict"]["fc.weight"] = weight

    assert rejection(changed(copy, spoil)) == "NaN or Inf in the weights: state_dict.fc.weight"
    assert inspect(copy, full=False).verdict == "resumable"


def test_the_largest_finite_values_pass(copy: Path) -> None:
    def spoil(tree: dict[str, Any]) -> None:
        for index, dtype in enumerate((torch.float32, torch.float64, torch.float16, torch.bfloat16)):
            largest = torch.finfo(dtype).max
            tree["state_dict"][f"x{index}"] = torch.tensor([largest, -largest, 0.0], dtype=dtype)

    assert inspect(changed(copy, spoil)).verdict == "resumable"


def test_nan_in_the_optimizer_leaves_the_weights_usable(copy: Path) -> None:
    def spoil(tree: dict[str, Any]) -> None:
        tree["optimizer"]["state"][0]["exp_avg"][0] = float("nan")

    found = inspect(changed(copy, spoil))
    assert found.verdict == "weights-only"
    assert found.problems == ("NaN or Inf in the optimizer's state: optimizer.state.0.exp_avg",)


@pytest.mark.parametrize("score", [float("nan"), float("-inf")])
def test_a_score_that_is_no_number_keeps_nobody_from_resuming(copy: Path, score: float) -> None:
    changed(copy, lambda tree: tree["message_hub"]["runtime_info"].update(best_score=score))
    found = inspect(copy)
    assert (found.verdict, found.best_score) == ("resumable", None)


def test_nan_outside_of_a_window_is_nobodys(tmp_path: Path) -> None:
    whole = torch.full((8,), float("nan"))
    whole[2:4] = 1.0
    torch.save({"state_dict": {"window": whole[2:4]}}, tmp_path / "w.pth")
    assert inspect(tmp_path / "w.pth").verdict == "weights-only"
    torch.save({"state_dict": {"window": whole[2:5]}}, tmp_path / "w.pth")
    assert rejection(tmp_path / "w.pth").startswith("NaN or Inf in the weights: state_dict.window")


def test_the_name_must_agree_with_the_iteration(tiny: Path, tmp_path: Path) -> None:
    wrong = Path(shutil.copy(tiny / "iter_8.pth", tmp_path / "iter_7.pth"))
    assert rejection(wrong) == "its name says iteration 7, its meta.iter says 8"
    best = Path(shutil.copy(tiny / "best_mIoU_iter_4.pth", tmp_path / "best_mIoU_iter_5.pth"))
    assert rejection(best).startswith("its name says iteration 5, its meta.iter says 4")


def test_a_name_that_says_nothing_is_not_compared(tiny: Path, tmp_path: Path) -> None:
    assert inspect(Path(shutil.copy(tiny / "iter_8.pth", tmp_path / "latest.pth"))).verdict == "resumable"


@pytest.mark.parametrize("key", ["optimizer", "param_schedulers", "message_hub"])
def test_what_a_resume_needs_is_missed_by_name(copy: Path, key: str) -> None:
    found = inspect(changed(copy, lambda tree: tree.pop(key) and None))
    assert found.verdict == "weights-only"
    assert found.problems == (f"it has no {key}: a resume would silently start those afresh",)


def test_a_checkpoint_that_does_not_say_its_iteration_is_weights_only(copy: Path) -> None:
    found = inspect(changed(copy, lambda tree: tree["meta"].pop("iter") and None))
    assert (found.verdict, found.iteration) == ("weights-only", None)


def test_python_text_that_mmengine_would_run_is_refused_and_never_handed_on(copy: Path) -> None:
    changed(copy, lambda tree: tree["meta"].update(config="import os; os.abort()"))
    assert rejection(copy) == (
        "it has meta.config, which mmengine would run as Python on resume; true checkpoints have none"
    )
    assert "config" not in load_checkpoint(copy)["meta"]


def test_other_classes_are_refused(copy: Path) -> None:
    assert inspect(copy, classes=("background", "building")).verdict == "resumable"
    assert rejection(copy, classes=("building", "background")) == (
        "it was trained on the classes background, building, expected building, background"
    )


def test_the_manifests_sha256_must_agree(copy: Path) -> None:
    right = inspect(copy).sha256
    assert inspect(copy, manifest_sha256=right).verdict == "resumable"
    assert rejection(copy, manifest_sha256="0" * 64).startswith(f"its sha256 is {str(right)[:12]}…")


def test_the_models_shapes_are_compared(copy: Path) -> None:
    shapes = {key: tuple(value.shape) for key, value in load_checkpoint(copy)["state_dict"].items()}
    assert inspect(copy, shapes=shapes).verdict == "resumable"
    other = {**shapes, "fc.weight": (7, 4), "extra.weight": (1,)}
    del other["fc.bias"]
    assert inspect(copy, shapes=other, full=False).problems == (
        "1 weights of the model are missing in it: extra.weight",
        "1 weights in it are not in the model: fc.bias",
        "1 weights differ in shape: fc.weight is (2, 4), expected (7, 4)",
    )


def test_long_lists_of_misfits_are_cut() -> None:
    expected = {f"layer.{index}": (1,) for index in range(9)}
    assert compare_shapes({}, expected) == [
        "9 weights of the model are missing in it: layer.0, layer.1, layer.2, layer.3 and 5 more"
    ]


def test_the_prefix_of_a_wrapped_model_is_disregarded() -> None:
    assert compare_shapes({"module.a": (1,), "module.b": (2,)}, {"a": (1,), "b": (2,)}) == []


def test_the_json_is_the_contracts(tiny: Path) -> None:
    path = tiny / "best_mIoU_iter_4.pth"
    found = inspect(path)
    assert found.to_json() == {
        "path": str(path),
        "verdict": "weights-only",
        "iteration": 4,
        "problems": list(found.problems),
    }
    assert isinstance(found, Inspection)


# The format of torch before 1.6


def test_a_legacy_file_is_weights_only_and_says_how_to_convert_it(legacy: Path) -> None:
    found = inspect(legacy)
    assert (found.verdict, found.format, found.iteration) == ("weights-only", "legacy", 8)
    assert "before 1.6" in found.problems[0]
    assert "torch.save(torch.load(" in found.problems[0]


@pytest.mark.parametrize("cut", [1, 9, 100, 4000])
def test_a_truncated_legacy_file_is_rejected(legacy: Path, cut: int) -> None:
    legacy.write_bytes(legacy.read_bytes()[:-cut])
    assert rejection(legacy)


def test_nan_in_a_legacy_file_is_found(tmp_path: Path) -> None:
    torch.save(
        {"a": torch.tensor([1.0, float("nan")])}, tmp_path / "w.pth", _use_new_zipfile_serialization=False
    )
    assert rejection(tmp_path / "w.pth").startswith("NaN or Inf in the weights: a")
