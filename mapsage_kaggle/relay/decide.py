"""What to do next, as one function of what is remembered and what is seen. It does nothing itself.

What holds, whatever is remembered and seen:

- Nothing is pushed while a version of these notebooks is queued, running or of an unknown state,
  while a push has no known outcome, or before the time that a refused push has set.
- Once there is a good checkpoint, a session is pushed only with a way to it, and told to go on from
  its iteration or not at all.
- A session that made no progress is repeated twice at most.
- Nothing is pushed without the sources it needs, or for longer than the quota lasts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.errors import EXIT_CHECKPOINT, EXIT_DONE, EXIT_MACHINE, EXIT_TRAINING, EXIT_USAGE
from mapsage_kaggle.relay.journal import TRANSPORTS, Attempt, HandOver, Journal, Transport

Status = Literal["new", "queued", "running", "cancelling", "complete", "error", "cancelled", "unknown"]
ENDED: frozenset[Status] = frozenset({"complete", "error", "cancelled"})
ACTIVE: frozenset[Status] = frozenset({"queued", "running", "cancelling", "unknown"})

MAX_REPEATS = 2
"""How often a session that made no progress is repeated."""
MAX_REJECTED = 20
"""How many pushes in a row may come to nothing."""
MIN_SESSION_S = 3600.0
"""A session shorter than this (and than the limit asked for) is not worth its installation."""
QUEUE_S = 12 * 3600.0
"""How long a session may wait for a machine."""
SAVING_S = 2 * 3600.0
"""How long Kaggle may take beyond a session's limit, saving 20 GB of output included."""

