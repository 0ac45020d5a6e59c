"""How a chain is doing, and how to end a session of it: from any machine, with or without a journal."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.errors import MachineError, UsageError
from mapsage_kaggle.relay import forecast, harvest
from mapsage_kaggle.relay.answers import Refusal, Unreachable, sentence
from mapsage_kaggle.relay.client import KaggleClient
from mapsage_kaggle.relay.decide import ACTIVE, ENDED, MAX_TIMEOUT_S, utc
from mapsage_kaggle.relay.kernel import attempt_of
from mapsage_kaggle.relay.log import SessionLog, read_log

MAX_SHOWN = 10
"""How many versions of each notebook, from the newest, are shown."""
LOG_S = 20.0
"""How long the log of a running session is listened to."""


def status(owner: str, slug: str) -> dict[str, Any]:
    """Return what is on Kaggle of a chain, as a JSON object. Changes nothing.

    Raises:
        MapsageError: It cannot be seen.
    """
    kaggle = KaggleClient.connect(owner)
    versions: list[dict[str, Any]] = []
    pace: Mapping[str, float] = {}
    iteration = max_iters = 0
    for name, number in _newest(kaggle, slug):
        found, measured = _version(kaggle, name, number)
        versions.append(found)
        if found["iteration"] >= iteration and found["iteration"]:
            iteration, max_iters = found["iteration"], found["max_iters"] or max_iters
            pace = measured or pace
    if not versions:
        raise UsageError(f"There is no notebook {owner}/{slug}.", "Check --owner and --slug.")
    versions.sort(key=lambda item: (item["pushed_s"] or 0.0, item["version"]))
    quota = kaggle.quota()
    eta = forecast.plan(
        start=iteration, end=max_iters, session_limit_s=MAX_TIMEOUT_S, reserve_s=600.0, pace=pace,
        now_s=kaggle.now_s(), quota=quota,
    )  # fmt: skip
    known = bool(pace) and 0 < iteration < max_iters
    return {
        "owner": owner,
        "slug": slug,
        "versions": versions,
        "iteration": iteration,
        "max_iters": max_iters or None,
        "quota_used_s": quota.used_s if quota else None,
        "quota_left_s": quota.left_s if quota else None,
        "quota_renews_s": quota.renews_s if quota else None,
        "sessions_left": len(eta.legs) if known else None,
        "finish_s": (eta.finish_by_quota_s or eta.finish_s) if known else None,
    }


def _newest(kaggle: KaggleClient, slug: str) -> Iterator[tuple[str, int]]:
    for name in (slug, f"{slug}-2"):
        newest = kaggle.notebooks.newest_version(name)
        yield from ((name, number) for number in range(newest, max(0, newest - MAX_SHOWN), -1))


def _version(kaggle: KaggleClient, slug: str, number: int) -> tuple[dict[str, Any], Mapping[str, float]]:
    state = kaggle.notebooks.status(slug, number)
    attempt = attempt_of(kaggle.notebooks.source(slug, number), slug, number)
    found: dict[str, Any] = {
        "slug": slug, "version": number, "status": state,
        "pushed_by": "relay" if attempt.token else "hand", "pushed_s": attempt.intended_s or None,
        "from_iteration": attempt.expect_iteration, "iteration": 0, "max_iters": None, "best": None,
    }  # fmt: skip
    pace: Mapping[str, float] = {}
    if state in ENDED:
        with tempfile.TemporaryDirectory() as folder:
            try:
                left = harvest.fetch(kaggle, slug, number, stem="", folder=Path(folder))
            except (Unreachable, Refusal):
                return found, pace
        record = left.record
        if record is not None:
            best = record.best if record.best and record.best.value is not None else None
            found |= {
                "iteration": record.end_iteration,
                "max_iters": record.max_iters,
                "best": {"metric": best.metric, "value": best.value} if best else None,
            }
            pace = record.learned.pace or {}
            found["pushed_s"] = found["pushed_s"] or record.started_s
        log = left.log
    elif state in ACTIVE:
        log = _live_log(kaggle, slug, number)
    else:
        return found, pace
    found["iteration"] = found["iteration"] or log.iteration
    found["max_iters"] = found["max_iters"] or log.max_iters or None
    if found["best"] is None and log.score is not None:
        found["best"] = {"metric": "mIoU", "value": log.score}
    return found, pace


def _live_log(kaggle: KaggleClient, slug: str, number: int) -> SessionLog:
    pieces: list[Mapping[str, Any]] = []
    # A log that is silent for some seconds is taken as all that there is.
    usual_s, kaggle.timeout_s = kaggle.timeout_s, 3.0
    end = time.monotonic() + LOG_S
    with suppress(Exception):  # a stream that ends or falls silent raises what it likes
        for piece in kaggle.notebooks.follow(slug, number):
            pieces.append(piece)
            if time.monotonic() > end:
                break
    kaggle.timeout_s = usual_s
    return read_log(json.dumps(pieces))


def status_text(found: Mapping[str, Any]) -> str:
    lines = ["notebook                     version  pushed by  status      iteration  best"]
    for item in found["versions"]:
        best = f"{item['best']['metric']} {item['best']['value']:.2f}" if item["best"] else "-"
        lines.append(
            f"{item['slug']:<27}  {item['version']:7d}  {item['pushed_by']:<9}  {item['status']:<10}  "
            f"{item['iteration']:9,d}  {best}"
        )
    lines.append("")
    of = f" of {found['max_iters']:,}" if found["max_iters"] else ""
    lines.append(f"iteration  {found['iteration']:,}{of}")
    if found["quota_left_s"] is not None:
        renews = f", renewed {utc(found['quota_renews_s'])}" if found["quota_renews_s"] else ""
        used, left = (format_duration(found[name]) for name in ("quota_used_s", "quota_left_s"))
        lines.append(f"quota      {used} used, {left} left{renews}")
    if found["finish_s"] is not None:
        lines.append(f"end        in {found['sessions_left']} session(s), {utc(found['finish_s'])}")
    return "\n".join(lines)


def cancel(owner: str, slug: str) -> str:
    """Ask Kaggle to end the session that is going on; return what was done, in one sentence.

    Raises:
        UsageError: None is going on.
        MachineError: Kaggle does not do it.
    """
    kaggle = KaggleClient.connect(owner)
    for name, number in _newest(kaggle, slug):
        if kaggle.notebooks.status(name, number) not in ACTIVE:
            continue
        session = _live_log(kaggle, name, number).number
        refusal = kaggle.notebooks.cancel(session) if session else "Its log does not tell its number yet."
        if refusal:
            raise MachineError(
                f"{owner}/{name} version {number} could not be ended: {sentence(refusal)}",
                f"End it on https://www.kaggle.com/code/{owner}/{name}.",
            )
        return f"Kaggle was asked to end {owner}/{name} version {number}; what it has saved stays."
    raise UsageError(f"No session of {owner}/{slug} is going on.")
