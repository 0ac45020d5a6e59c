"""Read which run each file states, and keep the files of the run that is continued."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mapsage_kaggle.checkpoints.candidates import (
    Account,
    Lineage,
    Origin,
    Prospect,
    as_found,
    began_from,
    group_of,
    merge_equal_bytes,
    recorded_sha256,
)
from mapsage_kaggle.checkpoints.inspect import inspect as inspect_any
from mapsage_kaggle.checkpoints.manifest import file_sha256, manifest_sha256
from mapsage_kaggle.checkpoints.runs import TakenRun, pick_run
from mapsage_kaggle.messages import Message, joined_by
from mapsage_kaggle.records import SessionRecord, record_beside

if TYPE_CHECKING:
    from mapsage_kaggle.checkpoints.inspect import Inspection
    from mapsage_kaggle.checkpoints.scan import FoundCheckpoint

MAX_HEADERS = 16
"""Of files without a record, in one folder; the rest are taken to be of the same run as the newest."""


class Inspect(Protocol):
    """What ``choose`` needs of ``inspect``: the config's shapes and classes are bound beforehand."""

    def __call__(self, path: Path, *, manifest_sha256: str | None = None, full: bool = True) -> Inspection:
        """Return the verdict on a file; ``full=False`` reads its header only."""


