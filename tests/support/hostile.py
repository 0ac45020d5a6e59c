"""Builds checkpoint files opcode by opcode and entry by entry, as no program that means well writes them."""

from __future__ import annotations

import binascii
import io
import pickle
import struct
import zipfile
from pathlib import Path

import torch

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
ORDERED = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    """Return the opcode that pushes a text."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """Return opcodes that call a global."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def whole(value: int) -> bytes:
    """Return the opcode that pushes an integer."""
    return b"J" + struct.pack("<i", value)


def storage(
    key: str = "0", count: int = 2, *, kind: str = "FloatStorage", location: str = "cpu", more: bytes = b""
) -> bytes:
    """Return opcodes for a tensor's storage."""
    named = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text(location)
    return named + whole(count) + more + b"tQ"


def sizes(*values: int) -> bytes:
    """Return opcodes for a tuple of integers."""
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor(
    of: bytes = b"",
    *,
    shape: tuple[int, ...] = (2,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    grad: bool = False,
    hooks: bytes = ORDERED,
    more: bytes = b"",
    function: str = "_rebuild_tensor_v2",
) -> bytes:
    """Return opcodes for a tensor on a storage."""
    wants_grad = b"\x88" if grad else b"\x89"
    arguments = (of or storage(), whole(offset), sizes(*shape), sizes(*stride), wants_grad, hooks, more)
    return call("torch._utils", function, *arguments)


def mapping(**items: bytes) -> bytes:
    """Return opcodes for a dictionary."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def tree(*, weight: bytes = b"", **items: bytes) -> bytes:
    """Return a whole pickle: a state_dict with one weight, and whatever else."""
    return b"\x80\x02" + mapping(state_dict=mapping(w=weight or tensor()), **items) + b"."


def write_zip(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """Write a checkpoint's zip file, its storages by key; one of two ones where none is given."""
    stored = {"0": struct.pack("<2f", 1.0, 1.0)} if storages is None else storages
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, content in stored.items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy(path: Path, data: bytes, keys: list[str] | None = None, *, version: bytes = b"") -> Path:
    """Write a file of the format before torch 1.6, without storages."""
    header = (version or pickle.dumps(1001, 2)) + pickle.dumps({"little_endian": True}, 2)
    path.write_bytes(MAGIC + header + data + pickle.dumps(keys or [], 2))
    return path


def checkpoint_with(payload: bytes, path: Path) -> Path:
    """Write a checkpoint of the right shape whose ``meta`` is what ``payload`` makes."""
    return write_zip(path, tree(meta=payload))


def raw_zip(
    names: list[bytes], *, flags: int = 0, extra: bytes = b"", size: int = 1, method: int = 0, offset: int = 0
) -> bytes:
    """Return a zip file of one-byte entries, with what its directory says of them."""
    body, directory = io.BytesIO(), io.BytesIO()
    crc = binascii.crc32(b"x")
    for name in names:
        start = offset or body.tell()
        body.write(struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, flags, method, 0, 0, crc, 1, 1, len(name), 0))
        body.write(name + b"x")
        directory.write(
            struct.pack(
                "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, flags, method, 0, 0, crc, size, size,
                len(name), len(extra), 0, 0, 0, 0, start,
            )
        )  # fmt: skip
        directory.write(name + extra)
    listed = directory.getvalue()
    count = min(len(names), 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(listed), body.tell(), 0)
    return body.getvalue() + listed + end


def real_bytes(state: object) -> bytes:
    """Return what torch.save writes."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()
