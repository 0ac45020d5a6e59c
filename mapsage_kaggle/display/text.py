"""Plain text for terminals, logs and saved notebooks."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.display.columns import aligned, columns
from mapsage_kaggle.display.history import one_run, read_sessions, unlabelled, unlabelled_in
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.events import Event
from mapsage_kaggle.outside import MAX_LINES, MAX_PATH, joined, listed, visible, visible_lines
from mapsage_kaggle.records import ACTIVITIES, CheckpointRef, SessionRecord, share_of_steps
from mapsage_kaggle.schema import PERCENT

if TYPE_CHECKING:
    from mapsage_kaggle.checkpoints.choose import Choice
    from mapsage_kaggle.checkpoints.inspect import Inspection
    from mapsage_kaggle.checkpoints.scan import ScanReport
    from mapsage_kaggle.checks import Check
    from mapsage_kaggle.training.prepare import Prepared

_MARKS = {"info": "ok ", "warning": "!  ", "error": "✗  "}


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """Return rows as an aligned table; columns of numbers are aligned to the right."""
    text = [[_cell(item) for item in row] for row in rows]
    right = [
        index
        for index in range(len(header))
        if text and all(_is_number(row[index]) for row in text if row[index] != "-")
    ]
    lines = aligned([header, *text], right)
    rule = "  ".join("-" * max(map(columns, column)) for column in zip(header, *text, strict=True))
    return "\n".join([lines[0], rule, *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


def size(num_bytes: float | None) -> str:
    """Return ``297.4 MB``; decimal units, as Kaggle shows them."""
    if num_bytes is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


def checks_text(checks: Sequence[Check]) -> str:
    return "\n".join(f"{_MARKS[check.level]} {check.name:<10} {check.message}" for check in checks)


def scan_text(report: ScanReport) -> str:
    """Return what a scan found, as a table, and what it could not use."""
    lines = [f"{len(report.files)} checkpoint files below {report.root}"]
    if report.files:
        rows = [
            (
                item.kind,
                item.iteration,
                size(item.size_bytes),
                visible(item.source),
                visible(item.path, MAX_PATH),
            )
            for item in report.files[:MAX_LINES]
        ]
        lines.append(table(rows, ("kind", "iteration", "size", "source", "path")))
        if len(report.files) > MAX_LINES:
            lines.append(f"… and {len(report.files) - MAX_LINES:,} more")
    lines += listed(
        [f"not usable: {visible(item.path, MAX_PATH)}: {item.reason}" for item in report.rejected]
    )
    return "\n".join(lines)


def inspection_text(inspection: Inspection) -> str:
    at = f", iteration {inspection.iteration}" if inspection.iteration is not None else ""
    lines = [f"{visible(inspection.path, MAX_PATH)}: {inspection.verdict}{at}"]
    if inspection.size_bytes is not None:
        lines.append(f"  size {size(inspection.size_bytes)}, sha256 {inspection.sha256 or '-'}")
    lines += listed([f"  - {problem}" for problem in inspection.problems])
    return "\n".join(lines)


def choice_text(choice: Choice, words: Words) -> str:
    """Return what a session starts from, as a sentence without its full stop."""
    if choice.checkpoint is None:
        return words(choice.fresh)
    iteration = choice.inspection.iteration if choice.inspection is not None else None
    return words(choice.action, path=choice.checkpoint.target, iteration=iteration or 0)


def plan_text(plan: Prepared) -> str:
    choice, patch = plan.discovery.choice, plan.patch
    lines = [f"! {choice.notice}"] if choice.notice else []
    lines += [f"  {line}" for line in choice.explanations]
    lines.append(f"{choice_text(choice, Words())}.")
    lines += [f"! {line}" for line in choice.steps_down]
    lines += [f"! {line}" for line in patch.warnings]
    lines.append(
        f"Iterations {plan.start_iteration} to {patch.max_iters}, {patch.effective_batch} images each; "
        f"{len(patch.changes)} keys of the config changed (see config.diff)"
    )
    lines.append(
        f"Time: {format_duration(plan.clock.left_s())} until everything must be written; "
        f"work dir {plan.work_dir}"
    )
    return "\n".join(lines)


def outcome_text(record: SessionRecord, work_dir: Path) -> str:
    """Return how a session ended, and what to do next."""
    lines = [
        f"Session {record.session_index}: {record.stop_reason}. {record.message}".rstrip(),
        f"Iterations {record.start_iteration} to {record.end_iteration} of {record.max_iters}.",
    ]
    if record.checkpoint is not None:
        lines.append(f"Newest checkpoint: {record.checkpoint.file} ({size(record.checkpoint.size_bytes)})")
    if record.best is not None and record.best.value is not None:
        unseen = unseen_text(unlabelled(read_sessions([work_dir]), record.best.iteration), Words())
        best = f"{score_text(record.best)} at {record.best.iteration}{unseen}"
        lines.append(f"Best {record.best.metric}: {best}")
    spent = times_text(record)
    if spent:
        lines.append(f"Time: {format_duration(record.timings_s['session'])}: {spent}")
    lines.append(next_text(record, work_dir))
    return "\n".join(lines)


def times_text(record: SessionRecord, words: Words | None = None) -> str:
    """Return the shares of a session's time, largest first; empty where it was not timed to its end."""
    words, times = words or Words(), record.timings_s
    whole_s = float(times.get("session") or 0.0)
    if whole_s <= 0.0:
        return ""
    shares = {name: float(times.get(name) or 0.0) / whole_s for name in (*ACTIVITIES, "other")}
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    # Less than half a percent is left out.
    parts = [f"{words(f'time_{name}')} {100 * share:.0f} %" for name, share in ordered if share >= 0.005]
    return words("list_mark").join(parts)