_CAPACITY = re.compile(r"maximum|too many|session count|concurren|capacity", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What was asked of the relay.

    Attributes:
        owner: Whose account.
        slug: The notebook.
        transport: How checkpoints are handed on; ``auto`` takes the cheapest that works.
        datasets: Data sets that every session needs, as ``owner/slug``.
        checkpoint_dataset: The data set for the ``dataset`` transport, as ``owner/slug``.
        until: Stop once this iteration is reached; None for the run's end.
        max_sessions: Most sessions to push in all; None for no bound.
        session_limit_s: The limit that a session is given, and told.
        poll_s: Between two looks at a session.
        settle_s: How long a push whose answer was lost may still turn up.
    """

    owner: str
    slug: str
    transport: Transport | Literal["auto"] = "auto"
    datasets: tuple[str, ...] = ()
    checkpoint_dataset: str = ""
    until: int | None = None
    max_sessions: int | None = None
    session_limit_s: float = 12 * 3600.0
    poll_s: float = 60.0
    settle_s: float = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What is seen on Kaggle.

    Attributes:
        now_s: Seconds since the epoch.
        latest: The newest version of each of the two notebooks; 0 where there is none.
        statuses: By (slug, version), for the versions that may not have ended.
        landed: The version that the intended push got, if it is there.
        missing: Sources that every session needs and that are not there.
        quota_left_s: GPU time left this week; None where it is not known, or none is used.
        quota_renews: When it is renewed, for people.
        busy_since_s: Since when a version that the relay did not push has been seen to be going on.
    """

    now_s: float
    latest: Mapping[str, int] = field(default_factory=dict)
    statuses: Mapping[tuple[str, int], Status] = field(default_factory=dict)
    landed: int | None = None
    missing: tuple[str, ...] = ()
    quota_left_s: float | None = None
    quota_renews: str = ""
    busy_since_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Adopt:
    """The push that was intended has landed, as this version."""

    version: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Nothing more is to be done now.

    Attributes:
        reason: One sentence.
        remedy: The next step for a person; empty where there is none.
        exit_code: By the table of exit codes.
    """

    reason: str
    remedy: str = ""
    exit_code: int = EXIT_DONE


@dataclass(frozen=True, kw_only=True, slots=True)
class Forget:
    """The push that was intended has not happened.

    Attributes:
        retry_s: Not to push again before, in seconds since the epoch.
        then: What follows from it at once, if anything.
    """

    retry_s: float
    then: Stop | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """Look again later.

    Attributes:
        seconds: How much later.
        reason: What is waited for.
    """

    seconds: float
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetch:
    """The open session has ended: see what came out of it."""

    slug: str
    version: int
    status: Status


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """Put the newest good checkpoint into the checkpoint data set."""

    hand_over: HandOver


@dataclass(frozen=True, kw_only=True, slots=True)
class Push:
    """Start a session.

    Attributes:
        slug: The notebook.
        version: The version that this push is expected to get.
        transport: How the checkpoint is handed on; None for a start from nothing.
        expect_iteration: Where it must go on from; None for a start from nothing.
        limit_s: Its limit.
        kernel_sources: Notebooks whose output it is given, as ``owner/slug``.
        dataset_sources: Data sets that it is given, as ``owner/slug``.
    """

    slug: str
    version: int
    transport: Transport | None
    expect_iteration: int | None
    limit_s: float
    kernel_sources: tuple[str, ...] = ()
    dataset_sources: tuple[str, ...] = ()


Action = Adopt | Forget | Wait | Fetch | Store | Push | Stop


def decide(journal: Journal, seen: Observation, settings: Settings) -> Action:
    """Return what to do next."""
    attempt = journal.open
    if attempt is not None:
        return (
            _about_open(attempt, journal, seen, settings)
            if attempt.landed
            else _about_intent(attempt, journal, seen, settings)
        )
    return (
        _whether_over(journal, settings)
        or _whether_to_wait(journal, seen, settings)
        or _next(journal, seen, settings)
    )


def _about_intent(attempt: Attempt, journal: Journal, seen: Observation, settings: Settings) -> Action:
    if seen.landed is not None:
        return Adopt(version=seen.landed)
    left_s = attempt.intended_s + settings.settle_s - seen.now_s
    if left_s > 0 and not attempt.refusal:
        seconds = min(left_s, settings.poll_s)
        return Wait(seconds=seconds, reason="the answer to a push was lost; it may still turn up")
    retry_s = seen.now_s + settings.settle_s * min(4, 1 + journal.rejected_pushes)
    if journal.rejected_pushes + 1 >= MAX_REJECTED:
        message = f": {attempt.refusal}" if attempt.refusal else "."
        return Forget(
            retry_s=retry_s,
            then=Stop(
                reason=f"{MAX_REJECTED} pushes in a row came to nothing{message}",
                remedy="Look at kaggle.com, then run the relay again.",
                exit_code=EXIT_MACHINE,
            ),
        )
    if attempt.refusal and not _CAPACITY.search(attempt.refusal):
        reason = f"Kaggle does not accept the notebook: {attempt.refusal}"
        remedy = "Check owner, slug, data sets and machine, and that the phone number is verified."
        return Forget(retry_s=0.0, then=Stop(reason=reason, remedy=remedy, exit_code=EXIT_USAGE))
    return Forget(retry_s=retry_s)


def _about_open(attempt: Attempt, journal: Journal, seen: Observation, settings: Settings) -> Action:
    status = seen.statuses.get((attempt.slug, attempt.version), "unknown")
    name = f"{journal.owner}/{attempt.slug} version {attempt.version}"
    if status in ENDED:
        return Fetch(slug=attempt.slug, version=attempt.version, status=status)
    if seen.now_s > attempt.intended_s + QUEUE_S + attempt.limit_s + SAVING_S:
        since = format_duration(seen.now_s - attempt.intended_s)
        return Stop(
            reason=f"{name} is {status} {since} after it was pushed, with a limit of "
            f"{format_duration(attempt.limit_s)}.",
            remedy="Cancel it on its page on kaggle.com, then run the relay again: it goes on from there.",
            exit_code=EXIT_MACHINE,
        )
    return Wait(seconds=settings.poll_s, reason=f"{name} is {status}")


def _whether_over(journal: Journal, settings: Settings) -> Stop | None:
    iteration = journal.hand_over.iteration if journal.hand_over else 0
    if journal.completed:
        return Stop(reason=f"The run is complete, at iteration {iteration}.")
    if settings.until is not None and iteration >= settings.until:
        return Stop(reason=f"Iteration {settings.until} is reached (now at {iteration}).")
    last = journal.last
    if last is not None and journal.num_futile:
        message = last.message or f"it ended as {last.status} and left no record"
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


def _whether_to_wait(journal: Journal, seen: Observation, settings: Settings) -> Wait | Stop | None:
    for (slug, version), status in sorted(seen.statuses.items()):
        if status in ACTIVE:
            reason = f"{journal.owner}/{slug} version {version}, which the relay did not push, is {status}"
            most_s = QUEUE_S + settings.session_limit_s + SAVING_S
            if seen.busy_since_s is not None and seen.now_s > seen.busy_since_s + most_s:
                remedy = "Cancel it on its page on kaggle.com, then run the relay again."
                return Stop(reason=f"{reason} for too long.", remedy=remedy, exit_code=EXIT_MACHINE)
            return Wait(seconds=settings.poll_s, reason=reason)
    if seen.now_s < journal.retry_s:
        seconds = min(settings.poll_s, journal.retry_s - seen.now_s)
        return Wait(seconds=seconds, reason="the last push came to nothing; it is tried again later")
    return None


def _next(journal: Journal, seen: Observation, settings: Settings) -> Action:
    if seen.missing:
        return Stop(
            reason=f"There is no {' and no '.join(seen.missing)}, or this token may not see it.",
            remedy="Correct the name, or create it on kaggle.com first.",
            exit_code=EXIT_USAGE,
        )
    limit_s = settings.session_limit_s
    if seen.quota_left_s is not None and seen.quota_left_s < limit_s:
        limit_s = seen.quota_left_s // 60 * 60
        if limit_s < min(MIN_SESSION_S, settings.session_limit_s):
            renewed = f" It is renewed {seen.quota_renews}." if seen.quota_renews else ""
            return Stop(
                reason=f"{format_duration(seen.quota_left_s)} of this week's GPU quota is left, too "
                f"little for a session.{renewed}",
                remedy="Run the relay again then.",
                exit_code=EXIT_MACHINE,
            )
    hand_over = journal.hand_over
    if hand_over is None:
        slug = journal.slug
        return Push(
            slug=slug,
            version=seen.latest.get(slug, 0) + 1,
            transport=None,
            expect_iteration=None,
            limit_s=limit_s,
            dataset_sources=settings.datasets,
        )
    transport = choose_transport(journal, seen, settings)
    if transport is None:
        return _no_way(journal, settings)
    if transport == "dataset" and journal.stored_iteration != hand_over.iteration:
        return Store(hand_over=hand_over)
    slug = hand_over.slug
    if transport == "pingpong":
        first, second = journal.slugs
        slug = second if hand_over.slug == first else first
    by_kernel = transport != "dataset"
    return Push(
        slug=slug,
        version=seen.latest.get(slug, 0) + 1,
        transport=transport,
        expect_iteration=hand_over.iteration,
        limit_s=limit_s,
        kernel_sources=(f"{settings.owner}/{hand_over.slug}",) if by_kernel else (),
        dataset_sources=settings.datasets if by_kernel else (*settings.datasets, settings.checkpoint_dataset),
    )


def choose_transport(journal: Journal, seen: Observation, settings: Settings) -> Transport | None:
    """Return the cheapest way by which the newest good checkpoint can be handed on now; None for none.

    A notebook's output can be an input only if its newest version ended COMPLETE. So what a failed or
    cancelled session left goes by the data set, whatever came before.
    """
    hand_over = journal.hand_over
    if hand_over is None:
        return None
    attachable = hand_over.attachable and seen.latest.get(hand_over.slug) == hand_over.version
    for transport in TRANSPORTS if settings.transport == "auto" else (settings.transport,):
        usable = bool(settings.checkpoint_dataset) if transport == "dataset" else attachable
        if usable and transport not in journal.refused:
            return transport
    return None


def _no_way(journal: Journal, settings: Settings) -> Stop:
    hand_over = journal.hand_over
    assert hand_over is not None
    where = f"iteration {hand_over.iteration} (version {hand_over.version} of {hand_over.slug})"
    refused = [name for name in journal.refused if settings.transport in ("auto", name)]
    if refused:
        why = f"Kaggle refused {' and '.join(refused)}"
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
