"""The relay as a command: what was asked, checked before Kaggle is; the plan; the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mapsage_kaggle.clock import DEFAULT_LIMIT_S, parse_duration_s
from mapsage_kaggle.config.modules import find_config
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.config.trainable import check_trainable
from mapsage_kaggle.errors import MapsageError, UsageError
from mapsage_kaggle.pace import GPU_QUOTA_S
from mapsage_kaggle.paths import bundled
from mapsage_kaggle.relay import forecast as planning
from mapsage_kaggle.relay.client import KaggleClient
from mapsage_kaggle.relay.decide import Settings
from mapsage_kaggle.relay.journal import Journal, Transport, held
from mapsage_kaggle.relay.kernel import CODE_FILE, RETIRED, Job, check_names
from mapsage_kaggle.relay.run import Places, Relay

SETTLE_POLLS = 5
"""A push whose answer was lost is waited for over so many looks."""
MIN_SETTLE_S = 1.0
MIN_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayRequest:
    """A relay as it was asked for.

    Attributes:
        settings: What decides.
        job: What is trained, and on what.
        places: Where the relay keeps what it knows.
        max_iters: Where the run ends by its config; None where that can be read on Kaggle only.
        val_interval: Iterations between validations; 0 where that is not known.
        reserve_s: What is kept free at a session's end.
    """

    settings: Settings
    job: Job
    places: Places
    max_iters: int | None
    val_interval: int
    reserve_s: float


def read(
    config: str,
    *,
    owner: str,
    slug: str,
    datasets: Sequence[str] = (),
    checkpoint_dataset: str | None = None,
    transport: Transport | Literal["auto"] = "auto",
    machine: str = "NvidiaTeslaT4",
    internet: bool = True,
    until: int | None = None,
    max_sessions: int | None = None,
    session_limit: str = "12h",
    reserve: str = "10m",
    state: Path | None = None,
    poll: str = "1m",
    overrides: Sequence[str] = (),
) -> RelayRequest:
    """Check what was asked, as far as that can be done without asking Kaggle.

    Raises:
        UsageError: An argument makes no sense.
        ConfigError: There is no such config, or it does not parse.
    """
    own = f"{owner}/{slug}-checkpoints" if checkpoint_dataset is None else checkpoint_dataset
    saved = "" if own == "none" else own
    check_names(owner, slug, tuple(datasets), saved)
    for name, value in (("--until", until), ("--max-sessions", max_sessions)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value} is too low.", "Give 1 or more.")
    limit_s, reserve_s, poll_s = (parse_duration_s(text) for text in (session_limit, reserve, poll))
    if limit_s > DEFAULT_LIMIT_S:
        raise UsageError(f"--session-limit {session_limit}: Kaggle ends every session at 12h.", "Give 12h.")
    if poll_s < MIN_POLL_S:
        raise UsageError(f"--poll {poll} would ask Kaggle without a pause.", "Give 1m, or more.")
    if reserve_s >= limit_s:
        raise UsageError(f"--reserve {reserve} leaves nothing of --session-limit {session_limit}.")
    if machine in RETIRED:
        raise UsageError(f"--machine {machine}: {RETIRED[machine]}.", "Take NvidiaTeslaT4.")
    if transport == "dataset" and not saved:
        raise UsageError("--transport dataset needs a --checkpoint-dataset.", "Name one.")
    name, max_iters, val_interval = _config(config, overrides)
    return RelayRequest(
        settings=Settings(
            owner=owner,
            slug=slug,
            transport=transport,
            datasets=tuple(datasets),
            checkpoint_dataset=saved,
            until=until,
            max_sessions=max_sessions,
            session_limit_s=limit_s,
            poll_s=poll_s,
            settle_s=max(MIN_SETTLE_S, SETTLE_POLLS * poll_s),
        ),
        job=Job(
            config=name,
            notebook=bundled("notebooks") / CODE_FILE,
            machine=None if machine == "none" else machine,
            internet=internet,
            reserve=reserve,
            overrides=tuple(overrides),
            # Uploading needs Internet.
            upload_to=saved if saved and internet else None,
        ),
        places=Places(folder=(state or Path("relay") / slug).absolute()),
        max_iters=max_iters,
        val_interval=val_interval,
        reserve_s=reserve_s,
    )


def _config(config: str, overrides: Sequence[str]) -> tuple[str, int | None, int]:
    """Return the config as the notebook wants it, where it ends, and how often it validates."""
    if config.startswith("/kaggle/"):
        return config, None, 0
    path = find_config(config)
    if path.parent != bundled("configs").absolute():
        raise UsageError(
            f"{path} is not one of the kit's own configs, so sessions on Kaggle do not have it.",
            "Attach it there as a --dataset, and give its path there, /kaggle/input/…",
        )
    cfg = read_config(path, tuple(overrides))
    max_iters = check_trainable(cfg, path)
    return path.name, max_iters, int((cfg.get("train_cfg") or {}).get("val_interval") or 0)


def run(asked: RelayRequest, say: Callable[[str], None], *, once: bool = False, again: bool = False) -> int:
    """Run the chain, telling ``say`` what happens, one line each; return the exit code.

    Raises:
        MapsageError: It cannot go on; the message says why and what to do.
    """
    with held(asked.places.journal):
        kaggle = KaggleClient.connect(asked.settings.owner)
        relay = Relay(
            kaggle=kaggle,
            settings=asked.settings,
            job=asked.job,
            places=asked.places,
            say=say,
        )
        return relay.run(once=once, again=again)


def plan_text(asked: RelayRequest) -> str:
    """Return what :func:`run` would do, in lines for a terminal. Writes nothing here or on Kaggle."""
    journal = Journal.read(asked.places.journal)
    notes = [] if journal else ["No journal here: planned from iteration 0."]
    quota = None
    if asked.job.machine is not None:
        try:
            quota = KaggleClient.connect(asked.settings.owner).quota()
        except MapsageError as error:
            notes.append(f"The quota is assumed, 30 hours a week: {error}")
    start = journal.hand_over.iteration if journal and journal.hand_over else 0
    ends = (asked.settings.until, (journal.max_iters if journal else 0) or asked.max_iters)
    end = min((iteration for iteration in ends if iteration), default=0)
    if not end:
        raise UsageError(
            f"How far {asked.job.config} trains is not known here before its first session.",
            "Give --until N, to plan up to there.",
        )
    most = asked.settings.max_sessions
    if most is not None and journal is not None:
        most = max(0, most - journal.num_sessions)
    found = planning.plan(
        start=start,
        end=end,
        session_limit_s=asked.settings.session_limit_s,
        reserve_s=asked.reserve_s,
        learned=journal.learned if journal else {},
        val_interval=asked.val_interval,
        most_sessions=most,
        now_s=time.time(),
        quota_s=None if asked.job.machine is None else quota.allowed_s if quota else GPU_QUOTA_S,
        quota_left_s=quota.left_s if quota else None,
    )
    text = planning.plan_text(found, end=end, quota_left_s=quota.left_s if quota else None)
    return "\n".join([f"{asked.job.config} in {asked.settings.owner}/{asked.settings.slug}", text, *notes])
