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
from mapsage_kaggle.relay.client import KaggleClient, Quota
from mapsage_kaggle.relay.journal import Attempt
from mapsage_kaggle.relay.log import LogFollower


@dataclass(kw_only=True)
class Reporter:
    """Prints lines with the time, each once; in a terminal, a status line below them that is rewritten.

    Attributes:
        log: A file that every line is added to as well, if any.
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
        """Print a line where something has changed; the same line twice in a row is printed once."""
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
        if self.log is None:
            return
        try:
            with self.log.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")
        except OSError as error:  # it must not end a run
            path, self.log = self.log, None
            self.say(f"{path} cannot be written, and is left: {error.strerror}.")

    def _stamp(self) -> str:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.now_s()))


@dataclass(kw_only=True)
class Progress:
    """Tells how far the session has got that is going on, by its log."""

    kaggle: KaggleClient
    reporter: Reporter
    _follower: tuple[tuple[str, int], LogFollower] | None = field(default=None, init=False)

    def tell(self, attempt: Attempt, quota: Quota | None) -> None:
        if attempt.began_s is None:
            return
        key = (attempt.slug, attempt.version)
        if self._follower is None or self._follower[0] != key:
            self._follower = (key, LogFollower(opened=lambda: self.kaggle.notebooks.follow(*key)))
        follower = self._follower[1]
        follower.keep_on()
        log = follower.log
        if not log.iteration:
            return
        parts = [
            f"{attempt.slug} version {attempt.version}: iteration {log.iteration:,} of {log.max_iters:,}"
        ]
        if log.score is not None:
            parts.append(f"mIoU {log.score:.2f} %")
        if attempt.limit_s:
            ran_s = self.kaggle.now_s() - attempt.began_s
            parts.append(f"{format_duration(ran_s)} of {format_duration(attempt.limit_s)}")
        if quota is not None:
            parts.append(f"quota left {format_duration(quota.left_s)}")
        self.reporter.progress(", ".join(parts))
