"""Kaggle on this machine: speaks its wire protocol and runs what is pushed to it.

The real, unmodified ``kaggle`` client talks to it in one of two ways. Over the loopback, through
``http_proxy`` and with ``https_proxy`` on a dead port, so that nothing can leave the machine (see
:meth:`KaggleServer.environment`). Or in the same process, without a socket and by a clock that is told to
go on (see :func:`support.kaggle_transport.within`): then a week takes less than a second.
"""

from __future__ import annotations

import ast
import json
import os
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKEN = "KGAT_0123456789abcdef"
OWNER = "alice"
ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
LISTED_FILES = 500
SIGNATURE = "Signature=secret-of-the-url"
WEEK_S = 7 * 86400.0
_PARAMETERS = "RESUME = 'auto'\nEXPECT_ITERATION = None\n# Set by hand"
_CELL = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "outputs": [], "source": _PARAMETERS}
BARE_NOTEBOOK = json.dumps({"cells": [_CELL]})
"""A person's, with the parameters that a session reads."""
QUOTA_S = 108_000.0


@dataclass
class Clock:
    """A clock that goes on when it is told to, and does then what is due; ``wrong_s`` off for the relay."""

    now_s: float = 1_795_000_000.0
    wrong_s: float = 0.0
    due: list[tuple[float, Callable[[], object]]] = field(default_factory=list)

    def now(self) -> float:
        return self.now_s

    def here(self) -> float:
        return self.now_s + self.wrong_s

    def sleep(self, seconds: float) -> None:
        end = self.now_s + seconds
        while self.due and min(at for at, _ in self.due) <= end:
            self.due.sort(key=lambda item: item[0])
            at, act = self.due.pop(0)
            self.now_s = max(self.now_s, at)
            act()
        self.now_s = end

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        self.due.append((self.now_s + seconds, act))


class RealClock(Clock):
    """The clock of the wall."""

    def now(self) -> float:
        return time.time()

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        threading.Timer(seconds, act).start()


class CutError(Exception):
    """The connection is cut in place of an answer."""


@dataclass
class Answer:
    """What is answered to a request."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Version:
    """One version of a notebook, and the session that it started.

    ``final`` is how it ends once ``ends_s`` has come; what it leaves is listed from ``listed_s`` on, and
    half of it from ``half_s`` on. A session that runs in a thread has no end yet.
    """

    slug: str
    number: int
    request: dict[str, Any]
    folder: Path
    clock: Clock
    session_id: int = 0
    by_hand: bool = False
    begins_s: float = 0.0
    ends_s: float = float("inf")
    final: str = "COMPLETE"
    saves_s: float = 0.0
    listed_s: float = 0.0
    half_s: float = 0.0
    failure: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    without_log: bool = False
    mounts: dict[str, Path] = field(default_factory=dict)
    num_empty_listings: int = 0
    never_run: bool = False

    @property
    def status(self) -> str:
        now_s = self.clock.now()
        if self.never_run:
            return "NEW_SCRIPT"
        if now_s < self.begins_s:
            return "QUEUED"
        if now_s < self.ends_s:
            return "RUNNING"
        if now_s < self.ends_s + self.saves_s:
            return "CANCEL_REQUESTED"
        return self.final

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return max(0.0, min(self.clock.now(), self.ends_s) - self.begins_s)

    @property
    def output(self) -> Path:
        return self.folder / "working"

    @property
    def notebook(self) -> dict[str, Any]:
        return json.loads(self.request["text"])  # type: ignore[no-any-return]

    @property
    def token(self) -> str:
        """The relay's mark in its text; empty for one that was pushed by hand."""
        found = re.search(r"relay: push (\w+)", self.request["text"])
        return found[1] if found else ""

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

    def say(self, line: str, stream: str = "stdout", at_s: float | None = None) -> None:
        at_s = self.clock.now() - self.begins_s if at_s is None else at_s
        self.log.append({"stream_name": stream, "time": at_s, "data": line + "\n"})

    @property
    def shown_log(self) -> list[dict[str, Any]]:
        """What of its log was printed until now."""
        return [piece for piece in self.log if piece["time"] <= self.clock.now() - self.begins_s]


