"""What a person sees of a relay: a line where something has changed, and how far a session has got."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.outside import visible_lines
from mapsage_kaggle.relay.log import SessionLog


@dataclass(kw_only=True)
class Reporter:
    """Prints lines with the time, each once; in a terminal, a status line below them that is rewritten.

    Attributes:
        stream: Where to.
        log: A file that every line is added to as well, if any.
        now_s: Seconds since the epoch.
        progress_s: How often progress alone is worth a line, where there is no terminal.
    """

    stream: TextIO = field(default_factory=lambda: sys.stdout)
    log: Path | None = None
    now_s: Callable[[], float] = time.time
    progress_s: float = 1800.0
    _said: str = field(default="", init=False)
    _progress_s: float = field(default=float("-inf"), init=False)
    _width: int = field(default=0, init=False)

    def say(self, line: str) -> None:
        """Tell that something has changed; the same line twice in a row is told once."""
        if line == self._said:
            return
        self._said = line
        self._print(line)

    def progress(self, line: str) -> None:
        """Tell how far it is: rewritten in a terminal, and elsewhere now and then."""
        if self.stream.isatty():
            text = f"{self._stamp()}  {line}"
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
            self.stream.flush()
        elif self.now_s() - self._progress_s >= self.progress_s:
            self._progress_s = self.now_s()
            self._print(line)

    def block(self, text: str) -> None:
        """Print lines as they are, without the time."""
        for line in text.splitlines():
            self._write(line)

    def _print(self, line: str) -> None:
        self._write(f"{self._stamp()}  {line}")

    def _write(self, text: str) -> None:
        if self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        text = visible_lines(text)
        self.stream.write(text + "\n")
        self.stream.flush()
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")

    def _stamp(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.now_s()))


def progress_text(log: SessionLog, *, ran_s: float, limit_s: float, quota_left_s: float | None) -> str:
    """Return how far a session has got."""
    parts = []
    if log.iteration:
        parts.append(f"iteration {log.iteration:,} of {log.max_iters:,}")
    if log.score is not None:
        parts.append(f"mIoU {log.score:.2f} %")
    if limit_s:
        parts.append(f"{format_duration(ran_s)} of {format_duration(limit_s)}")
    if quota_left_s is not None:
        parts.append(f"quota left {format_duration(quota_left_s)}")
    return ", ".join(parts)
