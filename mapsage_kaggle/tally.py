"""What has been counted so far, image by image, in a file that outlives the process that counts.

One JSON object a line: ``{"image": …, "counts": …}``. A line that was cut off, by a kill or a full disk,
is passed over, and its image counted again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO, TypeAlias

Matrix: TypeAlias = list[list[int]]


def read_tally(path: Path) -> dict[str, Matrix]:
    """Return the counts by image; none where there is no file."""
    found: dict[str, Matrix] = {}
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            entry = json.loads(line)
            found[str(entry["image"])] = [[int(value) for value in row] for row in entry["counts"]]
        except (ValueError, TypeError, KeyError):
            continue
    return found


def open_tally(path: Path) -> BinaryIO:
    """Open a tally to be added to; what was cut off at its end stays a line of its own.

    Raises:
        OSError: It cannot be written.
    """
    stream = path.open("ab+")
    if stream.tell():
        stream.seek(-1, 2)
        if stream.read(1) != b"\n":
            stream.write(b"\n")
    return stream


def add(stream: BinaryIO, image: str, counts: Matrix) -> None:
    """Append one image's counts, so that a kill of this process loses nothing of it."""
    line = json.dumps({"image": image, "counts": counts}, ensure_ascii=False, separators=(",", ":"))
    stream.write(line.encode("utf-8") + b"\n")
    stream.flush()
