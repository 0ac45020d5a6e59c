"""The files that a session might start from, each with the reason for or against it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mapsage_kaggle.checkpoints.manifest import file_sha256
from mapsage_kaggle.checkpoints.names import LAST_CHECKPOINT, counts_in, iteration_of, likely_kind_of
from mapsage_kaggle.checkpoints.runs import RunGroup, at
from mapsage_kaggle.checkpoints.scan import FoundCheckpoint, name_in
from mapsage_kaggle.errors import CheckpointError
from mapsage_kaggle.messages import Message, as_message, joined_by
from mapsage_kaggle.outside import MAX_LINES, MAX_PATH, listed, visible
from mapsage_kaggle.records import SessionRecord

if TYPE_CHECKING:
    from mapsage_kaggle.checkpoints.inspect import Inspection
    from mapsage_kaggle.checkpoints.scan import Rejected

Origin = Literal["named", "work dir", "load_from", "input"]
Lineage = Literal["this run", "unknown", "another run"]

_ORIGIN_ORDER = {"named": 0, "work dir": 1, "load_from": 2, "input": 3}
_LINEAGE_ORDER = {"this run": 0, "unknown": 1, "another run": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One file that was looked at, as a person may want to see it.

    Attributes:
        path: The file, or the place that is named like one.
        origin: Where it was found.
        iteration: As far as it is known.
        size_bytes: Of the file; 0 where it cannot be read.
        verdict: The inspection's; empty where it was not needed, so that the file was not opened.
        reason: Why it was taken or not.
        taken: Whether the session starts from it.
    """

    path: Path
    origin: str
    iteration: int | None
    size_bytes: int
    verdict: str
    reason: str
    taken: bool = False


@dataclass(slots=True)
class Prospect:
    """A file that might be taken, with what is known of it so far."""

    found: FoundCheckpoint
    origin: Origin
    record: SessionRecord | None
    sha256: str | None
    lineage: Lineage
    iteration: int | None
    run_id: str = ""
    inspection: Inspection | None = None
    problem: str = ""

    @property
    def run(self) -> str:
        if self.run_id:
            return f"run {self.run_id}"
        return self.origin if self.origin == "work dir" else self.found.source or str(self.target.parent)

    @property
    def verdict(self) -> str:
        return self.inspection.verdict if self.inspection else ""

    @property
    def target(self) -> Path:
        """The file to read: where ``latest.pth`` or ``last_checkpoint`` leads to."""
        return self.found.target

    @property
    def is_best(self) -> bool:
        """Whether its name says that it is a best checkpoint, which holds no optimizer."""
        return likely_kind_of(self.target.name) == "best"

    @property
    def counts_epochs(self) -> bool:
        """Whether its name counts epochs, whatever stands before."""
        return likely_kind_of(self.target.name) == "epoch" or counts_in(self.target.name)[1] is not None

    @property
    def is_recorded(self) -> bool:
        """Whether the record beside it names this very file."""
        return recorded_sha256(self.target, self.record) is not None

    def order(self) -> tuple[int, int, bool, bool, bool, int, str]:
        """Sort key: this run, then the highest iteration, then record, hash and place; never time."""
        return (
            _LINEAGE_ORDER[self.lineage],
            -1 if self.iteration is None else -self.iteration - 2,
            self.record is None,
            not self.is_recorded,
            self.sha256 is None,
            _ORIGIN_ORDER[self.origin],
            str(self.target),
        )

    def line(self, reason: str) -> Message:
        leads = "" if self.target == self.found.path else f" -> {visible(self.target.name)}"
        path = f"{visible(self.found.path, MAX_PATH)}{leads}"
        return Message(
            "{path} ({origin}, {at}): {reason}", path, self.origin, at(self.iteration), as_message(reason)
        )


