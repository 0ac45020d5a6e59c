"""Audit a run from its work dirs, and render the result."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mapsage_kaggle.checkpoints.audit import Audit, FileCheck, Left, audit, check_files
from mapsage_kaggle.checkpoints.manifest import Manifest
from mapsage_kaggle.display.history import PastSession, one_run, read_sessions, work_dirs_below
from mapsage_kaggle.display.text import table
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import MAX_PATH, listed, visible
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import CheckpointRef

FOLLOWS = {
    "bitwise": "bit for bit",
    "rounding": "to rounding",
    "not shown": "not shown",
    "neither": "neither",
    None: "nothing of it was kept",
}
"""How exactly a session equals an uninterrupted run, by grade."""
WHOLE = {
    "bitwise": Message("The run equals an uninterrupted one bit for bit, as far as its own files tell."),
    "rounding": Message("The run equals an uninterrupted one to rounding, as far as its own files tell."),
    "not shown": Message("What the run equals an uninterrupted one to is not shown."),
    "neither": Message("The run equals no uninterrupted one, neither bit for bit nor to rounding."),
}


def audit_folders(folders: Sequence[Path]) -> Audit:
    """Audit the newest run found in some work dirs, with the bytes of the checkpoints there.

    Raises:
        UsageError: None of the folders holds a session's record.
    """
    sessions = read_sessions(folders, forks=True)
    taken = one_run(sessions)
    if not taken:
        raise UsageError(
            Message("There is no session.json in {places}.", ", ".join(map(str, folders))),
            "Name a work dir, or a folder that has one below it.",
        )
    places = {place.resolve(): place for folder in folders for place in work_dirs_below(folder)}
    newest = {session.folder: session for session in sessions}
    of_run = {session.folder.resolve() for session in taken}
    files: list[FileCheck] = []
    problems: list[str] = []
    for place in places.values():
        if place not in newest:
            problems.append(f"{visible(WorkDir(place).session, MAX_PATH)} cannot be read as a record.")
        if place not in newest or place.resolve() in of_run:
            checked, unread = check_files(place, newest[place].record if place in newest else None)
            files += checked
            problems += unread
    others = dict.fromkeys(session.record.run_id for session in sessions)
    run_id = taken[-1].record.run_id
    return audit_sessions(
        taken,
        files=tuple(files),
        problems=tuple(problems),
        other_runs=tuple(name for name in others if name != run_id),
    )


def audit_sessions(sessions: Sequence[PastSession], **more: Any) -> Audit:
    """Audit the sessions of one run; ``more`` is passed to :func:`audit`, such as ``files``."""
    # A work dir's manifest belongs to the last session in it.
    owners = {session.folder: session for session in sessions}
    return audit([_left(item, owns_manifest=owners[item.folder] is item) for item in sessions], **more)


def _left(session: PastSession, *, owns_manifest: bool) -> Left:
    told: list[CheckpointRef] = []
    for event in session.of("checkpoint"):
        with contextlib.suppress(ValueError):
            told.append(CheckpointRef.from_json({**event.data, "iteration": event.iteration}))
    listed_refs: list[CheckpointRef] = []
    if owns_manifest:
        with contextlib.suppress(OSError, ValueError):
            listed_refs += Manifest.read(WorkDir(session.folder).manifest).files.values()
    return Left(record=session.record, told=tuple(told), listed=tuple(listed_refs))


def audit_text(found: Audit) -> str:
    rows = [
        (record.session_index, record.start_iteration, record.end_iteration, item.chain, FOLLOWS[item.grade])
        for item, record in ((item, item.record) for item in found.sessions)
    ]
    lines = [table(rows, ("session", "from", "to", "chain", "what follows"))]
    for item in found.sessions:
        lines += listed([f"  session {item.record.session_index}: {reason}" for reason in item.reasons])
    lines += [f"  {item.verdict}: {visible(item.path, MAX_PATH)}" for item in found.files]
    lines += [f"  {problem}" for problem in found.problems]
    if found.other_runs:
        lines.append(
            f"  not looked at: {len(found.other_runs)} other run(s), {', '.join(found.other_runs[:4])}"
        )
    return "\n".join([*lines, f"chain: {found.chain}. {WHOLE[found.grade]}"])
