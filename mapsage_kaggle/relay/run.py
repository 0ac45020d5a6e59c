"""The loop: look, decide, do, write down."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256
from mapsage_kaggle.checkpoints.names import kind_of
from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.errors import EXIT_DONE, MachineError, MapsageError, UsageError
from mapsage_kaggle.records import CheckpointRef, read_record
from mapsage_kaggle.relay import harvest
from mapsage_kaggle.relay.client import Absent, Denied, KaggleClient, Quota, Rejected, Unreachable
from mapsage_kaggle.relay.decide import (
    ACTIVE,
    ENDED,
    Action,
    Adopt,
    Fetch,
    Forget,
    Observation,
    Push,
    Settings,
    Status,
    Stop,
    Store,
    Wait,
    decide,
)
from mapsage_kaggle.relay.journal import Attempt, HandOver, Journal
from mapsage_kaggle.relay.kernel import Job, attempt_of, write_kernel

MAX_SILENCE_S = 6 * 3600.0
"""For how long Kaggle may be unreachable before the relay gives up; the session goes on meanwhile."""
MAX_BACK_OFF_S = 600.0
READY_S = 1800.0
"""How long Kaggle may take over a version of the checkpoint data set."""
LOOK_BACK = 5
"""How many versions, from the newest, are looked at where there is no journal."""
LATE_RECORD_LOOKS = 3
"""How often a version that ended complete is looked at again where its output has no record yet."""

CLOCKS_DIFFER_S = 3600.0
"""By how much this machine's clock may be ahead of Kaggle's."""

_ITERATION = re.compile(r"^\[(\d+)/(\d+)\]")
_SCORE = re.compile(r"mIoU\s+(\d+(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where a relay keeps what it knows, on this machine.

    Attributes:
        folder: All of it.
    """

    folder: Path

    @property
    def journal(self) -> Path:
        """What it has to remember."""
        return self.folder / "journal.json"

    @property
    def kernel(self) -> Path:
        """The notebook and metadata that were pushed last."""
        return self.folder / "kernel"

    @property
    def fetched(self) -> Path:
        """What versions left, by notebook and version."""
        return self.folder / "fetched"

    @property
    def upload(self) -> Path:
        """What goes into the checkpoint data set."""
        return self.folder / "upload"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A version that is on Kaggle and in no journal."""

    attempt: Attempt
    status: Status
    left: harvest.SessionOutput | None

    @property
    def index(self) -> int:
        record = self.left.record if self.left is not None else None
        return record.session_index if record is not None else 0


@dataclass(kw_only=True)
class Relay:
    """Runs a chain of sessions. Everything it has to remember is in the journal.

    Attributes:
        kaggle: The account.
        settings: What was asked.
        job: What is trained.
        places: Where it keeps what it knows.
        say: Told what happens, one line each.
        now_s: Seconds since the epoch; injected in tests.
        sleep: Injected in tests.
        jitter: Between 0.8 and 1.2, so that many relays do not ask in step.
    """

    kaggle: KaggleClient
    settings: Settings
    job: Job
    places: Places
    say: Callable[[str], None] = print
    now_s: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = field(default=lambda: random.uniform(0.8, 1.2))
    _said: str = field(default="", init=False, repr=False)
    _busy_since_s: float | None = field(default=None, init=False, repr=False)
    _quota: Quota | None = field(default=None, init=False, repr=False)
    _progress: str = field(default="", init=False, repr=False)

    def run(self, *, once: bool = False, again: bool = False) -> int:
        """Go on until the run is over or something is in the way; return the exit code.

        Args:
            once: End instead of waiting, for schedulers.
            again: Failures so far no longer count.

        Raises:
            UsageError: The journal is another run's.
            MachineError: Kaggle could not be reached for hours, or does not accept the credentials.
        """
        journal = self._journal()
        if again:
            journal = self._keep(journal.forgiving())
        silent_since_s: float | None = None
        failures = 0
        while True:
            try:
                action = decide(journal, self.look(journal), self.settings)
                if isinstance(action, Stop):
                    return self._end(action)
                if isinstance(action, Wait):
                    self._emit(action.reason + self._progress)
                    if once:
                        return EXIT_DONE
                    self._wait(action, journal)
                else:
                    journal = self.act(action, journal)
                    if isinstance(action, Forget) and action.then is not None:
                        return self._end(action.then)
                silent_since_s, failures = None, 0
            except Unreachable as error:
                now = self.now_s()
                silent_since_s = now if silent_since_s is None else silent_since_s
                failures += 1
                if now - silent_since_s > MAX_SILENCE_S or (once and failures > 3):
                    raise
                pause_s = min(MAX_BACK_OFF_S, self.settings.poll_s * 2 ** min(failures - 1, 8))
                self._emit(f"{error} Trying again in {format_duration(pause_s)}.")
                self.sleep(pause_s * self.jitter())
                # What was done before the failure is in the journal, whatever this variable holds.
                journal = Journal.read(self.places.journal) or journal

    def _journal(self) -> Journal:
        journal = Journal.read(self.places.journal)
        if journal is None:
            self._emit("There is no journal; looking at what is on Kaggle.")
            return self._keep(self._patiently(self.rebuild))
        asked = (self.settings.owner, self.settings.slug, self.job.config)
        if (journal.owner, journal.slug, journal.config) != asked:
            raise UsageError(
                f"{self.places.journal} is of {journal.config} in {journal.owner}/{journal.slug}, not of "
                f"{asked[2]} in {asked[0]}/{asked[1]}.",
                "Give another --state folder for another run.",
            )
        return journal

    def _patiently(self, look: Callable[[], Journal]) -> Journal:
        for failures in range(1, 6):
            try:
                return look()
            except Unreachable as error:
                self._emit(f"{error} Trying again.")
                self.sleep(self.settings.poll_s * 2**failures * self.jitter())
        return look()

    # -- looking

    def look(self, journal: Journal) -> Observation:
        """Return what is seen on Kaggle, as far as the next decision needs it.

        Raises:
            Unreachable: It cannot be seen now.
            MachineError: The credentials do not allow it.
        """
        attempt, now_s = journal.open, self.now_s()
        if attempt is not None and attempt.landed:
            status = self.kaggle.status(attempt.slug, attempt.version)
            return Observation(now_s=now_s, statuses={(attempt.slug, attempt.version): status})
        latest = {slug: self.kaggle.newest_version(slug) for slug in self._slugs(journal)}
        if attempt is not None:
            landed = self._find(attempt, latest.get(attempt.slug, 0))
            return Observation(now_s=now_s, latest=latest, landed=landed)
        statuses = self._statuses(journal, latest)
        busy = any(status in ACTIVE for status in statuses.values())
        self._busy_since_s = (self._busy_since_s or now_s) if busy else None
        if busy:
            return Observation(now_s=now_s, latest=latest, statuses=statuses, busy_since_s=self._busy_since_s)
        missing = tuple(
            f"data set {ref}" for ref in self.settings.datasets if not self.kaggle.has_dataset(ref)
        )
        self._quota = self.kaggle.quota() if self.job.machine is not None else None
        return Observation(
            now_s=now_s,
            latest=latest,
            statuses=statuses,
            missing=missing,
            quota_left_s=self._quota.left_s if self._quota else None,
            quota_renews=self._quota.renews if self._quota else "",
        )

    def _slugs(self, journal: Journal) -> tuple[str, ...]:
        return journal.slugs if self.settings.transport in ("auto", "pingpong") else journal.slugs[:1]

    def _find(self, attempt: Attempt, newest: int) -> int | None:
        """Return the version that an intended push became, by the mark in its text."""
        for version in range(newest, attempt.version - 1, -1):
            if (
                attempt_of(self.kaggle.source(attempt.slug, version), attempt.slug, version).token
                == attempt.token
            ):
                return version
        return None

    def _statuses(self, journal: Journal, latest: dict[str, int]) -> dict[tuple[str, int], Status]:
        """Return how the versions are doing that are not known to have ended."""
        ended = {(item.slug, item.version) for item in journal.attempts if item.verdict is not None}
        statuses: dict[tuple[str, int], Status] = {}
        for slug, newest in latest.items():
            for version in range(newest, max(0, newest - LOOK_BACK), -1):
                if (slug, version) in ended:
                    break
                statuses[slug, version] = self.kaggle.status(slug, version)
        return statuses

    # -- where there is no journal

    def rebuild(self) -> Journal:
        """Return a journal made from the versions on Kaggle and the records in their outputs.

        Raises:
            Unreachable: They cannot be seen now.
        """
        journal = Journal(owner=self.settings.owner, slug=self.settings.slug, config=self.job.config)
        found: list[_Found] = []
        for slug in self._slugs(journal):
            newest = self.kaggle.newest_version(slug)
            for version in range(newest, max(0, newest - LOOK_BACK), -1):
                status = self.kaggle.status(slug, version)
                if status == "new":
                    continue
                attempt = attempt_of(self.kaggle.source(slug, version), slug, version)
                if attempt.intended_s == 0 and status not in ENDED:
                    # Pushed by hand; since when is not known.
                    limit_s = self.settings.session_limit_s
                    attempt = dataclasses.replace(attempt, intended_s=self.now_s(), limit_s=limit_s)
                left = self._fetch(slug, version) if status in ENDED else None
                found.append(_Found(attempt=attempt, status=status, left=left))
                record = left.record if left is not None else None
                if record is not None and record.end_iteration > record.start_iteration:
                    break
        # A version that somebody pushed by hand does not say when, but its record says which it was.
        found.sort(key=lambda item: (item.attempt.intended_s, item.index, item.attempt.version))
        if found:
            journal = dataclasses.replace(journal, earlier=max(0, found[0].index - 1))
        return self._retrace(journal, found)

    def _retrace(self, journal: Journal, found: list[_Found]) -> Journal:
        """Put what was found into the journal, oldest first."""
        for index, item in enumerate(found):
            if journal.open is not None:
                two = f"{journal.open.slug} version {journal.open.version} and {item.attempt.slug}"
                self._emit(f"{two} version {item.attempt.version} are both going on; the latter is followed.")
                journal = dataclasses.replace(journal, attempts=journal.attempts[:-1])
            journal = journal.intending(item.attempt)
            if item.left is not None:
                journal = self._close(journal, item.left, item.status, newest=index == len(found) - 1)
        return journal

    # -- doing

    def act(self, action: Action, journal: Journal) -> Journal:
        """Do what was decided, and return the journal, which is on the disk by then."""
        if isinstance(action, Push):
            return self._push(action, journal)
        if isinstance(action, Fetch):
            return self._harvest(action, journal)
        if isinstance(action, Store):
            return self._store(action.hand_over, journal)
        if isinstance(action, Adopt):
            self._emit(f"The push did land, as version {action.version}.")
            return self._keep(journal.landed(action.version))
        if isinstance(action, Forget):
            return self._keep(journal.forgotten(retry_s=action.retry_s))
        raise TypeError(f"{action} is nothing to do")

    def _push(self, push: Push, journal: Journal) -> Journal:
        token = secrets.token_hex(8)
        attempt = Attempt(
            slug=push.slug,
            version=push.version,
            token=token,
            transport=push.transport,
            expect_iteration=push.expect_iteration,
            limit_s=push.limit_s,
            intended_s=round(self.now_s()),
        )
        write_kernel(self.places.kernel, push, self.job, owner=self.settings.owner, attempt=attempt)
        # On the disk before it is sent: from here on a kill, a restart or a lost answer leads to a look
        # at the versions, never to a second push.
        journal = self._keep(journal.intending(attempt))
        start = "from nothing" if push.expect_iteration is None else f"from iteration {push.expect_iteration}"
        way = f", handed on by {push.transport}" if push.transport else ""
        self._emit(f"Pushing {journal.owner}/{push.slug} version {push.version}: {start}{way}.")
        try:
            pushed = self.kaggle.push(self.places.kernel, limit_s=push.limit_s, machine=self.job.machine)
        except Denied:
            self._keep(journal.forgotten())
            raise
        except (Rejected, Absent) as error:
            return self._keep(journal.refused_push(str(error)))
        if pushed.slug and pushed.slug != push.slug:
            message = f"it was filed under {pushed.slug}, whose title does not match the slug {push.slug}"
            return self._keep(journal.refused_push(message))
        if not pushed.version:
            return journal
        journal = journal.landed(pushed.version)
        if push.kernel_sources and push.transport is not None and pushed.invalid_kernels:
            self._emit(
                f"Kaggle refused {', '.join(pushed.invalid_kernels)} as a source; this session will end."
            )
            journal = journal.without(push.transport)
        if pushed.invalid_datasets:
            self._emit(f"Kaggle did not attach {', '.join(pushed.invalid_datasets)}; this session will end.")
        return self._keep(journal)

    def _harvest(self, action: Fetch, journal: Journal) -> Journal:
        self._progress = ""
        left = self._fetch(action.slug, action.version)
        for _ in range(LATE_RECORD_LOOKS):
            if left.record is not None or action.status != "complete":
                break
            # The listing can lag behind the status.
            self.sleep(self.settings.poll_s * self.jitter())
            left = self._fetch(action.slug, action.version)
        return self._keep(self._close(journal, left, action.status, newest=True))

    def _fetch(self, slug: str, version: int) -> harvest.SessionOutput:
        folder = self.places.fetched / f"{slug}-v{version}"
        return harvest.fetch(self.kaggle, slug, version, stem=self.job.stem, folder=folder)

    def _close(
        self, journal: Journal, left: harvest.SessionOutput, status: Status, *, newest: bool
    ) -> Journal:
        attempt = journal.open
        assert attempt is not None
        before = journal.hand_over.iteration if journal.hand_over else 0
        outcome = harvest.judge(
            self.kaggle, attempt.slug, attempt.version, status=status, left=left, before=before,
            resumed=attempt.expect_iteration is not None,
            folder=self.places.fetched / f"{attempt.slug}-v{attempt.version}",
        )  # fmt: skip
        stored = self._uploaded(attempt, outcome.run_id or journal.run_id) if newest else None
        if stored is not None:
            outcome = harvest.with_uploaded(outcome, stored, attempt, before=before)
        reached = f"iteration {outcome.hand_over.iteration}" if outcome.hand_over else "no checkpoint"
        message = f" {outcome.message}" if outcome.message else ""
        self._emit(
            f"{journal.owner}/{attempt.slug} version {attempt.version} ended {status}: {outcome.verdict}, "
            f"{reached}.{message}"
        )
        return dataclasses.replace(
            journal.closed(outcome), stored_iteration=stored.iteration if stored is not None else None
        )

    def _uploaded(self, attempt: Attempt, run_id: str) -> CheckpointRef | None:
        """Return the checkpoint that the session itself has put into the checkpoint data set, if it has."""
        ref = self.settings.checkpoint_dataset
        names = self.kaggle.dataset_files(ref) if ref else ()
        if not {"session.json", "manifest.json"} <= set(names):
            return None
        folder = self.places.fetched / "dataset"
        record = read_record(self.kaggle.fetch_from_dataset(ref, "session.json", folder))
        # Without a run id to compare, it may be an earlier run's.
        ours = record is not None and (
            record.run_id == run_id if run_id else record.started_s > attempt.intended_s - CLOCKS_DIFFER_S
        )
        if not ours:
            return None
        manifest = Manifest.read(self.kaggle.fetch_from_dataset(ref, "manifest.json", folder))
        there = [item for name, item in manifest.files.items() if name in names and kind_of(name) == "iter"]
        return max(there, key=lambda item: item.iteration, default=None)

    def _store(self, hand_over: HandOver, journal: Journal) -> Journal:
        ref = self.settings.checkpoint_dataset
        self._prepare_upload(hand_over)
        self._emit(f"Putting iteration {hand_over.iteration} into the data set {ref}.")
        self.kaggle.upload(self.places.upload, ref, f"iteration {hand_over.iteration}")
        give_up_s = self.now_s() + READY_S
        while not self.kaggle.dataset_is_ready(ref):
            if self.now_s() > give_up_s:
                raise MachineError(
                    f"Kaggle is not done with {ref} after {format_duration(READY_S)}.",
                    "Run the relay again later.",
                )
            self.sleep(self.settings.poll_s / 4 * self.jitter())
        shutil.rmtree(self.places.upload, ignore_errors=True)
        return self._keep(journal.stored(hand_over.iteration))

    def _prepare_upload(self, hand_over: HandOver) -> None:
        """Put the checkpoint and its record into one flat folder: a data set's folders may be lost."""
        source = self.places.fetched / f"{hand_over.slug}-v{hand_over.version}"
        name = Path(hand_over.file).name
        if not (source / name).is_file() or file_sha256(source / name) != hand_over.sha256:
            self._refetch(hand_over, source / name)
        folder = self.places.upload
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copyfile(source / name, folder / name)
        if (source / "session.json").is_file():
            shutil.copyfile(source / "session.json", folder / "session.json")
        ref = CheckpointRef(
            file=name,
            iteration=hand_over.iteration,
            sha256=hand_over.sha256,
            size_bytes=hand_over.size_bytes,
        )
        Manifest().with_file(ref).write(folder / "manifest.json")
        owner_slug = self.settings.checkpoint_dataset
        metadata = {
            "id": owner_slug,
            "title": owner_slug.partition("/")[2].replace("-", " "),
            "licenses": [{"name": "other"}],
        }
        (folder / "dataset-metadata.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")

    def _refetch(self, hand_over: HandOver, target: Path) -> None:
        left = self._fetch(hand_over.slug, hand_over.version)
        file = left.files.get(Path(hand_over.file).name)
        if file is not None:
            self.kaggle.download(file, target)
        if file is None or file_sha256(target) != hand_over.sha256:
            raise MachineError(
                f"{hand_over.file} of {hand_over.slug} version {hand_over.version} is gone, or another one.",
                "Attach a checkpoint by hand, or start a new run under another --slug.",
            )

    # -- waiting and telling

    def _wait(self, action: Wait, journal: Journal) -> None:
        seconds = action.seconds * self.jitter()
        attempt = journal.open
        end = time.monotonic() + seconds
        if attempt is not None and attempt.landed and action.reason.endswith("is running"):
            self._listen(attempt, seconds)
        rest_s = end - time.monotonic()
        if rest_s > 0:
            self.sleep(rest_s)

    def _listen(self, attempt: Attempt, seconds: float) -> None:
        """Take the progress from the session's log while waiting."""
        iteration, score = "", ""
        for line in self.kaggle.follow(attempt.slug, attempt.version, seconds):
            if found := _ITERATION.match(line):
                iteration = f", iteration {int(found[1]):,} of {int(found[2]):,}"
            if found := _SCORE.search(line):
                score = f", mIoU {found[1]} %"
        if iteration or score:
            since = format_duration(self.now_s() - attempt.intended_s)
            quota = f", quota left {format_duration(self._quota.left_s)}" if self._quota else ""
            self._progress = f"{iteration}{score}, {since} of {format_duration(attempt.limit_s)}{quota}"

    def _end(self, stop: Stop) -> int:
        if stop.exit_code != EXIT_DONE:
            raise _error(stop)
        self._emit(stop.reason)
        return EXIT_DONE

    def _emit(self, line: str) -> None:
        if line != self._said:
            self._said = line
            self.say(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}")

    def _keep(self, journal: Journal) -> Journal:
        self.places.folder.mkdir(parents=True, exist_ok=True)
        journal.write(self.places.journal)
        return journal


class Stopped(MapsageError):
    """The relay cannot go on; its exit code is that of the reason."""


def _error(stop: Stop) -> MapsageError:
    error = Stopped(stop.reason, stop.remedy)
    error.exit_code = stop.exit_code
    return error
