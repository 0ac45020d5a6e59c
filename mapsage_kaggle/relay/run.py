"""The loop: look, decide, do, write down."""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.errors import MachineError, MapsageError, UsageError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import Below
from mapsage_kaggle.relay import forecast, harvest, push
from mapsage_kaggle.relay.answers import REMEDIES, Refusal, Unreachable, sentence
from mapsage_kaggle.relay.client import KaggleClient
from mapsage_kaggle.relay.decide import (
    ACTIVE,
    BELIEVED_S,
    LOST_S,
    MAX_STRAY,
    PROOF_S,
    Action,
    Fetch,
    Follow,
    Push,
    Remember,
    Settings,
    Stop,
    Store,
    Version,
    Wait,
    decide,
)
from mapsage_kaggle.relay.journal import Attempt, HandOver, Journal, Outcome
from mapsage_kaggle.relay.kernel import Job, attempt_of, is_for
from mapsage_kaggle.relay.look import Watch
from mapsage_kaggle.relay.progress import Progress, Reporter
from mapsage_kaggle.relay.store import CheckpointDataset


@dataclass(frozen=True, slots=True)
class Places:
    """Where a relay keeps what it knows, on this machine."""

    path: Path

    journal = Below("journal.json")
    kernel = Below("kernel")  # the notebook and metadata that were pushed last
    fetched = Below("fetched")  # what versions left, by notebook and version
    upload = Below("upload")  # what goes into the checkpoint data set


