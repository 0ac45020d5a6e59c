"""What a tracker's own files hold of a run, read back as a person's viewer would."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")


def tensorboard_curves(trackers: Path) -> dict[str, list[int]]:
    """Return the steps of each curve of the one run in a folder, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [folder] = trackers.glob("*/tensorboard")
    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    shown.Reload()
    return {tag: [item.step for item in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def wandb_curves(trackers: Path) -> dict[str, list[int]]:
    """Return the iterations of each curve of the one run in a folder, as ``wandb sync`` would send them."""
    from wandb.proto import wandb_internal_pb2 as messages

    curves: dict[str, list[int]] = {}
    [file] = trackers.glob("*/wandb/wandb/offline-run-*/*.wandb")
    for content in _records(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "run":
            assert record.run.run_id == file.parents[3].name
        if record.WhichOneof("record_type") == "history":
            row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            for name in row:
                curves.setdefault(name, []).append(int(row["iteration"]))
    return curves


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the records of LevelDB's log format, in which W&B writes after seven bytes of its own."""
    at, record = 7, b""
    while at + _HEADER.size <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER.size:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = _HEADER.unpack_from(content, at)
        at += _HEADER.size + length
        record += content[at - length : at]
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""