def next_text(record: SessionRecord, work_dir: Path, words: Words | None = None) -> str:
    """Return the next step to take, in one paragraph."""
    words = words or Words()
    if record.stop_reason in ("completed", "early"):
        best = words("next_best", file=record.best.file) if record.best is not None else ""
        if record.stop_reason == "completed":
            return words("next_completed", best=best)
        said = words.translate(record.message)
        return words("next_early", message=said, best=best, max_iters=record.max_iters)
    if record.stop_reason == "refused":
        return words("next_refused", message=words.translate(record.message))
    if record.stop_reason == "failed":
        return words("next_failed", iteration=record.end_iteration, log=work_dir / "train.log")
    return words("next_go_on", iteration=record.end_iteration)


def headline(event: Event, words: Words | None = None) -> str:
    """Return the line for an event; empty for kinds that come by the thousand."""
    words, data = words or Words(), event.data
    at = f"[{event.iteration}]"
    if event.event == "resume":
        return "\n".join(map(words.translate, data.get("lines", [data.get("verdict", "")])))
    if event.event == "validation":
        best = f" ({words('view_best_yet')})" if data.get("best") else ""
        unseen = unseen_text(unlabelled_in(event), words)
        return f"{at} {words('view_validated', values=scores_text(data.get('metrics', {})))}{best}{unseen}"
    if event.event == "checkpoint" and data.get("metric") is None:
        return f"{at} {words('line_saved', file=data.get('file'), size=size(data.get('size_bytes')))}"
    if event.event in ("warning", "restart", "failure", "ladder", "upload"):
        message = data.get("message") or ", ".join(f"{key} {value}" for key, value in data.items())
        return f"{at} {words(f'line_{event.event}', message=words.translate(message))}"
    if event.event == "stop":
        return f"{at} {words('line_stop', message=words.translate(data.get('message', '')))}"
    return ""


def unseen_text(classes: Sequence[str], words: Words) -> str:
    """Return the remark after a score on classes that it says nothing of; empty without any."""
    return words("no_pixel", names=joined(classes)) if classes else ""


