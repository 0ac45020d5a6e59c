"""Kaggle on the loopback: speaks its wire protocol and runs what is pushed to it.

The real, unmodified ``kaggle`` client talks to it through ``http_proxy``, with ``https_proxy`` on a
dead port, so that nothing can leave the machine. See :meth:`KaggleServer.environment`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "KGAT_0123456789abcdef"
OWNER = "alice"
ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
SAVED_FILES = 500
SIGNATURE = "Signature=secret-of-the-url"


@dataclass
class Version:
    """One version of a notebook, and the session that it started."""

    slug: str
    number: int
    request: dict[str, Any]
    folder: Path
    status: str = "QUEUED"
    failure: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    mounts: dict[str, Path] = field(default_factory=dict)
    num_empty_listings: int = 0

    @property
    def output(self) -> Path:
        return self.folder / "working"

    @property
    def notebook(self) -> dict[str, Any]:
        return json.loads(self.request["text"])  # type: ignore[no-any-return]

    @property
    def parameters(self) -> dict[str, Any]:
        """The values that the parameters cells set, the later one winning."""
        values: dict[str, Any] = {}
        for cell in self.notebook["cells"]:
            tags = cell.get("metadata", {}).get("tags", [])
            if "parameters" in tags or "injected-parameters" in tags:
                for node in ast.parse(cell["source"]).body:
                    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                        values[node.targets[0].id] = ast.literal_eval(node.value)
        return values

    def say(self, line: str, stream: str = "stdout") -> None:
        self.log.append({"stream_name": stream, "time": time.time(), "data": line + "\n"})


Notebook = Callable[[Version], str]
"""Runs a version in its folder, with what is mounted; returns the status that it ends with."""


@dataclass
class Fault:
    """Something that happens to requests of a method instead of, before or after their being answered.

    ``kind``: ``429`` and other numbers answer with that status and do nothing; ``drop`` cuts the
    connection and does nothing; ``lost`` does it and then cuts the connection; ``lost 502`` does it and
    answers 502; ``late`` cuts the connection and does it a little later; ``html`` answers with a page;
    ``slow`` waits first.
    """

    method: str
    kind: str
    first: int = 1
    times: int = 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(
            sys.exc_info()[1], ConnectionError
        ):  # clients are killed in the middle of a request
            super().handle_error(request, client_address)


class KaggleServer:
    """One account on a Kaggle of its own; a context that serves while it is open."""

    def __init__(self, folder: Path, notebook: Notebook) -> None:
        self.folder = folder
        self.notebook = notebook
        self.versions: dict[str, list[Version]] = {}
        self.datasets: dict[str, Path] = {}
        self.ready_at: dict[str, float] = {}
        self.processing_s = 0.0
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.faults: list[Fault] = []
        self.any_fault: Callable[[str], str] = lambda method: ""
        self.refused_sources: set[str] = set()
        self.refuse_own_output = False
        self.push_error = ""
        self.files_under = ""
        self.readable = True
        self.user = OWNER
        self.quota_s: float | None = 108_000.0
        self.quota_used_s = 0.0
        self.most_sessions = 2
        self.queue_s = 0.0
        self.calls: Counter[str] = Counter()
        self.num_requests = 0
        self.on_request: Callable[[int, str, str], None] = lambda number, method, when: None
        self.overlaps: list[str] = []
        self.bodies: list[str] = []
        self.lock = threading.RLock()
        self._threads: list[threading.Thread] = []
        self._server = _Server(("127.0.0.1", 0), self._handler())

    def __enter__(self) -> KaggleServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for thread in self._threads:
            thread.join(timeout=60)

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables with which the real client talks to this server, and to nothing else."""
        home.mkdir(exist_ok=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("KAGGLE") and name.lower() not in ("no_proxy", "http_proxy", "all_proxy")
        }
        return {
            **kept,
            "HOME": str(home),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_API_TOKEN": TOKEN,
            "http_proxy": f"http://127.0.0.1:{self._server.server_address[1]}",
            "https_proxy": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "OMP_NUM_THREADS": "1",
        }

    # -- what it holds

    def add_dataset(self, slug: str, files: dict[str, bytes] | None = None) -> str:
        ref = f"{OWNER}/{slug}"
        folder = self.folder / "datasets" / slug
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (files or {"a.txt": b"a"}).items():
            (folder / name).write_bytes(data)
        self.datasets[ref] = folder
        return ref

    @property
    def all_versions(self) -> list[Version]:
        return [version for versions in self.versions.values() for version in versions]

    def start_by_hand(self, slug: str, sources: list[str]) -> threading.Event:
        """Push a version as a person does; it goes on until the event that is returned is set."""
        ends, text = threading.Event(), self.versions[slug][-1].request["text"]
        usual, self.notebook = self.notebook, lambda version: "COMPLETE" if ends.wait(60) else "ERROR"
        body = {
            "slug": f"{OWNER}/{slug}", "newTitle": slug, "text": re.sub("Set by [^\"]*", "By hand", text),
            "kernelDataSources": sources, "sessionTimeoutSeconds": 3600,
        }  # fmt: skip
        with self.lock:
            self._save_kernel(body)
            while self.versions[slug][-1].status != "RUNNING":
                time.sleep(0.01)
        self.notebook = usual
        return ends

    def wait_until_idle(self) -> None:
        while any(version.status in ACTIVE for version in self.all_versions):
            time.sleep(0.02)

    # -- the methods of the protocol

    def call(self, method: str, body: dict[str, Any]) -> tuple[int, Any]:
        handler = getattr(self, "_" + re.sub(r"(?<!^)([A-Z])", r"_\1", method).lower(), None)
        if handler is None:
            return 404, {"code": 404, "message": f"no method {method}"}
        with self.lock:
            return handler(body)  # type: ignore[no-any-return]

    def _introspect_token(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body.get("token") != TOKEN:
            return 200, {"active": False}
        return 200, {"active": True, "username": self.user, "userId": 1}

    def _save_kernel(self, body: dict[str, Any]) -> tuple[int, Any]:
        owner = body["slug"].partition("/")[0]
        if self.push_error:
            return 200, {"error": self.push_error}
        active = [version for version in self.all_versions if version.status in ACTIVE]
        if len(active) >= self.most_sessions:
            return 200, {"error": f"Maximum batch GPU session count of {self.most_sessions} reached."}
        assert body["sessionTimeoutSeconds"] > 0
        # Kaggle makes the slug of the title, whatever else it was told.
        slug = self.files_under or re.sub(r"[^a-z0-9]+", "-", body["newTitle"].lower()).strip("-")
        self.overlaps += [f"{slug} beside {other.slug} version {other.number}" for other in active]
        versions = self.versions.setdefault(slug, [])
        version = Version(
            slug=slug, number=len(versions) + 1, request=body,
            folder=self.folder / "sessions" / f"{slug}-{len(versions) + 1}",
        )  # fmt: skip
        invalid_kernels, invalid_datasets = [], []
        for source in body.get("kernelDataSources", []):
            if not self._mount_kernel(version, source):
                invalid_kernels.append(source)
        for source in body.get("datasetDataSources", []):
            if source in self.datasets and source not in self.refused_sources:
                version.mounts[f"datasets/{source}"] = self.datasets[source]
            else:
                invalid_datasets.append(source)
        version.output.mkdir(parents=True)
        versions.append(version)
        thread = threading.Thread(target=self._session, args=(version,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return 200, {
            "ref": f"/code/{owner}/{slug}", "url": f"https://www.kaggle.com/code/{owner}/{slug}",
            "versionNumber": version.number, "kernelId": 1000, "error": None, "invalidTags": [],
            "invalidDatasetSources": invalid_datasets, "invalidKernelSources": invalid_kernels,
        }  # fmt: skip

    def _mount_kernel(self, version: Version, source: str) -> bool:
        slug = source.partition("/")[2]
        others = self.versions.get(slug, [])
        if source in self.refused_sources or not others or (self.refuse_own_output and slug == version.slug):
            return False
        if others[-1].status != "COMPLETE":
            return False
        version.mounts[f"notebooks/{source}"] = others[-1].output
        return True

    def _session(self, version: Version) -> None:
        notebook = self.notebook
        time.sleep(self.queue_s)
        version.status = "RUNNING"
        began = time.monotonic()
        try:
            status = notebook(version)
        except Exception as error:  # noqa: BLE001 - a notebook that fails is a session that ends so
            version.say(f"{type(error).__name__}: {error}", "stderr")
            status = "ERROR"
        files = [path for path in version.output.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)[SAVED_FILES:]:
            path.unlink()  # silently, as Kaggle does
        with self.lock:
            self.quota_used_s += time.monotonic() - began
            version.status = status

    def _version(self, body: dict[str, Any]) -> Version | None:
        versions = self.versions.get(body.get("kernelSlug", ""), [])
        label = body.get("versionLabel") or f"v{len(versions)}"
        number = int(label.removeprefix("v") or 0)
        return versions[number - 1] if 0 < number <= len(versions) else None

    def _get_kernel_session_status(self, body: dict[str, Any]) -> tuple[int, Any]:
        version = self._version(body)
        if version is None:
            return 404, {"code": 404, "message": "Kernel session not found"}
        return 200, {"status": version.status, "failureMessage": version.failure}

    def _list_kernel_session_output(self, body: dict[str, Any]) -> tuple[int, Any]:
        version = self._version(body)
        if version is None or version.status in ACTIVE:
            return 404, {"code": 404, "message": "No output"}
        names = sorted(
            str(path.relative_to(version.output)) for path in version.output.rglob("*") if path.is_file()
        )
        if version.num_empty_listings:
            version.num_empty_listings -= 1
            names = []
        start, size = int(body.get("pageToken") or 0), int(body.get("pageSize") or 20)
        page = names[start : start + size]
        base = f"http://localhost/output/{version.slug}/{version.number}"
        files = [{"url": f"{base}/{urllib.parse.quote(name)}?{SIGNATURE}", "fileName": name} for name in page]
        after = str(start + size) if start + size < len(names) else ""
        return 200, {"files": files, "log": json.dumps(version.log), "nextPageToken": after}

    def _get_kernel(self, body: dict[str, Any]) -> tuple[int, Any]:
        version = self._version(body)
        if not self.readable or version is None:
            # As Kaggle does for a notebook of one's own that does not exist.
            return 403, {"code": 403, "message": "Permission 'kernels.get' was denied"}
        current = len(self.versions[version.slug])
        metadata = {
            "id": 1000, "ref": f"{OWNER}/{version.slug}", "title": version.request["newTitle"],
            "currentVersionNumber": current,
        }  # fmt: skip
        blob = {"source": version.request["text"], "language": "python", "kernelType": "notebook"}
        return 200, {"metadata": metadata, "blob": {**blob, "slug": version.slug}}

    def _list_kernels(self, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"kernels": [{"ref": f"{OWNER}/{slug}", "slug": slug} for slug in self.versions]}

    def _get_accelerator_quota_statistics(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.quota_s is None:
            return 404, {"code": 404, "message": "not found"}
        gpu = {
            "timeUsed": f"{int(self.quota_used_s)}s", "timeReserved": "0s",
            "totalTimeAllowed": f"{int(self.quota_s)}s", "minimumTimeAllowed": "108000s", "hasEverRun": True,
        }  # fmt: skip
        return 200, {"quotaRefreshTime": "2026-11-28T00:00:00Z", "gpuQuota": gpu}

    def _list_dataset_files(self, body: dict[str, Any]) -> tuple[int, Any]:
        folder = self.datasets.get(f"{body['ownerSlug']}/{body['datasetSlug']}")
        if folder is None:
            return 403, {"code": 403, "message": "Permission 'datasets.get' was denied"}
        return 200, {"files": [{"name": path.name} for path in sorted(folder.iterdir())]}

    def _get_dataset_status(self, body: dict[str, Any]) -> tuple[int, Any]:
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        if ref not in self.datasets:
            return 404, {"code": 404, "message": "no such dataset"}
        return 200, {"status": "READY" if time.monotonic() >= self.ready_at.get(ref, 0.0) else "PENDING"}

    def _download_dataset(self, body: dict[str, Any]) -> tuple[int, Any]:
        path = self.datasets[f"{body['ownerSlug']}/{body['datasetSlug']}"] / body["fileName"]
        if not path.is_file():
            return 404, {"code": 404, "message": "no such file"}
        return 200, path

    def _start_blob_upload(self, body: dict[str, Any]) -> tuple[int, Any]:
        token = f"tok{len(self.uploads)}"
        self.uploads[token] = (body["name"], b"")
        return 200, {"token": token, "createUrl": f"http://localhost/upload/{token}?{SIGNATURE}"}

    def _create_dataset(self, body: dict[str, Any]) -> tuple[int, Any]:
        return self._take_dataset(f"{body['ownerSlug']}/{body['slug']}", body["files"])

    def _create_dataset_version(self, body: dict[str, Any]) -> tuple[int, Any]:
        return self._take_dataset(f"{body['ownerSlug']}/{body['datasetSlug']}", body["body"]["files"])

    def _take_dataset(self, ref: str, files: list[dict[str, Any]]) -> tuple[int, Any]:
        number = len(list((self.folder / "datasets").glob("*"))) if (self.folder / "datasets").exists() else 0
        folder = self.folder / "datasets" / f"{ref.partition('/')[2]}-{number}"
        folder.mkdir(parents=True)
        for item in files:
            name, data = self.uploads[item["token"]]
            (folder / name).write_bytes(data)
        self.datasets[ref] = folder
        self.ready_at[ref] = time.monotonic() + self.processing_s
        return 200, {"ref": ref, "url": f"https://www.kaggle.com/datasets/{ref}", "status": "ok"}

    # -- HTTP

    def fault_of(self, method: str) -> str:
        """Count a call, and return the kind of the fault that is due, if any."""
        with self.lock:
            self.calls[method] += 1
            count = self.calls[method]
            for fault in self.faults:
                if fault.method in (method, "*") and fault.first <= count < fault.first + fault.times:
                    return fault.kind
            return self.any_fault(method)

    def _handler(kaggle) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                path = urllib.parse.urlsplit(self.path).path
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                method = path.rpartition("/")[2]
                with kaggle.lock:
                    kaggle.num_requests += 1
                    number = kaggle.num_requests
                    kaggle.bodies.append(f"{path} {data.decode()}")
                if self.headers.get("Authorization") != f"Bearer {TOKEN}" and method != "IntrospectToken":
                    return self.answer(401, {"code": 401, "message": "Unauthenticated"})
                kaggle.on_request(number, method, "before")
                fault = kaggle.fault_of(method)
                if fault.isdigit():
                    return self.answer(int(fault), {"code": int(fault), "message": "later"})
                if fault == "slow":
                    time.sleep(0.5)
                if fault == "html":
                    return self.answer(200, "<html>busy</html>", "text/html")
                if fault == "drop":
                    return self.cut()
                if fault == "late":
                    threading.Timer(0.3, kaggle.call, (method, json.loads(data or b"{}"))).start()
                    return self.cut()
                status, document = kaggle.call(method, json.loads(data or b"{}"))
                kaggle.on_request(number, method, "after")
                if fault == "lost":
                    return self.cut()
                if fault == "lost 502":
                    return self.answer(502, {"code": 502, "message": "bad gateway"})
                if isinstance(document, Path):
                    return self.redirect(f"/dataset/{document.relative_to(kaggle.folder / 'datasets')}")
                return self.answer(status, document)

            def redirect(self, path: str) -> None:
                self.send_response(302)
                self.send_header("Location", f"http://localhost{path}?{SIGNATURE}")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                parts = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
                if parts[0] == "output":
                    return self.send_file(
                        kaggle.versions[parts[1]][int(parts[2]) - 1].output.joinpath(*parts[3:])
                    )
                if parts[0] == "dataset":
                    return self.send_file(kaggle.folder.joinpath("datasets", *parts[1:]))
                if "stream" in parts:
                    query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                    body = {"kernelSlug": parts[-1], "versionLabel": query.get("versionLabel", [""])[0]}
                    return self.stream(kaggle._version(body))
                return self.answer(404, {"code": 404, "message": "not found"})

            def do_PUT(self) -> None:
                token = urllib.parse.urlsplit(self.path).path.rpartition("/")[2]
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kaggle.uploads[token] = (kaggle.uploads[token][0], data)
                self.answer(200, {})

            def send_file(self, path: Path) -> None:
                fault = kaggle.fault_of("download")
                if fault.isdigit():
                    self.answer(int(fault), "gone", "text/plain")
                    return
                data = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if fault == "drop" else data)
                if fault == "drop":
                    self.close_connection = True

            def stream(self, version: Version | None) -> None:
                if version is None:
                    self.answer(404, {"code": 404, "message": "not found"})
                    return
                if version.status not in ACTIVE:
                    self.answer(200, version.log)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                sent = 0

                def send(text: str) -> None:
                    data = f"data: {text}\n\n".encode()
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

                try:
                    while version.status in ACTIVE or sent < len(version.log):
                        for piece in version.log[sent:]:
                            send(json.dumps(piece))
                            sent += 1
                        time.sleep(0.02)
                    send("END_OF_LOG")
                    self.wfile.write(b"0\r\n\r\n")
                except OSError:
                    pass
                self.close_connection = True

            def answer(self, status: int, document: Any, kind: str = "application/json") -> None:
                data = (document if isinstance(document, str) else json.dumps(document)).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                try:
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True

            def cut(self) -> None:
                self.close_connection = True
                self.connection.close()

        return Handler


# -- notebooks


@dataclass
class ScriptedNotebook:
    """Does in no time what a session of the kit's notebook would leave behind.

    Each session takes the next of ``script``; after the last one all is well. ``ok``: goes on by
    ``per_session``, or to the end. ``failed after progress``: ends ERROR with a new checkpoint.
    ``killed``: cancelled, its record still ``running``. ``killed, no output``. ``no progress``: fails
    and hands over what it got. ``damaged``: like ``killed``, its newest checkpoint not what the manifest
    says. ``truncated``: more files than are saved, the newest checkpoint not among them. ``crashed``:
    ERROR without a word. ``no gpu``, ``no internet``: refused by the kit. ``wedged``: never ends.
    ``late record``: complete, and the first two listings do not name its files yet.
    """

    max_iters: int = 400
    per_session: int = 100
    script: list[str] = field(default_factory=list)
    takes_s: float = 0.0
    more_files: int = 0
    done: list[tuple[int, int, str]] = field(default_factory=list)
    stem: str = "demo"
    release: threading.Event = field(default_factory=threading.Event)

    def __call__(self, version: Version) -> str:
        mode = self.script.pop(0) if self.script else "ok"
        values = version.parameters
        work_dir = version.output / "work_dirs" / self.stem
        work_dir.mkdir(parents=True)
        start, previous, source = self._resume(version)
        expected = values["EXPECT_ITERATION"]
        if (values["RESUME"] == "require" and source is None) or (expected not in (None, start)):
            return self._refuse(version, work_dir, f"nothing to go on from at iteration {expected}")
        told = {
            "no gpu": "MachineError: --gpus 2 was asked for, but this machine has 0 that this torch can use.",
            "no internet": "MachineError: No Internet and no wheels are attached.",
        }
        if mode in told:
            version.say(f"\x1b[31mmapsage_kaggle.errors.{told[mode]}\x1b[0m", "stderr")
            return "ERROR"
        if mode == "crashed":
            return "ERROR"
        if mode == "wedged":
            self.release.wait(60)
            return "CANCEL_ACKNOWLEDGED"
        gains = mode != "no progress"
        end = min(self.max_iters, start + self.per_session) if gains else start
        for iteration in range(start + 10, end + 1, 10):
            version.say(f"[{iteration}/{self.max_iters}]  loss 0.5000")
        version.say(f"[{end}] validation: mIoU {50 + end / 100:.2f} %, aAcc 70.00 %")
        time.sleep(self.takes_s)
        self._write(work_dir, mode, start, end, previous, source)
        for index in range(self.more_files):
            (version.output / f"tile_{index}.txt").write_text("a")
        self.done.append((start, end, mode))
        if mode == "killed, no output":
            shutil.rmtree(work_dir)
        if mode == "late record":
            version.num_empty_listings = 2
        statuses = {"failed after progress": "ERROR", "ok": "COMPLETE", "late record": "COMPLETE"}
        return statuses.get(
            mode, "COMPLETE" if mode in ("no progress", "truncated") else "CANCEL_ACKNOWLEDGED"
        )

    def _resume(self, version: Version) -> tuple[int, list[dict[str, Any]], Path | None]:
        found: list[tuple[int, Path]] = []
        for folder in version.mounts.values():
            for path in folder.rglob("iter_*.pth"):
                if (path.parent / "manifest.json").is_file():
                    found.append((int(path.stem[5:]), path))
        if not found:
            return 0, [], None
        iteration, path = max(found)
        try:
            record = json.loads((path.parent / "session.json").read_text())
        except FileNotFoundError:
            return iteration, [], path
        return iteration, [*record["previous"], {**record, "previous": []}], path

    def _refuse(self, version: Version, work_dir: Path, message: str) -> str:
        from mapsage_kaggle.records import SessionRecord

        SessionRecord(
            run_id="refused", fingerprint="f", max_iters=self.max_iters, stop_reason="refused", exit_code=3,
            message=message,
        ).write(work_dir / "session.json")  # fmt: skip
        version.say(f"mapsage_kaggle.errors.CheckpointError: {message}", "stderr")
        self.done.append((-1, -1, "refused"))
        return "ERROR"

    def _write(
        self, work_dir: Path, mode: str, start: int, end: int, previous: list[dict[str, Any]],
        source: Path | None,
    ) -> None:  # fmt: skip
        from mapsage_kaggle.checkpoints.manifest import Manifest, file_sha256
        from mapsage_kaggle.records import CheckpointRef, Learned, SessionRecord

        manifest = Manifest()
        ref = None
        for iteration in sorted({start + (end - start) // 2, end} - {0}):
            path = work_dir / f"iter_{iteration}.pth"
            if iteration == start and source is not None:
                shutil.copyfile(source, path)
            else:
                path.write_bytes(checkpoint_bytes(iteration))
            ref = CheckpointRef(
                file=path.name, iteration=iteration, sha256=file_sha256(path), size_bytes=path.stat().st_size
            )
            manifest = manifest.with_file(ref)
        manifest.write(work_dir / "manifest.json")
        reason = "completed" if end == self.max_iters else "deadline"
        if mode in ("failed after progress", "no progress"):
            reason = "failed"
        if mode in ("killed", "damaged", "killed, no output"):
            reason = "running"
        SessionRecord(
            run_id="a-run", fingerprint="f", session_index=len(previous) + 1, start_iteration=start,
            end_iteration=end, max_iters=self.max_iters, stop_reason=reason, checkpoint=ref,
            exit_code={"running": None, "failed": 5}.get(reason, 0), previous=tuple(previous),
            learned=Learned(pace={"iteration_s": 0.5}), message=f"session: {mode}",
        ).write(work_dir / "session.json")  # fmt: skip
        newest = work_dir / f"iter_{end}.pth"
        if mode == "damaged":
            data = bytearray(newest.read_bytes())
            data[len(data) // 2] ^= 1
            newest.write_bytes(data)
        if mode == "truncated":
            for index in range(SAVED_FILES):
                (work_dir / f"tile_{index}.txt").write_text("a")
            data = newest.read_bytes()
            newest.unlink()
            newest.write_bytes(data)  # the newest of all files, so it is the one that is cut


_BYTES: dict[int, bytes] = {}


def checkpoint_bytes(iteration: int) -> bytes:
    """Return a very small checkpoint that can be resumed, as far as a look at it tells."""
    import io

    import torch

    if iteration not in _BYTES:
        weight = torch.full((2, 2), float(iteration))
        tree = {
            "meta": {"iter": iteration, "epoch": 0, "seed": 1},
            "state_dict": {"w": weight},
            "optimizer": {
                "state": {0: {"momentum_buffer": weight + 1}},
                "param_groups": [{"lr": 0.1, "params": [0]}],
            },
            "param_schedulers": [{"last_step": iteration}],
            "message_hub": {"log_scalars": {}, "runtime_info": {"iter": iteration}, "resumed_keys": {}},
        }
        stream = io.BytesIO()
        torch.save(tree, stream)
        _BYTES[iteration] = stream.getvalue()
    return _BYTES[iteration]
