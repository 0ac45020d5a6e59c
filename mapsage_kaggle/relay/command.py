"""The relay as a command: what was asked, checked before Kaggle is; the plan; the run."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mapsage_kaggle.clock import DEFAULT_LIMIT_S, format_duration, parse_duration_s
from mapsage_kaggle.config.modules import find_config
from mapsage_kaggle.config.reading import read_config
from mapsage_kaggle.config.trainable import check_trainable
from mapsage_kaggle.errors import EXIT_DONE, MapsageError, UsageError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.pace import GPU_QUOTA_S
from mapsage_kaggle.paths import bundled
from mapsage_kaggle.relay import forecast as planning
from mapsage_kaggle.relay import notify
from mapsage_kaggle.relay.answers import Refusal, Unreachable
from mapsage_kaggle.relay.client import KaggleClient, Quota
from mapsage_kaggle.relay.decide import MAX_TIMEOUT_S, Settings, Stop, Wait
from mapsage_kaggle.relay.journal import Journal, Transport, held
from mapsage_kaggle.relay.kernel import CODE_FILE, Job, check_machine, check_names
from mapsage_kaggle.relay.progress import Reporter
from mapsage_kaggle.relay.run import Places, Relay, Stopped

MIN_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class RelayRequest:
    """A relay as it was asked for.

    Attributes:
        job: What is trained, and on what.
        places: Where the relay keeps what it knows.
        val_interval: Iterations between validations; 0 where that is not known.
        notify: When a message is sent: never, at the end, or at each session's end, too.
        log: A file that every line is added to, if any.
    """

    settings: Settings
    job: Job
    places: Places
    val_interval: int
    notify: Literal["end", "session"] | None = None
    log: Path | None = None


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
    extend_to: int | None = None,
    max_sessions: int | None = None,
    session_limit: str = "12h",
    reserve: str = "10m",
    state: Path | None = None,
    poll: str = "2m",
    overrides: Sequence[str] = (),
    notify: Literal["end", "session"] | None = None,
    log: Path | None = None,
) -> RelayRequest:
    """Check what was asked, as far as that can be done without asking Kaggle.

    Raises:
        UsageError: An argument makes no sense.
        ConfigError: There is no such config, or it does not parse.
    """
    own = f"{owner}/{slug}-checkpoints" if checkpoint_dataset is None else checkpoint_dataset
    saved = "" if own == "none" else own
    check_names(owner, slug, tuple(datasets), saved)
    for name, value in (("--until", until), ("--max-sessions", max_sessions), ("--extend-to", extend_to)):
        if value is not None and value < 1:
            raise UsageError(Message("{name} {value} is too low.", name, value), "Give 1 or more.")
    limit_s, reserve_s, poll_s = (parse_duration_s(text) for text in (session_limit, reserve, poll))
    if limit_s > DEFAULT_LIMIT_S:
        raise UsageError(f"--session-limit {session_limit}: Kaggle ends every session at 12h.", "Give 12h.")
    if poll_s < MIN_POLL_S:
        raise UsageError(f"--poll {poll} would ask Kaggle without a pause.", "Give 2m, or more.")
    if reserve_s >= limit_s:
        raise UsageError(f"--reserve {reserve} leaves nothing of --session-limit {session_limit}.")
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
            session_limit_s=min(limit_s, MAX_TIMEOUT_S),
            poll_s=poll_s,
            config_max_iters=max_iters,
        ),
        job=Job(
            config=name,
            notebook=bundled("notebooks") / CODE_FILE,
            machine=check_machine(machine),
            internet=internet,
            reserve=reserve,
            reserve_s=reserve_s,
            overrides=tuple(overrides),
            extend_to=extend_to,
            # Uploading needs Internet.
            upload_to=saved if saved and internet else None,
        ),
        places=places_of(slug, state),
        val_interval=val_interval,
        notify=notify,
        log=log,
    )


def _config(config: str, overrides: Sequence[str]) -> tuple[str, int | None, int]:
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


def run(
    asked: RelayRequest,
    reporter: Reporter,
    *,
    once: bool = False,
    again: bool = False,
    from_nothing: bool = False,
) -> dict[str, Any]:
    """Run the chain; return how it is, as a JSON object.

    The options are those of :meth:`mapsage_kaggle.relay.run.Relay.run`.

    Raises:
        MapsageError: It cannot go on; the message says why and what to do.
    """
    if from_nothing and not again:
        raise UsageError("--from-nothing alone does nothing.", "Give --again as well.")
    if asked.notify is not None:
        notify.check()
    title = f"{asked.settings.owner}/{asked.settings.slug}"

    def message(text: str) -> None:
        if not notify.send(title, text):
            reporter.say("The message about this could not be sent.")

    reporter.progress_s = asked.settings.scaled(reporter.progress_s)
    with _sigterm_as_ctrl_c(), held(asked.places.journal):
        try:
            kaggle = _connected(asked.settings.owner, reporter, once=once)
            if isinstance(kaggle, Wait):
                return _as_json(kaggle, Journal.read(asked.places.journal))
            reporter.now_s = kaggle.now_s
            relay = Relay(
                kaggle=kaggle,
                settings=asked.settings,
                job=asked.job,
                places=asked.places,
                reporter=reporter,
                follow=not once,
                notify=message if asked.notify == "session" else None,
            )
            ended = relay.run(once=once, again=again, from_nothing=from_nothing)
            if isinstance(ended, Stop):
                summary = planning.summary_text(relay.journal, on_gpu=asked.job.machine is not None)
                if ended.exit_code == EXIT_DONE:
                    reporter.say(ended.reason)
                reporter.block(summary)
                if ended.exit_code != EXIT_DONE:
                    raise Stopped(ended)
                if asked.notify is not None:
                    message(f"{ended.reason}\n{summary}")
        except Exception as error:
            if asked.notify is not None:
                known = isinstance(error, MapsageError)
                message(str(error) if known else f"The relay has failed ({type(error).__name__}).")
            raise
    return _as_json(ended, relay.journal)


def _as_json(ended: Stop | Wait, found: Journal | None) -> dict[str, Any]:
    journal = found or Journal(owner="", slug="", config="")
    attempt = journal.open
    return {
        "done": isinstance(ended, Stop),
        "reason": ended.reason,
        "waits_for": ended.on if isinstance(ended, Wait) else None,
        "next_look_s": round(ended.seconds) if isinstance(ended, Wait) else None,
        "iteration": journal.hand_over.iteration if journal.hand_over else 0,
        "max_iters": journal.end or None,
        "sessions": journal.num_sessions,
        "open": f"{journal.owner}/{attempt.slug}/{attempt.version}" if attempt else None,
    }


def _connected(owner: str, reporter: Reporter, *, once: bool) -> KaggleClient | Wait:
    """Return the account; while Kaggle answers that it cannot now, that is waited for."""
    while True:
        try:
            return KaggleClient.connect(owner)
        except Unreachable as error:
            if not error.retry_after_s:
                raise
            pause = format_duration(error.retry_after_s)
            reporter.say(f"{error.problem} It is asked again in {pause}.")
            if once:
                return Wait(seconds=error.retry_after_s, reason=error.problem, on="kaggle")
            time.sleep(error.retry_after_s)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def plan_text(asked: RelayRequest) -> str:
    """Return what :func:`run` would do, in lines for a terminal. Writes nothing here or on Kaggle."""
    settings, quota = asked.settings, None
    # Until Kaggle tells, the whole of a usual week.
    usual = Quota(left_s=GPU_QUOTA_S, allowed_s=GPU_QUOTA_S, used_s=0.0)
    journal = Journal.read(asked.places.journal)
    start = journal.hand_over.iteration if journal and journal.hand_over else 0
    ends = (
        settings.until,
        (journal.end if journal else 0) or asked.job.extend_to or settings.config_max_iters,
    )
    end = min((iteration for iteration in ends if iteration), default=0)
    if not end:
        raise UsageError(
            f"How far {asked.job.config} trains is not known here before its first session.",
            "Give --until N, to plan up to there.",
        )
    notes = [] if journal else ["No journal here: planned from iteration 0."]
    try:
        kaggle = KaggleClient.connect(settings.owner)
        notes += _there(kaggle, asked)
        quota = kaggle.quota() if asked.job.machine is not None else None
    except (Unreachable, Refusal) as error:
        notes.append(f"Kaggle could not be looked at: {error}")
    most = settings.max_sessions
    if most is not None and journal is not None:
        most = max(0, most - journal.num_sessions)
    found = planning.plan(
        start=start,
        end=end,
        session_limit_s=settings.session_limit_s,
        reserve_s=asked.job.reserve_s,
        pace=journal.pace if journal else {},
        val_interval=asked.val_interval,
        most_sessions=most,
        now_s=time.time(),
        quota=None if asked.job.machine is None else quota or usual,
    )
    text = planning.plan_text(found, end=end, quota_left_s=quota.left_s if quota else None)
    return "\n".join([f"{asked.job.config} in {settings.owner}/{settings.slug}", text, *notes])


def _there(kaggle: KaggleClient, asked: RelayRequest) -> list[str]:
    settings, lines = asked.settings, []
    for slug in (settings.slug, f"{settings.slug}-2"):
        newest = kaggle.notebooks.newest_version(slug)
        if newest:
            status = kaggle.notebooks.status(slug, newest)
            lines.append(f"there      {settings.owner}/{slug}, version {newest}: {status}")
    for ref in settings.datasets:
        if not kaggle.datasets.exists(ref):
            lines.append(f"missing    data set {ref}, or this token may not see it")
    if settings.checkpoint_dataset and kaggle.datasets.exists(settings.checkpoint_dataset):
        lines.append(f"there      data set {settings.checkpoint_dataset}")
    return lines


def places_of(slug: str, state: Path | None) -> Places:
    return Places(path=(state or Path("relay") / slug).absolute())
