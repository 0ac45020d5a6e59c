"""Whether a run's sessions are one unbroken chain, and what that proves: from what they left alone.

Nothing here is signed. An audit compares what records, events, manifests and files state of each other; who
writes all of them anew can state what they like. What is not stated is *not shown*, never taken for granted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256
from mapsage_kaggle.checkpoints.names import kind_of
from mapsage_kaggle.messages import Message, as_message
from mapsage_kaggle.outside import visible
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import NOT_SHOWN, CheckpointRef, Exactness, SessionRecord, worst

UNBROKEN, BROKEN = "unbroken", "broken"
_CHAINS = (UNBROKEN, NOT_SHOWN, BROKEN)
_FOLLOWS = {UNBROKEN: "bitwise", NOT_SHOWN: NOT_SHOWN, BROKEN: "neither"}
"""The most that can be true of a session whose link is such."""
_COMPUTED_WITH = {
    "device": "device",
    "precision": "precision",
    "torch": "version of torch",
    "cudnn": "version of cuDNN",
    "threads": "number of CPU threads",
    "with_cp": "recomputation in the backward pass (with_cp)",
}
"""What changes the bits of a sum, as the record names it and as a person reads it."""
_ALWAYS_STATED = ("device", "precision", "torch", "threads", "ranks", "micro_batch")
_MAX_REASON = 1000
_ENDED_WELL = ("completed", "early", "deadline", "user")

Difference = tuple[str, str]
"""One of :data:`mapsage_kaggle.records.GRADES`, and why no more is true, in a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """What a session left.

    Attributes:
        told: The checkpoints that its events tell of.
        listed: The checkpoints that its output's manifest lists.
    """

    record: SessionRecord
    told: tuple[CheckpointRef, ...] = ()
    listed: tuple[CheckpointRef, ...] = ()

    @property
    def proven(self) -> tuple[CheckpointRef, ...]:
        own = (ref for ref in (self.record.checkpoint, self.record.best) if ref is not None)
        return (*own, *self.told, *self.listed)

    @property
    def trained(self) -> bool:
        return self.record.end_iteration > self.record.start_iteration


