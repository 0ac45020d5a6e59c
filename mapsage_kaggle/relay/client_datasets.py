"""Data sets on Kaggle: what is in them, and new versions of one's own."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mapsage_kaggle.relay.answers import Absent, Denied, Refusal, Unreachable, Unreadable, number

if TYPE_CHECKING:
    from mapsage_kaggle.relay.client import KaggleClient

State = Literal["none", "processing", "ready", "failed"]
_STATES: Mapping[str, State] = {"FAILED": "failed", "READY": "ready"}


class Datasets:
    """The data sets that one account can see."""

    def __init__(self, kaggle: KaggleClient) -> None:
        self._kaggle = kaggle

    def exists(self, ref: str) -> bool:
        return self.files(ref) is not None

    def files(self, ref: str) -> Mapping[str, int] | None:
        """Return the size in bytes of each file in the newest version; None where there is no such set.

        Packed by Kaggle, a file may be told with another size, or with none. It is asked twice before it is
        taken for missing: one refusal may be an accident.
        """
        first = self._files(ref)
        return self._files(ref) if first is None else first

    def _files(self, ref: str) -> Mapping[str, int] | None:
        try:
            pages = list(self._kaggle.pages("list_dataset_files", **_names(ref)))
        except Refusal:
            return None
        return {item.name: number(item.total_bytes) for page in pages for item in page.dataset_files or []}

    def fetch(self, ref: str, name: str, folder: Path) -> Path:
        """Fetch one file of the newest version into ``folder``, and return where it is.

        Raises:
            Unreachable: It did not come.
        """
        folder.mkdir(parents=True, exist_ok=True)
        target, packed = folder / name, folder / f"{name}.zip"
        for path in (target, packed):
            path.unlink(missing_ok=True)
        with self._kaggle.translating():
            self._kaggle.api.dataset_download_file(ref, name, path=str(folder), force=True, quiet=True)
        if packed.is_file():  # Kaggle packs what is large; only the newest clients unpack it
            with contextlib.suppress(zipfile.BadZipFile, KeyError), zipfile.ZipFile(packed) as archive:
                archive.extract(name, folder)
            packed.unlink()
        if not target.is_file():
            raise Unreachable(f"{name} of {ref} did not come.")
        return target

    def state(self, ref: str) -> State:
        """Return what Kaggle is doing with the newest version of one's own data set."""
        try:
            answer = self._kaggle.ask("get_dataset_status", **_names(ref))
        except (Absent, Denied):
            return "none"
        except Unreadable:  # a word that this client does not know
            return "processing"
        return _STATES.get(answer.status.name, "processing")

    def upload(self, folder: Path, ref: str, notes: str, *, create: bool) -> None:
        """Make the files of ``folder`` the newest version of one's own data set.

        ``folder`` has ``dataset-metadata.json``; folders in it are not taken.

        Raises:
            Refusal: Kaggle said no.
            Unreachable: No answer came. To repeat it does no harm.
        """
        api = self._kaggle.api
        with self._kaggle.translating():
            if create:
                answer = api.dataset_create_new(str(folder), quiet=True)
            else:
                answer = api.dataset_create_version(str(folder), notes, quiet=True)
        if answer.error or str(answer.status).lower() == "error":
            raise self._kaggle.rejected(f"Kaggle did not take {ref}: {answer.error}", stray=True)


def _names(ref: str) -> dict[str, str]:
    owner, _, slug = ref.partition("/")
    return {"owner_slug": owner, "dataset_slug": slug}
