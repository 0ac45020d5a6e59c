"""Read a run's sessions back from their records and events, oldest first."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mapsage_kaggle.checkpoints.lock import holder_of
from mapsage_kaggle.display.sound import is_sound_event, sound_record
from mapsage_kaggle.events import Event, EventKind, last_word_s, parse_events, read_log
from mapsage_kaggle.outside import parse_json, read_json
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import PACKED, SessionRecord, read_packed
from mapsage_kaggle.walk import walk

SILENT_S = 90.0
"""How long the lock may be free and the log silent between two training processes of a session."""
MAX_ITERATIONS = 20_000
"""About how many iteration events of a run are read, over all its sessions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PastSession:
    """One session with its events.

    Attributes:
        record: What it did and handed over.
        events: In order; empty where its log was not carried over. Of a long run's iterations, a sample.
        folder: The work dir, or the history folder, that it was read from.
        num_left_out: Values of its record and lines of its log that could not be read.
        size_bytes: Of its log.
    """

    record: SessionRecord
    events: tuple[Event, ...]
    folder: Path
    num_left_out: int = 0
    size_bytes: int = 0

    def of(self, *kinds: EventKind) -> list[Event]:
        return [event for event in self.events if event.event in kinds]


def unlabelled(sessions: Sequence[PastSession], iteration: int) -> tuple[str, ...]:
    """Return the classes without a labelled pixel in the validation at an iteration."""
    for event in (event for session in reversed(sessions) for event in reversed(session.of("validation"))):
        if event.iteration == iteration:
            return unlabelled_in(event)
    return ()


def unlabelled_in(validation: Event) -> tuple[str, ...]:
    """Return the classes without a labelled pixel, on which a validation's score says nothing."""
    table = validation.data.get("per_class")
    scores = table.items() if isinstance(table, Mapping) else ()
    return tuple(
        str(name) for name, score in scores if isinstance(score, Mapping) and score.get("Acc", 0.0) is None
    )


