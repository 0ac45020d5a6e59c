"""Diagnose a run from its records and events. Pure: sessions in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean, pstdev

from mapsage_kaggle.display.history import PastSession, series
from mapsage_kaggle.display.panels import Finding, Tone
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import visible
from mapsage_kaggle.records import SessionRecord

JUMP_POINTS = 8
"""How many loss points on either side of a resume are compared."""
FALL_POINTS = 2.0
"""By how many points of mIoU validation must end below its best to count as overfitting."""
LEARNED_IOU = 0.01
_MAX_NAME = 60


def findings(sessions: Sequence[PastSession], *, num_left_out: int = 0) -> tuple[Finding, ...]:
    """Return the findings on a run's sessions (oldest first), worst first.

    ``num_left_out`` counts documents beside them that could not be read.
    """
    found = [
        *_ends(sessions),
        *_gaps(sessions),
        *_jumps(sessions),
        *_overfitting(sessions),
        *_classes(sessions),
        *_stated_by_events(sessions),
        *_left_out(num_left_out + sum(session.num_left_out for session in sessions)),
    ]
    order = {"bad": 0, "note": 1, "": 2, "good": 3}
    return tuple(sorted(dict.fromkeys(found), key=lambda item: order[item.tone]))


def _of(record: SessionRecord, tone: Tone, message: str) -> Finding:
    return Finding(tone=tone, name=Message("session {index}", record.session_index), message=message)


def _ends(sessions: Sequence[PastSession]) -> list[Finding]:
    return [
        _of(item.record, "bad", Message("failed: {message}", item.record.message))
        for item in sessions
        if item.record.stop_reason == "failed"
    ]


def _gaps(sessions: Sequence[PastSession]) -> list[Finding]:
    found = []
    for one, other in pairwise(sessions):
        lost = one.record.end_iteration - other.record.start_iteration
        if lost > 0 and other.record.stop_reason != "refused":
            message = Message(
                "went on at {start}, though session {index} had got to {end}: {lost} iterations were "
                "trained twice",
                f"{other.record.start_iteration:,}",
                one.record.session_index,
                f"{one.record.end_iteration:,}",
                f"{lost:,}",
            )
            found.append(_of(other.record, "note", message))
    return found


def _jumps(sessions: Sequence[PastSession]) -> list[Finding]:
    """Compare the loss before and after each resume: a correct resume shows no jump."""
    found = []
    losses = [(item.record, series([item], "iteration", "loss").values) for item in sessions]
    # Those that were refused or soon ended have none to compare, nor do they part those that have.
    for (_, one), (record, other) in pairwise(item for item in losses if len(item[1]) >= 3):
        if record.start_iteration == 0:
            continue
        before, after = one[-JUMP_POINTS:], other[:JUMP_POINTS]
        rise = mean(after) - mean(before)
        if rise > 0.25 * mean(before) and rise > 3.0 * max(pstdev(before), pstdev(after)):
            message = Message(
                "the loss jumped from {before} to {after} at the resume; it must not: compare the two "
                "sessions' configs below",
                f"{mean(before):.3f}",
                f"{mean(after):.3f}",
            )
            found.append(_of(record, "bad", message))
    return found


def _overfitting(sessions: Sequence[PastSession]) -> list[Finding]:
    scores = series(sessions, "validation", "metrics", "mIoU")
    loss = series(sessions, "iteration", "loss").smoothed()
    if len(scores) < 4 or len(loss) < 10:
        return []
    best = max(range(len(scores)), key=lambda index: scores.values[index])
    after = scores.values[best + 1 :]
    if len(after) < 3 or scores.values[best] - mean(after[-3:]) < FALL_POINTS:
        return []
    at = scores.iterations[best]
    stated = zip(loss.iterations, loss.values, strict=True)
    then = [value for iteration, value in stated if iteration >= at]
    if not then or then[-1] >= then[0]:
        return []
    message = Message(
        "since iteration {at} mIoU fell from {best} % to {now} % while the training loss fell "
        "on, from {then} to {last}: the model learns its images by heart; take the best "
        "checkpoint, more data or more augmentation",
        f"{at:,}",
        f"{scores.values[best]:.1f}",
        f"{mean(after[-3:]):.1f}",
        f"{then[0]:.3f}",
        f"{then[-1]:.3f}",
    )
    return [Finding(tone="note", name="overfitting", message=message)]


def _classes(sessions: Sequence[PastSession]) -> list[Finding]:
    scored = class_scores(sessions)
    if not scored:
        return []
    iteration, scores = scored[-1]
    names = [name for name, value in scores.items() if value is not None and value < LEARNED_IOU]
    if len(scored) < 3 or not names:
        return []
    message = Message(
        "not learned by iteration {iteration}: {names}; look whether the masks have enough of them",
        f"{iteration:,}",
        ", ".join(names),
    )
    return [Finding(tone="note", name="classes", message=message)]


def class_scores(sessions: Sequence[PastSession]) -> list[tuple[int, dict[str, float | None]]]:
    """Return iteration and IoU by class, as fractions, of each validation that reports it."""
    stated: dict[int, dict[str, float | None]] = {}
    for event in (event for session in sessions for event in session.of("validation")):
        table = event.data.get("per_class")
        if isinstance(table, Mapping) and table:
            stated[event.iteration] = {
                visible(name, _MAX_NAME): value.get("IoU") if isinstance(value, Mapping) else value
                for name, value in table.items()
            }
    return sorted(stated.items())


def last_confusion(sessions: Sequence[PastSession]) -> tuple[int, list[str], list[list[int]]] | None:
    """Return the newest confusion matrix: iteration, class names and counts; None where there is none."""
    for event in (event for session in reversed(sessions) for event in reversed(session.of("validation"))):
        counts, names = event.data.get("confusion"), list(event.data.get("per_class") or ())
        if counts and names and len(counts) - len(names) in (0, 1):
            return event.iteration, [visible(name, _MAX_NAME) for name in names], counts
    return None


def palette_of(sessions: Sequence[PastSession]) -> dict[str, Sequence[int]]:
    """Return the colours of the classes by name, from the newest session that states them."""
    for event in (event for session in reversed(sessions) for event in session.of("training")):
        palette = event.data.get("palette")
        if isinstance(palette, Mapping) and palette:
            return {visible(name, _MAX_NAME): colour for name, colour in palette.items() if len(colour) == 3}
    return {}


def _left_out(count: int) -> list[Finding]:
    message = Message(
        "{count} lines or values of the records could not be read, and were left out", f"{count:,}"
    )
    return [Finding(tone="note", name="records", message=message)] if count else []


def _stated_by_events(sessions: Sequence[PastSession]) -> list[Finding]:
    """Return the sessions' warnings and restarts."""
    return [
        _of(
            session.record,
            "note",
            visible(event.data.get("message") or event.data.get("kind") or event.event, 1000),
        )
        for session in sessions
        for event in session.of("warning", "restart", "ladder")
    ]
