"""Wheels as files: where they lie, what is in them, and the bundle that Kaggle takes as a data set.

Only wheels that are expected, by hashes that the kit itself ships, are ever installed from what is
attached. Kaggle unpacks archives that are uploaded, and a wheel is a zip file: so a wheel counts as
there, too, where its content lies in a folder and is, file by file, what an expected RECORD says.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from mapsage_kaggle import schema
from mapsage_kaggle.checkpoints.manifest import file_sha256
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.outside import read_json, visible
from mapsage_kaggle.walk import walk

BUNDLE_MANIFEST = "mapsage-bundle.json"
EXTRA_LIST = "mapsage-extra-wheels.txt"
"""In a folder that ``bundle --with`` makes: its wheels, as :func:`read_pins` reads them."""
PINS = Path(__file__).parents[1] / "pins"
SCHEMA = 1

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip file can state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WheelMetadata:
    """What a wheel says of itself.

    Attributes:
        requires: What it needs, as it spells it.
    """

    name: str
    version: str
    requires: tuple[str, ...]

    @classmethod
    def read(cls, wheel: Path) -> WheelMetadata:
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
        record_sha256: For a wheel, of the RECORD within, which has the hashes of all its other files.
    """

    sha256: str
    size_bytes: int
    record_sha256: str | None = None

    @classmethod
    def of(cls, path: Path) -> BundledFile:
        record = PinnedWheel.of(path).record_sha256 if path.suffix == ".whl" else None
        return cls(sha256=file_sha256(path), size_bytes=path.stat().st_size, record_sha256=record)


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleManifest:
    """What a bundle holds, as it was made.

    Attributes:
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
            document = read_json(path)
            if int(document["schema"]) > SCHEMA:
                raise ValueError(f"schema {document['schema']} is newer than {SCHEMA}")
            return schema.built(cls, document)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise MachineError(
                Message(
                    "The manifest of the bundle, {path}, cannot be used: {why}.", path, visible(repr(error))
                ),
                REMEDY,
            ) from error

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["image"] = dict(sorted(self.image.items()))
        document["files"] = {
            name: {key: value for key, value in document["files"][name].items() if value is not None}
            for name in sorted(self.files)
        }
        return {"schema": SCHEMA, **document}


# -- what is attached, and whether it is what is expected


@dataclass(frozen=True, kw_only=True, slots=True)
class PinnedWheel:
    """A wheel that may be installed.

    Attributes:
        record_sha256: Of the RECORD within, which has the hashes of all its other files.
    """

    name: str
    sha256: str
    record_sha256: str

    @classmethod
    def of(cls, wheel: Path) -> PinnedWheel:
        with zipfile.ZipFile(wheel) as archive:
            record = hashlib.sha256(archive.read(f"{_dist_info(wheel.name)}/RECORD")).hexdigest()
        return cls(name=wheel.name, sha256=file_sha256(wheel), record_sha256=record)

    def __str__(self) -> str:
        return f"{self.name} {self.sha256} {self.record_sha256}"


def read_pins(path: Path) -> tuple[PinnedWheel, ...]:
    """Read a list of wheels, one a line: file name, sha256, sha256 of the RECORD.

    Raises:
        MachineError: It cannot be read, or is no such list.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        fields = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        pins = tuple(PinnedWheel(name=a, sha256=b, record_sha256=c) for a, b, c in fields)
        if not all(_PLAIN_WHEEL.fullmatch(pin.name) for pin in pins):
            raise ValueError("a name in it is no wheel's")
    except (OSError, ValueError) as error:
        raise MachineError(
            Message("The list of wheels {path} cannot be used: {why}.", path, error), REMEDY
        ) from error
    return pins


_PLAIN_WHEEL = re.compile(r"[A-Za-z0-9_.+!-]+-[A-Za-z0-9_.+!-]+\.whl")
REMEDY = Message(
    "If it was attached just now, wait a minute and run the cell again; else upload the "
    "bundle again, or detach it."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttachedWheels:
    """The wheels below a folder.

    Attributes:
        proven: Those that are expected and are what they should be, in scratch space: links to whole ones,
            and unpacked ones that were put together again.
        others: What is wrong with all else that is or was a wheel, by place; empty for an unexpected name.
    """

    proven: tuple[Path, ...]
    others: Mapping[Path, str]


def prove_wheels(folder: Path, pins: Sequence[PinnedWheel], scratch: Path) -> AttachedWheels:
    """Look for expected wheels below a folder, whole or unpacked; a folder that is not there has none.

    Those are then in ``scratch``, and nothing else is.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    by_name = {pin.name: pin for pin in pins}
    by_info = {_dist_info(pin.name): pin for pin in pins}
    found = walk(
        folder, want_file=lambda name: name.endswith(".whl"), want_dir=by_info.__contains__, endings=(".whl",)
    )
    proven: dict[str, Path] = {}
    others: dict[Path, str] = {}
    for path in found.files:
        pin = by_name.get(path.name)
        if pin is None:
            others[path] = ""
        elif file_sha256(path) != pin.sha256:
            others[path] = "it is not the file that the kit expects"
        elif pin.name not in proven:
            proven[pin.name] = scratch / pin.name
            proven[pin.name].symlink_to(path)
    for place in found.dirs:
        pin = by_info[place.name]
        if pin.name in proven:
            continue
        problem = _pack(place, pin, scratch / pin.name)
        if problem:
            others[place] = problem
        else:
            proven[pin.name] = scratch / pin.name
    return AttachedWheels(proven=tuple(proven[name] for name in sorted(proven)), others=others)


def _pack(dist_info: Path, expected: PinnedWheel, target: Path) -> str:
    """Put an unpacked wheel together again; return what is wrong with it, or nothing.

    Dot-files may be missing: Kaggle drops some, and none that the kit needs is one.
    """
    root = dist_info.parent
    try:
        record = (dist_info / "RECORD").read_bytes()
        if hashlib.sha256(record).hexdigest() != expected.record_sha256:
            return "its RECORD is not the one that the kit expects"
        content: dict[str, bytes] = {}
        for name, hashed, *_ in csv.reader(io.StringIO(record.decode("utf-8"))):
            file = root / name
            if not file.is_file():
                if any(part.startswith(".") for part in Path(name).parts):
                    continue
                return f"{file} is missing"
            content[name] = file.read_bytes()
            if hashed and hashed != f"sha256={_record_hash(content[name])}":
                return f"{file} is not what its RECORD says"
        _write_zip(target, content)
    except (OSError, ValueError) as error:
        return f"it cannot be read: {error}"
    return ""