@dataclass(kw_only=True, slots=True)
class Selector:
    """Looks at files, and selects those of one run.

    Attributes:
        inspect_file: Gives the verdict on a file.
        inspect_alone: The same, without comparing to the config.
        fingerprint: Of the config; None where it is not known.
        config_asks_resume: Whether the config, or a person, wants to resume.
        named_run: The run that a person or the relay names.
        work_dir_run: The run of the record in the work dir.
        file_option: How a person names a file, for what is said of others.
        taken_run: The run that was picked; None before that, or where there is none.
        num_failed: Files that could have been taken, were they sound.
    """

    inspect_file: Inspect = inspect_any
    inspect_alone: Inspect = inspect_any
    fingerprint: str | None = None
    config_asks_resume: bool = False
    named_run: str | None = None
    work_dir_run: str | None = None
    file_option: str = "--resume {file}"
    account: Account = field(default_factory=Account)
    taken_run: TakenRun | None = None
    num_failed: int = 0

    def of_one_run(self, prospects: Sequence[Prospect]) -> list[Prospect]:
        """Return the files of the run that is continued; those of others are reported and skipped.

        Raises:
            CheckpointError: Several runs could be meant.
        """
        ranked = sorted(prospects, key=Prospect.order)
        runs: dict[str, list[Prospect]] = {}
        for item in ranked:
            runs.setdefault(item.run, []).append(item)
        misfits: list[Prospect] = []
        if len(runs) > 1:
            ours = {name: items for name, items in runs.items() if self._may_be_ours(items)}
            misfits = [item for name in runs if name not in ours for item in runs[name]]
            runs = ours
            merge_equal_bytes(runs)
        self.taken_run = pick_run(
            [group_of(name, items) for name, items in runs.items()],
            run=self.named_run,
            from_config=self._named_by_config(ranked),
            work_dir_run=self.work_dir_run,
            file_option=self.file_option,
        )
        newest = (self.taken_run.group.iteration if self.taken_run else None) or 0
        for item in misfits:
            if not self.is_start(item):
                self.fail(item, is_step=item.iteration is None or item.iteration > newest)
        taken = self.taken_run.group.key if self.taken_run else ""
        for group in self.taken_run.stepped_over if self.taken_run else ():
            reason = Message(
                "not taken: it is of another run; {option} takes it", group.option(self.file_option)
            )
            for item in runs[group.key]:
                if not self.is_start(item):
                    self.account.explain(item, reason)
        return runs.get(taken, [])

    def _may_be_ours(self, items: Sequence[Prospect]) -> bool:
        """Tell whether a group's files state this config, or one of them fits it at least."""
        for item in items:
            inspection = self.inspect(item) if item.lineage == "unknown" else None
            if item.lineage != "unknown" or (inspection is not None and inspection.verdict != "rejected"):
                return True
        return False

    def _named_by_config(self, prospects: Sequence[Prospect]) -> set[str]:
        """Return the run of a ``load_from`` that is to be resumed, and those that began from it."""
        start = next((item for item in prospects if item.origin == "load_from"), None)
        if start is None or not self.config_asks_resume:
            return set()
        if start.sha256 is None and any(item.record is not None for item in prospects):
            with contextlib.suppress(OSError):
                start.sha256 = file_sha256(start.target)
        began = {item.run for item in prospects if item.record is not None and began_from(item.record, start)}
        return {start.run} | began

    def fail(self, candidate: Prospect, *, is_step: bool = True) -> None:
        """Count a file that cannot be taken; what lies below the newest that can be is no step down."""
        self.num_failed += 1
        tell = self.account.step if is_step else self.account.explain
        tell(candidate, Message("not taken: {why}", candidate.problem))

    def candidate(self, found: FoundCheckpoint | Path, origin: Origin) -> Prospect:
        if isinstance(found, Path):
            found = as_found(found)
        record = record_beside(found.target)
        candidate = Prospect(
            found=found,
            origin=origin,
            record=record,
            sha256=manifest_sha256(found.target) or recorded_sha256(found.target, record),
            lineage="unknown",
            iteration=found.iteration,
            run_id=record.run_id if record is not None else "",
        )
        candidate.lineage = self.lineage_of(None, candidate)
        return candidate

    def lineage_of(self, stated: str | None, candidate: Prospect) -> Lineage:
        """Compare fingerprints: the one in the file counts more than the one in the record beside it."""
        stated = stated or (candidate.record.fingerprint if candidate.record else None)
        if not stated or not self.fingerprint:
            return "unknown"
        return "this run" if stated == self.fingerprint else "another run"

    def read_headers(self, candidates: Sequence[Prospect]) -> None:
        """Read what files without a record beside them, or without an iteration in their name, state."""
        folders: dict[Path, list[Prospect]] = {}
        for candidate in candidates:
            if candidate.record is None or candidate.iteration is None:
                folders.setdefault(candidate.target.parent, []).append(candidate)
        for items in folders.values():
            items.sort(key=lambda item: (item.iteration is not None, -(item.iteration or 0)))
            for candidate in items[:MAX_HEADERS]:
                header = self._read(candidate, self.inspect_file, full=False)
                if header is not None and header.verdict != "rejected":
                    candidate.iteration = header.iteration
                    candidate.run_id = candidate.run_id or header.run_id or ""
                    candidate.lineage = self.lineage_of(header.fingerprint, candidate)
            for candidate in items[MAX_HEADERS:]:
                candidate.run_id, candidate.lineage = items[0].run_id, items[0].lineage

    def is_stranger(self, candidate: Prospect) -> bool:
        named = candidate.origin == "load_from" and self.config_asks_resume
        return candidate.lineage == "another run" and not named

    def is_start(self, candidate: Prospect) -> bool:
        """Whether it is what a config that does not ask to resume may start from."""
        return candidate.origin == "load_from" and not self.config_asks_resume

    def inspect(self, candidate: Prospect, *, must_fit: bool = True) -> Inspection | None:
        """Return the full verdict, or None where the file cannot be read; read once, then remembered."""
        if candidate.inspection is None or not must_fit:
            judge = self.inspect_file if must_fit else self.inspect_alone
            candidate.inspection = self._read(candidate, judge, full=True)
            if candidate.inspection is not None:
                found = candidate.inspection = _against_record(candidate.inspection, candidate.record)
                candidate.problem = joined_by("; ", found.problems) or found.verdict
        return candidate.inspection

    def _read(self, candidate: Prospect, judge: Inspect, *, full: bool) -> Inspection | None:
        try:
            return judge(candidate.target, manifest_sha256=candidate.sha256 if full else None, full=full)
        except OSError as error:
            candidate.problem = Message("it cannot be read: {why}", error.strerror or error)
            return None


def _against_record(found: Inspection, record: SessionRecord | None) -> Inspection:
    """Return the verdict on a file whose record may be of another run than the file itself says."""
    if record is None or found.run_id in (None, record.run_id):
        return found
    problem = Message(
        "it states run {one}, and the record beside it run {other}", found.run_id, record.run_id
    )
    return replace(found, verdict="rejected", problems=(problem, *found.problems))
