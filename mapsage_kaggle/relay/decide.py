"""What to do next, as one function of what is remembered and what is seen. It does nothing itself.

What holds, whatever is remembered and seen:

- Nothing is pushed while a version of these notebooks is queued, running or of an unknown state,
  while one that has ended has not been read, while a push has no known outcome, or before the time that
  a refused push has set.
- Once there is a good checkpoint, a session is pushed only with a way to it, and told to go on from
  its iteration or not at all. Nothing is started from less than a session is known to have reached.
- A session that made no progress is repeated twice at most.
- Nothing is pushed without the sources it needs, or for longer than the quota lasts.
- It waits for whatever comes by itself, and stops for what a person has to mend.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.errors import EXIT_CHECKPOINT, EXIT_DONE, EXIT_MACHINE, EXIT_TRAINING, EXIT_USAGE
from mapsage_kaggle.messages import Message
from mapsage_kaggle.relay.answers import sentence
from mapsage_kaggle.relay.journal import Attempt, HandOver, Journal, Transport

Status = Literal[
    "new", "queued", "running", "cancelling", "complete", "error", "cancelled", "gone", "unknown"
]
ENDED: frozenset[Status] = frozenset({"complete", "error", "cancelled"})
ACTIVE: frozenset[Status] = frozenset({"queued", "running", "cancelling", "unknown"})

MAX_REPEATS = 2
"""How often a session that made no progress is repeated."""
MAX_REJECTED = 20
"""How many pushes in a row may come to nothing."""
MIN_SESSION_S = 3600.0
"""A session shorter than this (and than the limit asked for) is not worth its installation."""
MAX_TIMEOUT_S = 12 * 3600.0 - 60.0
"""What Kaggle is told as a session's limit must be lower than its own."""
OVERDUE_S = (12 + 2) * 3600.0
"""How much longer than its limit a session may take: the wait for a machine, and 20 GB of output."""
MAX_UPLOADS = 3
"""How often a version of the checkpoint data set is uploaded that does not come out as it should."""

POLL_S = 120.0
"""Between two looks at a session: thirty requests an hour."""
LOOK_S = 600.0
"""Between two looks at all versions, which take several requests each."""
SETTLE_S = 1800.0
"""How long a push whose answer was lost may still turn up."""
PROOF_S = 180.0
"""How far apart two looks must be that are to prove that something is not there."""
LOST_S = 3600.0
"""The same, where a session that may have trained seems to have left nothing."""
TRAINED_S = 900.0
"""A session that ran for longer may have trained, whatever its log says."""
UNSEEN_S = 12 * 3600.0
"""How long an output may take until it can be seen."""
MAX_PAUSE_S = 1800.0
"""The longest pause between two tries of what failed."""
QUOTA_LOOK_S = 3600.0
"""Between two looks at the quota: another session may give back what it had reserved."""
MAX_AHEAD_S = 2 * 86_400.0
"""A time that lies further ahead was set by a clock that was wrong, or by another hand."""
BELIEVED_S = 3600.0
MAX_STRAY = 2
"""A refusal that may be an accident is believed after more tries than this, over as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What was asked of the relay.

    Attributes:
        owner: Whose account.
        transport: How checkpoints are handed on; ``auto`` alternates between two notebooks, and goes by
            the data set once that did not do.
        datasets: Data sets that every session needs, as ``owner/slug``.
        checkpoint_dataset: The data set for the ``dataset`` transport, as ``owner/slug``.
        until: Stop once this iteration is reached; None for the run's end.
        max_sessions: Most sessions to push in all; None for no bound.
        session_limit_s: The limit that a session is given, and told.
        poll_s: Between two looks at a session.
        config_max_iters: Where the run ends by its config; None where that is not known here.
    """

    owner: str
    slug: str
    transport: Transport | Literal["auto"] = "auto"
    datasets: tuple[str, ...] = ()
    checkpoint_dataset: str = ""
    until: int | None = None
    max_sessions: int | None = None
    session_limit_s: float = MAX_TIMEOUT_S
    poll_s: float = POLL_S
    config_max_iters: int | None = None

    def scaled(self, seconds: float) -> float:
        """Return a pause; all are shorter alike where a poll below a minute makes it a rehearsal."""
        return seconds * min(1.0, self.poll_s / 60.0)

    def pause_s(self, failures: int) -> float:
        return self.scaled(min(MAX_PAUSE_S, 60.0 * 2.0 ** min(failures, 10)))


