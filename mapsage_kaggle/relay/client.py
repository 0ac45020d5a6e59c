"""Kaggle, spoken to through the objects of its own client. Nothing else of the kit imports ``kaggle``.

``import kaggle`` reads the credentials where the official client does, and checks a token over the
network. So it is imported by :meth:`KaggleClient.connect` and not before. The client itself has no time
limits and retries next to nothing: time limits are added here, and repeating is the loop's matter,
since repeating a push would start a second session.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapsage_kaggle.errors import MachineError, MapsageError, UsageError
from mapsage_kaggle.relay.decide import Status

TIMEOUT_S = 60.0
"""For one answer of Kaggle's, and between two pieces of a download."""
CONNECT_S = 120.0
"""For the import of the client, which checks a token."""
PAGE_SIZE = 100
MAX_PAGES = 100

_STATUSES: Mapping[str, Status] = {
    "NEW_SCRIPT": "new",
    "QUEUED": "queued",
    "RUNNING": "running",
    "COMPLETE": "complete",
    "ERROR": "error",
    "CANCEL_REQUESTED": "cancelling",
    "CANCEL_ACKNOWLEDGED": "cancelled",
}


class Unreachable(MachineError):
    """Kaggle did not answer, or answered that it cannot now: worth another try."""


class Denied(MachineError):
    """The credentials do not allow it."""


class Absent(UsageError):
    """There is no such thing on Kaggle."""


class Rejected(MachineError):
    """Kaggle understood, and said no."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFile:
    """A file that a version left: its name within the output, and where it can be had."""

    name: str
    url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """GPU time of this week.

    Attributes:
        left_s: What is left of it, what running sessions have reserved taken off.
        allowed_s: The whole of it.
        renews: When it is renewed, for people; empty where Kaggle does not say.
    """

    left_s: float
    allowed_s: float
    renews: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What Kaggle answered to a push that it took.

    Attributes:
        version: The version that it became; 0 where the answer does not say.
        slug: Of the notebook that it became a version of.
        invalid_kernels: Notebooks that it was not given.
        invalid_datasets: Data sets that it was not given.
    """

    version: int
    slug: str
    invalid_kernels: tuple[str, ...] = ()
    invalid_datasets: tuple[str, ...] = ()