@dataclass(frozen=True, kw_only=True, slots=True)
class FileCheck:
    """A file's ``verdict``: ``proven``, ``other bytes``, ``not listed``, ``not here`` or ``unreadable``."""

    path: Path
    verdict: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditedSession:
    """The audit of one session.

    Attributes:
        chain: Whether it began with bytes that a session before had proved, in the same run over the same
            data: ``unbroken``, ``broken`` or ``not shown``.
        grade: What it equals an uninterrupted run to, of ``GRADES``; None where nothing of it was kept.
        reasons: Why not more, one sentence each.
        after: The place, in the audit, of the session that it went on from; None where that is not known.
        same: Whether fingerprint, data, libraries, ranks and kit are as in the session that it went on from;
            None where one of the two does not say.
    """

    record: SessionRecord
    chain: str
    grade: str | None
    reasons: tuple[str, ...]
    after: int | None = None
    same: Mapping[str, bool | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """The audit of a run.

    Attributes:
        sessions: Oldest first; refusals, which train nothing, left out.
        files: The checkpoint files that were looked at.
        problems: What was there and could not be read, one sentence each.
        other_runs: The ids of further runs there, which were not looked at.
    """

    sessions: tuple[AuditedSession, ...]
    files: tuple[FileCheck, ...] = ()
    problems: tuple[str, ...] = ()
    other_runs: tuple[str, ...] = ()

    @property
    def chain(self) -> str:
        found = {session.chain for session in self.sessions}
        if any(item.verdict == "other bytes" for item in self.files):
            found.add(BROKEN)
        if not found or self.problems or any(item.verdict == "unreadable" for item in self.files):
            found.add(NOT_SHOWN)
        return max(found, key=_CHAINS.index)

    @property
    def grade(self) -> str:
        return worst(
            [_FOLLOWS[self.chain], *(item.grade for item in self.sessions if item.grade is not None)]
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "run_id": self.sessions[-1].record.run_id if self.sessions else None,
            "chain": self.chain,
            "grade": self.grade,
            "problems": list(self.problems),
            "sessions": [self._session(item) for item in self.sessions],
            "files": [{"path": str(item.path), "verdict": item.verdict} for item in self.files],
            "other_runs": list(self.other_runs),
        }

    def _session(self, item: AuditedSession) -> dict[str, Any]:
        record = item.record
        return {
            "session": record.session_index,
            "after": self.sessions[item.after].record.session_index if item.after is not None else None,
            **{name: getattr(record, name) for name in ("start_iteration", "end_iteration", "stop_reason")},
            "started_from": record.started_from.to_json() if record.started_from else None,
            **{name: getattr(item, name) for name in ("chain", "grade")},
            "same": dict(item.same),
            "reasons": list(item.reasons),
        }


def audit(sessions: Sequence[Left], **more: Any) -> Audit:
    """Judge the sessions of one run.

    ``sessions`` are oldest first; ``more`` are further attributes of the :class:`Audit`.
    """
    lefts = [left for left in sessions if left.record.stop_reason != "refused"]
    done: list[AuditedSession] = []
    for index in range(len(lefts)):
        done.append(_audited(lefts, index, done))
    return Audit(sessions=tuple(done), **more)


def check_files(folder: Path, record: SessionRecord | None) -> tuple[tuple[FileCheck, ...], tuple[str, ...]]:
    """Hash a work dir's checkpoints and compare with what its manifest and its record state.

    Returns:
        A verdict for each file, and what could not be read, one sentence each.
    """
    problems: tuple[str, ...] = ()
    try:
        manifest = Manifest.read(WorkDir(folder).manifest)
    except FileNotFoundError:
        manifest = Manifest()
    except (OSError, ValueError) as error:
        manifest, problems = Manifest(), (visible(str(error)),)
    stated: dict[str, set[str]] = {}
    for ref in (*manifest.files.values(), *manifest.pending.values()):
        stated.setdefault(ref.file, set()).add(ref.sha256)
    for own in (record.checkpoint, record.best) if record is not None else ():
        if own is not None and record is not None:
            # A kill between a save and the record leaves the older bytes in the record, a good end does not.
            alone = record.stop_reason in _ENDED_WELL
            stated[own.file] = {own.sha256} if alone else stated.get(own.file, set()) | {own.sha256}
    there = {path.name for path in folder.iterdir() if kind_of(path.name) in ("iter", "best", "epoch")}
    return tuple(_check(folder / name, stated.get(name)) for name in sorted(there | {*stated})), problems


def _check(path: Path, stated: set[str] | None) -> FileCheck:
    if not stated:
        return FileCheck(path=path, verdict="not listed")
    try:
        verdict = "proven" if file_sha256(path) in stated else "other bytes"
    except FileNotFoundError:
        verdict = "not here"
    except (OSError, ValueError):
        verdict = "unreadable"
    return FileCheck(path=path, verdict=verdict)


def differences(
    before: Exactness, now: Exactness, versions_before: Mapping[str, str], versions: Mapping[str, str]
) -> list[Difference]:
    """Return what was computed with something else than in the session before, as far as both state it."""
    found = _other_versions(versions_before, versions)
    for name, word in _COMPUTED_WITH.items():
        then, here = getattr(before, name), getattr(now, name)
        if then is not None and here is not None and then != here:
            grade = "neither" if name == "precision" else "rounding"
            what = as_message(word)
            found.append(
                (grade, Message("the {word} was {then} before, and is {here} now", what, then, here))
            )
    ranks = now.ranks if before.ranks is None else before.ranks
    micro_batch = now.micro_batch if before.micro_batch is None else before.micro_batch
    if None not in (now.ranks, now.micro_batch) and (ranks, micro_batch) != (now.ranks, now.micro_batch):
        apart = bool(now.split or before.split)
        reason = Message(
            "each batch was split into {before} image(s) on {ranks} rank(s), and now into {now} on "
            "{now_ranks}{equal}",
            micro_batch,
            ranks,
            now.micro_batch,
            now.ranks,
            Message("; the two differ by more than rounding") if apart else Message(": equal to rounding"),
        )
        found.append(("neither" if apart else "rounding", reason))
    return found


def _other_versions(before: Mapping[str, str], now: Mapping[str, str]) -> list[Difference]:
    """Return what is of another version than in the session before; torch's is compared like the device."""
    if not before:
        return [(NOT_SHOWN, Message("no record says which kit and which versions computed before"))]
    told: list[Difference] = []
    for name in {**before, **now}:
        if name not in ("kit_commit", "torch") and before.get(name) != now.get(name):
            then, here = (_version(versions, name) for versions in (before, now))
            told.append((NOT_SHOWN, Message("{name} was {then} before, and is {here} now", name, then, here)))
    return told


def _version(versions: Mapping[str, str], name: str) -> str:
    commit = versions.get("kit_commit") if name == "kit" else None
    found = versions.get(name, "absent")[:12]
    return f"{found} (commit {commit[:12]})" if commit else found


def _audited(lefts: Sequence[Left], index: int, done: Sequence[AuditedSession]) -> AuditedSession:
    left, record = lefts[index], lefts[index].record
    after, links = _links(left, lefts[:index])
    before = after if after is not None else index - 1 if index else None
    while before is not None and not lefts[before].trained and done[before].after is not None:
        before = done[before].after
    same: Mapping[str, bool | None] = {}
    found: list[Difference] = []
    if before is not None:
        earlier = lefts[before].record
        same = _same(earlier, record)
        links += _other_run(same, both_trained=left.trained and lefts[before].trained)
        if left.trained and lefts[before].trained:
            found = differences(earlier.exactness, record.exactness, earlier.versions, record.versions)
            found += _unstated(earlier.exactness, record.exactness)
    chain = max((chain for chain, _ in links), key=_CHAINS.index, default=UNBROKEN)
    stated = _stated(record) if left.trained else []
    grades = [_FOLLOWS[chain], *(grade for grade, _ in (*stated, *found))]
    told = [reason for _, reason in (*links, *stated, *found) if reason]
    return AuditedSession(
        record=record,
        chain=chain,
        grade=worst(grades) if left.trained else None,
        reasons=tuple(dict.fromkeys(visible(reason, _MAX_REASON) for reason in told)),
        after=after,
        same=same,
    )


def _links(left: Left, earlier: Sequence[Left]) -> tuple[int | None, list[tuple[str, str]]]:
    """Return which earlier session proved the bytes that one began with, and evidence against the link."""
    record, began = left.record, left.record.started_from
    found: list[tuple[str, str]] = []
    own = record.checkpoint
    told = {ref.sha256 for ref in left.told if own is not None and ref.file == own.file}
    if own is not None and told and own.sha256 not in told:
        reason = Message("its record and its events name other bytes each for {file}", own.file)
        found.append((BROKEN, reason))
    if record.session_index == 1 and record.start_iteration == 0:
        return None, found
    numbers = {item.record.session_index for item in earlier}
    if record.session_index > 1 and record.session_index - 1 not in numbers:
        missing = Message("session {index} is not among the records", record.session_index - 1)
        found.append((NOT_SHOWN, missing))
    if began is None:
        found.append((NOT_SHOWN, Message("its record does not say with which bytes it began")))
        return None, found
    if began.iteration and began.iteration != record.start_iteration:
        start, at = record.start_iteration, began.iteration
        reason = Message("it began at {start} from a checkpoint of iteration {iteration}", start, at)
        found.append((BROKEN, reason))
    proved = [
        place for place, item in enumerate(earlier) if began.sha256 in {ref.sha256 for ref in item.proven}
    ]
    if proved:
        return proved[-1], found
    named = f"{began.file} (sha256 {began.sha256[:12]}…)"
    refs = [ref for item in earlier for ref in item.proven if ref.iteration == began.iteration]
    if any(ref.file == began.file or ref.metric is None for ref in refs):
        reason = Message("it began with {named}, and other bytes were proven at that iteration", named)
        found.append((BROKEN, reason))
    else:
        found.append((NOT_SHOWN, Message("it began with {named}, of which no session before tells", named)))
    return None, found


def _same(before: SessionRecord, now: SessionRecord) -> dict[str, bool | None]:
    # Sizes are known of the samples that were read: they compare where both sessions have read all.
    whole = all(record.data.get("count") == record.data.get("read") for record in (before, now))

    def told(record: SessionRecord) -> dict[str, Any]:
        data, versions = record.data, record.versions
        names = ("count", "digest", *(["sizes"] if whole else []))
        return {
            "fingerprint": record.fingerprint,
            "data": all(name in data for name in names) and [data[name] for name in names],
            "libraries": {name: item for name, item in versions.items() if name not in ("kit", "kit_commit")},
            "ranks": record.exactness.ranks,
            "kit": versions.get("kit"),
        }

    then, here = told(before), told(now)
    return {name: then[name] == here[name] if then[name] and here[name] else None for name in then}


def _other_run(same: Mapping[str, bool | None], *, both_trained: bool) -> list[tuple[str, str]]:
    """Return the evidence against two sessions being of one run; data count where both trained."""
    reasons = {
        ("fingerprint", False): Message("its config's fingerprint is not that of the session before"),
        ("fingerprint", None): Message("it or the session before does not say its config's fingerprint"),
        ("data", False): Message("its training data are not those of the session before"),
        ("data", None): Message("it is not recorded which images it and the session before were trained on"),
    }
    found = {(name, same[name]) for name in ("fingerprint", "data") if both_trained or name != "data"}
    return [
        (BROKEN if key[1] is False else NOT_SHOWN, reason) for key, reason in reasons.items() if key in found
    ]


def _unstated(before: Exactness, now: Exactness) -> list[Difference]:
    if all(None not in (getattr(before, name), getattr(now, name)) for name in _ALWAYS_STATED):
        return []
    return [(NOT_SHOWN, Message("it or the session before does not record all of what it was computed with"))]


def _stated(record: SessionRecord) -> list[Difference]:
    """Return what a record itself says of its session; of an old one, as far as its fields tell it."""
    said = record.exactness
    reasons, grade = said.reasons or (), said.grade
    if said.bitwise is None:
        return [(NOT_SHOWN, Message("its record says nothing of its exactness"))]
    if said.bitwise and (reasons or grade not in (None, "bitwise") or said.repeatable is False):
        return [(NOT_SHOWN, Message("its record contradicts itself: bit for bit, and reasons why not"))]
    if said.bitwise:
        unseen = said.repeatable is None
        return [(NOT_SHOWN, Message("whether the device repeats was not measured"))] if unseen else []
    if grade in (None, "bitwise"):
        told = Message("its record says that it is not bit for bit, and not what it is")
        wrong = said.repeatable is False and said.device == "CPU"
        return [("neither" if wrong else NOT_SHOWN, told), *((NOT_SHOWN, str(reason)) for reason in reasons)]
    return [(str(grade), str(reason)) for reason in reasons] or [(str(grade), "")]
