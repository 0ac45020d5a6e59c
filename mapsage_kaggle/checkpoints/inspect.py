"""What a checkpoint file is worth, told without trusting it and without torch."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from mapsage_kaggle.checkpoints.allowed import StorageInfo, TensorInfo, UnsafeError
from mapsage_kaggle.checkpoints.archive import Archive, DamagedError, Source
from mapsage_kaggle.checkpoints.finite import FiniteSweep
from mapsage_kaggle.checkpoints.legacy import LegacyArchive, is_legacy
from mapsage_kaggle.checkpoints.names import counts_in
from mapsage_kaggle.checkpoints.unpickle import MAX_PICKLE_BYTES, interpret
from mapsage_kaggle.messages import Message, text_of
from mapsage_kaggle.outside import joined, visible
from mapsage_kaggle.records import (
    FINGERPRINT_KEY,
    OWED_VALIDATION_KEY,
    RUN_ID_KEY,
    SCALE_KEY,
    STOPPED_BY_KEY,
    TrainedScale,
)

_MAX_DEPTH = 64

Verdict = Literal["resumable", "weights-only", "rejected"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What is known of one checkpoint file.

    Attributes:
        verdict: ``resumable``; ``weights-only``: whole, but lacking what a resume needs; ``rejected``.
        iteration: Iterations done in the state it holds; None where it does not say.
        problems: Why the verdict is no better, one sentence each. Empty when resumable.
        size_bytes: Of the file; None where it could not be read.
        sha256: Of the file; None without a full inspection.
        full: Whether every byte was proven, or only the directory and the pickle.
        format: ``zip``, ``legacy`` (before torch 1.6) or None.
        epoch: Epochs done, as mmengine counts.
        classes: Names of the classes it was trained on.
        mmengine_version: Of the writer.
        run_id: The kit's run; None for a checkpoint of plain mmengine.
        fingerprint: The kit's fingerprint of the config it was trained with.
        owed_validation: The iteration whose validation did not fit into its session.
        stopped_by: What has ended the run before its last iteration; None where nothing has.
        best_score: The best validation score so far.
        best_ckpt: The file that had it, as mmengine noted it.
        num_weights: Number of values in the model's weights.
        config_text: The config it was trained with, as text. Never run it.
        scale: At what scale it saw its images in training; None where it does not say.
    """

    path: Path
    verdict: Verdict
    iteration: int | None = None
    problems: tuple[str, ...] = ()
    size_bytes: int | None = None
    sha256: str | None = None
    full: bool = False
    format: Literal["zip", "legacy"] | None = None
    epoch: int | None = None
    seed: int | None = None
    classes: tuple[str, ...] | None = None
    mmengine_version: str | None = None
    run_id: str | None = None
    fingerprint: str | None = None
    owed_validation: int | None = None
    stopped_by: str | None = None
    best_score: float | None = None
    best_ckpt: str | None = None
    num_weights: int = 0
    config_text: str | None = field(default=None, repr=False)
    scale: TrainedScale | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "verdict": self.verdict,
            "iteration": self.iteration,
            "problems": list(self.problems),
        }


def inspect(
    path: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    classes: Sequence[str] | None = None,
    manifest_sha256: str | None = None,
    full: bool = True,
) -> Inspection:
    """Return the verdict on a checkpoint file. Runs nothing that is in it, and needs no torch.

    Args:
        path: The file.
        shapes: The shape of each of the model's weights, to compare with.
        classes: The data set's classes, to compare with.
        manifest_sha256: What the file's sha256 must be.
        full: Prove every byte (checksums, sha256, no NaN or Inf); otherwise only read the
            directory and the pickle, which takes milliseconds.

    Returns:
        The verdict. A file that cannot be read is ``rejected`` with the reason; nothing is raised.
    """
    try:
        with Source(path) as source:
            return _inspect(
                path, source, shapes=shapes, classes=classes, manifest_sha256=manifest_sha256, full=full
            )
    except OSError as error:
        return Inspection(
            path=path, verdict="rejected", problems=(f"it cannot be read: {error.strerror or error}",)
        )


