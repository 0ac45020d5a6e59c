"""The kit's own files: which they are, one hash of them all, and a copy of nothing but them.

A kit lies in a folder (a checkout, attached code), in a wheel, or in a wheel that Kaggle has unpacked
beside other files. Whichever it is, the same files have the same hash. The notebook's install cell has
this once more, in few lines: it runs before there is a kit.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

PACKAGE = "mapsage_kaggle"
ENDINGS = (".py", ".txt", ".j2", ".css", ".js", ".json", ".ipynb", ".typed")
"""Of all that the kit reads. What else lies among its files is neither hashed nor copied."""
BESIDE = ("configs", "notebooks")
"""Folders that a wheel has inside the package, and a checkout beside it."""


def own_home() -> Path:
    return Path(__file__).resolve().parents[1]


def kit_files(home: Path) -> dict[str, bytes]:
    """Return the kit's files in a folder or a wheel: content by name, as a wheel names them.

    Raises:
        OSError: Something cannot be read.
        zipfile.BadZipFile: A file that is no zip archive.
    """
    if home.is_file():
        with zipfile.ZipFile(home) as archive:
            return {
                name: archive.read(name)
                for name in archive.namelist()
                if name.startswith(f"{PACKAGE}/") and name.endswith(ENDINGS)
            }
    package = home / PACKAGE
    roots = {PACKAGE: package}
    for name in BESIDE:
        if not (package / name).is_dir():
            roots[f"{PACKAGE}/{name}"] = home / name
    return {
        f"{prefix}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for prefix, root in roots.items()
        for path in root.rglob("*")
        if path.name.endswith(ENDINGS) and path.is_file()
    }


def kit_sha256(files: Mapping[str, bytes]) -> str:
    """Return the hash of the kit's files, in hex: of a line for each, in the order of their names."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def kit_commit(home: Path) -> str:
    """Return the commit that a checkout of the kit stands at; empty where it is none, or git does not say."""
    if not (home / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(home), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def copy_kit(home: Path, scratch: Path) -> Path:
    """Copy the kit's files, and nothing that lies beside them, into scratch space; return their folder."""
    files = kit_files(home)
    target = scratch / f"kit-{kit_sha256(files)[:12]}"
    if target.is_dir():
        return target
    scratch.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix="kit-making-", dir=scratch))
    for name, data in files.items():
        path = making / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    making.chmod(0o755)
    try:
        making.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(making)
    return target
