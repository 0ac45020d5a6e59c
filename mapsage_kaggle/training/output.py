"""Count a session's output while it grows: Kaggle silently drops files beyond 500.

What writes pictures by the hundred (``SegVisualizationHook(draw=True)``, a custom hook) cannot be known
beforehand. Folders of a work dir that fill with pictures are packed into a few archives each.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from mapsage_kaggle.checks import OUTPUT_BYTES, OUTPUT_FILES
from mapsage_kaggle.machine import contents
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import WorkDir

LOOK_EVERY_S = 30.0
MANY_PICTURES = 100
"""A folder with more pictures is packed."""
SETTLED_S = 2.0
"""A younger picture may not be complete yet."""
_MAX_AT_ONCE = 2000
_PICTURES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp"))
_UNFINISHED = ".unfinished.zip"


class OutputWatch:
    """Counts and packs, every half minute and at the end.

    Args:
        work_dir: Its folders are packed.
        output: The folder that Kaggle keeps.
        warn: Called with each warning, once.
    """

    def __init__(self, work_dir: Path, output: Path, warn: Callable[[str], None]) -> None:
        self._files = WorkDir(work_dir)
        self._output = output if work_dir.is_relative_to(output) else work_dir
        self._warn = warn
        self._looked_s = time.monotonic()
        self._told: set[str] = set()

    def look_now_and_then(self) -> None:
        """Look unless the last time was less than ``LOOK_EVERY_S`` ago."""
        if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
            self.look()

    def look(self, *, at_the_end: bool = False) -> None:
        """Pack folders full of pictures, and warn of an output that is too large all the same.

        ``at_the_end`` nothing is written any more, and so no picture is too young to pack.
        """
        settled_s = time.time() - (0.0 if at_the_end else SETTLED_S)
        for folder, pictures in self._folders_of_pictures():
            if len(pictures) > MANY_PICTURES:
                self._pack(folder, pictures, settled_s)
        used_bytes, num_files = contents(self._output)
        if num_files > OUTPUT_FILES:
            self._tell(
                "files",
                Message(
                    "The output holds {count} files, most of them in {folder}; Kaggle drops files "
                    "beyond 500 in silence. Delete what is not needed, or have it written to scratch.",
                    num_files,
                    self._fullest(),
                ),
            )
        if used_bytes > 0.9 * OUTPUT_BYTES:
            self._tell(
                "bytes",
                Message(
                    "The output holds {size} GB, and Kaggle keeps at most {most} GB. Delete what is "
                    "not needed, or have it written to scratch.",
                    f"{used_bytes / 1e9:.1f}",
                    f"{OUTPUT_BYTES / 1e9:.1f}",
                ),
            )
        self._looked_s = time.monotonic()

    def _folders_of_pictures(self) -> list[tuple[Path, list[str]]]:
        """Return the folders of the work dir except the kit's own, each with its pictures."""
        found = []
        own = (self._files.predictions, self._files.history, self._files.evaluation)
        for place, folders, names in os.walk(self._files.path):
            folders[:] = [name for name in folders if Path(place, name) not in own]
            pictures = [name for name in names if Path(name).suffix.lower() in _PICTURES]
            found.append((Path(place), sorted(pictures)))
        return found

    def _pack(self, folder: Path, pictures: list[str], settled_s: float) -> None:
        """Move pictures into an archive; they are removed once it is complete."""
        for stray in folder.glob(f"*{_UNFINISHED}"):
            stray.unlink(missing_ok=True)  # left by a session that was killed
        packed: list[Path] = []
        numbers = (path.stem.removeprefix("pictures_") for path in folder.glob("pictures_*.zip"))
        number = 1 + max((int(text) for text in numbers if text.isdecimal()), default=0)
        archive = folder / f"pictures_{number:03d}.zip"
        unfinished = archive.with_suffix(_UNFINISHED)
        try:
            with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as target:
                for path in (folder / name for name in pictures[:_MAX_AT_ONCE]):
                    if path.stat().st_mtime <= settled_s:
                        target.write(path, path.name)
                        packed.append(path)
            if len(packed) < MANY_PICTURES // 2:
                return
            unfinished.replace(archive)
            for path in packed:
                path.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            self._tell(
                str(folder), Message("The pictures in {folder} could not be packed: {why}.", folder, reason)
            )
            return
        finally:
            unfinished.unlink(missing_ok=True)
        self._tell(
            str(folder),
            Message(
                "{folder} fills with pictures: they are packed into {archive} and so on, as Kaggle "
                "drops files beyond 500 in silence.",
                folder,
                archive.name,
            ),
        )

    def _fullest(self) -> Path:
        return Path(max(os.walk(self._output), key=lambda found: len(found[2]))[0])

    def _tell(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._warn(message)
