"""Uploads of the newest checkpoint: whole, resumable by the kit alone, and never in training's way."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.standin import StandIn, kill_group, workers_alive

from mapsage_kaggle.checkpoints.manifest import Manifest, manifest_sha256
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.events import Event, read_events
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import CheckpointRef, SessionRecord
from mapsage_kaggle.training.options import Options, check_handle, check_options
from mapsage_kaggle.training.upload import (
    MAX_FAILURES,
    MAX_FILES,
    Staged,
    Uploader,
    harmless,
    has_credentials,
    send,
    stage,
)

TOKEN = "KGAT_a_secret_that_nobody_may_see"

# Kaggle's own client, as far as it is called: the same name, the same signature.
FAKE = """
import json, os, shutil, time
from pathlib import Path

def dataset_upload(handle, local_dataset_dir, version_notes="", ignore_patterns=None):
    root = Path(os.environ["FAKE_KAGGLE"])
    if (root / "hang").exists():
        (root / "pid").write_text(str(os.getpid()))
        time.sleep(600)
    if (root / "refuse").exists():
        raise PermissionError((root / "refuse").read_text())
    if (root / "die").exists():
        os._exit(7)
    number = 1 + len(list(root.glob("*.json")))
    shutil.copytree(local_dataset_dir, root / str(number))
    (root / f"{number}.json.tmp").write_text(json.dumps([handle, version_notes]))
    (root / f"{number}.json.tmp").rename(root / f"{number}.json")
"""


# -- what is asked for


@pytest.mark.parametrize("handle", ["me/run", "me", "me/Run-Of-Mine", "me/my_run_1", "a/b/c-d-e-f", ""])
def test_a_data_set_that_kaggle_would_refuse_is_refused_here(handle: str) -> None:
    with pytest.raises(UsageError, match="cannot be a data set on Kaggle"):
        check_handle(handle)


def test_a_data_set_is_looked_at_before_anything_else_is_done() -> None:
    with pytest.raises(UsageError, match="Give OWNER/SLUG"):
        check_options(Options(config=Path("c.py"), upload_to="me"))
    with pytest.raises(UsageError, match="--upload-every must be more than nothing"):
        check_options(Options(config=Path("c.py"), upload_to="me/my-run", upload_every_s=0))


@pytest.mark.parametrize(
    ("environ", "file", "found"),
    [
        ({}, None, False),
        ({"KAGGLE_API_TOKEN": TOKEN}, None, True),
        ({"KAGGLE_USERNAME": "me"}, None, False),
        ({"KAGGLE_USERNAME": "me", "KAGGLE_KEY": TOKEN}, None, True),
        ({}, ".kaggle/access_token", True),
        ({}, ".kaggle/kaggle.json", True),
        ({"KAGGLE_API_V1_TOKEN": "{home}/token"}, None, False),
        ({"KAGGLE_API_V1_TOKEN": "{home}/token"}, "token", True),
        ({"KAGGLE_CONFIG_DIR": "{home}/elsewhere"}, "elsewhere/kaggle.json", True),
    ],
)
def test_credentials_are_found_where_kaggles_client_finds_them(
    tmp_path: Path, environ: dict[str, str], file: str | None, found: bool
) -> None:
    if file is not None:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(TOKEN)
    environ = {name: value.format(home=tmp_path) for name, value in environ.items()}
    assert has_credentials({"HOME": str(tmp_path), **environ}) is found


def test_an_error_is_told_without_addresses_and_secrets(tmp_path: Path) -> None:
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "kaggle.json").write_text('{"username": "me", "key": "0123456789abcdef"}')
    environ = {"HOME": str(tmp_path), "KAGGLE_API_TOKEN": TOKEN}
    error = OSError(
        f"401 for https://storage.example/x?sig=abc with {TOKEN} or 0123456789abcdef\nBearer {TOKEN}"
    )
    assert harmless(error, environ) == "OSError: 401 for … with … or …"


# -- what is gathered


class Work:
    """A work dir with checkpoints of a few bytes, as a session leaves it."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True)
        self.files = WorkDir(path)
        self.record = SessionRecord(run_id="abc", fingerprint="f", max_iters=100)
        self.files.events.touch()
        self.files.config.write_text("x = 1\n")

    def add(self, name: str, iteration: int, **score: Any) -> CheckpointRef:
        data = name.encode() * 50
        (self.files.path / name).write_bytes(data)
        ref = CheckpointRef(
            file=name,
            iteration=iteration,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            **score,
        )
        key = "best" if score else "checkpoint"
        self.record = self.record.evolve(**{key: ref, "end_iteration": iteration})
        self.record.write(self.files.session)
        return ref

    def told(self, kind: str) -> list[Event]:
        return [event for event in read_events(self.files.events) if event.event == kind]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    made = Work(tmp_path / "work")
    made.add("best_mIoU_iter_5.pth", 5, metric="mIoU", value=50.0)
    made.add("iter_10.pth", 10)
    return made