class KaggleClient:
    """One account.

    Attributes:
        owner: Whose.
        timeout_s: For one answer.
    """

    def __init__(self, api: Any, owner: str) -> None:
        self._api = api
        self.owner = owner
        self.timeout_s = TIMEOUT_S
        self._build = api.build_kaggle_client
        # So that what the client does on its own (push, upload, follow a log) has time limits, too.
        api.build_kaggle_client = self._bounded_client

    @classmethod
    def connect(cls, owner: str) -> KaggleClient:
        """Read the credentials as the official client does, and see whether they are the owner's.

        Raises:
            MachineError: The package is missing, there are no valid credentials, or no Kaggle.
            UsageError: They are another account's.
        """
        found: list[Any] = []
        failed: list[BaseException] = []

        def look() -> None:
            try:
                found.append(_imported())
            except BaseException as error:  # noqa: BLE001 - the client exits where it has no credentials
                failed.append(error)

        # It has no time limit of its own.
        thread = threading.Thread(target=look, daemon=True, name="connect")
        with _quiet():
            thread.start()
            thread.join(CONNECT_S)
        if thread.is_alive():
            raise Unreachable(f"Kaggle did not answer within {CONNECT_S:.0f} s.", "Try again.")
        if failed:
            _raise_unless_without_credentials(failed[0])
        user = str(found[0].config_values.get("username") or "") if found else ""
        if not user:
            raise MachineError(
                "There are no valid Kaggle credentials here; a token that has expired counts as none.",
                "Create a token on kaggle.com (Settings, API) and put it into ~/.kaggle/access_token or the "
                "variable KAGGLE_API_TOKEN.",
            )
        if user.lower() != owner.lower():
            raise UsageError(
                f"The credentials here are {user}'s, not {owner}'s.",
                f"Give --owner {user}, or {owner}'s token.",
            )
        return cls(found[0], user)

    # -- notebooks

    def newest_version(self, slug: str) -> int:
        """Return the number of a notebook's newest version; 0 where there is no such notebook.

        Raises:
            Denied: The credentials do not allow to look.
            Unreachable: Kaggle does not answer.
        """
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

        request = ApiGetKernelRequest()
        request.user_name, request.kernel_slug = self.owner, slug
        try:
            answer = self._call(lambda api: api.kernels.kernels_api_client.get_kernel, request)
        except (Absent, Denied) as error:
            # Kaggle answers 403 as well for one that does not exist. Its list tells.
            if self._is_listed(slug):
                raise Denied(
                    f"The credentials do not allow to read {self.owner}/{slug}.",
                    "Create a token with all rights to notebooks on kaggle.com (Settings, API).",
                ) from error
            return 0
        number = int(answer.metadata.current_version_number or 0)
        if number <= 0:
            raise Unreachable(f"Kaggle does not tell the version of {self.owner}/{slug}.", "Try again later.")
        return number

    def _is_listed(self, slug: str) -> bool:
        from kagglesdk.kernels.types.kernels_api_service import ApiListKernelsRequest
        from kagglesdk.kernels.types.kernels_enums import KernelsListViewType

        for page in range(1, MAX_PAGES + 1):
            request = ApiListKernelsRequest()
            request.group, request.user = KernelsListViewType.PROFILE, self.owner
            request.page, request.page_size = page, PAGE_SIZE
            kernels = self._call(lambda api: api.kernels.kernels_api_client.list_kernels, request).kernels
            if any(item.ref.rpartition("/")[2] == slug for item in kernels or []):
                return True
            if len(kernels or []) < PAGE_SIZE:
                break
        return False

    def source(self, slug: str, version: int) -> str:
        """Return the text of a version.

        Raises:
            Absent: There is none.
        """
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

        request = self._of_version(ApiGetKernelRequest(), slug, version)
        answer = self._call(lambda api: api.kernels.kernels_api_client.get_kernel, request)
        return str(answer.blob.source or "")

    def status(self, slug: str, version: int) -> Status:
        """Return how a version is doing; ``unknown`` for a word that this client does not know."""
        from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelSessionStatusRequest

        request = self._of_version(ApiGetKernelSessionStatusRequest(), slug, version)
        try:
            answer = self._call(lambda api: api.kernels.kernels_api_client.get_kernel_session_status, request)
        except KeyError:
            return "unknown"
        return _STATUSES.get(answer.status.name, "unknown")

    def outputs(self, slug: str, version: int) -> tuple[tuple[OutputFile, ...], str]:
        """Return the files that a version left, and its log as Kaggle keeps it."""
        from kagglesdk.kernels.types.kernels_api_service import ApiListKernelSessionOutputRequest

        files: dict[str, OutputFile] = {}
        log, token = "", ""
        for _ in range(MAX_PAGES):
            request = self._of_version(ApiListKernelSessionOutputRequest(), slug, version)
            request.page_size, request.page_token = PAGE_SIZE, token
            answer = self._call(
                lambda api: api.kernels.kernels_api_client.list_kernel_session_output, request
            )
            for item in answer.files or []:
                files[item.file_name] = OutputFile(name=item.file_name, url=item.url)
            log = log or answer.log or ""
            if not answer.next_page_token or answer.next_page_token == token:
                break
            token = answer.next_page_token
        return tuple(files.values()), log

    def download(self, file: OutputFile, target: Path) -> None:
        """Fetch a file of an output; ``target`` is there as a whole or not at all.

        Raises:
            Unreachable: It did not come, or not all of it.
        """
        import requests

        partial = target.with_name(f"{target.name}.part")
        try:
            with requests.get(file.url, stream=True, timeout=self.timeout_s) as answer:
                answer.raise_for_status()
                num_bytes = 0
                with partial.open("wb") as stream:
                    for chunk in answer.iter_content(1 << 20):
                        stream.write(chunk)
                        num_bytes += len(chunk)
                promised = answer.headers.get("Content-Length")
            if (
                promised is not None
                and "Content-Encoding" not in answer.headers
                and num_bytes != int(promised)
            ):
                raise Unreachable(f"{file.name} came with {num_bytes} bytes of {promised}.")
            partial.replace(target)
        except requests.RequestException as error:
            # Its text holds the signed address.
            raise Unreachable(f"{file.name} did not come ({type(error).__name__}).") from None
        finally:
            partial.unlink(missing_ok=True)

    def push(self, folder: Path, *, limit_s: float, machine: str | None) -> Pushed:
        """Send the notebook that ``folder`` describes, which starts a session. Never repeats anything.

        Args:
            folder: With ``kernel-metadata.json`` and the notebook.
            limit_s: Kaggle ends the session after this.
            machine: Kaggle's name of the machine; None for one without GPU.

        Raises:
            Rejected: Kaggle said no.
            Denied: The credentials do not allow it.
            Unreachable: No answer came, or none that can be read: it may have been taken.
        """
        with self._translating():
            answer = self._api.kernels_push(str(folder), timeout=str(int(limit_s)), acc=machine)
        if answer.error:
            raise Rejected(self._scrub(answer.error))
        return Pushed(
            version=int(answer.version_number or 0),
            slug=str(answer.ref or "").rstrip("/").rpartition("/")[2],
            invalid_kernels=tuple(answer.invalid_kernel_sources or ()),
            invalid_datasets=tuple(answer.invalid_dataset_sources or ()),
        )

    def follow(self, slug: str, version: int, seconds: float) -> Iterator[str]:
        """Give the log of a version, from its beginning and then as it grows, for so many seconds.

        Ends early, without an error, where the session ends or Kaggle does not stream.
        """
        end = time.monotonic() + seconds
        usual_s, self.timeout_s = self.timeout_s, max(1.0, min(self.timeout_s, seconds))
        try:
            stream = iter(self._api.kernels_logs_stream(f"{self.owner}/{slug}/{version}"))
            while time.monotonic() < end:
                with self._translating():
                    event = next(stream, None)
                if event is None:
                    return
                yield from str(event.get("data", "")).splitlines()
        except (MapsageError, AttributeError, KeyError, ValueError):
            return  # shows less, and that is all
        finally:
            self.timeout_s = usual_s

    # -- the rest

    def quota(self) -> Quota | None:
        """Return this week's GPU time; None where Kaggle does not tell."""
        try:
            from kagglesdk.kernels.types.kernels_api_service import ApiGetAcceleratorQuotaStatisticsRequest
        except ImportError:  # kagglesdk before 0.1.15
            return None
        request = ApiGetAcceleratorQuotaStatisticsRequest()
        try:
            answer = self._call(
                lambda api: api.kernels.kernels_api_client.get_accelerator_quota_statistics, request
            )
        except (Absent, Rejected, Denied):
            return None
        gpu = answer.gpu_quota
        if gpu is None or gpu.total_time_allowed is None:
            return None
        used_s = sum(item.total_seconds() for item in (gpu.time_used, gpu.time_reserved) if item is not None)
        allowed_s = gpu.total_time_allowed.total_seconds()
        renews = answer.quota_refresh_time
        return Quota(
            left_s=max(0.0, allowed_s - used_s),
            allowed_s=allowed_s,
            renews=f"{renews:%Y-%m-%d %H:%M} UTC" if renews else "",
        )

    def has_dataset(self, ref: str) -> bool:
        """Tell whether a data set, ``owner/slug``, is there and may be seen."""
        try:
            self._dataset_page(ref, "")
        except (Absent, Denied, Rejected):
            return False
        return True

    def dataset_files(self, ref: str) -> tuple[str, ...]:
        """Return the names of the files in a data set's newest version; none where there is no such set."""
        names: list[str] = []
        token = ""
        try:
            for _ in range(MAX_PAGES):
                page = self._dataset_page(ref, token)
                names += [item.name for item in page.dataset_files or []]
                if not page.next_page_token or page.next_page_token == token:
                    break
                token = page.next_page_token
        except (Absent, Denied, Rejected):
            return ()
        return tuple(names)

    def _dataset_page(self, ref: str, token: str) -> Any:
        from kagglesdk.datasets.types.dataset_api_service import ApiListDatasetFilesRequest

        request = ApiListDatasetFilesRequest()
        request.owner_slug, _, request.dataset_slug = ref.partition("/")
        request.page_size, request.page_token = PAGE_SIZE, token
        return self._call(lambda api: api.datasets.dataset_api_client.list_dataset_files, request)

    def fetch_from_dataset(self, ref: str, name: str, folder: Path) -> Path:
        """Fetch one file of a data set's newest version into ``folder``, and return where it is.

        Raises:
            Unreachable: It did not come.
        """
        folder.mkdir(parents=True, exist_ok=True)
        target, packed = folder / name, folder / f"{name}.zip"
        for path in (target, packed):
            path.unlink(missing_ok=True)
        with self._translating():
            self._api.dataset_download_file(ref, name, path=str(folder), force=True, quiet=True)
        if packed.is_file():  # Kaggle packs what is large; only the newest clients unpack it
            with contextlib.suppress(zipfile.BadZipFile, KeyError), zipfile.ZipFile(packed) as archive:
                archive.extract(name, folder)
            packed.unlink()
        if not target.is_file():
            raise Unreachable(f"{name} of {ref} did not come.")
        return target

    def dataset_is_ready(self, ref: str) -> bool:
        """Tell whether Kaggle is done with the newest version of one's own data set.

        Raises:
            Rejected: It failed.
        """
        from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetStatusRequest

        request = ApiGetDatasetStatusRequest()
        request.owner_slug, _, request.dataset_slug = ref.partition("/")
        try:
            answer = self._call(lambda api: api.datasets.dataset_api_client.get_dataset_status, request)
        except (Absent, Denied, KeyError):
            return False
        if answer.status.name == "FAILED":
            raise Rejected(
                f"Kaggle could not take the files into {ref}.", f"Look at kaggle.com/datasets/{ref}."
            )
        return bool(answer.status.name == "READY")

    def upload(self, folder: Path, ref: str, notes: str) -> None:
        """Make the files of ``folder`` the newest version of one's own data set; create it where needed.

        Args:
            folder: With ``dataset-metadata.json``; folders in it are not taken.
            ref: ``owner/slug``.
            notes: What is new.

        Raises:
            Rejected: Kaggle said no.
            Unreachable: No answer came. To repeat it does no harm.
        """
        exists = self.has_dataset(ref)
        with self._translating():
            if exists:
                answer = self._api.dataset_create_version(str(folder), notes, quiet=True)
            else:
                answer = self._api.dataset_create_new(str(folder), quiet=True)
        if answer.error or str(answer.status).lower() == "error":
            raise Rejected(self._scrub(f"Kaggle did not take {ref}: {answer.error}"))

    # -- how it is called

    def _of_version(self, request: Any, slug: str, version: int) -> Any:
        request.user_name, request.kernel_slug = self.owner, slug
        # kagglesdk before 0.1.16 knows the newest version only, which is what is mostly asked for.
        if hasattr(type(request), "version_label"):
            request.version_label = f"v{version}"
        return request

    def _call(self, method: Callable[[Any], Callable[[Any], Any]], request: Any) -> Any:
        with self._translating(), self._api.build_kaggle_client() as client:
            return method(client)(request)

    def _bounded_client(self) -> Any:
        from requests.adapters import HTTPAdapter

        kaggle = self

        class Bounded(HTTPAdapter):
            def send(self, request: Any, *arguments: Any, **options: Any) -> Any:
                options["timeout"] = options.get("timeout") or kaggle.timeout_s
                return super().send(request, *arguments, **options)

        client = self._build()
        http = client.http_client()
        http._init_session()
        for scheme in ("http://", "https://"):
            http._session.mount(scheme, Bounded())
        return client

    @contextlib.contextmanager
    def _translating(self) -> Iterator[None]:
        """Turn what the client raises into what the loop understands, without a secret in it."""
        import requests

        try:
            with _quiet():
                yield
        except requests.exceptions.HTTPError as error:
            raise self._refusal(error) from None
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            raise Unreachable(f"Kaggle does not answer ({type(error).__name__}).") from None
        except json.JSONDecodeError:
            raise Unreachable("Kaggle answered with something else than JSON.") from None
        except ValueError as error:
            # The client's own: what it was given does not do.
            raise Rejected(self._scrub(str(error))) from None

    def _refusal(self, error: Any) -> MapsageError:
        code, message = error.response.status_code, ""
        with contextlib.suppress(ValueError, AttributeError):
            document = error.response.json()
            code = int(document.get("code", code))
            message = str(document.get("message", ""))
        message = self._scrub(message)
        if code == 429 or code >= 500:
            return Unreachable(f"Kaggle cannot answer now (HTTP {code}).")
        if code == 401:
            return Denied(
                "Kaggle does not accept the credentials (HTTP 401).",
                "Create a new token on kaggle.com (Settings, API).",
            )
        if code == 403:
            return Denied(
                f"The credentials do not allow it (HTTP 403){': ' + message if message else ''}.",
                "Create a token with rights to notebooks and data sets on kaggle.com (Settings, API).",
            )
        if code == 404:
            return Absent(f"Kaggle knows nothing of it (HTTP 404){': ' + message if message else ''}.")
        return Rejected(message or f"Kaggle said no (HTTP {code}).")

    def _scrub(self, text: str) -> str:
        for name in ("token", "key"):
            secret = self._api.config_values.get(name)
            if secret:
                text = text.replace(str(secret), "***")
        text = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?***", text)
        return re.sub(r"KGAT_\w+", "***", text)[:500]


def _imported() -> Any:
    import kaggle

    api = kaggle.api
    if not api.config_values.get("username"):
        # The import keeps silent about why it could not; this tells.
        api.authenticate()
    return api


def _raise_unless_without_credentials(error: BaseException) -> None:
    if isinstance(error, ImportError):
        raise MachineError(
            f"The package kaggle is not installed ({error}).", "Run `pip install 'kaggle>=2,<3'`."
        ) from error
    import requests

    answer = getattr(error, "response", None)
    refused = answer is not None and answer.status_code < 500 and answer.status_code != 429
    if isinstance(error, SystemExit) or refused:
        return
    if isinstance(error, requests.RequestException):
        raise Unreachable("Kaggle cannot be reached.", "Check the network, then try again.") from None
    raise MachineError(
        f"Kaggle's client cannot start: {type(error).__name__}.", "Try `kaggle config view`."
    ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the client prints (help, warnings, addresses) off the console."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
