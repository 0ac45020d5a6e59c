"""``report.html``: a run as a reader a year later needs it, from the records and events of all sessions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mapsage_kaggle.checkpoints.manifest import Manifest
from mapsage_kaggle.checkpoints.names import iteration_of
from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.display import class_plots, evaluated, plots
from mapsage_kaggle.display.audit import FOLLOWS, WHOLE, audit_sessions
from mapsage_kaggle.display.findings import class_scores, findings, last_confusion, palette_of
from mapsage_kaggle.display.history import PastSession, one_run, read_sessions, series, unlabelled
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Panel, Table, Tone, from_template
from mapsage_kaggle.display.text import next_text, score_text, size, times_text, unseen_text
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.events import Event
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import joined, visible_lines
from mapsage_kaggle.paths import WorkDir, predictions_below, replace_file
from mapsage_kaggle.records import CheckpointRef, SessionRecord, share_of_steps

CURVES, TIME = "report_curves.png", "report_time.png"
TIMELINE, CONFUSION, CLASSES = "report_timeline.png", "report_confusion.png", "report_classes.png"
_MAX_CLASSES_DRAWN = 32
_MAX_PREDICTIONS = 6
_TONES: dict[str, Tone] = {
    "completed": "good",
    "early": "good",
    "deadline": "good",
    "user": "good",
    "running": "note",
    "refused": "bad",
    "failed": "bad",
}

_CHAIN_TONES: dict[str, Tone] = {"unbroken": "good", "not shown": "note", "broken": "bad"}


def write_report(folders: Sequence[Path], *, out: Path | None = None, language: str = "en") -> Path:
    """Write ``report.html`` and its PNGs about the newest run found in some work dirs; return the page.

    Folders are work dirs, or have work dirs below them; the last session's alone is enough. By default
    ``out`` is the newest session's work dir where it is writable, else the current folder.

    Raises:
        UsageError: No session's record is in any of the folders.
        OSError: ``out`` cannot be written.
    """
    words = Words(language)
    sessions = one_run(read_sessions(folders))
    if not sessions:
        places = ", ".join(map(str, folders))
        raise UsageError(
            Message("There is no session.json in {places}.", places),
            "Name a work dir, or a folder that has one below it.",
        )
    newest = sessions[-1].folder
    if out is None:
        out = newest if os.access(newest, os.W_OK) else Path.cwd()
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw(sessions, words)
    for name, (light, _) in pictures.items():
        replace_file(out / name, light)
    page = out / WorkDir(out).report.name
    replace_file(page, visible_lines(render(sessions, pictures, words)))
    return page


def try_to_write_report(folders: Sequence[Path], *, language: str = "en") -> str:
    """Write the report; return what prevented that, or an empty string: a session ends well without it."""
    try:
        write_report(folders, language=language)
    except Exception as error:  # noqa: BLE001 - drawing libraries raise what they like
        return Message("The report could not be drawn: {kind}: {why}.", type(error).__name__, error)
    return ""


def draw(sessions: Sequence[PastSession], words: Words) -> dict[str, tuple[bytes, bytes]]:
    """Return the figures by file name, each in light and in dark; those without data are left out."""
    say = plots.labels_in(words)
    scored, confusion, palette = class_scores(sessions), last_confusion(sessions), palette_of(sessions)

    def pair(figure: Callable[[plots.Theme], bytes]) -> tuple[bytes, bytes]:
        return figure(plots.LIGHT), figure(plots.DARK)

    pictures = {
        CURVES: pair(lambda theme: plots.curves(sessions, theme, say)),
        TIME: pair(lambda theme: plots.time_bars(sessions, theme, say)),
    }
    if any(item.events for item in sessions):
        pictures[TIMELINE] = pair(lambda theme: plots.timelines(sessions, theme, say))
    if len(scored) > 1 and len(scored[-1][1]) <= _MAX_CLASSES_DRAWN:
        starts = [item.record.start_iteration for item in sessions if item.record.start_iteration]
        pictures[CLASSES] = pair(
            lambda theme: class_plots.iou_picture(scored, palette, theme, say, boundaries=starts)
        )
    if confusion is not None:
        _, names, counts = confusion
        colours = [palette[name] for name in names] if all(name in palette for name in names) else None
        pictures[CONFUSION] = pair(
            lambda theme: class_plots.confusion_picture(counts, names, colours, theme, say)
        )
    return pictures


def render(sessions: Sequence[PastSession], pictures: dict[str, tuple[bytes, bytes]], words: Words) -> str:
    """Return the page of a run's sessions (oldest first): one file, without scripts, that fetches nothing.

    ``pictures`` holds a light and a dark PNG by file name.
    """
    last = sessions[-1].record
    audited = audit_sessions(sessions)
    predictions = predictions_below(WorkDir(sessions[-1].folder).predictions)
    return from_template(
        "report.html.j2",
        words=words,
        t=words.translate,
        run=last,
        tone=_TONES[last.stop_reason],
        state=words(last.stop_reason),
        next_step=next_text(last, sessions[-1].folder, words),
        key_numbers=_key_numbers(sessions),
        trained=[item.record for item in sessions if item.record.end_iteration > item.record.start_iteration],
        findings=findings(sessions, num_left_out=evaluated.num_left_out(sessions[-1].folder)),
        pictures={Path(name).stem.removeprefix("report_"): pair for name, pair in pictures.items()},
        english_figures=words.language != "en" and not plots.cjk_families(),
        confused_at=(last_confusion(sessions) or (None,))[0],
        palette=palette_of(sessions),
        predictions=predictions[:_MAX_PREDICTIONS],
        predicted_at=sorted({at for item in predictions for at in item.predictions}),
        sessions=[_session_row(item, words) for item in sessions],
        splits=[(item.record.session_index, plots.time_split(item)) for item in sessions],
        duration=format_duration,
        activities=list(plots.ACTIVITIES.values()),
        validations=_validations(sessions),
        classes=_class_table(sessions),
        evaluations=_evaluations(sessions[-1].folder, words),
        checkpoints=_checkpoint_rows(sessions[-1]),
        changes=[
            (item.record.session_index, item.record.changes) for item in sessions if item.record.changes
        ],
        audit=audited,
        chain_tone=_CHAIN_TONES[audited.chain],
        whole=WHOLE[audited.grade],
        follows=FOLLOWS,
        learned=_learned_rows(last),
        written=_moment(last.ended_s or time.time()),
    )


def outcome_panel(record: SessionRecord, work_dir: Path, words: Words) -> Panel:
    """Return how a session ended, with the curves of the whole run, and what to do next."""
    files = WorkDir(work_dir)
    facts = [
        (words("iterations"), words("from_to", start=record.start_iteration, end=record.end_iteration)),
    ]
    if record.checkpoint is not None:
        facts.append((words("newest"), f"{record.checkpoint.file}, {size(record.checkpoint.size_bytes)}"))
    if record.best is not None and record.best.value is not None:
        value = words("at_iteration", value=score_text(record.best), iteration=record.best.iteration)
        unseen = unseen_text(unlabelled(read_sessions([work_dir]), record.best.iteration), words)
        facts.append((words("best", metric=record.best.metric or ""), value + unseen))
    spent = times_text(record, words)
    if spent:
        facts.append((words("time_spent"), spent))
    picture = work_dir / CURVES
    return Panel(
        title=f"{words('session', index=record.session_index)}: {words(record.stop_reason)}",
        aside=f"{record.end_iteration:,} / {record.max_iters:,}",
        tone=_TONES[record.stop_reason],
        lead=words.translate(record.message),
        share=record.end_iteration / record.max_iters if record.max_iters else None,
        facts=tuple(facts),
        table=_class_panel(work_dir, words),
        tail=(
            next_text(record, work_dir, words),
            *([words("report_at", path=files.report)] if files.report.is_file() else []),
        ),
        pictures=(picture,) if picture.is_file() else (),
    )


# -- rows


def _key_numbers(sessions: Sequence[PastSession]) -> list[tuple[str, str, str]]:
    """Return name, value and aside of each."""
    last = sessions[-1].record
    total_s = sum(item.record.timings_s.get("session") or 0.0 for item in sessions)
    share = f"{100 * last.end_iteration / last.max_iters:.0f} %" if last.max_iters else ""
    rows: list[tuple[str, str, str]] = [
        (
            "iterations",
            f"{last.end_iteration:,}",
            Message("of {total}, {share}", f"{last.max_iters:,}", share),
        ),
        ("sessions", str(len(sessions)), Message("{time} in all", format_duration(total_s))),
    ]
    if last.best is not None and last.best.value is not None:
        told: str = Message("at iteration {iteration}", f"{last.best.iteration:,}")
        unseen = unlabelled(sessions, last.best.iteration)
        if unseen:
            told = Message(
                "at iteration {iteration}; no pixel of validation is {names}",
                f"{last.best.iteration:,}",
                joined(unseen),
            )
        rows.append((Message("best {metric}", last.best.metric), score_text(last.best), told))
    share_of_last = share_of_steps(last.timings_s)
    if share_of_last is not None:
        rows.append(
            ("in training steps", f"{100 * share_of_last:.0f} %", "of the last session, validation aside")
        )
    loss = series(sessions, "iteration", "loss")
    if len(loss) > 1:
        smooth = loss.smoothed()
        rows.append(("loss", f"{smooth.values[-1]:.3f}", Message("from {value}", f"{loss.values[0]:.3f}")))
    return rows


def _session_row(session: PastSession, words: Words) -> dict[str, Any]:
    record = session.record
    done = record.end_iteration - record.start_iteration
    losses = series([session], "iteration", "loss").values
    scores = series([session], "validation", "metrics", "mIoU").values
    stops = session.of("stop")
    pace = stops[-1].data.get("pace", {}).get("iteration_s") if stops else None
    return {
        "index": record.session_index,
        "started": _moment(record.started_s),
        "start": f"{record.start_iteration:,}",
        "end": f"{record.end_iteration:,}",
        "done": f"{max(0, done):,}",
        "tone": _TONES[record.stop_reason],
        "reason": words(record.stop_reason),
        "message": record.message,
        "time": format_duration(record.timings_s.get("session") or 0.0),
        "pace": f"{pace:.2f}" if pace else "–",
        "loss": f"{losses[-1]:.3f}" if losses else "–",
        "score": f"{max(scores):.2f}" if scores else "–",
        "resumed": next((str(event.data.get("verdict", "")) for event in session.of("resume")), ""),
    }


LEARNED: Mapping[str, str] = {
    "pace iteration_s": "an iteration, s",
    "pace save_s": "a save, s",
    "pace best_s": "a save of the best, s",
    "pace validation_s": "a validation, s",
    "pace copy_s": "copying for a save, s",
    "threads": "threads",
    "micro_batch": "images per forward pass",
    "with_cp": "blocks recomputed in the backward pass",
    "validation_rung": "steps taken to save memory in validation",
    "machine": "memory was short on",
}
"""Labels of what a record has learned of its machine."""


def _learned_rows(record: SessionRecord) -> list[tuple[str, str]]:
    """Return label and value of what a session has learned of its machine."""
    rows: list[tuple[str, str]] = []
    for name, value in record.learned.to_json().items():
        if name == "machine":
            rows.append((name, str(value.get("device")) if isinstance(value, Mapping) else str(value)))
        elif isinstance(value, Mapping):
            named = ((f"{name} {part}", number) for part, number in value.items())
            rows += [(part, f"{number:.4g}") for part, number in named if isinstance(number, (int, float))]
        elif value:
            several = isinstance(value, (list, tuple))
            rows.append((name, "; ".join(map(str, value)) if several else str(value)))
    return [(LEARNED.get(name, name.replace("_", " ")), value) for name, value in rows]


def _validations(sessions: Sequence[PastSession]) -> list[tuple[int, Event]]:
    """Return each iteration's last validation, after the number of its session."""
    found = {
        event.iteration: (session.record.session_index, event)
        for session in sessions
        for event in session.of("validation")
    }
    return [found[iteration] for iteration in sorted(found)]