def test_all_that_a_next_session_needs_is_gathered_and_nothing_else(work: Work, tmp_path: Path) -> None:
    (work.files.path / "iter_7.pth").write_bytes(b"an older one")
    (work.files.path / "iter_11.pth.tmp").write_bytes(b"half of one")
    work.files.log.write_text("much text")
    staged = stage(work.files, tmp_path / "staged", after=0)
    assert staged is not None
    assert (staged.iteration, staged.notes) == (10, "iteration 10, session 1 of run abc")
    assert {path.name for path in staged.folder.iterdir()} == {
        "iter_10.pth", "best_mIoU_iter_5.pth", "manifest.json", "session.json", "last_checkpoint",
        "events.jsonl", "config.py",
    }  # fmt: skip
    assert set(Manifest.read(staged.folder / "manifest.json").files) == {
        "iter_10.pth",
        "best_mIoU_iter_5.pth",
    }
    assert work.record.checkpoint is not None
    assert manifest_sha256(staged.folder / "iter_10.pth") == work.record.checkpoint.sha256
    assert SessionRecord.read(staged.folder / "session.json") == work.record


def test_what_was_uploaded_or_given_is_not_gathered_again(work: Work, tmp_path: Path) -> None:
    assert stage(work.files, tmp_path / "staged", after=10) is None
    assert not (tmp_path / "staged").exists()


def test_what_is_gathered_outlives_its_deletion_by_retention(work: Work, tmp_path: Path) -> None:
    staged = stage(work.files, tmp_path / "staged", after=0)
    (work.files.path / "iter_10.pth").unlink()
    assert staged is not None
    assert (staged.folder / "iter_10.pth").read_bytes() == b"iter_10.pth" * 50


def test_across_file_systems_checkpoints_are_copied(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    staged = stage(work.files, tmp_path / "staged", after=0)
    assert staged is not None
    assert (staged.folder / "iter_10.pth").stat().st_ino != (work.files.path / "iter_10.pth").stat().st_ino


def test_a_checkpoint_that_is_replaced_meanwhile_is_taken_with_its_new_record(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work.files.path / "iter_10.pth").unlink()
    monkeypatch.setattr("mapsage_kaggle.training.upload.time.sleep", lambda _: work.add("iter_20.pth", 20))
    staged = stage(work.files, tmp_path / "staged", after=0)
    assert staged is not None
    assert staged.iteration == 20


def test_bytes_that_are_not_those_proven_are_never_gathered(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work.files.path / "iter_10.pth").write_bytes(b"rotten")
    monkeypatch.setattr("mapsage_kaggle.training.upload._POLL_S", 0.0)
    with pytest.raises(OSError, match=r"iter_10\.pth is not what the session's record says"):
        stage(work.files, tmp_path / "staged", after=0)


def test_of_a_long_history_the_newest_is_taken_so_that_no_archive_is_made_of_it(
    work: Work, tmp_path: Path
) -> None:
    work.files.history.mkdir()
    for session in range(1, 31):
        for name in (
            f"session_{session:03d}.json",
            f"events_{session:03d}.jsonl",
            f"config_{session:03d}.py",
        ):
            (work.files.history / name).touch()
    staged = stage(work.files, tmp_path / "staged", after=0)
    assert staged is not None
    files = [path.name for path in staged.folder.rglob("*") if path.is_file()]
    assert len(files) == MAX_FILES
    assert "session_030.json" in files
    assert "session_001.json" not in files


# -- uploading


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the stand-in for Kaggle's client puts what is uploaded to it."""
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "kagglehub.py").write_text(FAKE)
    (tmp_path / "remote").mkdir()
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "client"), root]))
    monkeypatch.setenv("FAKE_KAGGLE", str(tmp_path / "remote"))
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    monkeypatch.syspath_prepend(tmp_path / "client")
    return tmp_path / "remote"


@pytest.fixture
def begin(work: Work, tmp_path: Path, remote: Path) -> Iterator[Callable[..., Uploader]]:
    begun: list[Uploader] = []

    def start(every_s: float = 0.1, **options: Any) -> Uploader:
        begun.append(
            Uploader(
                work.files, "me/my-run", every_s=every_s, scratch=tmp_path / "temp", retry_s=0.1, **options
            )
        )
        begun[-1].start()
        return begun[-1]

    yield start
    for uploader in begun:
        uploader.finish(0.0)


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_the_newest_is_uploaded_while_the_session_goes_on_and_once_only(
    work: Work, begin: Callable[..., Uploader], remote: Path, tmp_path: Path
) -> None:
    begin()
    wait_for(lambda: work.told("upload"), "nothing was uploaded")
    work.add("iter_20.pth", 20)
    wait_for(lambda: len(work.told("upload")) == 2, "the newer one was not uploaded")
    time.sleep(0.5)
    assert [event.iteration for event in work.told("upload")] == [10, 20]
    assert json.loads((remote / "2.json").read_text()) == [
        "me/my-run",
        "iteration 20, session 1 of run abc",
    ]
    assert (remote / "2" / "iter_20.pth").read_bytes() == b"iter_20.pth" * 50
    assert list((tmp_path / "temp").glob("upload-*")) == []