def left_s(until_s: float, now_s: float) -> float:
    """Return how many seconds are left until a time that was set earlier; 0 for none."""
    return until_s - now_s if 0.0 < until_s - now_s <= MAX_AHEAD_S else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A version of a notebook that the journal knows nothing of.

    Attributes:
        pushed_by_relay: Whether a relay did: then its text says what it was for.
    """

    slug: str
    number: int
    status: Status
    pushed_by_relay: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What is seen on Kaggle.

    Attributes:
        now_s: Seconds since the epoch.
        latest: The newest version of each of the two notebooks; 0 where there is none.
        status: How the open session is doing.
        landed: Where the open session is found by its mark: a notebook and a version.
        unread: The next version that was not read yet, if any.
        missing: Sources that every session needs and that are not there.
        quota_left_s: GPU time left this week; None where it is not known, or none is used.
        quota_renews_s: When it is renewed, in seconds since the epoch.
        stored: What is seen of an upload: it is there, it is not yet, or it did not come out right.
        offered: What the checkpoint data set holds of this run, where it had to be looked at.
    """

    now_s: float
    latest: Mapping[str, int] = field(default_factory=dict)
    status: Status = "unknown"
    landed: tuple[str, int] | None = None
    unread: Version | None = None
    missing: tuple[str, ...] = ()
    quota_left_s: float | None = None
    quota_renews_s: float | None = None
    stored: Literal["there", "not yet", "wrong"] | None = None
    offered: HandOver | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Remember:
    """What was seen goes into the journal, and no more is to be done.

    Attributes:
        says: What is printed about it; empty for nothing.
    """

    journal: Journal
    says: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Follow:
    """A version that is in no journal becomes the open session."""

    version: Version


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Nothing more is to be done now.

    Attributes:
        reason: One sentence.
        remedy: The next step for a person; empty where there is none.
        exit_code: By the table of exit codes.
        consent: Whether it is lifted by a person's consent to lose what cannot be found.
    """

    reason: str
    remedy: str = ""
    exit_code: int = EXIT_DONE
    consent: bool = False


Reason = Literal["session", "busy", "output", "answer", "retry", "capacity", "quota", "dataset", "kaggle"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Look again later.

    Attributes:
        reason: What is waited for, in words.
    """

    seconds: float
    reason: str
    on: Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetch:
    """The open session has ended: see what came out of it."""

    status: Status


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """Put the newest good checkpoint into the checkpoint data set."""

    hand_over: HandOver


@dataclass(frozen=True, kw_only=True, slots=True)
class Push:
    """Start a session.

    Attributes:
        version: The version that this push is expected to get.
        transport: How the checkpoint is handed on; None for a start from nothing.
        expect_iteration: Where it must go on from; None for a start from nothing.
        kernel_sources: Notebooks whose output it is given, as ``owner/slug``.
        dataset_sources: Data sets that it is given, as ``owner/slug``.
        extend_to: The later end of the run that it gets.
        run_id: The run that it goes on with; empty where that is not known yet.
    """

    slug: str
    version: int
    transport: Transport | None
    expect_iteration: int | None
    limit_s: float
    run_id: str = ""
    kernel_sources: tuple[str, ...] = ()
    dataset_sources: tuple[str, ...] = ()
    extend_to: int | None = None


Action = Remember | Follow | Wait | Fetch | Store | Push | Stop


_RETRIES: Mapping[str, str] = {
    "retry": "The last push came to nothing; it is tried again later",
    "capacity": "Other sessions of this account take all places",
    "quota": "This week's GPU quota is used up",
}


def decide(journal: Journal, seen: Observation, settings: Settings) -> Action:
    attempt = journal.open
    if attempt is not None:
        about = _about_open if attempt.landed else _about_intent
        return about(attempt, journal, seen, settings)
    unread = _about_unread(journal, seen, settings)
    if unread is None and settings.checkpoint_dataset and not journal.dataset_read:
        return _about_what_is_stored(journal, seen, settings)
    return (
        unread
        or _whether_over(journal, settings)
        or _whether_to_wait(journal, seen, settings)
        or _next(journal, seen, settings)
    )


