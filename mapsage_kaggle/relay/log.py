"""A session's log: what Kaggle keeps of it, and what can be read from it while it is written.

Three kinds of lines are read, each of a fixed form: the first one, which the relay puts into the notebook
(a JSON object with the session's number), progress (``[100/400]  loss …``), and the last line of a
traceback (``CheckpointError: …``). A decision needs no more of them than that there are any.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from mapsage_kaggle import errors
from mapsage_kaggle.outside import visible_lines
from mapsage_kaggle.processes import in_background

NUMBER_KEY = "kaggle_session"
"""In the JSON object of a session's first line."""
MAX_STREAMS = 3
"""A stream begins with the whole log, each time it is opened."""

_ITERATION = re.compile(r"^\[(\d+)/(\d+)\]", re.MULTILINE)
_SCORE = re.compile(r"^\[\d+\].*?mIoU\s+(\d+(?:\.\d+)?)", re.MULTILINE)
_REFUSAL = re.compile(r"^\s*(?:mapsage_kaggle\.errors\.)?([A-Z]\w+): (.+)", re.MULTILINE)
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionLog:
    """What a log shows.

    Attributes:
        seen: Whether there is one; it may be empty.
        iteration: The last iteration that it shows; 0 for none.
        max_iters: The end that is shown with it.
        score: The last mIoU in percent; None for none.
        number: Of the session, as Kaggle counts them; 0 where it does not tell.
        refusal: The kit's own refusal that ended the session; empty without one.
        exit_code: Of that refusal; 0 without one.
    """

    seen: bool = False
    iteration: int = 0
    max_iters: int = 0
    score: float | None = None
    seconds: float = 0.0
    number: int = 0
    refusal: str = ""
    exit_code: int = 0


def read_log(kept: str) -> SessionLog:
    pieces: list[Mapping[str, Any]]
    try:
        pieces = [piece for piece in json.loads(kept) if isinstance(piece, Mapping)]
        text = "".join(str(piece.get("data", "")) for piece in pieces)
    except (ValueError, TypeError, RecursionError):
        pieces, text = [], kept
    times = [piece["time"] for piece in pieces if isinstance(piece.get("time"), (int, float))]
    seconds = max((float(item) for item in times if 0 <= item < 1e9), default=0.0)
    return replace(_read(text), seen=bool(kept), seconds=seconds)


def _read(text: str) -> SessionLog:
    text = visible_lines(_ANSI.sub("", text))
    found, scores = _ITERATION.findall(text), _SCORE.findall(text)
    refusal, code = _refusal_in(text)
    return SessionLog(
        seen=True,
        iteration=int(found[-1][0]) if found else 0,
        max_iters=int(found[-1][1]) if found else 0,
        score=float(scores[-1]) if scores else None,
        number=_number_in(text),
        refusal=refusal,
        exit_code=code,
    )


def number_of(container: str) -> int:
    numbers = re.findall(r"\d+", container)
    return int(max(numbers, key=len)) if numbers else 0


def _number_in(text: str) -> int:
    for line in text.splitlines()[:50]:
        if NUMBER_KEY in line:
            try:
                return number_of(str(json.loads(line)[NUMBER_KEY]))
            except (ValueError, TypeError, KeyError):
                continue
    return 0


def _refusal_in(text: str) -> tuple[str, int]:
    for name, message in reversed(_REFUSAL.findall(text)):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.MapsageError):
            return message.strip(), kind.exit_code
    return "", 0


@dataclass(kw_only=True)
class LogFollower:
    """Follows the log of a running session in a thread of its own, over one stream.

    Attributes:
        opened: Opens the stream: pieces, from the beginning and then as the log grows.
    """

    opened: Callable[[], Iterator[Mapping[str, Any]]]
    log: SessionLog = field(default_factory=SessionLog, init=False)
    _streams: int = field(default=0, init=False)
    _following: Future[None] | None = field(default=None, init=False)

    def keep_on(self) -> None:
        if self._streams < MAX_STREAMS and (self._following is None or self._following.done()):
            self._streams += 1
            self._following = in_background(self._follow)  # where it fails less is shown, and that is all

    def _follow(self) -> None:
        for piece in self.opened():
            more, known = _read(str(piece.get("data", ""))), self.log
            score = known.score if more.score is None else more.score
            self.log = replace(more if more.iteration else known, score=score)
