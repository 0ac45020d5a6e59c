"""What is seen on Kaggle, as far as the next decision needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mapsage_kaggle.relay.answers import Rejected
from mapsage_kaggle.relay.client import KaggleClient, Quota
from mapsage_kaggle.relay.decide import ACTIVE, SETTLE_S, Observation, Settings, Status, Version, left_s
from mapsage_kaggle.relay.journal import Attempt, Journal
from mapsage_kaggle.relay.kernel import attempt_of, is_for
from mapsage_kaggle.relay.store import CheckpointDataset

MAX_MARKS = 10
"""How many notebooks, from the one that ran last, are looked through for a push."""
SHOWN_LATE_S = 3600.0
"""How long a data set may show the version before the one that was uploaded."""


@dataclass(kw_only=True)
class Watch:
    """Looks at one run's notebooks and data sets.

    Attributes:
        quota: What was seen of it last.
    """

    kaggle: KaggleClient
    settings: Settings
    dataset: CheckpointDataset
    on_gpu: bool
    quota: Quota | None = None

    def look(self, journal: Journal) -> Observation:
        """Return what is seen.

        Raises:
            Unreachable: It cannot be seen now.
            Refusal: The credentials do not allow it.
        """
        attempt = journal.open
        if attempt is not None and attempt.landed:
            return self._at_open(attempt)
        upload = journal.upload
        if (
            attempt is None
            and upload is not None
            and journal.hand_over
            and upload.iteration == journal.hand_over.iteration
        ):
            now_s, patience_s = self.kaggle.now_s(), self.settings.scaled(SHOWN_LATE_S)
            stored = self.dataset.look(upload, now_s=now_s, patience_s=patience_s)
            return Observation(now_s=now_s, stored=stored)
        latest = {slug: self._newest(slug) for slug in journal.slugs}
        seen = Observation(now_s=self.kaggle.now_s(), latest=latest)
        if attempt is not None:
            return replace(seen, landed=self.find(attempt, latest.get(attempt.slug, 0)))
        seen = replace(seen, unread=self._unread(journal, latest))
        if seen.unread is not None:
            return seen
        if self.settings.checkpoint_dataset and not journal.dataset_read:
            return replace(seen, offered=self.dataset.offered(journal))
        if left_s(journal.retry_s, seen.now_s):
            return seen
        exists = self.kaggle.datasets.exists
        missing = tuple(f"data set {ref}" for ref in self.settings.datasets if not exists(ref))
        if missing and journal.attempts:
            # They were there when it began, so that this may be an accident.
            error = Rejected(f"There is no {' and no '.join(missing)}, or this token may not see it now.")
            error.stray = True
            raise error
        self.quota = self.kaggle.quota() if self.on_gpu else None
        return replace(
            seen,
            missing=missing,
            quota_left_s=self.quota.left_s if self.quota else None,
            quota_renews_s=self.quota.renews_s if self.quota else None,
        )

    def _newest(self, slug: str) -> int:
        """Return the newest version; Kaggle may report it late, so the ones after it are tried."""
        newest = self.kaggle.notebooks.newest_version(slug)
        while self.kaggle.notebooks.source(slug, newest + 1):
            newest += 1
        return newest

    def _at_open(self, attempt: Attempt) -> Observation:
        status: Status = attempt.status if attempt.ended_s is not None else "unknown"  # type: ignore[assignment]
        if status in ("unknown", "gone"):
            status = self.kaggle.notebooks.status(attempt.slug, attempt.version)
        # Renamed, a notebook goes on under another slug.
        landed = self._find_elsewhere(attempt) if status == "gone" and attempt.token else None
        return Observation(now_s=self.kaggle.now_s(), status=status, landed=landed)

    def find(self, attempt: Attempt, newest: int) -> tuple[str, int] | None:
        """Return where an intended push is found, by the mark in its text.

        The newest version may be told late, so that the one that is expected is asked for by itself. Other
        notebooks are looked through once, when it would be given up.
        """
        for version in range(max(newest, attempt.version), attempt.version - 1, -1):
            if self._is(attempt, attempt.slug, version):
                return attempt.slug, version
        given_up_s = attempt.intended_s + self.settings.scaled(SETTLE_S)
        return self._find_elsewhere(attempt) if self.kaggle.now_s() >= given_up_s else None

    def _find_elsewhere(self, attempt: Attempt) -> tuple[str, int] | None:
        for slug in self.kaggle.notebooks.slugs()[:MAX_MARKS]:
            if self._is(attempt, slug, 0):
                return slug, self.kaggle.notebooks.newest_version(slug)
        return None

    def _is(self, attempt: Attempt, slug: str, version: int) -> bool:
        source = self.kaggle.notebooks.source(slug, version)
        return bool(source) and attempt_of(source, slug, version).token == attempt.token

    def _unread(self, journal: Journal, latest: Mapping[str, int]) -> Version | None:
        """Return the newest version that the journal knows nothing of; one that is going on first."""
        known = {(item.slug, item.version) for item in journal.attempts}
        found: list[Version] = []
        for slug, newest in latest.items():
            for number in range(newest, journal.accounted.get(slug, 0), -1):
                if (slug, number) in known:
                    continue
                version = Version(slug=slug, number=number, status=self.kaggle.notebooks.status(slug, number))
                if version.status in ACTIVE:
                    source = self.kaggle.notebooks.source(slug, number)
                    marked = bool(attempt_of(source, slug, number).token)
                    return replace(version, pushed_by_relay=marked and is_for(source, journal.config))
                found.append(version)
                break
        return found[0] if found else None