def _inspect(
    path: Path,
    source: Source,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None,
    classes: Sequence[str] | None,
    manifest_sha256: str | None,
    full: bool,
) -> Inspection:
    size_bytes = source.size_bytes
    try:
        archive = open_archive(source)
        legacy = isinstance(archive, LegacyArchive)
        tree = archive.tree if isinstance(archive, LegacyArchive) else interpret(read_pickle(archive))
        tensors, odd_numbers = survey(tree)
        for place, tensor in tensors:
            check_stored(archive, tensor.storage, f"{place}: ")
        check_all_used(archive, {tensor.storage.entry for _, tensor in tensors})
        found = _judge(path, tree, shapes=shapes, classes=classes)
        found = replace(found, size_bytes=size_bytes, format="legacy" if legacy else "zip")
        if odd_numbers:
            found = _without_resume(found, f"NaN or Inf in the optimizer's state: {joined(odd_numbers)}")
        if legacy:
            found = _without_resume(found, _LEGACY)
        if not full:
            return found
        sweep = FiniteSweep(tensors)
        sha256 = archive.sweep(sweep.take)
    except (DamagedError, UnsafeError) as error:
        return Inspection(path=path, verdict="rejected", problems=(text_of(error),), size_bytes=size_bytes)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - the one boundary: a file is never a reason to crash
        return Inspection(path=path, verdict="rejected", problems=(unforeseen(error),), size_bytes=size_bytes)
    found = replace(found, sha256=sha256, full=True)
    problems, verdict = list(found.problems), found.verdict
    if manifest_sha256 is not None and sha256 != manifest_sha256:
        verdict = "rejected"
        problems.insert(0, f"its sha256 is {sha256[:12]}…, the manifest has {manifest_sha256[:12]}…")
    bad_weights, bad_state = sweep.tensors_not_finite()
    if bad_weights:
        verdict = "rejected"
        problems.insert(0, f"NaN or Inf in the weights: {joined(bad_weights)}")
    if bad_state:
        verdict = "weights-only" if verdict == "resumable" else verdict
        problems.append(f"NaN or Inf in the optimizer's state: {joined(bad_state)}")
    return replace(found, verdict=verdict, problems=tuple(problems))


def unforeseen(error: Exception) -> str:
    """Return what is wrong with a file whose reader met what nobody foresaw."""
    return f"it cannot be read as a checkpoint ({type(error).__name__}: {visible(str(error))})"


def _without_resume(found: Inspection, reason: str) -> Inspection:
    verdict: Verdict = "weights-only" if found.verdict == "resumable" else found.verdict
    return replace(found, verdict=verdict, problems=(*found.problems, reason))


_LEGACY = (
    "it has torch's format from before 1.6, without checksums, so that damage cannot be told; to convert it: "
    "torch.save(torch.load(old, map_location='cpu', weights_only=True), new)"
)


def open_archive(source: Source) -> Archive | LegacyArchive:
    """Read the directory of a checkpoint file of either format.

    Raises:
        DamagedError: It is empty, a web page, or something else that is no whole checkpoint.
        UnsafeError: It has the old format, and a pickle that asks for something no checkpoint needs.
    """
    if source.size_bytes == 0:
        raise DamagedError("it is empty")
    head = source.read(0, min(64, source.size_bytes))
    if head[:4] == b"PK\x03\x04":
        return Archive(source)
    if is_legacy(head):
        return LegacyArchive(source)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise DamagedError("it is a web page, not a checkpoint: a download went wrong; fetch it again")
    if text.startswith(b"version https://git-lfs"):
        raise DamagedError("it is a Git LFS pointer, not the checkpoint: fetch the file itself")
    if not any(head):
        raise DamagedError("it begins with zeros: it was never written out")
    if head[:1] == b"\x80":
        interpret(source.read(0, min(source.size_bytes, MAX_PICKLE_BYTES)))
        raise DamagedError("it is a bare pickle, not a file that torch.save writes")
    begin = visible(head[:8].decode("latin-1"))
    raise DamagedError(f"it is not a file that torch.save writes: it begins with '{begin}'")


def read_pickle(archive: Archive | LegacyArchive) -> bytes:
    """Return a checkpoint's pickle, its checksum compared where the format has one.

    Raises:
        DamagedError: The archive is no checkpoint, or one of another machine.
    """
    if isinstance(archive, LegacyArchive):
        return archive.pickle
    if "constants.pkl" in archive.by_name:
        raise DamagedError("it is a TorchScript program, not a checkpoint")
    if "data.pkl" not in archive.by_name:
        raise DamagedError("it is a zip file, but not a checkpoint: it has no data.pkl")
    if "byteorder" in archive.by_name and archive.read("byteorder", limit_bytes=16) != b"little":
        raise DamagedError("it was written on a big-endian machine, or its byteorder is damaged")
    return archive.read("data.pkl", limit_bytes=MAX_PICKLE_BYTES)