def test_the_last_checkpoint_is_uploaded_at_the_end(
    work: Work, begin: Callable[..., Uploader], remote: Path
) -> None:
    begin(every_s=3600.0).finish(60.0)
    assert [event.iteration for event in work.told("upload")] == [10]


def test_what_was_uploaded_before_the_end_is_uploaded_again_with_the_final_record(
    work: Work, begin: Callable[..., Uploader], remote: Path
) -> None:
    uploader = begin()
    wait_for(lambda: work.told("upload"), "nothing was uploaded")
    work.record = work.record.evolve(stop_reason="completed")
    work.add("best_mIoU_iter_10.pth", 10, metric="mIoU", value=60.0)
    uploader.finish(60.0)
    assert [event.iteration for event in work.told("upload")] == [10, 10]
    assert SessionRecord.read(remote / "2" / "session.json").stop_reason == "completed"
    assert (remote / "2" / "best_mIoU_iter_10.pth").is_file()
    uploader.finish(60.0)
    assert len(work.told("upload")) == 2


def test_nothing_is_uploaded_where_the_session_got_no_further(
    work: Work, begin: Callable[..., Uploader], remote: Path
) -> None:
    begin(every_s=3600.0, after=10).finish(60.0)
    assert list(remote.iterdir()) == []


def test_a_failure_is_one_line_and_after_some_no_more_is_tried(
    work: Work, begin: Callable[..., Uploader], remote: Path
) -> None:
    (remote / "refuse").write_text(f"403 for http://x.example/{TOKEN}\nmore {TOKEN}")
    begin()
    wait_for(lambda: len(work.told("warning")) == MAX_FAILURES, "it was not given up")
    time.sleep(0.5)
    lines = [event.data["message"] for event in work.told("warning")]
    said = "Uploading to me/my-run failed: PermissionError: 403 for …. "
    assert lines == [
        said + "It is tried again later.",
        said + "It is tried again later.",
        said + "No more is tried in this session.",
    ]
    assert TOKEN not in work.files.events.read_text()


def test_the_last_upload_is_tried_again_while_kaggle_processes_the_one_before(
    work: Work, begin: Callable[..., Uploader], remote: Path
) -> None:
    (remote / "refuse").write_text("403: the version before is being processed")
    uploader = begin(every_s=3600.0)
    thread = threading.Thread(target=uploader.finish, args=(60.0,))
    thread.start()
    wait_for(lambda: work.told("warning"), "it was not refused")
    (remote / "refuse").unlink()
    thread.join()
    assert [event.iteration for event in work.told("upload")] == [10]


def test_a_client_that_dies_without_a_word_is_a_failure_like_any_other(
    work: Work, begin: Callable[..., Uploader], remote: Path
) -> None:
    (remote / "die").touch()
    begin()
    wait_for(lambda: work.told("warning"), "nothing was told")
    assert "ended without a word (exit code 7)" in work.told("warning")[0].data["message"]


def test_an_upload_that_hangs_is_ended_and_holds_nothing_up(
    work: Work, begin: Callable[..., Uploader], remote: Path
) -> None:
    (remote / "hang").touch()
    uploader = begin()
    wait_for((remote / "pid").exists, "the client was not started")
    began = time.monotonic()
    uploader.finish(1.0)
    assert time.monotonic() - began < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((remote / "pid").read_text()), 0)


def test_whoever_wants_out_at_once_does_not_wait_for_an_upload(
    work: Work, begin: Callable[..., Uploader], remote: Path
) -> None:
    (remote / "hang").touch()
    uploader = begin()
    wait_for((remote / "pid").exists, "the client was not started")
    uploader.finish(600.0, cancelled=lambda: True)
    assert work.told("warning") == []


@pytest.mark.parametrize(
    ("lacking", "told"),
    [("credentials", "there are no Kaggle credentials here"), ("client", "kagglehub is not installed")],
)
def test_without_credentials_or_client_it_says_so_once_and_stays_off(
    work: Work,
    begin: Callable[..., Uploader],
    remote: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lacking: str,
    told: str,
) -> None:
    if lacking == "client":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    begin().finish(60.0)
    [warning] = work.told("warning")
    assert told in warning.data["message"]
    assert list(remote.iterdir()) == []