Notebook = Callable[[Version], str]
"""Runs a version in its folder, with what is mounted; returns the status that it ends with.

One with the attribute ``takes_s`` is run at once, and its session takes so long by the clock. Others are
run in a thread.
"""


@dataclass
class Fault:
    """Something that happens to requests of a method instead of, before or after their being answered.

    ``kind``: ``429`` and other numbers answer with that status and do nothing, with ``Retry-After`` where
    another number follows; ``drop`` cuts the connection and does nothing; ``lost`` does it and then cuts
    the connection; ``lost 502`` does it and answers 502; ``late`` cuts the connection and does it a little
    later; ``html`` answers with a page, ``odd`` with ``null``; ``slow`` waits first.
    """

    method: str
    kind: str
    first: int = 1
    times: int = 1


class KaggleServer:
    """One account on a Kaggle of its own; a context that serves the loopback while it is open.

    With a :class:`Clock` it opens no socket: then :func:`support.kaggle_transport.within` leads to it.
    """

    def __init__(self, folder: Path, notebook: Notebook, clock: Clock | None = None) -> None:
        self.folder = folder
        self.notebook = notebook
        self.clock = clock or RealClock()
        self.on_loopback = clock is None
        self.versions: dict[str, list[Version]] = {}
        self.datasets: dict[str, Path] = {}
        self.previous: dict[str, Path] = {}
        self.ready_at: dict[str, float] = {}
        self.failed_datasets: set[str] = set()
        self.processing_s = 0.0
        self.ready_early = False
        self.dataset_fates: list[str] = []
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.faults: list[Fault] = []
        self.any_fault: Callable[[str], str] = lambda method: ""
        self.refused_sources: set[str] = set()
        self.refuse_own_output = True
        self.push_error = ""
        self.files_under = ""
        self.stale_versions = 0.0
        self.readable = True
        self.stale_token = False
        self.user = OWNER
        self.quota_s: float | None = QUOTA_S
        self.quota_used_s = 0.0
        self.most_sessions = 2
        self.others_until_s = 0.0
        self.queue_s = 0.0
        self.may_cancel = True
        self.listing_length = 10**6
        self.missing_code = 404
        self.calls: Counter[str] = Counter()
        self.num_requests = 0
        self.log_bytes = 0
        self.on_request: Callable[[int, str, str], None] = lambda number, method, when: None
        self.on_push: Callable[[Version], None] = lambda version: None
        self.overlaps: list[str] = []
        self.bodies: list[str] = []
        self.lock = threading.RLock()
        self._threads: list[threading.Thread] = []
        self._pushed: dict[str, float] = {}
        self._began_s = self.clock.now()

    def __enter__(self) -> KaggleServer:
        if self.on_loopback:
            from support.kaggle_transport import loopback

            self._server = loopback(self)
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.on_loopback:
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
        port = self._server.server_address[1] if self.on_loopback else 9
        return {
            **kept,
            "HOME": str(home),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_API_TOKEN": TOKEN,
            "http_proxy": f"http://127.0.0.1:{port}",
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

    def quick_save(self, slug: str) -> None:
        """Save a version without running it, as a person does."""
        text = '{"cells": []}'
        number = len(self.versions.setdefault(slug, [])) + 1
        self.versions[slug].append(
            Version(slug=slug, number=number, request={"text": text, "newTitle": slug}, clock=self.clock,
                    folder=self.folder / "sessions" / f"{slug}-{number}", by_hand=True, never_run=True)
        )  # fmt: skip

    def push_by_hand(
        self, slug: str, sources: list[str], notebook: Notebook | None = None, *, marked: bool = False
    ) -> Version:
        """Push a version as a person does, or as a relay of another machine."""
        before = next((item for item in reversed(self.all_versions) if "cells" in item.request["text"]
                       and "parameters" in item.request["text"]), None)  # fmt: skip
        text = before.request["text"] if before is not None else BARE_NOTEBOOK
        mark = f"relay: push {os.urandom(8).hex()} at {self.clock.now():.0f}, handed"
        text = re.sub(r"relay: push \w+ at \d+, handed" if marked else r'Set by [^"\\]*', mark if marked
                      else "By hand", text)  # fmt: skip
        body = {
            "slug": f"{OWNER}/{slug}", "newTitle": slug, "text": text,
            "kernelDataSources": sources, "sessionTimeoutSeconds": 43_000,
        }  # fmt: skip
        usual = self.notebook
        self.notebook = notebook or usual
        with self.lock:
            overlaps = len(self.overlaps)
            self._save_kernel(body)
            del self.overlaps[overlaps:]
        self.notebook = usual
        version = self.versions[slug][-1]
        version.by_hand = not marked
        return version

    def start_by_hand(self, slug: str, sources: list[str]) -> threading.Event:
        """Push a version as a person does; it goes on until the event that is returned is set."""
        ends = threading.Event()
        self.push_by_hand(slug, sources, lambda version: "COMPLETE" if ends.wait(60) else "ERROR")
        while self.versions[slug][-1].status != "RUNNING":
            time.sleep(0.01)
        return ends

    def rename(self, slug: str, new: str) -> None:
        """Give a notebook another title, and so another address."""
        self.versions[new] = self.versions.pop(slug)
        for version in self.versions[new]:
            version.slug = new

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
        self.stale_token = False
        if body.get("token") != TOKEN:
            return 200, {"active": False}
        return 200, {"active": True, "username": self.user, "userId": 1}

    def _save_kernel(self, body: dict[str, Any]) -> tuple[int, Any]:
        owner = body["slug"].partition("/")[0]
        if self.push_error:
            return 200, {"error": self.push_error}
        if len(body["text"]) > 1 << 20:
            return 400, {"code": 400, "message": ""}
        active = [version for version in self.all_versions if version.status in ACTIVE]
        others = 2 if self.clock.now() < self.others_until_s else 0
        if len(active) + others >= self.most_sessions:
            return 200, {"error": f"Maximum batch GPU session count of {self.most_sessions} reached."}
        if self.quota_s is not None and self._used_s() >= self.quota_s:
            return 200, {"error": "You have exceeded your weekly GPU quota."}
        assert 0 < body["sessionTimeoutSeconds"] < 12 * 3600
        # Kaggle makes the slug of the title, whatever else it was told.
        slug = self.files_under or re.sub(r"[^a-z0-9]+", "-", body["newTitle"].lower()).strip("-")
        self.overlaps += [f"{slug} beside {other.slug} version {other.number}" for other in active]
        versions = self.versions.setdefault(slug, [])
        begins_s = self.clock.now() + self.queue_s
        number = len(versions) + 1
        version = Version(
            slug=slug, number=number, request=body, clock=self.clock, begins_s=begins_s,
            session_id=1000 + len(self.all_versions),
            folder=self.folder / "sessions" / f"{slug}-{number}-{len(self._pushed)}",
        )  # fmt: skip
        invalid_kernels, invalid_datasets = [], []
        for source in body.get("kernelDataSources", []):
            if not self._mount_kernel(version, source):
                invalid_kernels.append(source)
        for source in body.get("datasetDataSources", []):
            if source in self.datasets and source not in self.refused_sources:
                version.mounts[f"datasets/{source}"] = self._shown(source)
            else:
                invalid_datasets.append(source)
        self.on_push(version)
        version.output.mkdir(parents=True)
        versions.append(version)
        self._pushed[f"{slug} {number} {len(self._pushed)}"] = self.clock.now()
        self._begin(version)
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

    def _begin(self, version: Version) -> None:
        version.say(json.dumps({"kaggle_session": f"kernel-{version.session_id}"}), at_s=0.0)
        if not hasattr(self.notebook, "takes_s"):
            thread = threading.Thread(target=self._session, args=(version, self.notebook), daemon=True)
            self._threads.append(thread)
            thread.start()
            return
        version.ends_s = version.begins_s + self.notebook.takes_s
        version.final = self.notebook(version)
        version.listed_s = max(version.listed_s, version.ends_s + version.saves_s)

    def _session(self, version: Version, notebook: Notebook) -> None:
        try:
            status = notebook(version)
        except Exception as error:  # noqa: BLE001 - a notebook that fails is a session that ends so
            version.say(f"{type(error).__name__}: {error}", "stderr")
            status = "ERROR"
        with self.lock:
            version.final, version.ends_s = status, self.clock.now()

    def _version(self, body: Mapping[str, Any]) -> Version | None:
        versions = self.versions.get(body.get("kernelSlug", ""), [])
        label = body.get("versionLabel") or f"v{len(versions)}"
        number = int(label.removeprefix("v") or 0)
        return versions[number - 1] if 0 < number <= len(versions) else None

    def _get_kernel_session_status(self, body: dict[str, Any]) -> tuple[int, Any]:
        version = self._version(body)
        if version is None:
            return 404, {"code": 404, "message": "Kernel session not found"}
        if version.never_run:
            return 404, {"code": 404, "message": "No runs found"}
        return 200, {"status": version.status, "failureMessage": version.failure}

    def _names(self, version: Version) -> list[str]:
        return sorted(
            str(path.relative_to(version.output)) for path in version.output.rglob("*") if path.is_file()
        )

    def _list_kernel_session_output(self, body: dict[str, Any]) -> tuple[int, Any]:
        version = self._version(body)
        if version is None or version.status in ACTIVE or version.never_run:
            return 404, {"code": 404, "message": "No output"}
        names, log = self._names(version)[: self.listing_length], json.dumps(version.log)
        now_s = self.clock.now()
        if version.num_empty_listings or now_s < version.listed_s:
            version.num_empty_listings = max(0, version.num_empty_listings - 1)
            half = now_s >= version.half_s > 0
            names = names[: len(names) // 2] if half else []
            log = log if half or version.num_empty_listings == 0 else ""
        if version.without_log:
            log = ""
        start, size = int(body.get("pageToken") or 0), int(body.get("pageSize") or 20)
        page = names[start : start + size]
        base = f"http://localhost/output/{version.slug}/{version.number}"
        files = [{"url": f"{base}/{urllib.parse.quote(name)}?{SIGNATURE}", "fileName": name} for name in page]
        after = str(start + size) if start + size < len(names) else ""
        return 200, {"files": files, "log": log, "nextPageToken": after}

    def _download_kernel_output(self, body: dict[str, Any]) -> tuple[int, Any]:
        version = self._version({**body, "versionLabel": f"v{body.get('versionNumber', 0)}"})
        if version is None or self.clock.now() < version.listed_s:
            return 404, {"code": 404, "message": "not found"}
        path = version.output / body["filePath"]
        missing = {"code": self.missing_code, "message": "not found"}
        return (200, path) if path.is_file() else (self.missing_code, missing)

    def _get_kernel(self, body: dict[str, Any]) -> tuple[int, Any]:
        version = self._version(body)
        if not self.readable or version is None:
            # As Kaggle does for a notebook of one's own that does not exist.
            return 403, {"code": 403, "message": "Permission 'kernels.get' was denied"}
        current = len(self.versions[version.slug])
        late = [item for item in self.versions[version.slug]
                if self.clock.now() < item.begins_s - self.queue_s + self.stale_versions]  # fmt: skip
        if len(late) == current and not body.get("versionLabel"):
            return 403, {"code": 403, "message": "Permission 'kernels.get' was denied"}
        metadata = {
            "id": 1000, "ref": f"{OWNER}/{version.slug}", "title": version.request["newTitle"],
            "currentVersionNumber": current - len(late),
        }  # fmt: skip
        blob = {"source": version.request["text"], "language": "python", "kernelType": "notebook"}
        return 200, {"metadata": metadata, "blob": {**blob, "slug": version.slug}}

    def _list_kernels(self, body: dict[str, Any]) -> tuple[int, Any]:
        shown_s = self.clock.now() + self.queue_s - self.stale_versions
        shown = [
            slug for slug, found in self.versions.items() if any(item.begins_s <= shown_s for item in found)
        ]
        return 200, {"kernels": [{"ref": f"{OWNER}/{slug}", "slug": slug} for slug in shown]}

    def _cancel_kernel_session(self, body: dict[str, Any]) -> tuple[int, Any]:
        found = [item for item in self.all_versions if item.session_id == body["kernelSessionId"]]
        if not self.may_cancel or not found:
            return 403, {"code": 403, "message": "Permission 'kernelSessions.cancel' was denied"}
        found[0].ends_s, found[0].final = self.clock.now(), "CANCEL_ACKNOWLEDGED"
        return 200, {"errorMessage": None}

    def _used_s(self) -> float:
        """Return the GPU time used in this week, which begins on Saturday."""
        now_s = self.clock.now()
        began_s = now_s - (now_s - 2 * 86400.0) % WEEK_S
        sessions = (
            max(0.0, min(now_s, item.ends_s) - max(began_s, item.begins_s))
            for item in self.all_versions
            if item.request.get("enableGpu") and item.seconds > 60.0
        )
        # What was used before this began counts in its first week only.
        return (self.quota_used_s if began_s <= self._began_s else 0.0) + sum(sessions)

    def _get_accelerator_quota_statistics(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.quota_s is None:
            return 404, {"code": 404, "message": "not found"}
        gpu = {
            "timeUsed": f"{int(self._used_s())}s", "timeReserved": "0s",
            "totalTimeAllowed": f"{int(self.quota_s)}s", "minimumTimeAllowed": "108000s", "hasEverRun": True,
        }  # fmt: skip
        now_s = self.clock.now()
        renews_s = now_s - (now_s - 2 * 86400.0) % WEEK_S + WEEK_S
        renews = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(renews_s))
        return 200, {"quotaRefreshTime": renews, "gpuQuota": gpu}

    # -- data sets

    def _shown(self, ref: str) -> Path:
        """Return what a data set shows now: the version before, while the newest is processed."""
        processing = self.clock.now() < self.ready_at.get(ref, 0.0) or ref in self.failed_datasets
        return self.previous[ref] if processing and ref in self.previous else self.datasets[ref]

    def _is_seen(self, ref: str) -> bool:
        processing = self.clock.now() < self.ready_at.get(ref, 0.0) or ref in self.failed_datasets
        return ref in self.datasets and (not processing or ref in self.previous)

    def _list_dataset_files(self, body: dict[str, Any]) -> tuple[int, Any]:
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        if not self._is_seen(ref):
            return 403, {"code": 403, "message": "Permission 'datasets.get' was denied"}
        files = sorted(self._shown(ref).iterdir())
        return 200, {
            "datasetFiles": [{"name": path.name, "totalBytes": path.stat().st_size} for path in files]
        }

    def _get_dataset_status(self, body: dict[str, Any]) -> tuple[int, Any]:
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        if ref not in self.datasets:
            return 404, {"code": 404, "message": "no such dataset"}
        if ref in self.failed_datasets:
            return 200, {"status": "FAILED"}
        ready = self.ready_early or self.clock.now() >= self.ready_at.get(ref, 0.0)
        return 200, {"status": "READY" if ready else "INDIVIDUAL_BLOBS_COMPRESSED"}

    def _download_dataset(self, body: dict[str, Any]) -> tuple[int, Any]:
        path = self._shown(f"{body['ownerSlug']}/{body['datasetSlug']}") / body["fileName"]
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
        ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
        if self.clock.now() < self.ready_at.get(ref, 0.0):
            return 403, {"code": 403, "message": "The dataset is being processed"}
        return self._take_dataset(ref, body["body"]["files"])

    def _take_dataset(self, ref: str, files: list[dict[str, Any]]) -> tuple[int, Any]:
        """Take a version; ``dataset_fates`` says of the next ones whether they fail, or lose a file."""
        fate = self.dataset_fates.pop(0) if self.dataset_fates else ""
        number = len(list((self.folder / "datasets").glob("*"))) if (self.folder / "datasets").exists() else 0
        folder = self.folder / "datasets" / f"{ref.partition('/')[2]}-{number}"
        folder.mkdir(parents=True)
        for item in files:
            name, data = self.uploads[item["token"]]
            if fate and name.startswith(fate):
                continue
            (folder / name).write_bytes(data)
        if self._is_seen(ref):
            self.previous[ref] = self._shown(ref)
        self.failed_datasets.discard(ref)
        if fate == "failed":
            self.failed_datasets.add(ref)
        self.datasets[ref] = folder
        self.ready_at[ref] = self.clock.now() + self.processing_s
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

    def answer(self, verb: str, url: str, headers: Mapping[str, str], data: bytes) -> Answer:
        """Answer one request.

        Raises:
            CutError: The connection is cut.
        """
        path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
        if verb == "PUT":
            token = path.rpartition("/")[2]
            if "*/" not in headers.get("Content-Range", ""):  # which asks how much of it is there
                self.uploads[token] = (self.uploads[token][0], data)
            return self._json(200, {})
        if verb == "GET":
            return self._get(path, urllib.parse.urlsplit(url).query)
        method = path.rpartition("/")[2]
        with self.lock:
            self.num_requests += 1
            number = self.num_requests
            self.bodies.append(f"{path} {data.decode()}")
        authorized = headers.get("Authorization") == f"Bearer {TOKEN}" and not self.stale_token
        if not authorized and method != "IntrospectToken":
            return self._json(401, {"code": 401, "message": "Unauthenticated"})
        self.on_request(number, method, "before")
        return self._answer_call(number, method, json.loads(data or b"{}"))

    def _answer_call(self, number: int, method: str, body: dict[str, Any]) -> Answer:
        fault = self.fault_of(method)
        code, _, after_s = fault.partition(" ")
        if code.isdigit():
            answer = self._json(int(code), {"code": int(code), "message": "later"})
            if after_s:
                answer.headers["Retry-After"] = after_s
            return answer
        if fault == "slow":
            time.sleep(0.5)
        if fault == "html":
            return Answer(200, b"<html>busy</html>", {"Content-Type": "text/html"})
        if fault == "odd":
            return self._json(200, None)
        if fault == "drop":
            raise CutError
        if fault == "late":
            self.clock.later(0.3 if self.on_loopback else 240.0, lambda: self.call(method, body))
            raise CutError
        status, document = self.call(method, body)
        self.on_request(number, method, "after")
        if fault == "lost":
            raise CutError
        if fault == "lost 502":
            return self._json(502, {"code": 502, "message": "bad gateway"})
        if isinstance(document, Path):
            where = f"http://localhost/file/{document.relative_to(self.folder)}?{SIGNATURE}"
            return Answer(302, b"", {"Location": where})
        return self._json(status, document)

    def _get(self, path: str, query: str) -> Answer:
        parts = path.strip("/").split("/")
        if parts[0] == "output":
            return self._file(self.versions[parts[1]][int(parts[2]) - 1].output.joinpath(*parts[3:]))
        if parts[0] == "file":
            return self._file(self.folder.joinpath(*parts[1:]))
        if "stream" in parts:
            label = urllib.parse.parse_qs(query).get("versionLabel", [""])[0]
            version = self._version({"kernelSlug": parts[-1], "versionLabel": label})
            if version is not None:
                with self.lock:
                    self.num_requests += 1
                return self._json(200, version.shown_log)
        return self._json(404, {"code": 404, "message": "not found"})

    def _file(self, path: Path) -> Answer:
        fault = self.fault_of("download")
        if fault.isdigit():
            return Answer(int(fault), b"gone", {"Content-Type": "text/plain"})
        data = path.read_bytes()
        answer = Answer(200, data, {"Content-Length": str(len(data))})
        if fault == "drop":
            answer.body = data[: len(data) // 2]
        return answer

    def _json(self, status: int, document: Any) -> Answer:
        return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})
