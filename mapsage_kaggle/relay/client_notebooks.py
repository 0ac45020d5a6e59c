"""Notebooks on Kaggle: their versions, the sessions of these, and what they left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapsage_kaggle.relay.answers import Absent, Denied, Refusal, Unreachable, Unreadable, number
from mapsage_kaggle.relay.decide import Status

if TYPE_CHECKING:
    from mapsage_kaggle.relay.client import KaggleClient

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


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFile:
    """A file that a version left.

    Attributes:
        name: Within the output.
        url: Where it can be had; empty where it was not listed, and must be asked for by its name.
    """

    name: str
    url: str = ""


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


class Notebooks:
    """The notebooks of one account."""

    def __init__(self, kaggle: KaggleClient) -> None:
        self._kaggle = kaggle

    def newest_version(self, slug: str) -> int:
        """Return the number of a notebook's newest version; 0 where there is no such notebook.

        Raises:
            Denied: The credentials do not allow to look.
            Unreachable: Kaggle does not answer.
        """
        try:
            answer = self._get(slug)
        except (Absent, Denied):
            # Kaggle answers 403 as well for one that does not exist. Its list tells.
            if slug in self.slugs():
                raise
            return 0
        newest = number(answer.metadata.current_version_number)
        if not newest:
            name = f"{self._kaggle.owner}/{slug}"
            raise Unreachable(f"Kaggle does not tell the version of {name}.", "Try again later.")
        return newest

    def slugs(self) -> tuple[str, ...]:
        from kagglesdk.kernels.types.kernels_enums import KernelsListSortType, KernelsListViewType

        whose: dict[str, Any] = {"group": KernelsListViewType.PROFILE, "user": self._kaggle.owner}
        whose["sort_by"] = KernelsListSortType.DATE_RUN
        found: list[str] = []
        for page in range(1, MAX_PAGES + 1):
            kernels = self._kaggle.ask("list_kernels", **whose, page=page, page_size=PAGE_SIZE).kernels
            found += [item.ref.rpartition("/")[2] for item in kernels or []]
            if len(kernels or []) < PAGE_SIZE:
                break
        return tuple(found)

    def source(self, slug: str, version: int) -> str:
        """Return the text of a version, 0 for the newest; empty where there is none that may be read."""
        try:
            return str(self._get(slug, version).blob.source or "")
        except (Absent, Denied):
            return ""

    def _get(self, slug: str, version: int = 0) -> Any:
        which = self._of_version(slug, version)
        if not version:
            del which["version_label"]
        answer = self._kaggle.ask("get_kernel", **which)
        if answer.metadata is None or answer.blob is None:
            raise Unreadable(f"Kaggle tells nothing of {self._kaggle.owner}/{slug}.")
        return answer

    def status(self, slug: str, version: int) -> Status:
        """Return how a version is doing.

        ``new`` where it was saved and not run, ``gone`` where there is no such notebook, ``unknown`` for a
        word that this client does not know.
        """
        try:
            answer = self._kaggle.ask("get_kernel_session_status", **self._of_version(slug, version))
        except Unreadable:
            return "unknown"
        except Absent:  # "No runs found" for what never ran, and the same code for what is not there
            return "new" if self.source(slug, version) else "gone"
        except Denied:
            if self.source(slug, version):
                raise
            return "gone"
        return _STATUSES.get(answer.status.name, "unknown")

    def outputs(self, slug: str, version: int) -> tuple[tuple[OutputFile, ...], str]:
        """Return the files that a version left, as far as Kaggle lists them, and its log.

        A listing may be late, in parts, or cut; what is not in it may be there.
        """
        files: dict[str, OutputFile] = {}
        log = ""
        with suppress(Absent):
            for page in self._kaggle.pages("list_kernel_session_output", **self._of_version(slug, version)):
                for item in page.files or []:
                    files[item.file_name] = OutputFile(name=item.file_name, url=item.url)
                log = log or str(page.log or "")
        return tuple(files.values()), log

    def download(self, slug: str, version: int, file: OutputFile, target: Path) -> bool:
        """Fetch a file of an output; ``target`` is there as a whole or not at all.

        Returns:
            Whether there is such a file. One that is listed is; one that is not may be refused in any words.

        Raises:
            Unreachable: It did not come, or not all of it.
        """
        import requests

        partial = target.with_name(f"{target.name}.part")
        try:
            with self._opened(slug, version, file) as answer:
                answer.raise_for_status()
                num_bytes = 0
                with partial.open("wb") as stream:
                    for chunk in answer.iter_content(1 << 20):
                        stream.write(chunk)
                        num_bytes += len(chunk)
                promised = answer.headers.get("Content-Length", "")
            if promised.isdigit() and "Content-Encoding" not in answer.headers and num_bytes != int(promised):
                raise Unreachable(f"{file.name} came with {num_bytes} bytes of {promised}.")
            partial.replace(target)
            return True
        except Refusal:
            return False
        except requests.RequestException as error:
            # Its text holds the signed address.
            raise Unreachable(f"{file.name} did not come ({type(error).__name__}).") from None
        finally:
            partial.unlink(missing_ok=True)

    def _opened(self, slug: str, version: int, file: OutputFile) -> Any:
        import requests

        if file.url:
            return requests.get(file.url, stream=True, timeout=self._kaggle.timeout_s)
        return self._kaggle.ask(
            "download_kernel_output", owner_slug=self._kaggle.owner, kernel_slug=slug, file_path=file.name,
            version_number=version,
        )  # fmt: skip

    def push(self, folder: Path, *, limit_s: float, machine: str | None) -> Pushed:
        """Send the notebook that ``folder`` describes, which starts a session. Never repeats anything.

        ``folder`` has ``kernel-metadata.json`` and the notebook. Without a ``machine`` there is no GPU.

        Raises:
            Rejected: Kaggle said no.
            Denied: The credentials do not allow it.
            Unreachable: No answer came, or none that can be read: it may have been taken.
        """
        with self._kaggle.translating():
            answer = self._kaggle.api.kernels_push(str(folder), timeout=str(int(limit_s)), acc=machine)
        if answer.error:
            raise self._kaggle.rejected(answer.error)
        return Pushed(
            version=number(answer.version_number),
            slug=str(answer.ref or "").rstrip("/").rpartition("/")[2],
            invalid_kernels=tuple(answer.invalid_kernel_sources or ()),
            invalid_datasets=tuple(answer.invalid_dataset_sources or ()),
        )

    def cancel(self, session: int) -> str:
        """Ask Kaggle to end a session; return why it does not, or nothing."""
        try:
            answer = self._kaggle.ask("cancel_kernel_session", kernel_session_id=session)
        except Refusal as error:
            return error.problem
        return str(answer.error_message or "")

    def follow(self, slug: str, version: int) -> Iterator[Mapping[str, Any]]:
        """Give the pieces of a version's log, from its beginning and then as it grows."""
        yield from self._kaggle.api.kernels_logs_stream(f"{self._kaggle.owner}/{slug}/{version}")

    def _of_version(self, slug: str, version: int) -> dict[str, Any]:
        return {"user_name": self._kaggle.owner, "kernel_slug": slug, "version_label": f"v{version}"}