@dataclass(kw_only=True)
class Relay:
    """Runs a chain of sessions. Everything it has to remember is in the journal.

    Attributes:
        jitter: Between 0.8 and 1.2, so that many relays do not ask in step.
        follow: Whether the logs of running sessions are followed.
        notify: Called with a message where a session has ended, if anybody wants to know.
    """

    kaggle: KaggleClient
    settings: Settings
    job: Job
    places: Places
    reporter: Reporter = field(default_factory=Reporter)
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = field(default=lambda: random.uniform(0.8, 1.2))
    follow: bool = True
    notify: Callable[[str], None] | None = None
    journal: Journal = field(init=False)
    _from_nothing: bool = field(default=False, init=False)
    _failures: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.dataset = CheckpointDataset(
            kaggle=self.kaggle, ref=settings.checkpoint_dataset, fetched=self.places.fetched,
            folder=self.places.upload, stem=self.job.stem,
        )  # fmt: skip
        self._progress = Progress(kaggle=self.kaggle, reporter=self.reporter)
        self.watch = Watch(
            kaggle=self.kaggle, settings=settings, dataset=self.dataset, on_gpu=self.job.machine is not None
        )

    def run(self, *, once: bool = False, again: bool = False, from_nothing: bool = False) -> Stop | Wait:
        """Go on until the run is over or something needs a person; return what that is.

        Args:
            once: End instead of waiting, for schedulers; what is waited for is returned.
            again: Failures so far no longer count.
            from_nothing: A person consents to lose what cannot be found.

        Raises:
            UsageError: The journal is another run's.
            MachineError: Kaggle does not accept the credentials, or the disk is full.
        """
        try:
            self.open(again=again, from_nothing=from_nothing)
            while True:
                step = self.step()
                if isinstance(step, Stop):
                    return step
                if isinstance(step, Wait):
                    if step.on != "output":  # that was said at the look itself
                        self.reporter.say(f"{step.reason}.")
                    if once:
                        return step
                    self._wait(step)
        except OSError as error:
            raise MachineError(
                Message(
                    "{folder} cannot be written: {why}.",
                    error.filename or self.places.path,
                    error.strerror or error,
                ),
                "Make room, or choose another --state folder; then run the relay again.",
            ) from error

    def open(self, *, again: bool = False, from_nothing: bool = False) -> None:
        journal = Journal.read(self.places.journal)
        asked = (self.settings.owner, self.settings.slug, self.job.config)
        if journal is None:
            self.reporter.say("There is no journal; looking at what is on Kaggle.")
            journal = Journal(owner=asked[0], slug=asked[1], config=asked[2])
        elif (journal.owner, journal.slug, journal.config) != asked:
            raise UsageError(
                f"{self.places.journal} is of {journal.config} in {journal.owner}/{journal.slug}, not of "
                f"{asked[2]} in {asked[0]}/{asked[1]}.",
                "Give another --state folder for another run.",
            )
        self._from_nothing = from_nothing
        self.journal = journal
        journal = dataclasses.replace(
            journal,
            overrides=self.job.overrides or journal.overrides,
            extend_to=self.job.extend_to or journal.extend_to,
        )
        self.keep(journal.forgiving() if again else journal)

    def step(self) -> Stop | Wait | None:
        """Look, decide and do one thing; return why nothing is to be done now, if that is so.

        Raises:
            MapsageError: It needs a person; the message says why and what to do.
        """
        try:
            seen = self.watch.look(self.journal)
            attempt = self.journal.open
            if (
                attempt is not None
                and attempt.landed
                and attempt.began_s is None
                and seen.status == "running"
            ):
                self.keep(self.journal.opening(began_s=seen.now_s))
            action = decide(self.journal, seen, self.settings)
            if isinstance(action, Stop) and action.consent and self._from_nothing:
                self._from_nothing = False
                self.keep(self.journal.consenting())
                return None
            if not isinstance(action, (Stop, Wait)):
                self.act(action)
            if not (isinstance(action, Wait) and action.on == "retry"):
                self.keep(dataclasses.replace(self.journal, denials=0))
            self._failures = 0
            return action if isinstance(action, (Stop, Wait)) else None
        except Unreachable as error:
            pause_s = max(error.retry_after_s, self.settings.pause_s(self._failures))
            self._failures += 1
            reason = f"{error.problem} It is asked again in {format_duration(pause_s)}".rstrip(".")
            return Wait(seconds=pause_s, on="kaggle", reason=reason)
        except Refusal as error:
            return self._denied(error)

    def _denied(self, error: Refusal) -> Wait:
        """Take a refusal for an accident, until it has been met three times over an hour."""
        if not error.stray or error.kind in REMEDIES:
            raise error
        now_s = self.kaggle.now_s()
        self.keep(self.journal.denied(now_s))
        long_s = now_s - self.journal.denied_s
        if self.journal.denials > MAX_STRAY and long_s >= self.settings.scaled(BELIEVED_S):
            self.keep(dataclasses.replace(self.journal, denials=0))
            raise error
        pause_s = self.settings.scaled(BELIEVED_S / 2 + 60.0)
        reason = f"{error.problem} It is asked again in {format_duration(pause_s)}"
        return Wait(seconds=pause_s, on="kaggle", reason=reason)

    # -- doing

    def act(self, action: Action) -> None:
        if isinstance(action, Push):
            push.send(self, action)
        elif isinstance(action, Fetch):
            self._harvest(action)
        elif isinstance(action, Follow):
            self._follow_version(action.version)
        elif isinstance(action, Store):
            self._store(action.hand_over)
        elif isinstance(action, Remember):
            self.keep(action.journal)
            if action.says:
                self.reporter.say(action.says)
            if action.journal.upload is None:
                shutil.rmtree(self.places.upload, ignore_errors=True)
        else:
            raise TypeError(f"{action} is nothing to do")

    def _follow_version(self, version: Version) -> None:
        if version.status in ACTIVE:
            name = f"{self.journal.owner}/{version.slug} version {version.number}"
            self.reporter.say(f"{name} is going on, pushed by a relay; it is followed.")
        source = self.kaggle.notebooks.source(version.slug, version.number)
        if not is_for(source, self.journal.config):
            message = "It is of another config."
            self.keep(self.journal.passing(version.slug, version.number, message=message))
            return
        found = attempt_of(source, version.slug, version.number)
        self.keep(self.journal.intending(dataclasses.replace(found, found=True)))

    def _store(self, hand_over: HandOver) -> None:
        ref = self.settings.checkpoint_dataset
        self.reporter.say(f"Putting iteration {hand_over.iteration} into the data set {ref}.")
        upload = self.dataset.upload(hand_over, now_s=self.kaggle.now_s(), earlier=self.journal.upload)
        self.keep(dataclasses.replace(self.journal, upload=upload, stored_iteration=None))

    # -- what came out of a session

    def _harvest(self, action: Fetch) -> None:
        now_s, settings = self.kaggle.now_s(), self.settings
        attempt = self.journal.open
        assert attempt is not None
        if attempt.ended_s is None:
            self.keep(self.journal.opening(ended_s=now_s, status=action.status))
        attempt = self.journal.open
        assert attempt is not None
        assert attempt.ended_s is not None
        name = f"{self.journal.owner}/{attempt.slug} version {attempt.version}"
        look_s = now_s + settings.pause_s(attempt.looks)
        began_s = attempt.began_s or attempt.intended_s
        ran_s = attempt.ended_s - began_s if began_s else 0.0
        before = self.journal.hand_over.iteration if self.journal.hand_over else 0
        try:
            if action.status == "gone":
                outcome = harvest.gone(ran_s)
            else:
                folder = self.places.fetched / f"{attempt.slug}-v{attempt.version}"
                left = harvest.fetch(
                    self.kaggle, attempt.slug, attempt.version, stem=self.job.stem, folder=folder
                )
                outcome = harvest.judge(
                    self.kaggle, left, attempt, status=action.status, before=before, ran_s=ran_s
                )
        except (Unreachable, Refusal) as error:
            self.reporter.say(f"What {name} left cannot be seen yet. {error.problem}")
            asked_s = now_s + getattr(error, "retry_after_s", 0.0)
            self.keep(self.journal.doubting("", now_s=now_s, look_s=max(look_s, asked_s)))
            return
        missing = outcome.hand_over is None and (outcome.trained or action.status == "complete")
        proof_s = settings.scaled(LOST_S if missing else PROOF_S)
        if outcome.doubt and not (attempt.doubt == outcome.doubt and now_s - attempt.doubt_s >= proof_s):
            self.reporter.say(f"What {name} left is not sure yet; it is looked at again.")
            self.keep(self.journal.doubting(outcome.doubt, now_s=now_s, look_s=look_s))
            return
        self._close(attempt, outcome)

    def _close(self, attempt: Attempt, outcome: Outcome) -> None:
        journal = self.journal.closed(outcome)
        if journal.open is not None:  # what came before it was another run's: it is looked at again
            self.keep(journal)
            return
        older = any(item.slug == attempt.slug and item.version < attempt.version for item in journal.attempts)
        if attempt.found and attempt.token and outcome.hand_over is not None and not older:
            # Without a journal versions are read from the newest back; this one says it all.
            journal = dataclasses.replace(
                journal, accounted={**journal.accounted, attempt.slug: attempt.version}
            )
        self.keep(journal)
        self._sweep()
        closed = next(
            item for item in journal.attempts if (item.slug, item.version) == (attempt.slug, attempt.version)
        )
        reached = f"iteration {outcome.hand_over.iteration}" if outcome.hand_over else "no checkpoint"
        best = f", best {outcome.best}" if outcome.best else ""
        message = f" {sentence(closed.message)}" if closed.message else ""
        line = (
            f"{journal.owner}/{attempt.slug} version {attempt.version} ended {outcome.status}: "
            f"{closed.verdict}, {reached}{best}.{message}{self._eta()}"
        )
        self.reporter.say(line)
        if self.notify is not None:
            self.notify(line)

    def _sweep(self) -> None:
        """Remove what was fetched of versions that hold the newest good checkpoint no more."""
        newest = self.journal.hand_over
        kept = f"{newest.slug}-v{newest.version}" if newest is not None else ""
        for folder in self.places.fetched.glob("*-v*"):
            if folder.name != kept:
                shutil.rmtree(folder, ignore_errors=True)

    # -- waiting and telling

    def _wait(self, wait: Wait) -> None:
        seconds = wait.seconds * self.jitter()
        attempt = self.journal.open
        if wait.on == "session" and attempt is not None and self.follow:
            self._progress.tell(attempt, self.watch.quota)
        self.sleep(max(seconds, self.settings.scaled(1.0)))

    def _eta(self) -> str:
        return forecast.still_to_come(
            self.journal,
            self.settings,
            reserve_s=self.job.reserve_s,
            quota=self.watch.quota,
            now_s=self.kaggle.now_s(),
        )

    def keep(self, journal: Journal) -> None:
        if journal == self.journal and self.places.journal.is_file():
            return
        self.places.path.mkdir(parents=True, exist_ok=True)
        journal.write(self.places.journal)
        self.journal = journal


class Stopped(MapsageError):
    """The relay cannot go on; its exit code is that of the reason."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.reason, stop.remedy)
        self.exit_code = stop.exit_code