def survey(tree: Any) -> tuple[list[tuple[str, TensorInfo]], list[str]]:
    """Return every tensor with its place, and the places of numbers that no training can continue with.

    Shared and circular containers are visited once, and so are tensors; a tensor that is a weight as well
    as a part of the optimizer's state is a weight. A place is such as ``state_dict.conv.weight``, a number
    such as a learning rate of NaN.

    Raises:
        DamagedError: It is no dictionary.
        UnsafeError: Its containers are nested too deep.
    """
    if not isinstance(tree, dict):
        raise DamagedError(f"it holds a {type(tree).__name__}, expected a dictionary")
    tensors: list[tuple[str, TensorInfo]] = []
    odd_numbers: list[str] = []
    seen: set[int] = set()
    root = chain(
        ((key, value) for key, value in tree.items() if key != "optimizer"),
        ((key, value) for key, value in tree.items() if key == "optimizer"),
    )
    stack: list[tuple[str, Iterator[tuple[Any, Any]]]] = [("", iter(root))]
    while stack:
        place, items = stack[-1]
        for key, value in items:
            kind = type(value)
            if kind is float:
                if not math.isfinite(value) and _matters(place, key, value):
                    odd_numbers.append(_inside(place, key))
            elif kind in _SURVEYED and id(value) not in seen:
                seen.add(id(value))
                if kind is TensorInfo:
                    tensors.append((_inside(place, key), value))
                    continue
                if len(stack) == _MAX_DEPTH:
                    raise UnsafeError(
                        f"its containers are nested more than {_MAX_DEPTH} deep; no checkpoint's are"
                    )
                inner = value.items() if isinstance(value, dict) else enumerate(value)
                stack.append((_inside(place, key), iter(inner)))
                break
        else:
            stack.pop()
    return tensors, odd_numbers


def check_stored(archive: Archive | LegacyArchive, storage: StorageInfo, place: str = "") -> None:
    """Compare what the pickle says of a storage with the entry that holds it; ``place`` begins the reason.

    Raises:
        DamagedError: There is none, or one of another size.
    """
    entry = archive.by_name.get(storage.entry)
    if entry is None:
        raise DamagedError(f"{place}its storage {storage.entry} is not in the archive")
    if entry.size_bytes != storage.size_bytes:
        raise DamagedError(
            f"{place}its storage {storage.entry} has {entry.size_bytes} bytes, expected {storage.size_bytes}"
        )


def check_all_used(archive: Archive | LegacyArchive, used: Collection[str]) -> None:
    """Compare the entries that hold tensors' data with those that tensors refer to.

    Raises:
        DamagedError: There are others.
    """
    unused = sorted({entry.name for entry in archive.entries if entry.name.startswith("data/")} - set(used))
    if unused:
        raise DamagedError(f"nothing in it refers to {joined(unused)}: it does not belong to this pickle")


_SURVEYED = frozenset({TensorInfo, dict, OrderedDict, Counter, list, tuple})


def _inside(place: str, key: Any) -> str:
    shown = visible(key, 80)
    return visible(f"{place}.{shown}" if place else shown)


def _matters(place: str, key: Any, value: float) -> bool:
    """Whether a number stops training: NaN in the optimizer or a schedule, or an infinite learning rate."""
    if place.startswith("optimizer"):
        return math.isnan(value) or key in ("lr", "initial_lr")
    return place.startswith("param_schedulers") and math.isnan(value)


