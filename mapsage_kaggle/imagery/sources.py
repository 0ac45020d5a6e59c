"""Find the images that are asked for, and name them."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mapsage_kaggle.errors import DataError, UsageError
from mapsage_kaggle.messages import Message

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".jp2", ".img"))
"""What is taken from a folder. A file that is named itself may be anything that GDAL reads."""

JOURNAL = "predictions.jsonl"
LOCK = "predictions.lock"
OUTPUTS = frozenset(("masks", "overlays", "probabilities", "polygons", "unfinished"))
"""The folders that maps are written to, recognised by the journal or the lock beside them."""

_SIDECARS = (
    ".aux.xml", ".ovr", ".msk", ".prj", ".hdr", ".rpb", ".wld", ".tfw", ".pgw", ".jgw", ".bpw", ".ige",
    JOURNAL, LOCK,
)  # fmt: skip
_ARCHIVES = ("vsizip", "vsitar", "vsigzip")
"""GDAL's prefixes for files in an archive: ``/vsizip/scenes.zip/city.tif``."""

Say = Callable[[Message], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """An image to read.

    Attributes:
        path: Its file, or GDAL's name of it in an archive.
        name: The name of its maps: its path below the folder that was given, without suffix.
        is_named: Whether it was named itself, and so may be anything that GDAL reads, even a list of files.
    """

    path: Path
    name: str
    is_named: bool = False


def find_images(
    given: Sequence[Path], *, out: Path | None = None, say: Say = lambda message: None
) -> tuple[Source, ...]:
    """Return the images that are given, and those below folders that are given, the latter sorted by path.

    Maps of earlier runs, beside a journal or a lock, are left out. ``out`` is where maps will be written;
    ``say`` is called with what was left out.

    Raises:
        DataError: A path does not exist, a folder holds no image, or two images would have one name.
        UsageError: A map would be written over an image.
    """
    out = out.resolve() if out is not None else None
    found: dict[Path, Source] = {}
    for path in given:
        if path.is_dir():
            images = sorted(_below(path, say))
            if not images:
                raise DataError(
                    Message("{path} holds no image ({kinds}).", path, ", ".join(sorted(IMAGE_SUFFIXES))),
                    "Give another folder.",
                )
            named = [
                Source(path=image, name=str(image.relative_to(path).with_suffix(""))) for image in images
            ]
        elif path.exists() or (archive_of(path) or path).is_file():
            named = [Source(path=path, name=path.stem, is_named=True)]
        else:
            raise DataError(
                Message("There is nothing at {path}.", path), "Give an image, or a folder of images."
            )
        for source in named:
            found.setdefault(source.path.parent.resolve() / source.path.name, source)
            if out is not None and any(out / kind in source.path.resolve().parents for kind in OUTPUTS):
                raise UsageError(
                    Message("{path} lies where maps are written to.", source.path), "Choose another --out."
                )
    return _apart(list(found.values()))


def check_out(out: Path) -> None:
    """Refuse a folder whose masks, overlays and the like may be a person's own.

    Raises:
        UsageError: There are such files, and neither a journal nor a lock beside them.
    """
    if (out / JOURNAL).exists() or (out / LOCK).exists():
        return
    for kind in sorted(OUTPUTS):
        if any(not file.is_dir() for file in (out / kind).rglob("*")):
            raise UsageError(
                Message(
                    "{path} holds files that are no maps of earlier runs and may be replaced.", out / kind
                ),
                "Give another --out, such as a new folder.",
            )


def _below(folder: Path, say: Say) -> Iterator[Path]:
    """Yield the images below a folder, and report what was left out."""
    others: Counter[str] = Counter()

    def unknown(error: OSError) -> None:
        say(Message("{path} cannot be listed: {why}.", error.filename, error.strerror or error))

    for base, folders, names in os.walk(folder, onerror=unknown):
        here = Path(base)
        has_maps = not {JOURNAL, LOCK}.isdisjoint(names)
        entered = []
        for name in sorted(name for name in folders if not name.startswith(".")):
            if has_maps and name in OUTPUTS:
                say(Message("{path} was left out: maps that were made before.", here / name))
            elif (here / name).is_symlink():
                say(
                    Message("{path} is a link to a folder and was left out; name it to have it.", here / name)
                )
            else:
                entered.append(name)
        folders[:] = entered
        for name in names:
            suffix = Path(name).suffix.casefold()
            if name.startswith(".") or name.casefold().endswith(_SIDECARS):
                continue
            if suffix in IMAGE_SUFFIXES:
                yield here / name
            else:
                others[suffix or name] += 1
    if others:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(others.items())[:9])
        say(Message("Of {folder}, files of other kinds were left out: {kinds}.", folder, kinds))


def _apart(sources: list[Source]) -> tuple[Source, ...]:
    """Return images with unique names, by their folders and then their suffixes where some share one.

    Raises:
        DataError: They share one even so.
    """
    for renamed in (_by_folder, _by_suffix):
        alike: defaultdict[str, list[Source]] = defaultdict(list)
        for source in sources:
            alike[source.name].append(source)
        names = {
            source.path: renamed(source, group)
            for group in alike.values()
            if len(group) > 1
            for source in group
        }
        sources = [replace(source, name=names.get(source.path, source.name)) for source in sources]
    first: dict[str, Source] = {}
    for source in sources:
        other = first.setdefault(source.name, source)
        if other is not source:
            raise DataError(
                Message("{one} and {other} would both give {name}.", other.path, source.path, source.name),
                "Predict them one after the other, each with its own --out.",
            )
    return tuple(sources)


def _by_folder(source: Source, group: Sequence[Source]) -> str:
    folders = {_tidy(other.path).parent for other in group}
    if len(folders) == 1:
        return source.name
    return str(_tidy(source.path).relative_to(os.path.commonpath(folders)).with_suffix(""))


def _by_suffix(source: Source, group: Sequence[Source]) -> str:
    return source.name + source.path.suffix.replace(".", "_")


def _tidy(path: Path) -> Path:
    """Return an absolute path without ``..``, which would lead out of the folder that a name is put below."""
    return Path(os.path.normpath(path.absolute()))


def archive_of(path: Path) -> Path | None:
    """Return the archive that a path of GDAL's leads into; None where it leads into none."""
    parts = path.parts
    if len(parts) < 3 or parts[0] != "/" or parts[1] not in _ARCHIVES:
        return None
    for inner in (Path("/", *parts[2:]), Path(*parts[2:]).absolute()):
        found = next((file for file in (inner, *inner.parents) if file.is_file()), None)
        if found is not None:
            return found
    return None


def gdal_name(path: Path) -> str:
    """Return GDAL's path of an image: with two slashes before an archive's absolute path."""
    archive = archive_of(path)
    if archive is None:
        return str(path)
    kind, inner = path.parts[1], Path("/", *path.parts[2:])
    if not inner.is_relative_to(archive):
        inner = Path(*path.parts[2:]).absolute()
    return f"/{kind}/{inner}"