# -- Kaggle's real client, against a server on this machine


class Server(ThreadingHTTPServer):
    """As much of Kaggle as an upload asks for: blobs, a data set, and versions of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.versions: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_PUT(self) -> None:
        token = self.path.rpartition("/")[2]
        self.server.blobs[token] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.tokens.add(self.headers["Authorization"])
        method = self.path.rpartition("/")[2]
        if method == "StartBlobUpload":
            token = f"tok{len(self.server.names)}"
            self.server.names[token] = asked["name"]
            host = f"http://127.0.0.1:{self.server.server_address[1]}"
            self._answer({"token": token, "createUrl": f"{host}/blobs/{token}"})
        elif method == "CreateDataset" and self.server.versions:
            self._answer({"error": "The requested title is already in use by a dataset."})
        elif method in ("CreateDataset", "CreateDatasetVersion"):
            self.server.versions.append({"method": method, **asked.get("body", {}), **asked})
            self._answer({"ref": "/me/my-run", "url": "x", "status": "Ok"})
        else:
            self._answer({"code": 404, "message": method})

    def _answer(self, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def kaggle_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a server that kagglehub takes for Kaggle; nothing can leave this machine."""
    pytest.importorskip("kagglehub")
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield server
    server.shutdown()
    server.server_close()


def test_kaggles_own_client_makes_the_data_set_and_then_new_versions_of_it(
    work: Work, tmp_path: Path, kaggle_server: Server
) -> None:
    (work.files.history / "x").parent.mkdir()
    (work.files.history / "session_001.json").write_text("{}")

    def upload(after: int) -> Staged:
        staged = stage(work.files, tmp_path / "staged", after=after)
        assert staged is not None
        assert send(staged, "me/my-run", limit_s=60.0, cancelled=lambda: False) == ""
        return staged

    upload(0)
    work.add("iter_20.pth", 20)
    staged = upload(10)
    first, second = kaggle_server.versions
    assert (first["method"], first["slug"], first["isPrivate"]) == ("CreateDataset", "my-run", True)
    assert (second["method"], second["versionNotes"]) == ("CreateDatasetVersion", staged.notes)
    files = {kaggle_server.names[item["token"]]: item["token"] for item in second["files"]}
    assert set(files) == {path.name for path in staged.folder.iterdir() if path.is_file()}
    assert kaggle_server.blobs[files["iter_20.pth"]] == b"iter_20.pth" * 50
    [directory] = second["directories"]
    assert directory["name"] == "history"
    assert kaggle_server.tokens == {f"Bearer {TOKEN}"}


def test_kaggles_own_client_without_a_server_fails_in_words_without_addresses(
    work: Work, tmp_path: Path, kaggle_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    staged = stage(work.files, tmp_path / "staged", after=0)
    assert staged is not None
    problem = send(staged, "me/my-run", limit_s=60.0, cancelled=lambda: False)
    assert "ProxyError" in problem
    assert "http://" not in problem
    assert TOKEN not in problem


# -- the whole of it


@pytest.mark.slow(scope_s=25)
def test_a_run_goes_on_from_an_upload_alone_after_its_session_was_killed(
    tmp_path: Path, remote: Path
) -> None:
    stand_in = StandIn.with_scenes(tmp_path / "kaggle", max_iters=4000, cold=True)
    session = stand_in.start("--upload-to", "me/my-run", "--upload-every", "1s")
    wait_for((remote / "1.json").exists, "nothing was uploaded")
    kill_group(session)
    wait_for(lambda: not workers_alive(stand_in.work_dir.path), "the workers live on")
    shutil.rmtree(stand_in.root / "working")
    (stand_in.root / "working").mkdir()
    uploaded = SessionRecord.read(remote / "1" / "session.json")
    assert uploaded.checkpoint is not None
    at = uploaded.checkpoint.iteration
    shutil.copytree(remote / "1", stand_in.root / "input" / "datasets" / "me" / "my-run")

    stand_in.cold = False
    done = stand_in.train("--resume", "require", "--expect-iteration", str(at), stop=at + 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resume verified: iteration {at}" in done.stdout
    record = stand_in.record()
    assert (record.run_id, record.session_index) == (uploaded.run_id, 2)
    assert (record.start_iteration, record.end_iteration) == (at, at + 3)
    # Nobody lived to close its record: the next session does.
    [earlier] = record.previous
    assert earlier["stop_reason"] == "failed"
    assert "cut off" in earlier["message"]
    assert (stand_in.work_dir.history / "events_001.jsonl").is_file()
    if uploaded.best is not None:
        assert (stand_in.work_dir.path / uploaded.best.file).is_file()
    everything = [path for path in stand_in.root.rglob("*") if path.is_file()]
    assert not [path for path in everything if TOKEN.encode() in path.read_bytes()]
