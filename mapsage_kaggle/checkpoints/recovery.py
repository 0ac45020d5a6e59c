"""Recover a work dir after a crash or kill, so that its manifest agrees with its files."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from mapsage_kaggle.checkpoints.manifest import Manifest
from mapsage_kaggle.checkpoints.proving import prove
from mapsage_kaggle.checkpoints.retention import newest_of
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import WorkDir, replace_file

_STRAY_AGE_S = 600.0


def recover(files: WorkDir, *, warn: Callable[[str], None]) -> Manifest:
    """Bring manifest, ``last_checkpoint`` and files together, and return the manifest.

    Only for whoever holds the lock. Calls ``warn`` with what could not be repaired, or had to be rebuilt.
    """
    for path, error in remove_strays(files.path):
        warn(Message("{path} is left over and resists: {why}.", path, error.strerror))
    torn, manifest = False, Manifest()
    try:
        manifest = Manifest.read(files.manifest)
    except FileNotFoundError:
        pass
    except ValueError as error:
        torn = True
        warn(Message("{problem}; it is rebuilt from what verifies.", error))
    settled = manifest.settled_in(files.path)
    for path in sorted(files.path.glob("*.pth")):
        if path.name in settled.files or path.is_symlink() or not path.is_file():
            continue
        ref = prove(path)
        if ref is not None:
            settled = settled.with_file(ref)
    if torn or settled != manifest:
        settled.write(files.manifest)
    point_to_newest(files, settled)
    return settled


def point_to_newest(files: WorkDir, manifest: Manifest) -> None:
    newest = next(iter(newest_of(manifest.files.values())), None)
    if newest is None:
        return
    try:
        named = files.last_checkpoint.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        named = ""
    if named != newest.file:
        replace_file(files.last_checkpoint, newest.file)


def remove_strays(folder: Path, *, age_s: float = _STRAY_AGE_S) -> list[tuple[Path, OSError]]:
    """Remove the temporary files of a killed save; return those that resist.

    Those of other writers (the session's record is refreshed by another process) are left
    alone until they are too old to be in use.
    """
    resisting: list[tuple[Path, OSError]] = []
    for path in sorted(folder.glob("*.tmp")):
        name = path.name
        mine = name.endswith(".pth.tmp") or name.startswith(("manifest.json.", "last_checkpoint."))
        try:
            if mine or time.time() - path.stat().st_mtime > age_s:
                path.unlink()
        except OSError as error:
            resisting.append((path, error))
    return resisting