def _about_what_is_stored(journal: Journal, seen: Observation, settings: Settings) -> Remember | Stop:
    if journal.attempts or seen.offered is None:
        noted = journal.offered(seen.offered)
        found = noted.hand_over if noted.hand_over != journal.hand_over else None
        ref = settings.checkpoint_dataset
        says = f"The data set {ref} holds iteration {found.iteration} of this run." if found else ""
        return Remember(journal=noted, says=says)
    return Stop(
        reason=f"The data set {settings.checkpoint_dataset} holds iteration {seen.offered.iteration} of a "
        f"run, and no notebook {journal.owner}/{journal.slug} is there.",
        remedy="To go on from it, run the notebook once with the data set attached, then the relay again. To "
        "start from nothing all the same, run the relay with --again --from-nothing.",
        exit_code=EXIT_CHECKPOINT,
        consent=True,
    )


def _about_intent(attempt: Attempt, journal: Journal, seen: Observation, settings: Settings) -> Action:
    if seen.landed is not None:
        return _found(journal, *seen.landed)
    settling_s = left_s(attempt.intended_s + settings.scaled(SETTLE_S), seen.now_s)
    if settling_s:
        seconds = min(settling_s, settings.scaled(LOOK_S))
        return Wait(
            seconds=seconds, on="answer", reason="The answer to a push was lost; it may still turn up"
        )
    retry_s = seen.now_s + settings.pause_s(journal.rejected_pushes)
    return Remember(journal=journal.forgotten(retry_s=retry_s))


def _found(journal: Journal, slug: str, version: int) -> Remember:
    says = f"The session is found as {slug} version {version}."
    return Remember(journal=journal.landed(version, slug), says=says)


def _about_open(attempt: Attempt, journal: Journal, seen: Observation, settings: Settings) -> Action:
    name = f"{journal.owner}/{attempt.slug} version {attempt.version}"
    status = seen.status
    if seen.landed is not None:
        return _found(journal, *seen.landed)
    if status in ENDED or (status == "gone" and attempt.ended_s is not None):
        pause_s = left_s(attempt.look_s, seen.now_s)
        if pause_s:
            return Wait(seconds=pause_s, on="output", reason=f"What {name} left is not sure yet")
        since_s = attempt.ended_s if attempt.ended_s is not None else seen.now_s
        if seen.now_s - since_s > settings.scaled(UNSEEN_S) and not attempt.doubt:
            return Stop(
                reason=f"What {name} left cannot be seen since it ended, {format_duration(UNSEEN_S)} ago.",
                remedy="Look at its page on kaggle.com. To try for longer, run the relay with --again; to do "
                "without it, with --again --from-nothing.",
                exit_code=EXIT_MACHINE,
                consent=True,
            )
        return Fetch(status=status)
    if status == "gone":
        return Fetch(status=status)
    began_s = attempt.began_s or attempt.intended_s
    late_s = seen.now_s - began_s - attempt.limit_s - settings.scaled(OVERDUE_S)
    if late_s > 0 and attempt.limit_s:
        return Stop(
            reason=f"{name} is {status} {format_duration(seen.now_s - began_s)} after it began, with a limit "
            f"of {format_duration(attempt.limit_s)}.",
            remedy="End it by `mapsage-kaggle relay cancel` or on its page on kaggle.com, then run the relay "
            "again: it goes on from there.",
            exit_code=EXIT_MACHINE,
        )
    return Wait(seconds=settings.poll_s, on="session", reason=f"{name} is {status}")


def _about_unread(journal: Journal, seen: Observation, settings: Settings) -> Action | None:
    version = seen.unread
    if version is None:
        return None
    if version.status in ACTIVE and not version.pushed_by_relay:
        name = f"{journal.owner}/{version.slug} version {version.number}"
        reason = f"{name}, which the relay did not push, is {version.status}"
        return Wait(seconds=settings.scaled(LOOK_S), on="busy", reason=reason)
    if version.status in ("new", "gone"):  # saved and never run, or deleted: nothing to be read
        return Remember(journal=journal.passing(version.slug, version.number, status=version.status))
    return Follow(version=version)


