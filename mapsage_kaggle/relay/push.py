"""A push: written down before it is sent, and what Kaggle answers to it."""

from __future__ import annotations

import dataclasses
import secrets
from typing import TYPE_CHECKING

from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.relay.answers import REMEDIES, Refusal
from mapsage_kaggle.relay.decide import QUOTA_LOOK_S, Push
from mapsage_kaggle.relay.journal import Attempt
from mapsage_kaggle.relay.kernel import write_kernel

if TYPE_CHECKING:
    from mapsage_kaggle.relay.run import Relay

CAPACITY_LOOK_S = 1200.0
"""Between two tries while other sessions of the account take all places."""


def send(relay: Relay, push: Push) -> None:
    """Start a session.

    Raises:
        MapsageError: Kaggle refuses it for what is for a person, or may be an accident.
    """
    attempt = Attempt(
        slug=push.slug,
        version=push.version,
        token=secrets.token_hex(8),
        transport=push.transport,
        expect_iteration=push.expect_iteration,
        limit_s=push.limit_s,
        extend_to=push.extend_to,
        intended_s=round(relay.kaggle.now_s()),
    )
    job = dataclasses.replace(relay.job, overrides=relay.journal.overrides)
    left = write_kernel(relay.places.kernel, push, job, owner=relay.settings.owner, attempt=attempt)
    if left:
        relay.reporter.say(f"The notebook has no parameter {' and no '.join(left)}; it is not set.")
    # On the disk before it is sent: from here on a kill, a restart or a lost answer leads to a look
    # at the versions, never to a second push.
    relay.keep(relay.journal.intending(attempt))
    try:
        pushed = relay.kaggle.notebooks.push(
            relay.places.kernel, limit_s=push.limit_s, machine=relay.job.machine
        )
    except Refusal as error:
        _not_pushed(relay, error)
        return
    if not pushed.version:
        return
    start = "from nothing" if push.expect_iteration is None else f"from iteration {push.expect_iteration}"
    way = f", handed on by {push.transport}" if push.transport else ""
    name = f"{relay.journal.owner}/{pushed.slug or push.slug} version {pushed.version}"
    relay.reporter.say(f"Pushed {name}: {start}{way}.")
    if (pushed.slug or push.slug, pushed.version) != (push.slug, push.version):
        relay.reporter.say(
            f"Kaggle has filed it as {pushed.slug or push.slug} version {pushed.version}: the notebook "
            "was renamed, or somebody else has pushed as well."
        )
    journal = relay.journal.landed(pushed.version, pushed.slug)
    if push.kernel_sources and push.transport is not None and pushed.invalid_kernels:
        names = ", ".join(pushed.invalid_kernels)
        relay.reporter.say(f"Kaggle refused {names} as a source; this session will end.")
        journal = journal.without(push.transport)
    if pushed.invalid_datasets:
        names = ", ".join(pushed.invalid_datasets)
        relay.reporter.say(f"Kaggle did not attach {names}; this session will end.")
    relay.keep(journal)


def _not_pushed(relay: Relay, error: Refusal) -> None:
    """Wait for what comes by itself; the rest is an accident, or for a person."""
    kind, now_s = error.kind, relay.kaggle.now_s()
    if kind in ("capacity", "quota"):
        retry_s = now_s + relay.settings.scaled(CAPACITY_LOOK_S if kind == "capacity" else QUOTA_LOOK_S)
        relay.keep(relay.journal.forgotten(retry_s=retry_s, retry_on=kind))
        return
    relay.keep(relay.journal.forgotten())
    if error.stray or kind in REMEDIES:
        raise error
    raise UsageError(
        f"Kaggle does not accept the notebook: {error.problem}",
        "Check owner, slug, data sets and machine.",
    )
