"""What comes from outside: read within bounds, and shown instead of obeyed.

Whatever is attached, and whatever a file name, a pickle, a zip or a log says, may be anybody's. It is
opened only where it is a regular file, read only as far as the reader needs, and what a person gets
to see of it can neither steer a terminal nor pass for a line of the kit's own.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mapsage_kaggle.messages import Message

MAX_SHOWN = 200
"""So many characters of a foreign value are shown."""
MAX_PATH = 4096
"""So many characters of a path are shown: a path that is cut off cannot be pasted."""
MAX_LINES = 20
"""So many lines of a list are shown."""
MAX_JSON_BYTES = 16 * 2**20
"""A record of a run of 1,000 sessions has about 4 MB."""
_MAX_JSON_VALUES = 500_000
_MAX_JSON_DEPTH = 32
_MAX_DIGITS = 20


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading, if it is a regular one: pipes, sockets and devices are never opened.

    Raises:
        OSError: It is missing, cannot be opened, or is not a regular file.
    """
    _require_regular(path, path.stat())
    # It may have been replaced since: opening a pipe must not wait for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_regular(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def stamp_of(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file does; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """Return what is in a regular file.

    Raises:
        OSError: It is missing, cannot be read, or is not a regular file.
        ValueError: It is larger than ``limit_bytes``.
    """
    with open_regular(path) as stream:
        content = stream.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise ValueError(f"it has more than {limit_bytes} bytes")
    return content


def read_json(path: Path) -> Any:
    """Return the JSON document in a regular file.

    Raises:
        OSError: It is missing, cannot be read, or is not a regular file.
        ValueError: It is too large, too deep or no JSON.
    """
    return parse_json(read_bytes(path, MAX_JSON_BYTES))


def parse_json(content: bytes | str) -> Any:
    """Return a JSON document, if it is of a kind that the kit may have written.

    Raises:
        ValueError: It is no JSON, holds NaN or a number of more than 20 digits, has more than 500,000
            values or nests them more than 32 deep.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        if sum(map(text.count, "[{,")) > _MAX_JSON_VALUES:
            raise ValueError(f"it has more than {_MAX_JSON_VALUES} values")
        document = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {_MAX_JSON_DEPTH} deep") from None
    if _is_deep(document):
        raise ValueError(f"it is nested more than {_MAX_JSON_DEPTH} deep")
    return document


def _is_deep(document: Any) -> bool:
    level: list[Any] = [document]
    for _ in range(_MAX_JSON_DEPTH):
        level = [
            item
            for value in level
            if isinstance(value, (dict, list))
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, (dict, list))
        ]
    return bool(level)


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("it has a number too large for any measure")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON has not")


_DECODER = json.JSONDecoder(parse_int=_parse_int, parse_float=_parse_float, parse_constant=_refuse_constant)


def visible(text: object, limit: int = MAX_SHOWN) -> str:
    """Return a foreign text as one line that only shows: at most ``limit`` characters, none that steers.

    Control characters, line breaks, invisible and direction marks and lone surrogates (the bytes of a
    file name that are no text) become their escapes.
    """
    whole = text if isinstance(text, str) else os.fspath(text) if isinstance(text, Path) else str(text)
    shown = whole[:limit]
    if not shown.isprintable():
        shown = "".join(map(_visible_character, shown))
    return shown if len(shown) <= limit and len(whole) <= limit else shown[: limit - 1] + "…"


def visible_lines(text: str) -> str:
    """Return a text of the kit's own with its lines, and with whatever is foreign in it made visible."""
    return _by_character(text, lambda item: item if item == "\t" else _visible_character(item))


def visible_json(document: str) -> str:
    """Return a JSON text with the unprintable characters in its strings escaped."""
    return _by_character(document, lambda item: item if item.isprintable() else json.dumps(item)[1:-1])


def _by_character(text: str, shown: Callable[[str], str]) -> str:
    lines = text.split("\n")
    return "\n".join(line if line.isprintable() else "".join(map(shown, line)) for line in lines)


def _visible_character(character: str) -> str:
    if character.isprintable() or character in "\u00a0\u3000":
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("ascii", "backslashreplace").decode("ascii") if code > 126 else f"\\x{code:02x}"


def listed(items: Sequence[str], most: int = MAX_LINES) -> list[str]:
    """Return the first lines of a list, and in one more how many there are beyond them."""
    shown = list(items[:most])
    return [*shown, Message("… and {count} more", f"{len(items) - most:,}")] if len(items) > most else shown


def joined(items: Iterable[object], most: int = 4) -> str:
    """Return the first of some foreign texts, and how many there are beyond them, in one line."""
    texts = list(items)
    shown = ", ".join(visible(text) for text in texts[:most])
    return Message("{names} and {count} more", shown, len(texts) - most) if len(texts) > most else shown
