"""The journal of images that have been predicted, by which an interrupted run continues.

A line is appended for each image once all its files are in place. It is valid as long as model, options and
image are unchanged, and the files are there, with unchanged sizes.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mapsage_kaggle.imagery.reading import stamp_beside
from mapsage_kaggle.imagery.sources import JOURNAL, Source, archive_of, gdal_name
from mapsage_kaggle.imagery.writing import WriteFailed


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """What the files of an image depend on.

    Attributes:
        checkpoint_sha256: Of the weights.
        options: A digest of the model's config and of all options that change a file's content.
        size_bytes: Of the image's file.
        modified_ns: When the image's file was last written.
        beside: The same of its sidecar files.
    """

    checkpoint_sha256: str
    options: str
    size_bytes: int
    modified_ns: int
    beside: str = ""

    @classmethod
    def of(cls, source: Path, *, checkpoint_sha256: str, options: str) -> Stamp:
        """Return the stamp of an image as it is on the disk now.

        Raises:
            OSError: It cannot be accessed.
        """
        found = (archive_of(source) or source).stat()
        return cls(
            checkpoint_sha256=checkpoint_sha256,
            options=options,
            size_bytes=found.st_size,
            modified_ns=found.st_mtime_ns,
            beside=stamp_beside(source),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Journal:
    """The lines of a folder's ``predictions.jsonl``.

    Args:
        folder: Where the predictions go. It must exist.

    Attributes:
        lines: The newest of each image, by its name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / JOURNAL
        self._lock = threading.Lock()
        content = self._file.read_bytes() if self._file.is_file() else b""
        self.lines = {str(line["name"]): line for line in _lines_in(content)}
        self._ends_torn = bool(content) and not content.endswith(b"\n")

    def finished(self, source: Source, stamp: Stamp) -> Mapping[str, Any] | None:
        """Return the line of an image that need not be predicted again, else None."""
        line = self.lines.get(source.name)
        if line is None or any(line.get(key) != value for key, value in stamp.to_json().items()):
            return None
        return line if self._sizes(line["files"]) == line.get("bytes") else None

    def other_image(self, source: Source) -> Path | None:
        """Return the image whose files have a source's name, if it is another one that still exists."""
        line = self.lines.get(source.name)
        if line is None or "image" not in line:
            return None
        noted = Path(str(line["image"]))
        is_there = noted.exists() or archive_of(noted) is not None
        return noted if is_there and _real(noted) != _real(source.path) else None

    def _sizes(self, names: Sequence[str]) -> list[int] | None:
        try:
            return [(self._folder / name).stat().st_size for name in names]
        except OSError:
            return None

    def add(self, source: Source, stamp: Stamp, files: list[Path], found: Mapping[str, Any]) -> None:
        """Append the line of an image whose files are in place below the folder. Safe from any thread.

        ``stamp`` is of when the image was read; ``found`` is what else to note: sizes, pixels by class.

        Raises:
            WriteFailed: The line cannot be written.
        """
        names = [file.relative_to(self._folder).as_posix() for file in files]
        line = {
            "name": source.name, "image": str(Path(gdal_name(source.path)).absolute()),
            "files": names, "bytes": self._sizes(names), **found, **stamp.to_json(),
        }  # fmt: skip
        with self._lock:
            begin = "\n" if self._ends_torn else ""
            try:
                # Bytes of a file name that are not UTF-8 become JSON's escapes.
                with self._file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                    stream.write(begin + json.dumps(line, ensure_ascii=False) + "\n")
            except OSError as error:
                raise WriteFailed.of(self._file, error.strerror or error) from error
            self._ends_torn = False
            self.lines[source.name] = line


def _lines_in(content: bytes) -> Iterator[dict[str, Any]]:
    # Not by splitlines(): JSON leaves other line breaks of Unicode in a name as they are.
    for text in content.decode("utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue  # cut off while it was written
        if isinstance(line, dict) and isinstance(line.get("files"), list) and "name" in line:
            yield line


def _real(path: Path) -> str:
    return os.path.realpath(gdal_name(path))
