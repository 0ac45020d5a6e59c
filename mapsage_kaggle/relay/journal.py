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

from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.paths import replace_file

SCHEMA = 1

Transport = Literal["self", "pingpong", "dataset"]
TRANSPORTS: tuple[Transport, ...] = ("self", "pingpong", "dataset")
"""The ways to hand a checkpoint on, cheapest first."""

Verdict = Literal["completed", "progress", "none", "unmounted", "hopeless"]
"""How a session ended: the run is complete, it went on, it did not, it did not find what was handed
on, or it cannot go on whatever is tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HandOver:
    """The newest checkpoint that was found good, and the version whose output holds it.

    Attributes:
        slug: The notebook.
        version: Its version.
        iteration: Iterations done.
        file: The checkpoint's name within the output.
        sha256: Of the file.
        size_bytes: Of the file.
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
        slug: The notebook.
        version: The version that it has, or, before the push is known to have landed, will have.
        token: Marks this push in the notebook's text, so that it is known again.
        transport: How the checkpoint is handed on; None for a start from nothing.
        expect_iteration: Where the session must go on from; None for a start from nothing.
        limit_s: The session limit that it was told.
        intended_s: When the push was written down, in seconds since the epoch.
        landed: Whether Kaggle is known to have it.
        refusal: What Kaggle said in place of accepting the push.
        status: How Kaggle says it ended; empty until then.
        verdict: What came of it; None until then.
        end_iteration: Iterations done in the newest good checkpoint after it.
        message: Why it ended as it did.
        exit_code: By the table of exit codes, where the session told a refusal.
    """

    slug: str
    version: int
    token: str = ""
    transport: Transport | None = None
    expect_iteration: int | None = None
    limit_s: float = 0.0
    intended_s: float = 0.0
    landed: bool = False
    refusal: str = ""
    status: str = ""
    verdict: Verdict | None = None
    end_iteration: int = 0
    message: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a version that has ended left behind.

    Attributes:
        status: How Kaggle says it ended.
        verdict: What came of it.
        hand_over: The newest good checkpoint in its output, if any.
        run_id: Of the run, where the record tells.
        session_index: Of the session, where the record tells.
        max_iters: Where the run ends, where the record tells.
        learned: What the session learned, for the plan.
        message: Why it ended as it did.
        exit_code: By the table of exit codes, where the session told a refusal.
    """

    status: str
    verdict: Verdict
    hand_over: HandOver | None = None
    run_id: str = ""
    session_index: int = 0
    max_iters: int = 0
    learned: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    message: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Journal:
    """All that the relay has to remember of one run.

    Attributes:
        owner: Whose account.
        slug: The notebook; with ``pingpong`` there is a second one beside it.
        config: The config that is trained.
        attempts: The sessions, oldest first; only the last may be open.
        earlier: Sessions before those, where the journal was rebuilt.
        hand_over: The newest good checkpoint.
        refused: Transports that Kaggle has been seen to refuse.
        stored_iteration: The iteration that the checkpoint data set is known to hold.
        run_id: Of the run, once a record told.
        max_iters: Where it ends, once a record told.
        learned: What the last session learned, for the plan.
        forgiven: How many attempts, from the oldest, no longer count: the relay was told to go on.
        rejected_pushes: How many pushes in a row came to nothing.
        retry_s: Not to push before, in seconds since the epoch.
    """

    owner: str
    slug: str
    config: str
    attempts: tuple[Attempt, ...] = ()
    earlier: int = 0
    hand_over: HandOver | None = None
    refused: tuple[Transport, ...] = ()
    stored_iteration: int | None = None
    run_id: str = ""
    max_iters: int = 0
    learned: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    forgiven: int = 0
    rejected_pushes: int = 0
    retry_s: float = 0.0
    schema: int = SCHEMA

    @property
    def slugs(self) -> tuple[str, str]:
        """The two notebooks that ``pingpong`` alternates between."""
        return self.slug, f"{self.slug}-2"

    @property
    def open(self) -> Attempt | None:
        """The session that has no verdict yet, if any."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].verdict is None else None

    @property
    def last(self) -> Attempt | None:
        """The last session that has its verdict."""
        ended = [attempt for attempt in self.attempts if attempt.verdict is not None]
        return ended[-1] if ended else None

    @property
    def num_sessions(self) -> int:
        """How many sessions have been pushed in all."""
        return self.earlier + len(self.attempts)

    @property
    def completed(self) -> bool:
        """Whether the run has reached its end."""
        return any(attempt.verdict == "completed" for attempt in self.attempts[self.forgiven :])

    @property
    def num_futile(self) -> int:
        """How many sessions in a row, up to the last, ended without progress."""
        count = 0
        for attempt in reversed(self.attempts[self.forgiven :]):
            if attempt.verdict is None:
                continue
            if attempt.verdict in ("completed", "progress"):
                break
            count += 1
        return count

    # -- what happens to it

    def intending(self, attempt: Attempt) -> Journal:
        """Return the journal in which a push is about to be sent."""
        if self.open is not None:
            raise ValueError("a session is open")
        return dataclasses.replace(self, attempts=(*self.attempts, attempt))

    def landed(self, version: int) -> Journal:
        """Return the journal in which Kaggle has the open session, under this version."""
        return dataclasses.replace(self._with_open(version=version, landed=True), rejected_pushes=0)

    def refused_push(self, message: str) -> Journal:
        """Return the journal in which Kaggle answered the push with a refusal."""
        return self._with_open(refusal=message)

    def forgotten(self, *, retry_s: float = 0.0) -> Journal:
        """Return the journal in which the push that was intended has not happened."""
        attempt = self._must_be_open()
        if attempt.landed:
            raise ValueError(f"{attempt.slug} version {attempt.version} exists; it cannot be forgotten")
        return dataclasses.replace(
            self,
            attempts=self.attempts[:-1],
            rejected_pushes=self.rejected_pushes + 1,
            retry_s=retry_s,
        )

    def without(self, transport: Transport) -> Journal:
        """Return the journal in which a transport is known to be refused."""
        return dataclasses.replace(self, refused=tuple(dict.fromkeys([*self.refused, transport])))

    def stored(self, iteration: int) -> Journal:
        """Return the journal in which the checkpoint data set holds this iteration."""
        return dataclasses.replace(self, stored_iteration=iteration)

    def closed(self, outcome: Outcome) -> Journal:
        """Return the journal in which the open session has ended."""
        attempt = self._must_be_open()
        before = self.hand_over.iteration if self.hand_over else 0
        found = outcome.hand_over
        # What was carried along from the session before is no progress, but its place may be better.
        better = found is not None and (
            self.hand_over is None
            or found.iteration > before
            or (found.iteration == before and (found.attachable or not self.hand_over.attachable))
        )
        journal = self._with_open(
            status=outcome.status,
            verdict=outcome.verdict,
            end_iteration=max(before, found.iteration if found else 0),
            message=outcome.message,
            exit_code=outcome.exit_code,
        )
        if outcome.verdict == "unmounted" and attempt.transport is not None:
            journal = journal.without(attempt.transport)
        return dataclasses.replace(
            journal,
            hand_over=found if better else self.hand_over,
            run_id=outcome.run_id or self.run_id,
            max_iters=outcome.max_iters or self.max_iters,
            learned=outcome.learned or self.learned,
        )

    def forgiving(self) -> Journal:
        """Return the journal in which the failures so far no longer count, and every way is open again."""
        return dataclasses.replace(
            self, forgiven=len(self.attempts), refused=(), rejected_pushes=0, retry_s=0.0
        )

    def _must_be_open(self) -> Attempt:
        if self.open is None:
            raise ValueError("no session is open")
        return self.open

    def _with_open(self, **changes: Any) -> Journal:
        attempt = dataclasses.replace(self._must_be_open(), **changes)
        return dataclasses.replace(self, attempts=(*self.attempts[:-1], attempt))

    # -- on the disk

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
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
            values = _known(cls, document)
            values["attempts"] = tuple(Attempt(**_known(Attempt, item)) for item in values["attempts"])
            if values["hand_over"] is not None:
                values["hand_over"] = HandOver(**_known(HandOver, values["hand_over"]))
            values["refused"] = tuple(values["refused"])
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a journal: {error!r}") from error

    def write(self, path: Path) -> None:
        """Replace ``path`` atomically, and flush it to the disk."""
        replace_file(path, json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Journal | None:
        """Read a journal; None where there is none.

        Raises:
            UsageError: The file is no journal; it is left alone.
        """
        try:
            return cls.from_json(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UsageError(
                f"{path} is no readable journal of the relay ({error}).",
                "Move it away; the journal is then rebuilt from the versions on Kaggle.",
            ) from error


def _known(kind: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in dataclasses.fields(kind)}
    return {key: value for key, value in document.items() if key in names}


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep any other relay on this machine from working with the same journal.

    Raises:
        UsageError: One does already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
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