def score_text(best: CheckpointRef) -> str:
    """Return a best checkpoint's score with its unit."""
    return "-" if best.value is None else _scored(best.metric or "", best.value)


def scores_text(metrics: Mapping[str, Any]) -> str:
    """Return a validation's scores with their units, mIoU first."""
    names = sorted((name for name in metrics if "time" not in name), key=lambda name: name != "mIoU")
    return ", ".join(f"{name} {_scored(name, metrics[name])}" for name in names if metrics[name] is not None)


def _scored(metric: str, value: float) -> str:
    """Return a score; mmsegmentation's own, with a prefix or without, are percentages."""
    return f"{value:.2f} %" if metric.rpartition("/")[2] in PERCENT else f"{value:.4g}"


class TextSink:
    """Prints events as plain lines, at a rate that a saved notebook can bear.

    Progress lines are at least ``every_s`` seconds apart.
    """

    def __init__(
        self,
        *,
        max_iters: int,
        stream: TextIO | None = None,
        every_s: float = 10.0,
        words: Words | None = None,
    ) -> None:
        self._words = words or Words()
        self._max_iters = max_iters
        self._stream = stream
        self._every_s = every_s
        self._last_shown_s = -math.inf
        self._saved = ""

    def handle(self, event: Event) -> None:
        line = self._line(event)
        if line:
            print(visible_lines(line), file=self._stream or sys.stdout, flush=True)

    def _line(self, event: Event) -> str:
        if event.event == "iteration":
            now = time.monotonic()
            if now - self._last_shown_s < self._every_s:
                return ""
            self._last_shown_s = now
            return progress_text(event, self._max_iters, self._words)
        if event.event == "checkpoint" and event.data.get("metric") is None:
            # Saved before a validation and again after it, with its score: printed once.
            again, self._saved = event.data.get("file") == self._saved, str(event.data.get("file"))
            return "" if again else headline(event, self._words)
        return headline(event, self._words)


def progress_text(event: Event, max_iters: int, words: Words | None = None) -> str:
    words, data = words or Words(), event.data
    parts = [f"[{event.iteration}/{max_iters}]"]
    if data.get("loss") is not None:
        parts.append(f"{words('loss')} {data['loss']:.4f}")
    if data.get("lr") is not None:
        parts.append(f"{words('line_lr')} {data['lr']:.3g}")
    if data.get("iteration_s"):
        parts.append(words("s_per_iteration", value=data["iteration_s"]))
    if data.get("left_s") is not None:
        parts.append(words("line_left", left=format_duration(data["left_s"])))
    # No forecast before anything was measured.
    if data.get("iterations_left"):
        reach = event.iteration + int(data["iterations_left"])
        parts.append(words("line_end") if reach >= max_iters else words("line_reach", iteration=reach))
    return "  ".join(parts)


def run_text(folders: Sequence[Path], *, language: str = "en") -> str:
    """Return the newest run of some work dirs for a terminal: its sessions, findings and next step.

    *In training steps* is the share of the time outside validation.
    """
    from mapsage_kaggle.display.findings import findings

    words = Words(language)
    sessions = one_run(read_sessions(folders))
    rows = [
        (
            record.session_index,
            record.start_iteration,
            record.end_iteration,
            words(record.stop_reason),
            score_text(record.best) if record.best is not None else None,
            format_duration(record.timings_s.get("session") or 0.0),
            None if (share := share_of_steps(record.timings_s)) is None else f"{100 * share:.0f} %",
        )
        for record in (item.record for item in sessions)
    ]
    header = ("session", "from", "to", "ended", "best", "time", "in training steps")
    lines = [table(rows, tuple(map(words.translate, header)))]
    for item in findings(sessions):
        lines.append(f"{item.mark} {words.translate(item.name)}: {words.translate(item.message)}")
    if sessions:
        lines.append(next_text(sessions[-1].record, sessions[-1].folder, words))
    return "\n".join(lines)
