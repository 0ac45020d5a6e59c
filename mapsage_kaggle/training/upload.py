"""Upload the newest proven checkpoint to a data set during training.

A session that Kaggle kills may leave no output. What was uploaded before stays: a data set with a
checkpoint and its records, which the next session takes like any attached output.

The upload itself runs in a process of its own, so that Kaggle's client cannot hold training up, and can be
ended. It is off without credentials. These are read by that client, and otherwise only to strip them, like
addresses, from the error that is shown.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256
from mapsage_kaggle.events import Event, EventKind, EventLog
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.processes import SECRET_NAMES, Child, clean_environment, module_command
from mapsage_kaggle.records import CheckpointRef, SessionRecord, read_record

if TYPE_CHECKING:
    from mapsage_kaggle.training.prepare import Prepared
    from mapsage_kaggle.training.supervisor import Supervisor

LIMIT_S = 3600.0
"""How long one upload may take during training."""
LAST_LIMIT_S = 600.0
"""How long the last one may take, once training has ended; less where the session has less time left."""
MIN_LIMIT_S = 5.0
MAX_FAILURES = 3
"""After this many in a row, no more is tried in this session."""
MAX_FILES = 50
"""kagglehub first packs more files than this into one archive."""

_POLL_S = 0.2
_STAGE_TRIES = 5


def credential_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the files that Kaggle's client reads credentials from, whether or not they exist."""
    home = Path(environ.get("HOME") or Path.home()) / ".kaggle"
    folder = Path(environ.get("KAGGLE_CONFIG_DIR") or home)
    named = [Path(environ[name]) for name in ("KAGGLE_API_V1_TOKEN", "KAGGLE_API_TOKEN") if environ.get(name)]
    return (*named, home / "access_token", home / "access_token.txt", folder / "kaggle.json")


def has_credentials(environ: Mapping[str, str]) -> bool:
    """Tell whether Kaggle's client would find credentials, without reading them."""
    if environ.get("KAGGLE_API_TOKEN") or (environ.get("KAGGLE_USERNAME") and environ.get("KAGGLE_KEY")):
        return True
    return any(_is_file(path) for path in credential_files(environ))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a token in place of a file's name may be too long for one
        return False


# -- what is uploaded


@dataclass(frozen=True, kw_only=True, slots=True)
class Staged:
    """A folder that is ready to be uploaded.

    Attributes:
        iteration: Of its checkpoint.
        record: The session's, as it was then.
        notes: The version notes.
    """

    folder: Path
    iteration: int
    record: SessionRecord
    size_bytes: int
    notes: str


def stage(work_dir: WorkDir, folder: Path, *, after: int) -> Staged | None:
    """Gather what the next session needs to resume from the newest proven checkpoint, and nothing else.

    That is the checkpoint, the best one, a manifest of the two, the record, events and config, and the
    newest of the history. Checkpoints are hard-linked where possible, so that retention may delete them.
    ``folder`` is created anew.

    Returns:
        None where there is no checkpoint beyond iteration ``after``.

    Raises:
        OSError: A file cannot be read or written, or no checkpoint is what its record says.
        ValueError: The record cannot be parsed.
    """
    found = _take_newest(work_dir, folder, after)
    if found is None:
        return None
    record, newest = found
    refs = [newest]
    if record.best is not None and _take(work_dir.path, record.best, folder):
        refs.append(record.best)
    Manifest({ref.file: ref for ref in refs}).write(folder / work_dir.manifest.name)
    record.write(folder / work_dir.session.name)
    (folder / work_dir.last_checkpoint.name).write_text(newest.file, encoding="utf-8")
    for file in (work_dir.events, work_dir.config, work_dir.config_diff):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    _take_history(work_dir.history, folder, MAX_FILES - sum(1 for _ in folder.iterdir()))
    return Staged(
        folder=folder,
        iteration=newest.iteration,
        record=record,
        size_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        notes=f"iteration {newest.iteration}, session {record.session_index} of run {record.run_id}",
    )


def _take_newest(work_dir: WorkDir, folder: Path, after: int) -> tuple[SessionRecord, CheckpointRef] | None:
    """Stage the newest checkpoint; return the record that names it, too."""
    name = ""
    for _ in range(_STAGE_TRIES):
        record = SessionRecord.read(work_dir.session)
        newest = record.checkpoint
        if newest is None or newest.iteration <= after:
            return None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if _take(work_dir.path, newest, folder):
            return record, newest
        name = newest.file
        time.sleep(_POLL_S)  # replaced or deleted just now; the record follows at once
    raise OSError(f"{name} is not what the session's record says")