class Account:
    """The report on a choice: each file with the reason for or against it."""

    def __init__(self) -> None:
        self.explanations: list[str] = []
        self.steps_down: list[str] = []
        self._judged: dict[Path, Candidate] = {}

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The first files, each once, with the last word on it; the one that was taken first."""
        return tuple(sorted(self._judged.values(), key=lambda item: not item.taken)[:MAX_LINES])

    def explain(self, prospect: Prospect, reason: str) -> None:
        self.explanations.append(prospect.line(reason))
        self.note(prospect, reason)

    def step(self, prospect: Prospect, reason: str) -> None:
        """Explain what is a step down the ladder, to be an event and in the record."""
        self.explain(prospect, reason)
        self.steps_down.append(prospect.line(reason))

    def taken(self, prospect: Prospect, reason: str | None) -> None:
        """Report what was taken, and why unless that was reported before."""
        if reason is not None:
            self.explanations.insert(0, prospect.line(reason))
        self.note(prospect, reason or self._judged[prospect.target].reason, taken=True)

    def no_checkpoint(self, place: Rejected) -> None:
        """Report a place that is named like a checkpoint and is none: a step down, too."""
        reason = Message("not taken: {why}", as_message(place.reason))
        self.explanations.append(joined_by(": ", (visible(place.path, MAX_PATH), reason)))
        self.steps_down.append(self.explanations[-1])
        self._judged[place.path] = Candidate(
            path=place.path, origin="", iteration=None, size_bytes=0, verdict="rejected", reason=reason
        )

    def note(self, prospect: Prospect, reason: str, *, taken: bool = False) -> None:
        """Record the verdict on a file, without a line of its own."""
        self._judged[prospect.target] = Candidate(
            path=prospect.target,
            origin=prospect.origin,
            iteration=prospect.iteration,
            size_bytes=prospect.found.size_bytes,
            verdict=prospect.verdict,
            reason=reason,
            taken=taken,
        )

    def refusal(self, problem: str, remedy: str = "") -> CheckpointError:
        return CheckpointError(problem, remedy, listed(self.explanations))


def group_of(key: str, prospects: Sequence[Prospect]) -> RunGroup:
    newest = max(prospects, key=lambda item: -1 if item.iteration is None else item.iteration)
    return RunGroup(
        key=key,
        run_id=newest.run_id,
        newest=newest.target,
        iteration=newest.iteration,
        recorded=any(item.record is not None and item.sha256 is not None for item in prospects),
    )


def merge_equal_bytes(runs: dict[str, list[Prospect]]) -> None:
    """Count identical files once: a group that states no run joins the one that has its newest file, too."""
    newest = {key: items[0] for key, items in runs.items()}
    for key, item in newest.items():
        for other_key, other in newest.items():
            if key == other_key or item.run_id or key not in runs or other_key not in runs:
                continue
            if item.found.size_bytes == other.found.size_bytes and _sha256(item) == _sha256(other) != "":
                runs[other_key] += runs.pop(key)


def _sha256(prospect: Prospect) -> str:
    if prospect.sha256 is None:
        try:
            prospect.sha256 = file_sha256(prospect.target)
        except OSError:
            return ""
    return prospect.sha256


def began_from(record: SessionRecord, start: Prospect) -> bool:
    first = record.lineage()[0]
    stated = first.get("started_from")
    if isinstance(stated, Mapping):
        return start.sha256 is not None and stated.get("sha256") == start.sha256
    # Records of version 0.1 keep the iteration alone.
    return bool(start.iteration) and first.get("start_iteration") == start.iteration


def diverged_from(taken: Prospect, others: Sequence[Prospect]) -> Prospect | None:
    """Return a checkpoint of the same run that the taken one has not come by; None where there is none."""
    if taken.record is None:
        return None
    chain = {_session(document) for document in taken.record.lineage()}
    for other in others:
        if (
            other.record is not None
            and other.run == taken.run
            and _session(other.record.to_json()) not in chain
        ):
            return other
    return None


def _session(document: Mapping[str, Any]) -> tuple[Any, ...]:
    return document.get("session_index"), document.get("started_s")


def why_not_needed(prospect: Prospect, taken: Prospect) -> str:
    if prospect.lineage != taken.lineage:
        return Message("nothing says that it is of this run; name it with --resume to take it")
    if prospect.iteration != taken.iteration:
        return Message("an older iteration")
    if None not in (prospect.sha256, taken.sha256):
        same = prospect.sha256 == taken.sha256
        return f"the same iteration, {'the same file' if same else 'other content'} by sha256"
    if taken.is_recorded and not prospect.is_recorded:
        return Message("the same iteration, and no record names it")
    if prospect.sha256 is None and taken.sha256 is not None:
        return Message("the same iteration, and its sha256 is not recorded")
    return Message("the same iteration, in another place")


def without_duplicates(prospects: Sequence[Prospect]) -> list[Prospect]:
    """Leave out what names the same file again: ``latest.pth`` and ``last_checkpoint`` often do."""
    named_plainly = sorted(prospects, key=lambda item: item.found.kind in ("latest", "last_checkpoint"))
    first: dict[Path, Prospect] = {}
    for prospect in named_plainly:
        path = prospect.target.resolve()
        if path not in first:
            first[path] = prospect
        elif first[path].origin != "load_from" and prospect.origin == "load_from":
            first[path].origin = "load_from"
    kept = {id(item) for item in first.values()}
    return [item for item in prospects if id(item) in kept]


def recorded_sha256(path: Path, record: SessionRecord | None) -> str | None:
    refs = (record.checkpoint, record.best) if record else ()
    return next((ref.sha256 for ref in refs if ref is not None and ref.file == path.name), None)


def as_found(path: Path) -> FoundCheckpoint:
    target = path
    if path.name == LAST_CHECKPOINT:
        with contextlib.suppress(OSError):
            target = path.parent / (name_in(path) or path.name)
    try:
        size_bytes = target.stat().st_size
    except OSError:
        size_bytes = 0
    return FoundCheckpoint(
        path=path,
        kind="best" if likely_kind_of(target.name) == "best" else "iter",
        iteration=iteration_of(target.name),
        size_bytes=size_bytes,
        source="",
        target=target,
    )
