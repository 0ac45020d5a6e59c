"""Where things lie: Kaggle's three folders, and the files of a work dir."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.messages import Message

ROOT_VARIABLE = "MAPSAGE_KAGGLE_ROOT"
KAGGLE_ROOT = Path("/kaggle")
FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
"""The error numbers by which a disk without room refuses."""


def on_kaggle(environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether this is Kaggle itself, rather than a stand-in for its folders or another place.

    Asked before any other platform is considered: Kaggle sets ``COLAB_*`` variables too.
    """
    environ = os.environ if environ is None else environ
    return "KAGGLE_KERNEL_RUN_TYPE" in environ and ROOT_VARIABLE not in environ


@dataclass(frozen=True, kw_only=True, slots=True)
class KagglePaths:
    """The three folders that a Kaggle session has.

    Attributes:
        input: Attached sources, read-only.
        working: Saved as the session's output (20 GB and 500 files at most).
        temp: Scratch space, not saved. Where ``/kaggle`` is not writable, the platform's.
    """

    input: Path
    working: Path
    temp: Path

    @classmethod
    def below(cls, root: Path) -> KagglePaths:
        return cls(input=root / "input", working=root / "working", temp=root / "temp")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> KagglePaths:
        """Return ``/kaggle``'s folders, or those below ``MAPSAGE_KAGGLE_ROOT`` where it is set."""
        environ = os.environ if environ is None else environ
        root = environ.get(ROOT_VARIABLE)
        paths = cls.below(Path(root).absolute() if root else KAGGLE_ROOT)
        place = paths.temp if os.path.lexists(paths.temp) else KAGGLE_ROOT
        return paths if root or os.access(place, os.W_OK | os.X_OK) else replace(paths, temp=_own_scratch())

    def work_dir(self, config: Path, asked: Path | None = None) -> Path:
        """Return where a config's sessions write: where that was asked for, or else in the output."""
        return (asked or self.working / "work_dirs" / config.stem).absolute()


class Below:
    """An attribute that is the path of one file or folder below its owner's ``path``."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, kind: type) -> Path:
        return owner.path / self._name  # type: ignore[no-any-return]


def _own_scratch() -> Path:
    """Return this user's folder among the platform's temporary ones, where anybody can put a folder."""
    folder = Path(tempfile.gettempdir(), f"mapsage-kaggle-{os.getuid()}")
    with suppress(FileNotFoundError):
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise MachineError(
                Message("The scratch folder {path} is not this user's own.", folder),
                "Remove it, or name another place for temporary files: TMPDIR=FOLDER.",
            )
    return folder


@dataclass(frozen=True, slots=True)
class WorkDir:
    """The files of one run's work dir, by name. Nothing is created by asking for a path."""

    path: Path

    session = Below("session.json")  # this session's record
    events = Below("events.jsonl")  # this session's, one JSON object a line
    manifest = Below("manifest.json")  # size and sha256 of each proven checkpoint
    last_checkpoint = Below("last_checkpoint")  # the name of the newest proven one, relative to the work dir
    config = Below("config.py")  # the effective one, which the session runs
    config_diff = Below("config.diff")  # what the patch changed, as a unified diff
    history = Below("history")  # the records and events of earlier sessions, carried along
    evaluation = Below("evaluation")  # what evaluations counted and found
    # Small pictures of a few validation images, with truth and predictions.
    predictions = Below("predictions")
    trackers = Below("trackers")  # what trackers keep, by run
    report = Below("report.html")  # for people
    log = Below("train.log")  # what the training child printed
    # Written by the supervisor, or by anyone, to end training in good order; that it is there counts.
    stop_request = Below("stop_request.json")
    # The same to have a checkpoint made; training takes it away. It never replaces a stop request.
    save_request = Below("save_request.json")
    lock = Below("work_dir.lock")  # held with flock by whoever may write here


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionFiles:
    """The pictures of one validation image.

    Attributes:
        image: What the model sees; None where it is no picture of three colours.
        truth: Its classes.
        predictions: What the model took them for, by iteration.
    """

    name: str
    image: Path | None
    truth: Path | None
    predictions: Mapping[int, Path]

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.image, self.truth, *self.predictions.values()) if path)


def prediction_file(name: str, part: Literal["image", "truth"] | int) -> str:
    """Return a picture's file name: of the image, of its truth, or of a prediction by iteration."""
    return f"{name}_{part}.png" if isinstance(part, str) else f"{name}_iter_{part}.png"


def predictions_below(folder: Path) -> list[PredictionFiles]:
    """Return the pictures in a folder by image, in the order of their names; other files are passed over."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.png")):
        match = re.fullmatch(r"(.+)_(image|truth|iter_[0-9]{1,15})", path.stem)
        if match:
            found.setdefault(match[1], {})[match[2]] = path
    return [
        PredictionFiles(
            name=name,
            image=parts.get("image"),
            truth=parts.get("truth"),
            predictions={
                int(part[5:]): path for part, path in parts.items() if part not in ("image", "truth")
            },
        )
        for name, parts in found.items()
    ]


def bundled(name: str) -> Path:
    """Return a folder that travels with the kit: ``configs`` or ``notebooks``.

    An installed kit has it inside the package; a checkout, an editable install or the code attached
    as a data set has it beside the package.

    Raises:
        MachineError: It is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise MachineError(
        Message("The kit's own folder {name} is neither in {package} nor beside it.", repr(name), package),
        "Install the kit again, or attach the whole of it.",
    )


def replace_file(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old bytes or the new, never a mixture.

    The temporary file lies in the same folder, so that the final rename stays on one file
    system, and file and folder are flushed to the disk before this returns. It carries no
    leading dot: Kaggle drops dot-files, and a leftover must be visible to be removed.

    Raises:
        OSError: The folder is missing, full or read-only. ``path`` is then unchanged.
    """
    if isinstance(data, str):
        # Lone surrogates, such as a file name may hold, become JSON's escapes of themselves.
        data = data.encode("utf-8", "backslashreplace")
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Remove a tree, read-only folders in it included; nothing where there is none."""
    if folder.exists():
        for path in [folder, *folder.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        shutil.rmtree(folder)


def keep_caches_in(scratch: Path) -> None:
    """Send there what mmengine's config reader (by way of yapf) and matplotlib would write into the home."""
    os.environ.setdefault("XDG_CACHE_HOME", str(scratch / "cache"))
    os.environ.setdefault("MPLCONFIGDIR", str(scratch / "matplotlib"))
