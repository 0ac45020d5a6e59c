"""Panels for the notebook's first cells: checks, refusals, the chosen checkpoint, the configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.display.panels import Finding, Panel, Table, Tone
from mapsage_kaggle.display.text import choice_text, size
from mapsage_kaggle.messages import as_message, joined_by

if TYPE_CHECKING:
    from mapsage_kaggle.checkpoints.choose import Choice
    from mapsage_kaggle.checks import Check
    from mapsage_kaggle.clock import SessionClock
    from mapsage_kaggle.display.locale.words import Words
    from mapsage_kaggle.errors import MapsageError
    from mapsage_kaggle.training.prepare import Prepared


def check_finding(check: Check, words: Words) -> Finding:
    tones: dict[str, Tone] = {"info": "good", "warning": "note", "error": "bad"}
    return Finding(
        tone=tones[check.level],
        name=words.translate(check.name),
        message=words.translate(check.message),
    )


def refusal_panel(title: str, error: MapsageError, words: Words) -> Panel:
    """Return problem and remedy, and below them the lines that the error lists."""
    lines = tuple(map(words.translate, error.lines))
    return Panel(
        title=title,
        tone="bad",
        lead=words.translate(joined_by(" ", map(as_message, filter(None, (error.problem, error.remedy))))),
        lists=((words("candidates"), lines),) if lines else (),
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return paths from their folders' common one on: short for one output, distinct for several."""
    folders = {path.absolute().parent.parent for path in paths}
    return [str(path.absolute().relative_to(os.path.commonpath(folders))) for path in paths]


def choice_panel(title: str, choice: Choice, words: Words) -> Panel:
    """Return what a session starts from, and the other candidates."""
    verdicts = {"": "unopened", "weights-only": "weights"}
    rows = [
        (
            name,
            "–" if item.iteration is None else f"{item.iteration:,}",
            size(item.size_bytes) if item.size_bytes else "–",
            words(verdicts.get(item.verdict, item.verdict)),
            words.translate(item.reason),
        )
        for item, name in zip(
            choice.candidates, short_names([item.path for item in choice.candidates]), strict=True
        )
    ]
    names = ("file", "iteration", "size", "verdict", "reason")
    table = Table(
        header=tuple(words(f"table_{name}") for name in names),
        rows=tuple(rows),
        right=frozenset((1, 2)),
        chosen=next((number for number, item in enumerate(choice.candidates) if item.taken), None),
    )
    return Panel(
        title=title,
        tone="note" if choice.action == "weights-only" or choice.steps_down or choice.notice else "good",
        lead=" ".join(filter(None, (words.translate(choice.notice), choice_text(choice, words) + "."))),
        notes=tuple(map(words.translate, choice.steps_down)),
        table=table if rows else None,
    )


def configuration_panel(
    prepared: Prepared, words: Words, *, clock: SessionClock, tail: tuple[str, ...] = ()
) -> Panel:
    """Return what will run, and the changes to the config that it takes."""
    patch = prepared.patch
    where = (
        words("gpus", count=prepared.facts.world_size)
        if prepared.facts.on_gpu
        else words("cpu", threads=prepared.threads)
    )
    return Panel(
        title=words("configuration"),
        aside=prepared.options.config.name,
        tone="note" if patch.warnings else "good",
        facts=(
            (words("iterations"), words("from_to", start=prepared.start_iteration, end=patch.max_iters)),
            (
                words("batch"),
                words("batch_of", effective=patch.effective_batch, micro=patch.micro_batch),
            ),
            (words("processes"), where),
            (words("time_left"), words("until_written", left=format_duration(clock.left_s()))),
            (words("work_dir"), str(prepared.work_dir)),
        ),
        notes=tuple(map(words.translate, patch.warnings)),
        diff=patch.diff(),
        diff_title=words("changed_keys", count=len(patch.changes)),
        tail=tail,
    )