def _class_table(sessions: Sequence[PastSession], most: int = 8) -> dict[str, Any] | None:
    """Return IoU by class at up to ``most`` validations, first and last among them."""
    scored = class_scores(sessions)
    if not scored:
        return None
    step = max(1, -(-(len(scored) - 1) // (most - 1)))
    chosen = scored[::-1][::step][::-1]
    if chosen[0] != scored[0]:
        chosen = [scored[0], *chosen]
    names = list(scored[-1][1])
    return {
        "iterations": [f"{iteration:,}" for iteration, _ in chosen],
        "rows": [
            (name, [_percent(scores.get(name)) for _, scores in chosen], scored[-1][1].get(name) or 0.0)
            for name in names
        ],
    }


def _evaluations(work_dir: Path, words: Words, most: int = 3) -> list[dict[str, Any]]:
    """Return the newest evaluations of the run, as the page shows them."""
    found = []
    for document in evaluated.read_evaluations(work_dir)[:most]:
        header, rows = evaluated.class_rows(document, words)
        found.append(
            {
                "lead": evaluated.headline(document, words),
                "header": header,
                "rows": rows,
                "facts": evaluated.facts(document, words),
                "notes": evaluated.notes(document, words),
                "confusion": [
                    evaluated.confusion_of(document, words, theme) for theme in (plots.LIGHT, plots.DARK)
                ],
            }
        )
    return found


def _class_panel(work_dir: Path, words: Words) -> Table | None:
    """Return IoU by class at the last few validations, for the notebook."""
    found = _class_table(one_run(read_sessions([work_dir])), most=4)
    if found is None:
        return None
    header = (words.translate("IoU by class, %"), *found["iterations"])
    rows = tuple((name, *values) for name, values, _ in found["rows"])
    return Table(header=header, rows=rows, right=frozenset(range(1, len(header))))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _checkpoint_rows(session: PastSession) -> list[dict[str, str]]:
    """Return the checkpoints in the newest output, from its manifest, else from its record."""
    record = session.record
    try:
        refs = list(Manifest.read(WorkDir(session.folder).manifest).files.values())
    except (OSError, ValueError):
        refs = [ref for ref in (record.checkpoint, record.best) if ref is not None]
    return [_checkpoint_row(ref, record) for ref in sorted(refs, key=lambda ref: (ref.iteration, ref.file))]


def _checkpoint_row(ref: CheckpointRef, record: SessionRecord) -> dict[str, str]:
    role = ""
    if record.checkpoint is not None and ref.file == record.checkpoint.file:
        role = "resume from here"
    elif record.best is not None and ref.file == record.best.file:
        role = Message("best {metric}", record.best.metric)
        if record.best.value is not None:
            role += f" {score_text(record.best)}"
    iteration = iteration_of(ref.file)
    return {
        "file": ref.file,
        "iteration": f"{ref.iteration if iteration is None else iteration:,}",
        "size": size(ref.size_bytes),
        "sha256": ref.sha256,
        "role": role,
    }


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