def _whether_over(journal: Journal, settings: Settings) -> Stop | None:
    iteration = journal.hand_over.iteration if journal.hand_over else 0
    if journal.completed and iteration < journal.end:
        said = sentence(journal.last.message) if journal.last is not None else ""
        return Stop(
            reason=Message(
                "The run has ended early, at iteration {iteration} of {max_iters}. {said}",
                iteration,
                journal.end,
                said,
            ),
            remedy=f"To take it up again, run the relay with --extend-to {journal.end}.",
        )
    if journal.completed:
        return Stop(
            reason=f"The run is complete, at iteration {iteration}.{_how_to_extend(journal, settings)}"
        )
    if settings.until is not None and iteration >= settings.until:
        return Stop(reason=f"Iteration {settings.until} is reached (now at {iteration}).")
    lost = _lost(journal)
    if lost is not None:
        return lost
    last = journal.last
    if last is not None and journal.num_futile:
        message = sentence(last.message) or f"It ended as {last.status} and left no record."
        if last.verdict == "hopeless":
            reason = f"Version {last.version} of {last.slug} cannot go on: {message}"
            remedy = "Mend that, then run the relay with --again."
            return Stop(reason=reason, remedy=remedy, exit_code=last.exit_code or EXIT_TRAINING)
        if journal.num_futile > MAX_REPEATS:
            code = EXIT_CHECKPOINT if last.verdict == "unmounted" else EXIT_TRAINING
            return Stop(
                reason=f"{journal.num_futile} sessions in a row made no progress beyond iteration "
                f"{iteration}; the last: {message}",
                remedy="Mend that, then run the relay with --again.",
                exit_code=code,
            )
    if settings.max_sessions is not None and journal.num_sessions >= settings.max_sessions:
        return Stop(reason=f"{journal.num_sessions} session(s) were asked for, and are done.")
    return None


def _how_to_extend(journal: Journal, settings: Settings) -> str:
    later = settings.config_max_iters
    if later is None or not journal.max_iters or later <= journal.max_iters:
        return ""
    return (
        f" The config now ends at {later}, later than the run did. "
        f"To go on, run the relay with --extend-to {later}."
    )


def _lost(journal: Journal) -> Stop | None:
    attempt = journal.lost
    if attempt is None:
        return None
    name = f"{journal.owner}/{attempt.slug} version {attempt.version}"
    iteration = journal.hand_over.iteration if journal.hand_over else 0
    if (attempt.expect_iteration or 0) > iteration:
        reason = (
            f"{name} was told to go on from iteration {attempt.expect_iteration}, and "
            + (f"nothing beyond iteration {iteration}" if iteration else "no checkpoint")
            + " is to be found now."
        )
    else:
        reason = f"{name} may have trained, and seems to have left nothing."
    what = f"go on from iteration {iteration}" if iteration else "start from nothing"
    return Stop(
        reason=reason,
        remedy=f"Look at its page on kaggle.com. To {what} all the same, run the relay with "
        "--again --from-nothing.",
        exit_code=EXIT_CHECKPOINT,
        consent=True,
    )


def _whether_to_wait(journal: Journal, seen: Observation, settings: Settings) -> Wait | Stop | None:
    pause_s = left_s(journal.retry_s, seen.now_s)
    if pause_s:
        return Wait(seconds=pause_s, on=journal.retry_on, reason=_RETRIES[journal.retry_on])
    if journal.rejected_pushes >= MAX_REJECTED:
        return Stop(
            reason=f"{MAX_REJECTED} pushes in a row came to nothing.",
            remedy="Look at kaggle.com, then run the relay with --again.",
            exit_code=EXIT_MACHINE,
        )
    return None


def _next(journal: Journal, seen: Observation, settings: Settings) -> Action:
    if seen.missing:
        return Stop(
            reason=f"There is no {' and no '.join(seen.missing)}, or this token may not see it.",
            remedy="Correct the name, or create it on kaggle.com first.",
            exit_code=EXIT_USAGE,
        )
    hand_over = journal.hand_over
    transport = choose_transport(journal, seen, settings)
    if hand_over is not None and transport is None:
        return _no_way(journal, settings)
    if hand_over is not None and transport == "dataset" and journal.stored_iteration != hand_over.iteration:
        return _about_upload(hand_over, journal, seen, settings)
    limit_s = min(settings.session_limit_s, MAX_TIMEOUT_S)
    if seen.quota_left_s is not None and seen.quota_left_s < limit_s:
        limit_s = seen.quota_left_s // 60 * 60
        if limit_s < min(MIN_SESSION_S, settings.session_limit_s):
            return _wait_for_quota(seen.quota_left_s, seen, settings)
    if hand_over is None or transport is None:
        return Push(
            slug=journal.slug,
            version=seen.latest.get(journal.slug, 0) + 1,
            transport=None,
            expect_iteration=None,
            limit_s=limit_s,
            dataset_sources=settings.datasets,
            extend_to=journal.extend_to,
        )
    slug = hand_over.slug
    if transport == "pingpong":
        first, second = journal.slugs
        slug = second if hand_over.slug == first else first
    elif slug not in journal.slugs:
        slug = journal.slug
    by_kernel = transport != "dataset"
    return Push(
        slug=slug,
        version=seen.latest.get(slug, 0) + 1,
        transport=transport,
        expect_iteration=hand_over.iteration,
        limit_s=limit_s,
        kernel_sources=(f"{settings.owner}/{hand_over.slug}",) if by_kernel else (),
        dataset_sources=settings.datasets if by_kernel else (*settings.datasets, settings.checkpoint_dataset),
        extend_to=journal.extend_to,
        run_id=journal.run_id,
    )


