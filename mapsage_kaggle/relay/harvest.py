"""What a version that has ended left behind, and what that is worth."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mapsage_kaggle import errors
from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256, manifest_sha256
from mapsage_kaggle.checkpoints.names import kind_of
from mapsage_kaggle.errors import EXIT_CHECKPOINT, EXIT_DONE, EXIT_TRAINING
from mapsage_kaggle.outside import visible_lines
from mapsage_kaggle.records import CheckpointRef, SessionRecord, read_record
from mapsage_kaggle.relay.client import KaggleClient, OutputFile, Unreachable
from mapsage_kaggle.relay.decide import Status
from mapsage_kaggle.relay.journal import Attempt, HandOver, Outcome, Verdict

MAX_DOWNLOADS = 3
"""How many checkpoints of one version are looked at before it is given up."""
DOWNLOAD_TRIES = 3

_REFUSAL = re.compile(r"(?:mapsage_kaggle\.errors\.)?\b([A-Z]\w+): (.+)")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionOutput:
    """The files of a version that matter here.

    Attributes:
        record: The session's record; None where there is none, or it cannot be read.
        manifest: Of the checkpoints.
        files: All files of the work dir, by their name in it.
        log: What the session printed.
    """

    record: SessionRecord | None
    manifest: Manifest
    files: Mapping[str, OutputFile]
    log: str


def fetch(kaggle: KaggleClient, slug: str, version: int, *, stem: str, folder: Path) -> SessionOutput:
    """Fetch the record and the manifest of a version into ``folder``, and list the rest.

    Raises:
        Unreachable: Kaggle does not answer.
    """
    outputs, log = kaggle.outputs(slug, version)
    marker = f"work_dirs/{stem}/"
    files = {
        item.name.partition(marker)[2]: item
        for item in outputs
        if item.name.startswith(marker) or f"/{marker}" in item.name
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("session.json", "manifest.json"):
        (folder / name).unlink(missing_ok=True)
        if name in files:
            kaggle.download(files[name], folder / name)
    record = read_record(folder / "session.json")
    try:
        manifest = Manifest.read(folder / "manifest.json")
    except (OSError, ValueError):
        manifest = Manifest()
    return SessionOutput(record=record, manifest=manifest, files=files, log=plain_log(log))


def judge(
    kaggle: KaggleClient, slug: str, version: int, *, status: Status, left: SessionOutput, before: int,
    resumed: bool, folder: Path,
) -> Outcome:  # fmt: skip
    """Return what a version is worth.

    Args:
        kaggle: Where its checkpoints can be had.
        slug: The notebook.
        version: Its version.
        status: How it ended.
        left: What :func:`fetch` gave.
        before: The iteration that was reached before it.
        resumed: Whether it was to go on from something.
        folder: Where :func:`fetch` wrote, and where a checkpoint in doubt is put.
    """
    record = left.record
    ref = newest_good(kaggle, left, sure=status == "complete", folder=folder)
    hand_over = None
    if ref is not None:
        hand_over = HandOver(
            slug=slug, version=version, iteration=ref.iteration, file=left.files[ref.file].name,
            sha256=ref.sha256, size_bytes=ref.size_bytes, attachable=status == "complete",
        )  # fmt: skip
    message, code = refusal_in(left.log)
    if record is not None:
        message = record.message or message
        if record.stop_reason == "refused":
            code = record.exit_code or code
    reached = ref.iteration if ref is not None else 0
    if record is not None:
        before = max(before, record.start_iteration)
    verdict: Verdict = "progress" if reached > before else "none"
    if record is not None and record.stop_reason == "completed" and reached >= record.max_iters > 0:
        verdict = "completed"
    elif verdict == "none" and code == EXIT_CHECKPOINT and resumed:
        verdict = "unmounted"
    elif verdict == "none" and code not in (EXIT_DONE, EXIT_TRAINING):
        verdict = "hopeless"
    return Outcome(
        status=status,
        verdict=verdict,
        hand_over=hand_over,
        run_id=record.run_id if record else "",
        session_index=record.session_index if record else 0,
        max_iters=record.max_iters if record else 0,
        learned=record.learned.to_json() if record else {},
        message=message,
        exit_code=code or None,
    )


def with_uploaded(outcome: Outcome, stored: CheckpointRef, attempt: Attempt, *, before: int) -> Outcome:
    """Return an outcome that counts what the session uploaded, where its output has nothing newer."""
    reached = outcome.hand_over.iteration if outcome.hand_over else 0
    if outcome.verdict == "completed" or stored.iteration <= max(reached, before):
        return outcome
    hand_over = HandOver(
        slug=attempt.slug,
        version=attempt.version,
        iteration=stored.iteration,
        file=stored.file,
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        attachable=False,
    )
    return replace(outcome, verdict="progress", hand_over=hand_over)


def newest_good(
    kaggle: KaggleClient, left: SessionOutput, *, sure: bool, folder: Path
) -> CheckpointRef | None:
    """Return the newest checkpoint that is what the manifest says; None where there is none.

    Where the version ended complete, its record was finalised and all agrees, that is believed.
    Otherwise the file is fetched and its hash compared, and where it is another, the one before.
    """
    record = left.record
    stated = {name: ref for name, ref in left.manifest.files.items() if kind_of(name) == "iter"}
    stated_ref = record.checkpoint if record is not None else None
    if stated_ref is not None and kind_of(stated_ref.file) == "iter":
        stated.setdefault(stated_ref.file, stated_ref)
    sure = (
        sure
        and record is not None
        and record.stop_reason != "running"
        and not left.manifest.pending
        and stated_ref is not None
        and stated_ref.file in left.files
        and left.manifest.files.get(stated_ref.file) is not None
        and left.manifest.files[stated_ref.file].sha256 == stated_ref.sha256
        and stated_ref.iteration == max(ref.iteration for ref in stated.values())
    )
    if sure:
        return stated_ref
    there = [ref for name, ref in stated.items() if name in left.files]
    for ref in sorted(there, key=lambda ref: ref.iteration, reverse=True)[:MAX_DOWNLOADS]:
        path = folder / ref.file
        if _downloaded(kaggle, left.files[ref.file], path):
            sha256 = manifest_sha256(path) or ref.sha256
            if file_sha256(path) == sha256 and inspect(path, manifest_sha256=sha256).verdict == "resumable":
                return CheckpointRef(
                    file=ref.file, iteration=ref.iteration, sha256=sha256, size_bytes=path.stat().st_size
                )
        path.unlink(missing_ok=True)
    return None


def _downloaded(kaggle: KaggleClient, file: OutputFile, path: Path) -> bool:
    for _ in range(DOWNLOAD_TRIES):
        try:
            kaggle.download(file, path)
        except Unreachable:
            continue
        return True
    return False


def plain_log(log: str) -> str:
    """Return a log as text; Kaggle keeps it as a JSON list of pieces."""
    try:
        pieces = json.loads(log)
        text = "".join(str(piece.get("data", "")) for piece in pieces)
    except (ValueError, TypeError, AttributeError, RecursionError):
        text = log
    return visible_lines(_ANSI.sub("", text).replace("\r", "\n"))


def refusal_in(log: str) -> tuple[str, int]:
    """Return the kit's own refusal that ended a session, and its exit code; empty and 0 without one."""
    for name, message in reversed(_REFUSAL.findall(log)):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, errors.MapsageError):
            problem = message.strip()
            if "--gpus" in problem:
                problem += " An account whose phone number is not verified gets no GPU, whatever it asks for."
            return problem, kind.exit_code
    return "", 0
