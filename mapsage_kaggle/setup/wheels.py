"""Wheels as files: where they lie, what is in them, and the bundle that Kaggle takes as a data set.

A bundle is a folder of wheels with a manifest of their hashes. Kaggle unpacks archives that are
uploaded, and a wheel is a zip file: so a wheel counts as there, too, where its content lies in a folder
and is, file by file, what its own RECORD and the manifest say.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from mapsage_kaggle.checkpoints.manifest import file_sha256
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.walk import walk

BUNDLE_MANIFEST = "mapsage-bundle.json"
SCHEMA = 1

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip file can state."""
_MAX_TOLD = 5


def find_wheels(inputs: Path) -> tuple[Path, ...]:
    """Return all wheels below a folder, sorted; a folder that is not there has none."""
    return walk(inputs, want_file=lambda name: name.endswith(".whl"), endings=(".whl",)).files


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelMetadata:
    """What a wheel says of itself.

    Attributes:
        name: Of the distribution.
        version: Of the distribution.
        requires: What it needs, as it spells it.
    """

    name: str
    version: str
    requires: tuple[str, ...]

    @classmethod
    def read(cls, wheel: Path) -> WheelMetadata:
        """Read it from the wheel."""
        with zipfile.ZipFile(wheel) as archive:
            text = archive.read(f"{_dist_info(wheel.name)}/METADATA").decode("utf-8")
        headers = HeaderParser().parsestr(text)
        return cls(
            name=headers["Name"],
            version=headers["Version"],
            requires=tuple(headers.get_all("Requires-Dist") or ()),
        )


def normalise(wheel: Path) -> None:
    """Write a wheel anew so that its bytes follow from its content alone.

    Names in order, one date, one mode, nothing compressed (what a compressor gives depends on its
    version), and a RECORD in the same order. Only for wheels built here: what was published stays as
    it was published.
    """
    record_name = f"{_dist_info(wheel.name)}/RECORD"
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/") and name != record_name]
        content = {name: archive.read(name) for name in names}
    # The metadata last, as the format recommends.
    ordered = sorted(content, key=lambda name: (".dist-info/" in name, name))
    rows = [(name, f"sha256={_record_hash(content[name])}", str(len(content[name]))) for name in ordered]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([*rows, (record_name, "", "")])
    content[record_name] = table.getvalue().encode("utf-8")
    _write_zip(wheel, {name: content[name] for name in (*ordered, record_name)})


def _write_zip(path: Path, content: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = 3  # Unix, wherever it is written
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, data)


def _dist_info(wheel_name: str) -> str:
    return "-".join(wheel_name.split("-")[:2]) + ".dist-info"


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


# -- bundles


