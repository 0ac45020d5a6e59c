"""Work after training as a terminal shows it: a bar while it runs, and what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from mapsage_kaggle.display.text import size

if TYPE_CHECKING:
    from rich.progress import Progress

_LINE_EVERY_S = 30.0


class JobProgress:
    """Shows how far a child is: a bar on a terminal, elsewhere a line now and then. Use it as a context.

    Args:
        unit: What is counted.
        stream: Where to; by default standard error, so that standard output holds results alone.
    """

    def __init__(self, unit: str, stream: TextIO | None = None) -> None:
        self._unit, self._stream = unit, stream or sys.stderr
        self._bar: Progress | None = None
        self._last_s = float("-inf")

    def __enter__(self) -> JobProgress:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.completed:.1f} of {task.total} " + self._unit),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=Console(file=self._stream),
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def take(self, event: Mapping[str, Any]) -> None:
        """Show ``progress`` with ``done`` and ``total``, or an event with a ``problem`` or ``message``."""
        if event["event"] == "progress":
            self._progress(float(event["done"]), int(event["total"]), str(event.get("name", "")))
        elif said := event.get("problem") or event.get("message"):
            self._say(str(said))

    def _progress(self, done: float, total: int, name: str) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0] if self._bar.task_ids else self._bar.add_task(name, total=total)
            self._bar.update(task, completed=done, total=total, description=name)
        elif time.monotonic() - self._last_s >= _LINE_EVERY_S or done >= total:
            self._last_s = time.monotonic()
            count = f"{done:.1f}".removesuffix(".0")
            self._say(f"{count} of {total} {self._unit}{f', {name}' if name else ''}")

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self._stream, flush=True)


class _Prediction(Protocol):
    """What :func:`prediction_text` reads of a :class:`mapsage_kaggle.predict.Prediction`."""

    @property
    def out(self) -> Path: ...
    @property
    def num_done(self) -> int: ...
    @property
    def num_before(self) -> int: ...
    @property
    def refused(self) -> Sequence[tuple[Path, str]]: ...
    @property
    def seconds(self) -> float: ...
    @property
    def peak_memory_bytes(self) -> int: ...
    @property
    def archive(self) -> Path | None: ...


def prediction_text(found: _Prediction) -> str:
    """Return what came of a prediction, in a few lines."""
    pace = f", {found.num_done / found.seconds:.2f} a second" if found.num_done and found.seconds else ""
    before = f", {found.num_before} done before" if found.num_before else ""
    images = "1 image" if found.num_done == 1 else f"{found.num_done} images"
    lines = [
        f"{images} in {found.seconds:.1f} s{pace}{before}",
        f"{size(found.peak_memory_bytes)} of memory at most",
        f"{found.out}",
    ]
    if found.archive is not None:
        lines.append(f"{found.archive}: complete")
    if found.refused:
        lines.append(f"{len(found.refused)} refused:")
        lines += [f"  {problem}" for _, problem in found.refused]
    return "\n".join(lines)
