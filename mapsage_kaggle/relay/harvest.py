"""What a version that has ended left behind, and what that is worth.

What could not be listed, read or fetched is no finding: it is raised, and asked for again. A finding that
says less than was hoped for (no record, another hash, an older checkpoint) carries a doubt, and is
believed once a later look has found the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256, manifest_sha256
from mapsage_kaggle.checkpoints.names import kind_of
from mapsage_kaggle.errors import EXIT_CHECKPOINT, EXIT_DONE, EXIT_MACHINE, EXIT_TRAINING
from mapsage_kaggle.outside import visible
from mapsage_kaggle.records import CheckpointRef, SessionRecord, read_record
from mapsage_kaggle.relay.answers import Unreachable, sentence
from mapsage_kaggle.relay.client import KaggleClient
from mapsage_kaggle.relay.client_notebooks import OutputFile
from mapsage_kaggle.relay.decide import TRAINED_S, Status
from mapsage_kaggle.relay.journal import Attempt, HandOver, Outcome, Verdict
from mapsage_kaggle.relay.log import SessionLog, read_log

WORK_DIRS = "work_dirs/"
NO_GPU = "An account whose phone number is not verified gets neither GPU nor Internet, whatever it asks for."
MAX_MESSAGE = 500
_NO_RECORD = SessionRecord(run_id="", fingerprint="", session_index=0)
"""What stands for the record of a session that left none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionOutput:
    """The files of a version that matter here.

    Attributes:
        work_dir: The name of the work dir within the output.
        record: The session's record; None where there is none, or it cannot be read.
        files: The files of the work dir that are listed, by their name in it.
        others: Whether there are work dirs of other configs.
        folder: Where the record and the manifest are, and checkpoints are put.
    """

    slug: str
    version: int
    work_dir: str
    record: SessionRecord | None
    manifest: Manifest
    files: Mapping[str, OutputFile]
    others: bool
    log: SessionLog
    folder: Path

    def fetch(self, kaggle: KaggleClient, ref: CheckpointRef) -> str | None:
        """Fetch a checkpoint, unless it is there; return its sha256, or None where there is no such file.

        Raises:
            Unreachable: It did not come.
        """
        target = self.folder / ref.file
        if not (target.is_file() and file_sha256(target) == ref.sha256):
            file = self.files.get(ref.file) or OutputFile(name=f"{self.work_dir}/{ref.file}")
            if not kaggle.notebooks.download(self.slug, self.version, file, target):
                return None
        return file_sha256(target)