def _judge(
    path: Path,
    tree: Mapping[str, Any],
    *,
    shapes: Mapping[str, tuple[int, ...]] | None,
    classes: Sequence[str] | None,
) -> Inspection:
    """Return the verdict on a file's content, its bytes taken for granted."""
    meta = _mapping(tree.get("meta"))
    runtime = _mapping(_mapping(tree.get("message_hub")).get("runtime_info"))
    weights, is_bare = _weights_in(tree)
    iteration, epoch = _whole(meta.get("iter")), _whole(meta.get("epoch"))
    trained_on = _texts(_mapping(meta.get("dataset_meta")).get("classes"))

    wrong: list[str] = []  # makes it rejected
    lacking: list[str] = []  # makes it weights-only
    if not weights:
        keys = joined(tree)
        wrong.append(f"it has no weights: expected a state_dict, found {keys or 'nothing'}")
    wrong += _misnamed(path.name, iteration, epoch)
    if is_bare:
        lacking.append("it is a bare table of weights, without meta, optimizer and schedulers")
    elif missing := _missing_to_resume(tree):
        lacking.append(f"it has no {', '.join(missing)}: a resume would silently start those afresh")
    elif "config" in meta:
        # mmengine's Runner.resume passes meta.config to Config.fromstring, which runs it.
        wrong.append(
            "it has meta.config, which mmengine would run as Python on resume; true checkpoints have none"
        )
    if classes is not None and trained_on is not None and tuple(classes) != trained_on:
        wrong.append(f"it was trained on the classes {joined(trained_on)}, expected {joined(tuple(classes))}")
    if shapes is not None and weights:
        wrong += compare_shapes({key: value.shape for key, value in weights.items()}, shapes)

    return Inspection(
        path=path,
        verdict="rejected" if wrong else "weights-only" if lacking else "resumable",
        iteration=iteration,
        problems=(*wrong, *lacking),
        epoch=epoch,
        seed=_whole(meta.get("seed")),
        classes=trained_on,
        mmengine_version=_text(meta.get("mmengine_version")),
        run_id=_text(runtime.get(RUN_ID_KEY)),
        fingerprint=_text(runtime.get(FINGERPRINT_KEY)),
        owed_validation=_whole(runtime.get(OWED_VALIDATION_KEY)),
        stopped_by=_text(runtime.get(STOPPED_BY_KEY)) or None,
        best_score=_number(runtime.get("best_score")),
        best_ckpt=_text(runtime.get("best_ckpt")),
        num_weights=sum(value.num_elements for value in weights.values()),
        config_text=meta["cfg"] if type(meta.get("cfg")) is str else None,
        scale=TrainedScale.from_json(runtime.get(SCALE_KEY)),
    )


def _weights_in(tree: Mapping[str, Any]) -> tuple[dict[str, TensorInfo], bool]:
    """Return the model's weights, and whether the file is nothing but a table of them."""
    state = tree.get("state_dict")
    is_bare = state is None and bool(tree) and all(type(value) is TensorInfo for value in tree.values())
    table = tree if is_bare else _mapping(state)
    weights = {key: value for key, value in table.items() if type(key) is str and type(value) is TensorInfo}
    return weights, is_bare


def _misnamed(name: str, iteration: int | None, epoch: int | None) -> list[str]:
    named_iteration, named_epoch = counts_in(name)
    return [
        f"its name says {unit} {named}, its meta.{key} says {found}"
        for unit, key, named, found in (
            ("iteration", "iter", named_iteration, iteration),
            ("epoch", "epoch", named_epoch, epoch),
        )
        if None not in (named, found) and named != found
    ]


def _missing_to_resume(tree: Mapping[str, Any]) -> list[str]:
    meta = _mapping(tree.get("meta"))
    there = {
        "meta.iter": _whole(meta.get("iter")) is not None,
        "meta.epoch": _whole(meta.get("epoch")) is not None,
        "optimizer": bool(_mapping(tree.get("optimizer"))),
        "param_schedulers": isinstance(tree.get("param_schedulers"), (list, dict)),
        "message_hub": bool(_mapping(tree.get("message_hub"))),
    }
    return [name for name, is_there in there.items() if not is_there]


def compare_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return what keeps weights from fitting a model, one sentence for each kind of misfit.

    A prefix ``module.`` on every name, as a wrapped model saves it, is disregarded.
    """
    if found and all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): shape for key, shape in found.items()}
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    mismatched = [
        f"{visible(key, 100)} is {tuple(found[key])}, expected {tuple(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    sentences = (
        (missing, "{count} weights of the model are missing in it: {names}"),
        (unexpected, "{count} weights in it are not in the model: {names}"),
        (mismatched, "{count} weights differ in shape: {names}"),
    )
    return [Message(template, len(keys), joined(keys)) for keys, template in sentences if keys]


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None


def _text(value: Any) -> str | None:
    return visible(value) if type(value) is str else None


def _texts(value: Any) -> tuple[str, ...] | None:
    return tuple(value) if type(value) in (list, tuple) and all(type(item) is str for item in value) else None