def _wait_for_quota(left_s: float, seen: Observation, settings: Settings) -> Wait:
    left = format_duration(left_s)
    reason = f"{left} of this week's GPU quota is left, too little for a session"
    seconds = QUOTA_LOOK_S
    if seen.quota_renews_s is not None and seen.quota_renews_s > seen.now_s:
        reason += f"; it is renewed {utc(seen.quota_renews_s)}"
        seconds = min(seconds, seen.quota_renews_s - seen.now_s + 60.0)
    return Wait(seconds=settings.scaled(seconds), on="quota", reason=reason)


def _about_upload(hand_over: HandOver, journal: Journal, seen: Observation, settings: Settings) -> Action:
    upload = journal.upload
    if upload is None or upload.iteration != hand_over.iteration:
        return Store(hand_over=hand_over)
    ref = settings.checkpoint_dataset
    if seen.stored == "there":
        return Remember(journal=journal.stored(hand_over.iteration))
    problem = ""
    if seen.stored == "wrong":
        if upload.tries < MAX_UPLOADS:
            return Store(hand_over=hand_over)
        problem = f"{upload.tries} uploads of iteration {upload.iteration} to {ref} did not come out whole."
    elif seen.now_s - upload.since_s > settings.scaled(UNSEEN_S):
        problem = f"Kaggle is not done with {ref} after {format_duration(UNSEEN_S)}."
    if problem:
        return Stop(
            reason=problem,
            remedy=f"Look at kaggle.com/datasets/{ref}, then run the relay with --again.",
            exit_code=EXIT_MACHINE,
        )
    # The longer it takes, the seldomer it is looked at.
    seconds = min(settings.scaled(MAX_PAUSE_S), max(settings.scaled(60.0), (seen.now_s - upload.since_s) / 2))
    reason = f"Kaggle is not done yet with iteration {hand_over.iteration} in {ref}"
    return Wait(seconds=seconds, on="dataset", reason=reason)


def choose_transport(journal: Journal, seen: Observation, settings: Settings) -> Transport | None:
    """Return the way by which the newest good checkpoint can be handed on now; None for none.

    A notebook's output can be an input only if its newest version ended COMPLETE, and by all that is
    known never its own. So ``auto`` alternates between two notebooks. What a failed or cancelled session
    left goes by the data set, and so does all that follows.
    """
    hand_over = journal.hand_over
    if hand_over is None:
        return None
    attachable = hand_over.attachable and seen.latest.get(hand_over.slug) == hand_over.version
    ways: tuple[Transport, ...]
    ways = ("pingpong", "dataset") if settings.transport == "auto" else (settings.transport,)
    usable = [way for way in ways if (bool(settings.checkpoint_dataset) if way == "dataset" else attachable)]
    return next((way for way in usable if way not in journal.refused), None)


def _no_way(journal: Journal, settings: Settings) -> Stop:
    hand_over = journal.hand_over
    assert hand_over is not None
    where = f"iteration {hand_over.iteration} (version {hand_over.version} of {hand_over.slug})"
    refused = [name for name in journal.refused if settings.transport in ("auto", name)]
    if refused:
        why = f"{' and '.join(refused)} did not do"
    else:
        why = "only the newest version's output can be attached, and only if it ended complete"
    remedy = "Run the relay with --transport auto." if settings.transport != "auto" else ""
    if not settings.checkpoint_dataset:
        remedy = "Name a --checkpoint-dataset."
    return Stop(
        reason=f"There is no way to hand on {where}: {why}.",
        remedy=remedy or "Attach it by hand, or run the relay with --again.",
        exit_code=EXIT_CHECKPOINT,
    )


def utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