@dataclass(frozen=True, kw_only=True, slots=True)
class BundledFile:
    """One file of a bundle.

    Attributes:
        sha256: Of the file, in hex.
        size_bytes: Of the file.
        record_sha256: For a wheel, of the RECORD within, which has the hashes of all its other files.
    """

    sha256: str
    size_bytes: int
    record_sha256: str | None = None

    @classmethod
    def of(cls, path: Path) -> BundledFile:
        """Read a file."""
        record: str | None = None
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as archive:
                record = hashlib.sha256(archive.read(f"{_dist_info(path.name)}/RECORD")).hexdigest()
        return cls(sha256=file_sha256(path), size_bytes=path.stat().st_size, record_sha256=record)


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleManifest:
    """What a bundle holds, as it was made.

    Attributes:
        kit: The kit's version.
        commit: What it was made from.
        python: The Python that it is for, such as ``3.12``.
        image: What is left to the platform's image: version by name.
        files: Every file but the manifest and the data set's metadata, by its path in the bundle.
    """

    kit: str
    commit: str
    python: str
    image: Mapping[str, str]
    files: Mapping[str, BundledFile]

    @classmethod
    def read(cls, path: Path) -> BundleManifest:
        """Read a manifest.

        Raises:
            MachineError: It cannot be read, or is no manifest.
        """
        try:
            document = json.loads(path.read_bytes())
            if int(document["schema"]) > SCHEMA:
                raise ValueError(f"schema {document['schema']} is newer than {SCHEMA}")
            return cls(
                kit=str(document["kit"]),
                commit=str(document["commit"]),
                python=str(document["python"]),
                image=dict(document["image"]),
                files={name: BundledFile(**entry) for name, entry in document["files"].items()},
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise MachineError(
                f"The manifest of the bundle, {path}, cannot be used: {error!r}.", _REMEDY
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        files: dict[str, dict[str, Any]] = {}
        for name, item in sorted(self.files.items()):
            files[name] = {"sha256": item.sha256, "size_bytes": item.size_bytes}
            if item.record_sha256 is not None:
                files[name]["record_sha256"] = item.record_sha256
        return {
            "schema": SCHEMA,
            "kit": self.kit,
            "commit": self.commit,
            "python": self.python,
            "image": dict(sorted(self.image.items())),
            "files": files,
        }


_REMEDY = (
    "If it was attached just now, wait a minute and run the cell again; else upload the bundle again, or "
    "detach it."
)


def find_bundles(inputs: Path) -> tuple[Path, ...]:
    """Return the folder of every bundle below a folder, sorted; a folder that is not there has none."""
    found = walk(inputs, want_file=lambda name: name == BUNDLE_MANIFEST, endings=(BUNDLE_MANIFEST,))
    return tuple(path.parent for path in found.files)


def verified_wheels(folder: Path, scratch: Path) -> tuple[Path, ...]:
    """Return the wheels of a bundle, each proven to be what its manifest says.

    The further files of a bundle are for people, and need not have come along.

    Args:
        folder: The bundle.
        scratch: Where wheels are put together again that were unpacked on the way.

    Raises:
        MachineError: One is missing or is not what it was; each is named.
    """
    manifest = BundleManifest.read(folder / BUNDLE_MANIFEST)
    wheels: list[Path] = []
    problems: list[str] = []
    unpacked: dict[str, list[Path]] | None = None
    for name, expected in sorted(manifest.files.items()):
        if not name.endswith(".whl"):
            continue
        path = folder / name
        if path.is_file():
            if path.stat().st_size == expected.size_bytes and file_sha256(path) == expected.sha256:
                wheels.append(path)
            else:
                problems.append(f"{name} is not what the manifest says")
            continue
        if unpacked is None:
            unpacked = {}
            for found in walk(folder, want_dir=lambda name: name.endswith(".dist-info")).dirs:
                unpacked.setdefault(found.name, []).append(found)
        places = unpacked.get(_dist_info(name), [])
        problem = f"{name} is missing"
        for place in places:
            problem = _pack(place, expected, scratch / name)
            if not problem:
                wheels.append(scratch / name)
                break
        if problem:
            problems.append(problem)
    if problems:
        listed = "; ".join(problems[:_MAX_TOLD])
        more = f"; and {len(problems) - _MAX_TOLD} more" if len(problems) > _MAX_TOLD else ""
        raise MachineError(f"The bundle in {folder} is damaged: {listed}{more}.", _REMEDY)
    return tuple(wheels)


def _pack(dist_info: Path, expected: BundledFile, target: Path) -> str:
    """Put an unpacked wheel together again; return what is wrong with it, or nothing.

    Dot-files may be missing: Kaggle drops some, and none that the kit needs is one.
    """
    root = dist_info.parent
    try:
        record = (dist_info / "RECORD").read_bytes()
        if hashlib.sha256(record).hexdigest() != expected.record_sha256:
            return f"{dist_info / 'RECORD'} is not what the manifest says"
        content: dict[str, bytes] = {}
        for name, hashed, *_ in csv.reader(io.StringIO(record.decode("utf-8"))):
            file = root / name
            if not file.is_file():
                if any(part.startswith(".") for part in Path(name).parts):
                    continue
                return f"{file} is missing"
            content[name] = file.read_bytes()
            if hashed and hashed != f"sha256={_record_hash(content[name])}":
                return f"{file} is not what was bundled"
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_zip(target, content)
    except (OSError, ValueError) as error:
        return f"{dist_info} cannot be read: {error}"
    return ""
