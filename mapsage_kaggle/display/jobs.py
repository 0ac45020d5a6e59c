"""Jobs after training in a terminal: a progress bar while one runs, and its result."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.display.findings import class_scores
from mapsage_kaggle.display.history import PastSession
from mapsage_kaggle.display.panels import from_template
from mapsage_kaggle.display.text import score_text, size, table
from mapsage_kaggle.outside import visible, visible_lines

if TYPE_CHECKING:
    from rich.progress import Progress

    from mapsage_kaggle.jobs.export import Export, ExportedFile
    from mapsage_kaggle.jobs.predict import Prediction

_LINE_EVERY_S = 30.0


class JobProgress:
    """A context manager that shows a child's progress: a bar in a terminal, elsewhere a line now and then.

    ``unit`` is what is counted. The default stream is standard error, so that standard output holds results
    alone. ``translate`` is applied to the child's messages.
    """

    def __init__(
        self, unit: str, stream: TextIO | None = None, translate: Callable[[str], str] = str
    ) -> None:
        self._unit, self._stream, self._translate = unit, stream or sys.stderr, translate
        self._bar: Progress | None = None
        self._last_s = float("-inf")
        self._begin: tuple[float, float] | None = None

    def __enter__(self) -> JobProgress:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.completed:.1f} of {task.total} " + self._unit),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}", markup=False),
                console=Console(file=self._stream),
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def take(self, event: Mapping[str, Any]) -> None:
        """Show ``progress`` with ``done`` and ``total``, or an event's ``problem`` or ``message``."""
        if event["event"] == "progress":
            done = float(event["done"])
            if self._begin is None:
                self._begin = (time.monotonic(), done)
            before = float(event.get("before", self._begin[1]))
            self._progress(done, int(event["total"]), visible(event.get("name", "")), before)
        elif said := event.get("problem") or event.get("message"):
            self._say(self._translate(said))

    def _progress(self, done: float, total: int, name: str, before: float) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0] if self._bar.task_ids else self._bar.add_task(name, total=total)
            self._bar.update(task, completed=done, total=total, description=name)
        elif time.monotonic() - self._last_s >= _LINE_EVERY_S or done >= total:
            self._last_s = time.monotonic()
            left = ""
            if self._begin is not None and before < done < total:
                seconds = (self._last_s - self._begin[0]) * (total - done) / (done - before)
                left = f", about {format_duration(seconds)} left"
            count = f"{done:.1f}".removesuffix(".0")
            self._say(f"{count} of {total} {self._unit}{f', {name}' if name else ''}{left}")

    def _say(self, line: str) -> None:
        line = visible_lines(line)
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self._stream, flush=True)


def prediction_text(found: Prediction) -> str:
    pace = f", {found.num_pixels / 1e6 / found.seconds:.2f} megapixels a second" if found.num_done else ""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The contents of a model card.

    Attributes:
        licence: As it was given.
        licence_id: As model hubs read it.
        checkpoint: The name of the file that the model was exported from.
        iteration: Iterations done in it, if it states them.
        num_weights: Number of trained values.
        classes: The document ``classes.json``.
        failed: Forms that could not be made, each with the reason.
        compared_on: Names of the images that the forms were compared on.
        divisor: Sides of images must be a multiple of it.
        draws: Classes of modules that draw random numbers at inference.
        sessions: Those of the run that trained it, oldest first; empty where unknown.
        data: The data set's type.
    """

    title: str
    licence: str
    licence_id: str
    config: str
    checkpoint: str
    checkpoint_sha256: str
    iteration: int | None
    num_weights: int
    classes: Mapping[str, Any]
    files: Sequence[ExportedFile]
    failed: Sequence[tuple[str, str]]
    compared_on: Sequence[str]
    divisor: int
    draws: Sequence[str]
    sessions: Sequence[PastSession]
    data: str


def card_text(card: Card) -> str:
    """Return the card as Markdown, with the front matter that model hubs read."""
    last = card.sessions[-1].record if card.sessions else None
    validation = _validation(card)
    return from_template(
        "model_card.md.j2",
        card=card,
        size=size,
        sessions=[session.record for session in card.sessions],
        best=score_text(last.best) if last is not None and last.best is not None else None,
        last=last,
        validation=validation,
        onnx=next((file for file in card.files if file.name.endswith(".onnx")), None),
        program=next((file for file in card.files if file.name.endswith(".pt2")), None),
        read=_reading(card.classes),
        is_plain=_is_plain(card.classes),
        resize=next(iter(card.classes["prepare"]), None),
        legend=list(
            zip(card.classes["mask_values"], card.classes["classes"], card.classes["palette"], strict=True)
        ),
    )  # fmt: skip


def _is_plain(classes: Mapping[str, Any]) -> bool:
    """Return whether an example can prepare an image as the test pipeline does by OpenCV alone."""
    steps, load = classes["prepare"], classes["read"]
    if not classes["input"].get("num_channels") and (
        load.get("type") != "LoadImageFromFile"
        or not str(load.get("color_type", "color")).startswith("color")
        or load.get("imdecode_backend") == "tifffile"
    ):
        return False  # which channel is red, the config alone knows
    if not steps:
        return True
    (step, *more), known = steps, {"type", "scale", "scale_factor", "keep_ratio"}
    is_resize = step["type"] == "Resize" and step.keys() <= known and not load.get("to_float32")
    sized = isinstance(step.get("scale"), Sequence) or isinstance(step.get("scale_factor"), (int, float))
    return is_resize and sized and not more


def _reading(classes: Mapping[str, Any]) -> Mapping[str, str]:
    """Return an example's file name, and the expression and module that read it as the test pipeline does."""
    load = classes["read"]
    if not classes["input"].get("num_channels"):
        return {"name": "tile.png", "code": 'cv2.imread("tile.png")[..., ::-1]', "module": ""}
    if load.get("type") != "LoadImageFromFile":  # a custom loader, or bands: its result, saved by numpy
        return {"name": "tile.tif", "code": 'np.load("tile.npy")', "module": ""}
    if load.get("imdecode_backend") == "tifffile":
        return {"name": "tile.tif", "code": 'tifffile.imread("tile.tif")', "module": "tifffile"}
    kind = "GRAYSCALE" if str(load.get("color_type", "")).startswith("grayscale") else "UNCHANGED"
    return {"name": "tile.png", "code": f'cv2.imread("tile.png", cv2.IMREAD_{kind})', "module": ""}


def _validation(card: Card) -> tuple[int, Mapping[str, float | None]] | None:
    """Return the validation of the exported iteration: its iteration and each class's IoU."""
    for iteration, scores in reversed(class_scores(card.sessions)):
        if iteration == card.iteration:
            return iteration, scores
    return None


def export_text(found: Export) -> str:
    """Return each exported form with its deviation from the original."""
    rows = [
        (file.name, size(file.size_bytes), f"{file.max_difference:.2g}", f"{100 * file.agreement:.4f} %")
        for file in found.files
    ]
    lines = [
        f"{found.out}: compared on {', '.join(found.compared_on)}",
        table(rows, ("file", "size", "largest difference of a logit", "pixels of the same class")),
        *(f"{name} could not be made: {reason}" for name, reason in found.failed),
    ]
    return "\n".join(lines)