def read_sessions(folders: Sequence[Path], *, forks: bool = False) -> list[PastSession]:
    """Return the sessions that some work dirs know of, oldest first, each once.

    The last session's output alone is enough: it carries the earlier records and events in ``history/``. A
    session is identified by its run and number; of several copies of its record the one that got furthest
    counts. Unreadable records are skipped. Folders are work dirs, or have work dirs below them. With
    ``forks``, sessions with one number that began at different times are several.
    """
    found: dict[tuple[str, int, bool, float], PastSession] = {}
    for session in _all_sessions(folders):
        # A refusal takes no number of its own.
        refused = session.record.stop_reason == "refused"
        began_s = session.record.started_s if forks else 0.0
        key = (session.record.run_id, session.record.session_index, refused, began_s)
        known = found.get(key)
        if known is None or _weight(session) > _weight(known):
            found[key] = session
    ordered = sorted(found.values(), key=_order)
    newest = {session.record.run_id: session for session in ordered}.values()
    return [session if session in newest and _goes_on(session) else _closed(session) for session in ordered]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One quantity over a run: ``values`` at ``iterations``, which increase strictly."""

    iterations: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def smoothed(self, share: float = 0.04) -> Series:
        """Return the running mean over windows of this share of the points, truncated at both ends."""
        half = max(1, round(share * len(self) / 2))
        totals = [0.0]
        for value in self.values:
            totals.append(totals[-1] + value)
        means = []
        for index in range(len(self)):
            low, high = max(0, index - half), min(len(self), index + half + 1)
            means.append((totals[high] - totals[low]) / (high - low))
        return Series(iterations=self.iterations, values=tuple(means))

    def thinned(self, most: int = 2000) -> Series:
        """Return about ``most`` of the points, evenly spaced, the last one included."""
        step = max(1, -(-len(self) // most))
        keep = sorted({*range(0, len(self), step), len(self) - 1}) if len(self) else []
        return Series(
            iterations=tuple(self.iterations[index] for index in keep),
            values=tuple(self.values[index] for index in keep),
        )


def series(sessions: Sequence[PastSession], kind: EventKind, *names: str) -> Series:
    """Return a quantity from events of one kind, over a run's sessions (oldest first).

    ``names`` lead to it in their data, level by level: ``"metrics", "mIoU"``. Where training went back, after
    a crash or in a later session, only what was kept counts.
    """
    iterations: list[int] = []
    values: list[float] = []
    for event in (event for session in sessions for event in session.events):
        if event.event in ("training", "resume") or event.event == kind:
            while iterations and iterations[-1] > event.iteration - (event.event == kind):
                iterations.pop()
                values.pop()
        if event.event != kind:
            continue
        value: object = event.data
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)):
            iterations.append(event.iteration)
            values.append(float(value))
    return Series(iterations=tuple(iterations), values=tuple(values))


def _all_sessions(folders: Sequence[Path]) -> Iterator[PastSession]:
    for folder in (work_dir for given in folders for work_dir in work_dirs_below(given)):
        files = WorkDir(folder)
        newest = _session(files.session, files.events, MAX_ITERATIONS)
        if newest is not None:
            yield newest
        place = files.history if files.history.is_dir() else folder
        paths = sorted(place.glob("session_*.json"))
        num_sessions = newest.record.session_index if newest is not None else len(paths)
        most = max(1, MAX_ITERATIONS // max(1, num_sessions))
        for path in paths:
            beside = path.with_name(path.name.replace("session_", "events_")).with_suffix(".jsonl")
            earlier = _session(path, beside, most)
            if earlier is not None:
                yield earlier
        yield from _packed_sessions(files.history / PACKED, most)
        for document in newest.record.previous if newest is not None else ():
            record, num_left_out = sound_record(document)
            if record is not None:
                yield PastSession(record=record, events=(), folder=folder, num_left_out=num_left_out)


def _session(path: Path, events: Path, most: int) -> PastSession | None:
    """Read a record and the events beside it; None where the record is unreadable."""
    try:
        document = read_json(path)
    except (OSError, ValueError):
        return None
    return _sound_session(document, read_log(events), most, path.parent)


def _packed_sessions(path: Path, most: int) -> Iterator[PastSession]:
    """Yield the sessions whose files have been packed into one."""
    files: dict[str, bytes] = {}
    with contextlib.suppress(ValueError):  # what could be read until then is shown
        files.update(read_packed(path))
    for name, content in files.items():
        if name.startswith("session_"):
            events = files.get(name.replace("session_", "events_") + "l", b"")
            with contextlib.suppress(ValueError):
                session = _sound_session(parse_json(content), events, most, path.parent)
                if session is not None:
                    yield session


def _sound_session(document: object, log: bytes, most: int, folder: Path) -> PastSession | None:
    record, num_left_out = sound_record(document)
    if record is None:
        return None
    events, num_broken = parse_events(log, most=most)
    # A refusal trains nothing: events beside it belong to the session before.
    told = () if record.stop_reason == "refused" else events
    sound = tuple(event for event in told if is_sound_event(event))
    num_left_out += num_broken + len(told) - len(sound)
    return PastSession(
        record=record, events=sound, folder=folder, num_left_out=num_left_out, size_bytes=len(log)
    )


def _goes_on(session: PastSession) -> bool:
    """Return whether a session that has recorded no end may still be running."""
    silent_s = time.time() - (last_word_s(session.events) or session.record.started_s)
    return silent_s < SILENT_S or holder_of(session.folder) is not None


def _closed(session: PastSession) -> PastSession:
    return replace(session, record=session.record.closed(last_word_s(session.events)))


def work_dirs_below(folder: Path) -> list[Path]:
    """Return a folder that holds a session's record, else those below it that do, else the folder."""
    if WorkDir(folder).session.is_file() or not folder.is_dir():
        return [folder]
    found = walk(folder, want_file=lambda name: name == "session.json", endings=(".json",)).files
    return sorted({path.parent for path in found}) or [folder]


def _order(session: PastSession) -> tuple[float, int, bool]:
    """Sort key: by start, a refusal after the session whose number and start it carries."""
    record = session.record
    return record.started_s, record.session_index, record.stop_reason == "refused"


def _weight(session: PastSession) -> tuple[bool, bool, int]:
    """Sort key of a session's copies: with events, then finished, then with the longest log."""
    return bool(session.events), session.record.stop_reason != "running", session.size_bytes


def one_run(sessions: Iterable[PastSession]) -> list[PastSession]:
    """Return the sessions of the newest run."""
    sessions = list(sessions)
    if not sessions:
        return []
    run_id = sessions[-1].record.run_id
    return [session for session in sessions if session.record.run_id == run_id]
