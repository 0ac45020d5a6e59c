"""Carry what a run's earlier sessions have left over to the new one."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from mapsage_kaggle.checkpoints.choose import Choice
from mapsage_kaggle.checkpoints.proving import SaveFailed
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.config.reading import changes_between
from mapsage_kaggle.config.tracking import JOURNAL, KINDS, trackers_of
from mapsage_kaggle.events import last_word_s, read_events
from mapsage_kaggle.messages import Message, text_of
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import PACKED, SessionRecord, read_packed, read_record, write_packed

MAX_CARRIED, MAX_CARRIED_BYTES = 200, 50_000_000
MAX_OWN_FILES = 40
"""Sessions whose record, config and events stay unpacked in the history."""
_MAX_CHANGES = 200
_SESSION = re.compile(r"(?:session_[0-9]{3,6}\.json|config_[0-9]{3,6}\.py|events_[0-9]{3,6}\.jsonl)")
_HISTORY = re.compile(rf"{_SESSION.pattern}|{re.escape(PACKED)}")
_JOURNAL = re.compile(re.escape(JOURNAL))
_PREDICTION = re.compile(r"[\w.-]+\.png", re.ASCII)


def read_closed(files: WorkDir) -> SessionRecord | None:
    """Return the closed record of a work dir's last session; None where it is missing or unreadable."""
    record = read_record(files.session)
    return record.closed(last_word_s(read_events(files.events))) if record is not None else None


def archive_session(folder: Path, history: Path, record: SessionRecord, *, move_events: bool) -> None:
    """Copy a session's record, config and events into the history, under its index.

    ``move_events`` moves the events instead. The record stays until the next session's replaces it.
    """
    history.mkdir(exist_ok=True)
    files, index = WorkDir(folder), record.session_index
    # Without the sessions before it: else 1,000 sessions would be stored 500,000 times.
    record.evolve(previous=()).write(history / f"session_{index:03d}.json")
    if files.config.is_file():
        shutil.copyfile(files.config, history / f"config_{index:03d}.py")
    if files.events.is_file():
        target = history / f"events_{index:03d}.jsonl"
        if move_events:
            files.events.replace(target)
        else:
            shutil.copyfile(files.events, target)


def carry_history(files: WorkDir, source: Path | None, here: SessionRecord | None) -> None:
    """Archive a work dir's own last session, and copy the history of an earlier output.

    ``source`` is the earlier output, None where there is none or it is this work dir; ``here`` is the closed
    record of the last session in this work dir.
    """
    history = files.history
    if here is not None:
        here.write(files.session)  # closed, before the events that tell its end are moved
        archive_session(files.path, history, here, move_events=True)
    else:
        files.events.unlink(missing_ok=True)
    if source is not None:
        _carry_output(source, files)
    pack_history(history)


def _carry_output(source: Path, files: WorkDir) -> None:
    origin = WorkDir(source)
    _carry(origin.history, files.history, _HISTORY)
    _carry(origin.predictions, files.predictions, _PREDICTION)
    record = read_closed(origin)
    if record is not None:
        archive_session(source, files.history, record, move_events=False)
        folder = trackers_of(source, record.run_id)
        for name in KINDS:
            _carry(folder / name, trackers_of(files.path, record.run_id) / name, _JOURNAL)


def _carry(source: Path, target: Path, wanted: re.Pattern[str]) -> None:
    """Copy files of known names, last names first, up to the limits: a stranger's may hold anything."""
    try:
        entries = sorted(os.scandir(source), key=lambda entry: entry.name, reverse=True)
    except OSError:
        return
    target.mkdir(parents=True, exist_ok=True)
    num_files = num_bytes = 0
    for entry in entries:
        if not (wanted.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)):
            continue
        size_bytes = entry.stat(follow_symlinks=False).st_size
        if num_files < MAX_CARRIED and num_bytes + size_bytes <= MAX_CARRIED_BYTES:
            # Without its mode: files below the inputs are read-only.
            shutil.copyfile(entry.path, target / entry.name)
            num_files, num_bytes = num_files + 1, num_bytes + size_bytes


def pack_history(history: Path) -> None:
    """Pack the files of all but the newest sessions into one, to keep the output of a long run few files.

    Beyond its limit in bytes the oldest sessions lose their events and configs; their records are in every
    later one's ``previous``.
    """
    numbered = {
        path: int(path.stem.rpartition("_")[2])
        for path in history.glob("*_*")
        if _SESSION.fullmatch(path.name)
    }
    old = sorted(set(numbered.values()))[:-MAX_OWN_FILES]
    if not old:
        return
    members: dict[str, bytes] = {}
    try:
        members.update(read_packed(history / PACKED))
    except ValueError:  # kept, under a name that is never written: it may be repairable
        (history / PACKED).replace(history / f"{PACKED}.unreadable")
    moved = [path for path, number in numbered.items() if number <= old[-1]]
    members |= {path.name: path.read_bytes() for path in moved}
    write_packed(history / PACKED, members, MAX_CARRIED_BYTES // 2)
    for path in moved:
        path.unlink()


def carry_best(store: CheckpointStore, record: SessionRecord, source: Path) -> str:
    """Copy the best checkpoint of an earlier output; return what prevented that, or an empty string."""
    best = record.best
    if best is None or best.metric is None or best.value is None or not (source / best.file).is_file():
        return ""
    try:
        store.carry_over(
            source / best.file,
            iteration=best.iteration,
            metric=best.metric,
            value=best.value,
            sha256=best.sha256,
        )
    except SaveFailed as error:
        return Message(
            "The best checkpoint of the sessions before could not be carried over: {why}", text_of(error)
        )
    return ""


def carry_resumed(files: WorkDir, store: CheckpointStore, choice: Choice, record: SessionRecord) -> str:
    """Copy the resumed checkpoint into this output unless there is a newer one, and rewrite the record.

    Returns:
        What prevented that, or an empty string. It is not fatal: what was resumed is still attached.
    """
    source, resumed = choice.target, choice.resumed
    if source is None or resumed is None:
        return ""
    ref, problem = store.newest(), ""
    if ref is None and source.parent != files.path:
        try:
            ref = store.hand_on(source, iteration=resumed.iteration or 0, sha256=resumed.sha256)
        except SaveFailed as error:
            problem = Message("The checkpoint that was resumed could not be handed on: {why}", text_of(error))
    if ref is not None:
        record.evolve(checkpoint=ref, best=store.best(), end_iteration=ref.iteration).write(files.session)
    return problem


def changes_since(files: WorkDir, before: Path | None, record: SessionRecord | None) -> tuple[str, ...]:
    """Return the differences from the config of the session before, one line each.

    ``before`` is that session's folder and ``record`` its record, None where there is none.
    """
    if before is None:
        return ()
    name = f"config_{record.session_index:03d}.py" if record is not None else ""
    for file in (files.history / name, WorkDir(before).config):
        if name and file.is_file() and file != files.config:
            old = file.read_text(encoding="utf-8", errors="replace")
            return changes_between(old, files.config.read_text(encoding="utf-8"))[:_MAX_CHANGES]
    return ()