def _take(source: Path, ref: CheckpointRef, folder: Path) -> bool:
    """Link or copy a checkpoint; return whether it is there and is what was proven."""
    target = folder / ref.file
    try:
        try:
            os.link(source / ref.file, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source / ref.file, target)
        if file_sha256(target) == ref.sha256:
            return True
    except FileNotFoundError:
        return False
    target.unlink()
    return False


def _take_history(history: Path, folder: Path, most: int) -> None:
    """Copy the newest sessions' files; the records of all of them are in the session's own record."""
    if not history.is_dir():
        return

    def session_of(path: Path) -> str:
        return path.stem.rpartition("_")[2]

    files = sorted((path for path in history.iterdir() if path.is_file()), key=session_of, reverse=True)
    for file in files[:most]:
        target = folder / history.name / file.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


# -- uploading


class Uploader:
    """Uploads at intervals, in a thread, until :meth:`finish`.

    Args:
        work_dir: The session's.
        handle: The data set, ``owner/slug``. It is created, private, where there is none.
        every_s: Seconds between looks for a newer checkpoint.
        scratch: Where to stage.
        after: The iteration that the session began with, which need not be uploaded.
        retry_s: Seconds until the last upload is tried again. Kaggle refuses a new version (403) while it
            still processes the one before (kagglehub's issue 181).
    """

    def __init__(
        self,
        work_dir: WorkDir,
        handle: str,
        *,
        every_s: float,
        scratch: Path,
        after: int = 0,
        retry_s: float = 30.0,
    ) -> None:
        self._retry_s = retry_s
        self._files = work_dir
        self._handle = handle
        self._every_s = every_s
        self._scratch = scratch
        self._after = self._uploaded = after
        self._record: SessionRecord | None = None
        self._sending: int | None = None
        self._failures = 0
        self._end = threading.Event()
        self._abandon = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mapsage-upload", daemon=True)

    def start(self) -> None:
        """Begin; returns at once. Without credentials or the client, warns and stays off."""
        if importlib.util.find_spec("kagglehub") is None:
            missing = Message("Nothing is uploaded to {handle}: kagglehub is not installed.", self._handle)
        elif not has_credentials(os.environ):
            missing = Message(
                "Nothing is uploaded to {handle}: there are no Kaggle credentials here.", self._handle
            )
        else:
            self._thread.start()
            return
        self._failures = MAX_FAILURES
        self._emit("warning", 0, message=missing)

    def finish(self, limit_s: float, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Upload the newest checkpoint, with the record as it is now, unless that was done, and end.

        It takes ``limit_s`` at most, give or take a poll; ``cancelled``, which is polled, ends it at once.
        """
        end = time.monotonic() + limit_s
        newest = self._newest()
        # One under way is worth waiting for only if there is none newer.
        if self._sending is not None and self._sending != newest:
            self._abandon.set()
        self._end.set()
        while self._thread.is_alive():
            if cancelled() or time.monotonic() > end:
                self._abandon.set()
            self._thread.join(_POLL_S)
        if self._thread.ident is None:
            return
        if self._record is not None and self._record != read_record(self._files.session):
            # What was uploaded says that the session is running, and may lack the best checkpoint.
            self._uploaded = self._after
        while not cancelled() and end - time.monotonic() >= MIN_LIMIT_S:
            if self._try(end - time.monotonic(), cancelled):
                return
            again_s = time.monotonic() + self._retry_s
            while not cancelled() and time.monotonic() < min(again_s, end):
                time.sleep(_POLL_S)

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            self._try(LIMIT_S, self._abandon.is_set)

    def _newest(self) -> int | None:
        record = read_record(self._files.session)
        return record.checkpoint.iteration if record and record.checkpoint else None

    def _try(self, limit_s: float, cancelled: Callable[[], bool]) -> bool:
        """Upload the newest checkpoint; return whether nothing is left to retry."""
        if self._failures >= MAX_FAILURES:
            return True
        began = time.monotonic()
        folder = self._scratch / f"upload-{os.getpid()}"
        try:
            staged = stage(self._files, folder, after=self._uploaded)
            if staged is None:
                return True
            self._sending = staged.iteration
            problem = send(staged, self._handle, limit_s=limit_s, cancelled=cancelled)
        except (OSError, ValueError) as error:
            problem, staged = harmless(error, os.environ), None
        finally:
            self._sending = None
            shutil.rmtree(folder, ignore_errors=True)
        if cancelled():
            return True
        if problem or staged is None:
            self._fail(problem, staged.iteration if staged is not None else self._uploaded)
            return False
        self._failures, self._uploaded, self._record = 0, staged.iteration, staged.record
        self._emit(
            "upload",
            staged.iteration,
            message=Message(
                "Uploaded to {handle}, in {seconds} s.", self._handle, f"{time.monotonic() - began:.0f}"
            ),
            handle=self._handle,
            size_bytes=staged.size_bytes,
        )
        return True

    def _fail(self, problem: str, iteration: int) -> None:
        self._failures += 1
        after = (
            Message("No more is tried in this session.")
            if self._failures >= MAX_FAILURES
            else Message("It is tried again later.")
        )
        self._emit(
            "warning",
            iteration,
            message=Message("Uploading to {handle} failed: {problem}. {after}", self._handle, problem, after),
        )

    def _emit(self, event: EventKind, iteration: int, /, **data: Any) -> None:
        try:
            EventLog(self._files.events).append(Event(event=event, iteration=iteration, data=data))
        except OSError:
            return  # a full disk is reported by what needs it more


@contextmanager
def uploads(prepared: Prepared, supervisor: Supervisor) -> Iterator[None]:
    """Upload the newest checkpoint at intervals, where that is asked for, and once more at the end."""
    options = prepared.options
    if options.upload_to is None or options.node_rank > 0:
        yield
        return
    uploader = Uploader(
        WorkDir(prepared.work_dir),
        options.upload_to,
        every_s=options.upload_every_s,
        scratch=prepared.discovery.paths.temp,
        after=prepared.start_iteration,
    )
    uploader.start()
    try:
        yield
    finally:
        # Half the reserve, as everywhere in the supervisor, less what Kaggle needs for the output.
        left_s = supervisor.left_to_hand_over_s()
        uploader.finish(min(LAST_LIMIT_S, left_s), cancelled=lambda: supervisor.killed)
        supervisor.pass_on(("upload", "warning"))


def send(staged: Staged, handle: str, *, limit_s: float, cancelled: Callable[[], bool]) -> str:
    """Upload a folder in a process of its own; return what went wrong, or an empty string.

    It is ended after ``limit_s``, or at once when ``cancelled``, which is polled, returns True.
    """
    module, seconds = "mapsage_kaggle.training.upload", str(int(limit_s) + 1)
    command = module_command(module, str(staged.folder), handle, staged.notes, seconds)
    with tempfile.TemporaryFile() as output:
        # Not its standard error: progress bars, and addresses that must stay secret.
        child = Child(command, env=clean_environment(credentials=True), stdout=output)
        try:
            end = time.monotonic() + limit_s
            while not child.ended() and time.monotonic() < end and not cancelled():
                time.sleep(_POLL_S)
            in_time = child.ended()
        finally:
            child.end()
        if not in_time:
            return Message("it was not done within {seconds} s", f"{limit_s:.0f}")
        output.seek(0)
        lines = output.read().decode("utf-8", errors="replace").strip().splitlines()
    try:
        said = json.loads(lines[-1])
        return str(said["error"])
    except (IndexError, ValueError, KeyError, TypeError):
        return Message("the upload's process ended without a word (exit code {code})", child.returncode)


def harmless(error: BaseException, environ: Mapping[str, str]) -> str:
    """Return an error's type and first line, without addresses and secrets."""
    text = (str(error).strip().splitlines() or [""])[0]
    text = re.sub(r"\w+://\S+", "…", text)
    for secret in sorted(_secrets(environ), key=len, reverse=True):
        text = text.replace(secret, "…")
    return f"{type(error).__name__}: {text[:200]}".rstrip(": .")


def _secrets(environ: Mapping[str, str]) -> set[str]:
    found = {value.strip() for name, value in environ.items() if SECRET_NAMES.search(name)}
    for path in credential_files(environ):
        if not _is_file(path):
            continue
        try:
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            continue
        found.add(text)
        found.update(re.findall(r'"key"\s*:\s*"([^"]+)"', text))
    return {value for value in found if len(value) >= 6}


def main(arguments: Sequence[str]) -> int:
    """Upload a folder, as a process of its own: ``FOLDER OWNER/SLUG NOTES SECONDS``.

    Prints a JSON object last: ``{"error": ""}`` where it went well.
    """
    folder, handle, notes, limit_s = arguments
    # Where nobody is left to end it.
    signal.alarm(int(limit_s))
    os.nice(10)
    problem = ""
    try:
        import kagglehub

        kagglehub.dataset_upload(handle, folder, version_notes=notes)
    except Exception as error:  # noqa: BLE001 - a client and a network raise what they like
        problem = harmless(error, os.environ)
    sys.stdout.write("\n" + json.dumps({"error": problem}) + "\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
