"""What the earlier sessions of a run have left, kept beside the new one's."""

from __future__ import annotations

import shutil
from pathlib import Path

from mapsage_kaggle.events import last_word_s, read_events
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import SessionRecord, read_record


def read_closed(files: WorkDir) -> SessionRecord | None:
    """Return the record of the session that ended in a folder; None where there is none to be read."""
    record = read_record(files.session)
    return record.closed(last_word_s(read_events(files.events))) if record is not None else None


def archive_session(folder: Path, history: Path, record: SessionRecord, *, move_events: bool) -> None:
    """Put a session's record, config and events into the history, under its number.

    The record stays where it is, too: it is replaced by the next one's, and never absent.
    """
    history.mkdir(exist_ok=True)
    files, index = WorkDir(folder), record.session_index
    record.write(history / f"session_{index:03d}.json")
    if files.config.is_file():
        copy_content(files.config, history / f"config_{index:03d}.py")
    if files.events.is_file():
        target = history / f"events_{index:03d}.jsonl"
        if move_events:
            files.events.replace(target)
        else:
            copy_content(files.events, target)


def copy_content(source: Path, target: Path) -> None:
    """Copy content only: files below the inputs are read-only, and their mode must not come along."""
    shutil.copyfile(source, target)