def fetch(kaggle: KaggleClient, slug: str, version: int, *, stem: str, folder: Path) -> SessionOutput:
    """Fetch the record and the manifest of a version into ``folder``, and list the rest.

    An empty ``stem`` stands for the work dir of any config.

    Raises:
        Unreachable: Kaggle does not answer, or shows neither a file nor a log yet.
    """
    outputs, kept_log = kaggle.notebooks.outputs(slug, version)
    if not outputs and not kept_log:
        raise Unreachable(f"Nothing of {slug} version {version} is listed yet.")
    stems = [
        item.name.partition(WORK_DIRS)[2].partition("/")[0] for item in outputs if WORK_DIRS in item.name
    ]
    stem = stem or next(iter(stems), "")
    work_dir = f"{WORK_DIRS}{stem}"
    files = {
        item.name.partition(f"{work_dir}/")[2]: item
        for item in outputs
        if item.name.startswith(f"{work_dir}/") or f"/{work_dir}/" in item.name
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("session.json", "manifest.json"):
        (folder / name).unlink(missing_ok=True)
        # A listing may be cut: what it does not name is asked for.
        file = files.get(name) or OutputFile(name=f"{work_dir}/{name}")
        kaggle.notebooks.download(slug, version, file, folder / name)
    try:
        manifest = Manifest.read(folder / "manifest.json")
    except (OSError, ValueError):
        manifest = Manifest()
    return SessionOutput(
        slug=slug,
        version=version,
        work_dir=work_dir,
        record=read_record(folder / "session.json"),
        manifest=manifest,
        files=files,
        others=any(item != stem for item in stems),
        log=read_log(kept_log),
        folder=folder,
    )


def judge(
    kaggle: KaggleClient, left: SessionOutput, attempt: Attempt, *, status: Status, before: int, ran_s: float
) -> Outcome:
    """Return what a version is worth.

    ``before`` is the iteration that was reached before the session, ``ran_s`` how long it was seen to run.

    Raises:
        Unreachable: A checkpoint in doubt did not come.
    """
    record, log = left.record or _NO_RECORD, left.log
    if left.record is None and not left.files and left.others and not attempt.token:
        return Outcome(status=status, verdict="skipped", message="It is of another config.")
    ref, sure = newest_good(kaggle, left, complete=status == "complete", before=before)
    hand_over = None
    if ref is not None:
        file = left.files.get(ref.file)
        hand_over = HandOver(
            slug=left.slug, version=left.version, iteration=ref.iteration,
            file=file.name if file else f"{left.work_dir}/{ref.file}",
            sha256=ref.sha256, size_bytes=ref.size_bytes, attachable=status == "complete",
        )  # fmt: skip
    refused = record.stop_reason == "refused"
    code = (record.exit_code if refused else None) or log.exit_code
    verdict = _verdict(record, ref, attempt, code=code, before=before)
    seconds = float(record.timings_s.get("session") or (log.seconds if log.seen else ran_s))
    # A log may be torn, too: what was seen to run has run.
    longest_s = max(seconds, ran_s if attempt.began_s is not None else 0.0)
    final = record.stop_reason != "running"
    told = refused or (code not in (EXIT_DONE, EXIT_TRAINING) and not log.iteration)
    trained = bool(ref) or log.iteration > 0 or (longest_s > TRAINED_S and not told)
    found = f"{verdict} {ref.file} {ref.sha256}" if ref is not None else verdict
    best = record.best
    message = visible(record.message or log.refusal, MAX_MESSAGE)
    return Outcome(
        status=status,
        verdict=verdict,
        hand_over=hand_over,
        run_id=record.run_id,
        session_index=record.session_index,
        started_s=record.started_s,
        seconds=seconds,
        max_iters=record.max_iters,
        pace=record.learned.pace or {},
        best=f"{best.metric} {best.value:.2f}" if best is not None and best.value is not None else "",
        trained=trained,
        message=f"{sentence(message)} {NO_GPU}" if code == EXIT_MACHINE else message,
        exit_code=code or None,
        doubt="" if (final and sure) or told else found,
    )


def _verdict(
    record: SessionRecord, ref: CheckpointRef | None, attempt: Attempt, *, code: int, before: int
) -> Verdict:
    start = record.start_iteration if record.run_id else before
    reached = ref.iteration if ref is not None else 0
    early, over = record.stop_reason == "early", reached >= record.max_iters > 0
    if ref is not None and (early or (record.stop_reason == "completed" and over)):
        return "completed"
    if reached > start:
        return "progress"
    if code == EXIT_CHECKPOINT and attempt.expect_iteration is not None:
        return "unmounted"
    return "hopeless" if code not in (EXIT_DONE, EXIT_TRAINING) else "none"


def gone(ran_s: float) -> Outcome:
    trained = ran_s > TRAINED_S
    return Outcome(
        status="gone", verdict="none", seconds=ran_s, trained=trained, doubt="gone",
        message="Its notebook was deleted.",
    )  # fmt: skip


def newest_good(
    kaggle: KaggleClient, left: SessionOutput, *, complete: bool, before: int
) -> tuple[CheckpointRef | None, bool]:
    """Return the newest checkpoint that is what the manifest says, and whether that is sure.

    Where the version ended complete, its record was finalised and all agrees, that is believed.
    Otherwise the file is fetched and its hash compared, and where it is another, or missing, the one
    before; then it is not sure, since a listing may be late. One below ``before`` is not looked at: there
    is a better one.

    Raises:
        Unreachable: A file did not come.
    """
    record = left.record
    stated = {name: ref for name, ref in left.manifest.files.items() if kind_of(name) == "iter"}
    stated_ref = record.checkpoint if record is not None else None
    if stated_ref is not None and kind_of(stated_ref.file) == "iter":
        stated.setdefault(stated_ref.file, stated_ref)
    if (
        complete
        and record is not None
        and record.stop_reason != "running"
        and not left.manifest.pending
        and stated_ref is not None
        and stated_ref.file in left.files
        and left.manifest.files.get(stated_ref.file) is not None
        and left.manifest.files[stated_ref.file].sha256 == stated_ref.sha256
        and stated_ref.iteration == max(ref.iteration for ref in stated.values())
    ):
        return stated_ref, True
    sure = bool(stated)
    for ref in sorted(stated.values(), key=lambda ref: ref.iteration, reverse=True):
        if ref.iteration < before:
            return ref, sure
        sha256 = left.fetch(kaggle, ref)
        path = left.folder / ref.file
        if sha256 is not None:
            expected = manifest_sha256(path) or ref.sha256
            if sha256 == expected and inspect(path, manifest_sha256=expected).verdict == "resumable":
                size_bytes = path.stat().st_size
                good = CheckpointRef(
                    file=ref.file, iteration=ref.iteration, sha256=sha256, size_bytes=size_bytes
                )
                return good, sure
            path.unlink(missing_ok=True)
        sure = False
    return None, sure and record is not None
