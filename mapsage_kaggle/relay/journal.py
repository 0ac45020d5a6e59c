"""What the relay knows: one JSON file, replaced as a whole, so that a kill at any moment loses nothing.

A push is written down as an *intent*, with the version number it is expected to get, before it is
sent. Whoever finds an intent without a known outcome asks Kaggle for that version before doing
anything else; so a lost answer, a kill and a restart all come to the same.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mapsage_kaggle import schema
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import read_json
from mapsage_kaggle.paths import replace_file

SCHEMA = 1

Transport = Literal["self", "pingpong", "dataset"]
TRANSPORTS: tuple[Transport, ...] = ("self", "pingpong", "dataset")
"""The ways to hand a checkpoint on."""

Verdict = Literal["completed", "progress", "none", "unmounted", "hopeless", "skipped"]
"""How a session ended: the run is complete, it went on, it did not, it did not find what was handed on,
it cannot go on whatever is tried again; or it is none of this run's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HandOver:
    """The newest checkpoint that was found good, and the version whose output holds it.

    Attributes:
        iteration: Iterations done.
        file: The checkpoint's name within the output.
        attachable: Whether the version ended COMPLETE, so that its output can be an input.
    """

    slug: str
    version: int
    iteration: int
    file: str
    sha256: str
    size_bytes: int
    attachable: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One session, from the intent to push it to its verdict.

    Attributes:
        version: The version that it has, or, before the push is known to have landed, will have.
        token: Marks this push in the notebook's text, so that it is known again; empty for a version that
            no relay pushed.
        transport: How the checkpoint is handed on; None for a start from nothing.
        expect_iteration: Where the session must go on from; None for a start from nothing.
        limit_s: The session limit that it was told.
        extend_to: The later end of the run that it was told.
        intended_s: When the push was written down, in seconds since the epoch.
        landed: Whether Kaggle is known to have it.
        found: Whether it was found on Kaggle, and is no push of this journal's.
        began_s: When it was first seen to run, in seconds since the epoch; None until then.
        ended_s: When it was first seen to have ended; None until then.
        status: How Kaggle says it ended; empty until then.
        looks: How often its output was looked at in vain.
        look_s: Not to look at its output before, in seconds since the epoch.
        doubt: What the last look found, where it is not believed before it is seen again.
        doubt_s: Since when every look has found that.
        verdict: What came of it; None until then.
        session_index: Of the session in the run, where its record told.
        end_iteration: Iterations done in the newest good checkpoint after it.
        trained: Whether it may have trained: its log shows an iteration, or it ran for long.
        seconds: How long it ran, as far as is known.
        message: Why it ended as it did.
        exit_code: By the table of exit codes, where the session told a refusal.
    """

    slug: str
    version: int
    token: str = ""
    transport: Transport | None = None
    expect_iteration: int | None = None
    limit_s: float = 0.0
    extend_to: int | None = None
    intended_s: float = 0.0
    landed: bool = False
    found: bool = False
    began_s: float | None = None
    ended_s: float | None = None
    status: str = ""
    looks: int = 0
    look_s: float = 0.0
    doubt: str = ""
    doubt_s: float = 0.0
    verdict: Verdict | None = None
    session_index: int = 0
    end_iteration: int = 0
    trained: bool = False
    seconds: float = 0.0
    message: str = ""
    exit_code: int | None = None

    @property
    def counts(self) -> bool:
        """Whether it has a verdict and is a session of this run, which one's own push always is."""
        return self.verdict is not None and (self.verdict != "skipped" or bool(self.token and not self.found))


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a version that has ended left behind.

    Attributes:
        status: How Kaggle says it ended.
        verdict: What came of it.
        hand_over: The newest good checkpoint in its output, if any.
        run_id: Of the run, where the record tells.
        session_index: Of the session, where the record tells.
        started_s: When it began, where the record tells, in seconds since the epoch.
        seconds: How long it ran, as far as is known.
        max_iters: Where the run ends, where the record tells.
        pace: What the session measured, for the plan.
        best: The best score so far, for people.
        trained: Whether it may have trained.
        message: Why it ended as it did.
        exit_code: By the table of exit codes, where the session told a refusal.
        doubt: Names what was found, where it is not sure: it is believed once it is found again.
    """

    status: str
    verdict: Verdict
    hand_over: HandOver | None = None
    run_id: str = ""
    session_index: int = 0
    started_s: float = 0.0
    seconds: float = 0.0
    max_iters: int = 0
    pace: Mapping[str, float] = dataclasses.field(default_factory=dict)
    best: str = ""
    trained: bool = False
    message: str = ""
    exit_code: int | None = None
    doubt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A version of the checkpoint data set that is on its way.

    Attributes:
        iteration: Of its checkpoint.
        sizes: The size in bytes of each of its files.
        since_s: When it was first uploaded, in seconds since the epoch.
        tries: How often it was.
        look_s: Not to look before.
    """

    iteration: int
    sizes: Mapping[str, int]
    since_s: float
    tries: int = 1
    look_s: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Journal:
    """All that the relay has to remember of one run.

    Attributes:
        owner: Whose account.
        slug: The notebook; with ``pingpong`` there is a second one beside it.
        attempts: The sessions, oldest first; only one may be open.
        accounted: By notebook, the version up to which nothing is left to be read.
        hand_over: The newest good checkpoint.
        refused: Transports that are not to be used any more in this run.
        stored_iteration: The iteration that the checkpoint data set is known to hold.
        upload: A version of it that is on its way.
        run_id: Of the run, once a record told.
        max_iters: Where it ends, once a record told.
        pace: What the last session measured, for the plan.
        best: The best score so far, for people.
        overrides: The overrides of the config that every session gets.
        extend_to: The later end of the run that every session gets.
        forgiven: How many attempts, from the oldest, no longer count: the relay was told to go on.
        consented: How many attempts, from the oldest, may be lost: a person said so.
        rejected_pushes: How many pushes in a row came to nothing.
        retry_s: Not to push before, in seconds since the epoch.
        retry_on: What is waited for until then.
        dataset_read: Whether the checkpoint data set was looked at since the last session ended.
        denials: How many refusals in a row are not believed yet: they may be accidents.
        denied_s: When the first of them was met, in seconds since the epoch.
    """

    owner: str
    slug: str
    config: str
    attempts: tuple[Attempt, ...] = ()
    accounted: Mapping[str, int] = dataclasses.field(default_factory=dict)
    hand_over: HandOver | None = None
    refused: tuple[Transport, ...] = ()
    stored_iteration: int | None = None
    upload: Upload | None = None
    run_id: str = ""
    max_iters: int = 0
    pace: Mapping[str, float] = dataclasses.field(default_factory=dict)
    best: str = ""
    overrides: tuple[str, ...] = ()
    extend_to: int | None = None
    forgiven: int = 0
    consented: int = 0
    rejected_pushes: int = 0
    retry_s: float = 0.0
    retry_on: Literal["retry", "capacity", "quota"] = "retry"
    dataset_read: bool = False
    denials: int = 0
    denied_s: float = 0.0
    schema: int = SCHEMA

    @property
    def slugs(self) -> tuple[str, str]:
        """The two notebooks that ``pingpong`` alternates between."""
        return self.slug, f"{self.slug}-2"

    @property
    def open(self) -> Attempt | None:
        """The session that has no verdict yet, if any."""
        return next((attempt for attempt in self.attempts if attempt.verdict is None), None)

    @property
    def sessions(self) -> tuple[Attempt, ...]:
        """The sessions of this run that have their verdict, oldest first."""
        return tuple(item for item in self.attempts if item.counts)

    @property
    def last(self) -> Attempt | None:
        return self.sessions[-1] if self.sessions else None

    @property
    def num_sessions(self) -> int:
        told = max((attempt.session_index for attempt in self.sessions), default=0)
        return max(len(self.sessions), told) + (self.open is not None)

    @property
    def end(self) -> int:
        """Where the run ends: what a record told, or the later end that was asked for; 0 for unknown."""
        return max(self.max_iters, self.extend_to or 0)

    @property
    def completed(self) -> bool:
        """Whether the run has come to its end, and no later one was asked for since."""
        return any(
            max(item.end_iteration, item.extend_to or 0) >= (self.extend_to or 0)
            for item in self.attempts
            if item.verdict == "completed"
        )

    @property
    def num_futile(self) -> int:
        """How many of the relay's sessions in a row, up to the last, ended without progress."""
        count = 0
        for attempt in reversed(self.attempts[self.forgiven :]):
            if attempt.verdict in ("completed", "progress"):
                break
            count += bool(attempt.counts and attempt.token)
        return count

    @property
    def lost(self) -> Attempt | None:
        """A session after which nothing is to be started from less than it reached.

        It may have trained and seems to have left nothing; or it was told to go on from an iteration
        that is no longer to be found.
        """
        iteration = self.hand_over.iteration if self.hand_over else 0
        for attempt in self.attempts[self.consented :]:
            if attempt.verdict == "skipped":
                continue
            if (attempt.expect_iteration or 0) > iteration or (attempt.trained and self.hand_over is None):
                return attempt
        return None

    # -- what happens to it: each returns the journal as it is then

    def intending(self, attempt: Attempt) -> Journal:
        if self.open is not None:
            raise ValueError("a session is open")
        return dataclasses.replace(self, attempts=(*self.attempts, attempt))

    def passing(self, slug: str, version: int, *, status: str = "", message: str = "") -> Journal:
        """Return the journal that knows of a version in which there is nothing to be read."""
        attempt = Attempt(
            slug=slug, version=version, landed=True, status=status, verdict="skipped", message=message
        )
        return self.intending(attempt)

    def landed(self, version: int, slug: str = "") -> Journal:
        """Return the journal in which Kaggle has the open session, under this version."""
        slug = slug or self._must_be_open().slug
        journal = self.opening(version=version, slug=slug, landed=True)
        return dataclasses.replace(journal, rejected_pushes=0)

    def forgotten(
        self, *, retry_s: float = 0.0, retry_on: Literal["retry", "capacity", "quota"] = "retry"
    ) -> Journal:
        """Return the journal in which the push that was intended has not happened.

        Args:
            retry_s: Not to push before, in seconds since the epoch.
            retry_on: What is waited for until then. Only where that is nothing in particular does the
                push count as one that came to nothing.
        """
        attempt = self._must_be_open()
        if attempt.landed:
            raise ValueError(f"{attempt.slug} version {attempt.version} exists; it cannot be forgotten")
        return dataclasses.replace(
            self,
            attempts=tuple(item for item in self.attempts if item is not attempt),
            rejected_pushes=self.rejected_pushes + (retry_on == "retry"),
            retry_s=retry_s,
            retry_on=retry_on,
        )

    def without(self, transport: Transport) -> Journal:
        return dataclasses.replace(self, refused=tuple(dict.fromkeys([*self.refused, transport])))

    def stored(self, iteration: int | None) -> Journal:
        return dataclasses.replace(self, stored_iteration=iteration, upload=None)

    def denied(self, now_s: float) -> Journal:
        denied_s = self.denied_s if self.denials else now_s
        return dataclasses.replace(self, denials=self.denials + 1, denied_s=denied_s)

    def doubting(self, doubt: str, *, now_s: float, look_s: float) -> Journal:
        """Return the journal in which a look at the open session's output was not enough to judge it."""
        attempt = self._must_be_open()
        since_s = attempt.doubt_s if doubt and doubt == attempt.doubt else now_s
        return self.opening(doubt=doubt, doubt_s=since_s, looks=attempt.looks + 1, look_s=look_s)

    def closed(self, outcome: Outcome) -> Journal:
        attempt = self._must_be_open()
        # A refusal makes a record of its own, with an id of its own.
        foreign = bool(self.run_id and outcome.run_id not in ("", self.run_id)) and outcome.hand_over
        if foreign and attempt.token and not any(item.token for item in self.sessions):
            # What was read so far was pushed by hand, and is of another run than the relay's. This one is
            # looked at again, with nothing before it.
            return self._forgetting_what_was_by_hand()
        if foreign or outcome.verdict == "skipped":
            message = f"It is of another run ({outcome.run_id})." if foreign else outcome.message
            return self.opening(status=outcome.status, verdict="skipped", message=message)
        before = self.hand_over.iteration if self.hand_over else 0
        found = outcome.hand_over
        # What was carried along from the session before is no progress, but its place may be better.
        better = found is not None and (
            self.hand_over is None
            or found.iteration > before
            or (found.iteration == before and (found.attachable or not self.hand_over.attachable))
        )
        journal = self.opening(
            status=outcome.status,
            verdict=outcome.verdict,
            intended_s=attempt.intended_s or outcome.started_s,
            session_index=outcome.session_index,
            end_iteration=max(before, found.iteration if found else 0),
            trained=outcome.trained,
            seconds=outcome.seconds,
            message=outcome.message,
            exit_code=outcome.exit_code,
        )
        if outcome.verdict == "unmounted" and attempt.transport is not None:
            journal = journal.without(attempt.transport)
        if better and found is not None and not found.attachable and outcome.verdict == "progress":
            # Its output cannot be attached. From now on the data set is the way, which always works.
            journal = journal.without("pingpong")
        # Oldest first, whatever the order in which they were read; the last closed comes last among equals.
        attempts = sorted(journal.attempts, key=lambda item: item.intended_s)
        newest = better or self.hand_over is None
        # Before there is a checkpoint there is no run: the next start from nothing makes another one.
        told = found is not None and outcome.exit_code is None
        return dataclasses.replace(
            journal,
            attempts=tuple(attempts),
            hand_over=found if better else self.hand_over,
            run_id=self.run_id or (outcome.run_id if told else ""),
            max_iters=(outcome.max_iters if newest else 0) or self.max_iters or outcome.max_iters,
            pace=(outcome.pace if newest else {}) or self.pace,
            best=(outcome.best if newest else "") or self.best,
            dataset_read=False,
        )

    def _forgetting_what_was_by_hand(self) -> Journal:
        attempts = tuple(
            item if item.verdict is None else dataclasses.replace(item, verdict="skipped")
            for item in self.attempts
        )
        return dataclasses.replace(
            self, attempts=attempts, run_id="", hand_over=None, max_iters=0, pace={}, best=""
        )

    def offered(self, hand_over: HandOver | None) -> Journal:
        """Return the journal that knows what the checkpoint data set holds of this run, if anything."""
        journal = dataclasses.replace(self, dataset_read=True)
        if hand_over is None:
            return journal
        journal = dataclasses.replace(journal, stored_iteration=hand_over.iteration)
        if self.hand_over is not None and hand_over.iteration <= self.hand_over.iteration:
            return journal
        attempts = tuple(
            dataclasses.replace(item, verdict="progress", end_iteration=hand_over.iteration)
            if item is self.last and item.verdict == "none"
            else item
            for item in self.attempts
        )
        journal = dataclasses.replace(journal, hand_over=hand_over, attempts=attempts)
        return journal.without("pingpong")

    def forgiving(self) -> Journal:
        journal = self
        if self.open is not None:
            journal = self.opening(looks=0, look_s=0.0, ended_s=None)
        return dataclasses.replace(
            journal,
            forgiven=len(self.attempts),
            refused=(),
            upload=None,
            rejected_pushes=0,
            retry_s=0.0,
            denials=0,
        )

    def consenting(self) -> Journal:
        """Return the journal in which a person has agreed to a start from nothing.

        A session whose output could not be seen is given up with it.
        """
        journal = self
        attempt = self.open
        if attempt is not None and attempt.landed and attempt.ended_s is not None:
            journal = self.closed(Outcome(status=attempt.status, verdict="none", message="It was given up."))
        return dataclasses.replace(journal, consented=len(journal.attempts), dataset_read=True)

    def opening(self, **changes: Any) -> Journal:
        attempt = self._must_be_open()
        changed = dataclasses.replace(attempt, **changes)
        attempts = tuple(changed if item is attempt else item for item in self.attempts)
        return dataclasses.replace(self, attempts=attempts)

    def _must_be_open(self) -> Attempt:
        if self.open is None:
            raise ValueError("no session is open")
        return self.open

    # -- on the disk

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Journal:
        """Read a JSON object; names that this version does not know are ignored.

        Raises:
            ValueError: It is no journal, or one of a newer schema.
        """
        try:
            if int(document["schema"]) > SCHEMA:
                raise ValueError(f"schema {document['schema']} is newer than {SCHEMA}")
            return schema.built(cls, document)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a journal: {error!r}") from error

    def write(self, path: Path) -> None:
        replace_file(path, json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """Read a journal; None where there is none.

        Raises:
            UsageError: The file is no journal; it is left alone.
        """
        try:
            return cls.from_json(read_json(path))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise UsageError(
                f"{path} is no readable journal of the relay ({error}).",
                "Move it away; the journal is then rebuilt from the versions on Kaggle.",
            ) from error


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep any other relay on this machine from working with the same journal.

    Raises:
        UsageError: One does already, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(
            Message("{folder} cannot be written: {why}.", path.parent, error.strerror),
            "Choose another --state folder.",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another relay is working with {path}.", "Wait for it, or stop it with Ctrl-C."
            ) from None
        yield
    finally:
        os.close(descriptor)
