"""A model that is handed on: its card, and what the command says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mapsage_kaggle.display.findings import class_scores
from mapsage_kaggle.display.history import Session
from mapsage_kaggle.display.panels import text_templates
from mapsage_kaggle.display.text import score_text, size, table


class _File(Protocol):
    """What the card reads of a :class:`mapsage_kaggle.export.ExportedFile`."""

    @property
    def name(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def max_difference(self) -> float: ...
    @property
    def agreement(self) -> float: ...
    @property
    def sizes(self) -> Sequence[Sequence[int]]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What the card tells.

    Attributes:
        title: Of the model.
        licence: As Kaggle names it.
        config: The name of its config.
        checkpoint: The name of the file that it was made from.
        checkpoint_sha256: Of that file.
        iteration: Iterations done in it, if it says.
        num_weights: Number of trained values.
        classes: The document ``classes.json``.
        files: The forms of it.
        failed: Forms that could not be made, each with the reason.
        compared_on: What they were compared on.
        divisor: What sides of images must be a multiple of.
        sessions: Those of the run that made it, oldest first; none where they are not known.
        data: The data set's type.
    """

    title: str
    licence: str
    config: str
    checkpoint: str
    checkpoint_sha256: str
    iteration: int | None
    num_weights: int
    classes: Mapping[str, Any]
    files: Sequence[_File]
    failed: Sequence[tuple[str, str]]
    compared_on: Sequence[str]
    divisor: int
    sessions: Sequence[Session]
    data: str


def card_text(card: Card) -> str:
    """Return the card as Markdown, with the head that model hubs read."""
    last = card.sessions[-1].record if card.sessions else None
    validation = _validation(card)
    return text_templates().get_template("model_card.md.j2").render(
        card=card,
        size=size,
        sessions=[session.record for session in card.sessions],
        best=score_text(last.best) if last is not None and last.best is not None else None,
        last=last,
        validation=validation,
        names={file.name for file in card.files},
        legend=list(
            zip(card.classes["mask_values"], card.classes["classes"], card.classes["palette"], strict=True)
        ),
    )  # fmt: skip


def _validation(card: Card) -> tuple[int, Mapping[str, float | None]] | None:
    """Return the validation of the exported iteration: its iteration and each class's IoU."""
    for iteration, scores in reversed(class_scores(card.sessions)):
        if iteration == card.iteration:
            return iteration, scores
    return None


class _Export(Protocol):
    """What :func:`export_text` reads of a :class:`mapsage_kaggle.export.Export`."""

    @property
    def out(self) -> Path: ...
    @property
    def files(self) -> Sequence[_File]: ...
    @property
    def failed(self) -> Sequence[tuple[str, str]]: ...
    @property
    def compared_on(self) -> Sequence[str]: ...


def export_text(found: _Export) -> str:
    """Return what came of an export: each form, and how far it is from the original."""
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
