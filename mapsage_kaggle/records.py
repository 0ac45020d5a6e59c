"""The record of a session, ``session.json``: what it started from, did, and hands over."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mapsage_kaggle import schema
from mapsage_kaggle.errors import EXIT_TRAINING
from mapsage_kaggle.events import finite
from mapsage_kaggle.messages import Message, from_said, with_said
from mapsage_kaggle.outside import MAX_PATH, read_json, stamp_of, visible
from mapsage_kaggle.paths import replace_file

SCHEMA = 1
ACTIVITIES = ("start_up", "waiting_for_data", "forward_backward", "optimizer", "saving", "validation")
"""What is timed of a session; the rest of its wall time is ``other``."""
STOP_REASONS = ("running", "completed", "early", "deadline", "user", "failed", "refused")
OWED_VALIDATION_KEY = "mapsage_owed_validation"
RUN_ID_KEY = "mapsage_run_id"
FINGERPRINT_KEY = "mapsage_fingerprint"
STOPPED_BY_KEY = "mapsage_stopped_by"
DATA_KEY = "mapsage_data"
SCALE_KEY = "mapsage_scale"
"""Under these a checkpoint's message hub says whose it is, what it still has to validate, what has ended
training before its last iteration, if anything has, which samples it was trained on, and at what scale."""
PACKED = "earlier.zip"
"""In the history: the files of sessions that are long over."""
MAX_MEMBER_BYTES, MAX_PACKED_BYTES = 20_000_000, 100_000_000
GRADES = ("bitwise", "rounding", "not shown", "neither")
"""How far a session equals an uninterrupted run, best first: bit for bit, to rounding, unseen, neither."""
NOT_SHOWN = GRADES[2]
CUT_OFF = Message("No end is recorded: the session was cut off. What was proven until then is safe.")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRef:
    """A proven checkpoint, named as the manifest names it.

    Attributes:
        file: Its name, relative to the work dir.
        iteration: Iterations done in the state it holds.
        sha256: Of the whole file, in hex.
        size_bytes: Of the whole file.
        metric: For the best checkpoint, the name of the score, such as ``mIoU``.
        value: For the best checkpoint, the score.
    """

    file: str
    iteration: int
    sha256: str
    size_bytes: int
    metric: str | None = None
    value: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object; ``metric`` and ``value`` only where there are any."""
        document = dataclasses.asdict(self)
        if self.metric is None:
            del document["metric"], document["value"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CheckpointRef:
        """Read the JSON object; names that this version does not know are ignored.

        Raises:
            ValueError: A value is not what its name promises.
        """
        metric, value = document.get("metric"), document.get("value")
        return cls(
            file=schema.plain_name(document.get("file"), "file"),
            iteration=schema.whole(document.get("iteration"), "iteration"),
            sha256=schema.sha256(document.get("sha256"), "sha256"),
            size_bytes=schema.whole(document.get("size_bytes"), "size_bytes", high=2**63),
            metric=schema.text(metric, "metric") if metric is not None else None,
            value=schema.score(value, str(metric)) if value is not None else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedScale:
    """At how many times the size of the training images a model saw them.

    Attributes:
        factor: In the middle.
        low: The least that its training pipeline makes of it.
        high: The most.
    """

    factor: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return the JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> TrainedScale | None:
        """Read the JSON object; None where it is none."""
        try:
            names = ("factor", "low", "high")
            found = cls(**{name: schema.number(document[name], name, 1e-3, 1e3) for name in names})
        except (TypeError, LookupError, ValueError):
            return None
        return found if found.low <= found.factor <= found.high else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """What a machine taught a session, for the next one. None: nothing is said of it.

    Attributes:
        threads: CPU threads per rank.
        ladder: What was done to go on, one sentence each.
        micro_batch: Images per forward pass and rank that memory held, where a rank's share was more.
        with_cp: Whether blocks had to be recomputed in the backward pass.
        machine: What memory was short on: ``device``, ``memory_bytes`` of a rank, ``ranks``.
        validation_rung: How far validation went to save memory.
        precision: ``float32`` where the half precision of the kit's choice had failed.
        pace: Seconds, by the names of :meth:`mapsage_kaggle.pace.Pace.learned`.
        other: What another version wrote, or wrote otherwise: kept, and not made use of.
    """

    threads: int | None = None
    ladder: tuple[str, ...] | None = None
    micro_batch: int | None = None
    with_cp: bool | None = None
    machine: Mapping[str, Any] | None = None
    validation_rung: int | None = None
    precision: str | None = None
    pace: Mapping[str, float] | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return _said(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Learned:
        """Read the JSON object.

        Raises:
            ValueError: It is none.
        """
        found = cls(**_known(cls, document))
        for name, least, most in (("threads", 1, 256), ("micro_batch", 1, 10**5), ("validation_rung", 0, 9)):
            if getattr(found, name) is not None:
                schema.whole(getattr(found, name), name, least, most)
        for name, seconds in (found.pace or {}).items():
            schema.number(seconds, f"pace.{name[:40]}", 0.0, 1e9)
        return found

    def with_memory(self, taught: Learned) -> Learned:
        """Return a copy with what ``taught`` says about memory in training, even if it says nothing."""
        return dataclasses.replace(
            self, micro_batch=taught.micro_batch, with_cp=taught.with_cp, machine=taught.machine
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Exactness:
    """In which sense a resume equals an uninterrupted run. None: nothing is said of it.

    Attributes:
        bitwise: Whether it does bit for bit.
        grade: How far it does, one of ``GRADES``.
        reasons: Why not, one sentence each.
        ranks: Over how many each batch is split.
        micro_batch: Images of it per forward pass and rank.
        split: Why another split gives more than other rounding, one sentence each.
        device: What is computed on, by its name.
        precision: What is computed in.
        torch: Its version.
        cudnn: Its version, where it is computed on a GPU.
        threads: CPU threads per rank.
        with_cp: Whether blocks are recomputed in the backward pass.
        repeatable: Whether one micro-batch's gradients, computed twice, were the same bit for bit.
        difference: The largest by which one of them differed.
        other: What another version wrote, or wrote otherwise: kept, and not made use of.
    """

    bitwise: bool | None = None
    grade: str | None = None
    reasons: tuple[str, ...] | None = None
    ranks: int | None = None
    micro_batch: int | None = None
    split: tuple[str, ...] | None = None
    device: str | None = None
    precision: str | None = None
    torch: str | None = None
    cudnn: int | None = None
    threads: int | None = None
    with_cp: bool | None = None
    repeatable: bool | None = None
    difference: float | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return _said(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Exactness:
        """Read the JSON object.

        Raises:
            ValueError: It is none.
        """
        found = cls(**_known(cls, document))
        if found.difference is not None:
            schema.number(found.difference, "difference", 0.0, 1e300)
        if found.grade is not None:
            schema.one_of(found.grade, "grade", GRADES)
        return found

    def less(self, reasons: Sequence[str], grade: str) -> Exactness:
        """Return a copy with more reasons why it does not, by which it does as far as ``grade`` at most."""
        if not reasons:
            return self
        told = tuple(dict.fromkeys((*(self.reasons or ()), *reasons)))
        least = worst(filter(None, (self.grade, grade)))
        return dataclasses.replace(self, bitwise=False, grade=least, reasons=told)


def worst(grades: Iterable[str]) -> str:
    """Return the least of some ``GRADES``; of none, the best."""
    return max(grades, key=GRADES.index, default=GRADES[0])


@functools.cache
def _kinds_of(kind: type) -> dict[str, type]:
    """Return what JSON has for each field of a dataclass whose fields may all be None."""
    hints = {name: get_args(hint)[0] for name, hint in get_type_hints(kind).items() if name != "other"}
    return {
        name: list if get_origin(hint) is tuple else get_origin(hint) or hint for name, hint in hints.items()
    }


def _known(kind: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object's values by field; those of unknown names and of other kinds as ``other``."""
    kinds = _kinds_of(kind)
    if not isinstance(document, Mapping):
        raise ValueError(f"not a session record: {document!r} is no object")
    document = from_said(document)
    fits = {name: name in kinds and isinstance(value, kinds[name]) for name, value in document.items()}
    known = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in document.items()
        if fits[name]
    }
    return {**known, "other": {name: value for name, value in document.items() if not fits[name]}}


def _said(value: Learned | Exactness) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for item in dataclasses.fields(value):
        found = getattr(value, item.name)
        if item.name != "other" and found is not None:
            said[item.name] = list(found) if isinstance(found, tuple) else found
    return {**with_said(said), **value.other}


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRecord:
    """One session, as the next one and a reader a year later need to know it.

    Attributes:
        run_id: The same in every session of a run.
        fingerprint: What makes two configs the same run.
        session_index: 1 for the first session of the run.
        start_iteration: Iterations done when it began.
        end_iteration: Iterations done in the newest proven checkpoint, or at its end.
        max_iters: Where the run is to end.
        stop_reason: One of ``STOP_REASONS``.
        exit_code: None while it runs.
        best: The best checkpoint by validation score.
        owed_validation: The iteration whose validation did not fit, if any.
        started_from: The checkpoint that it began from, if any.
        skipped_validations: The iterations whose validation was left out, as longer than any session.
        data: Which samples are trained on: their number (``count``), a hash of their names (``digest``), of
            how many the size is known (``read``), and a hash of the sizes (``sizes``).
        versions: What computes: ``kit`` (a hash of its files), ``kit_commit`` where it is a checkout,
            ``python``, ``torch``, and other distributions by their names.
        changes: What differs from the session before, one line each.
        learned: What this machine taught: micro-batch, ladder steps.
        exactness: In which sense a resume from here equals an uninterrupted run, and why not more.
        timings_s: Where the seconds went: ``ACTIVITIES``, which do not overlap, and ``other`` add up to
            ``session``, the whole of it. ``saving`` is what training was held up by.
        previous: The records of earlier sessions, oldest first, each without its own ``previous``.
        message: One sentence for a person: why it ended as it did.
        container: Kaggle's name of the container, which holds the session's number; empty elsewhere.
        started_s: Start, in seconds since the epoch (UTC).
        ended_s: End, in seconds since the epoch (UTC).
    """

    run_id: str
    fingerprint: str
    session_index: int = 1
    start_iteration: int = 0
    end_iteration: int = 0
    max_iters: int = 0
    stop_reason: str = "running"
    exit_code: int | None = None
    checkpoint: CheckpointRef | None = None
    best: CheckpointRef | None = None
    owed_validation: int | None = None
    started_from: CheckpointRef | None = None
    skipped_validations: tuple[int, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    config_sha256: str = ""
    changes: tuple[str, ...] = ()
    learned: Learned = field(default_factory=Learned)
    exactness: Exactness = field(default_factory=Exactness)
    timings_s: Mapping[str, float] = field(default_factory=dict)
    previous: tuple[Mapping[str, Any], ...] = ()
    message: str = ""
    container: str = ""
    started_s: float = 0.0
    ended_s: float | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.stop_reason not in STOP_REASONS:
            raise ValueError(f"stop_reason {self.stop_reason!r} is none of {STOP_REASONS}")

    def to_json(self) -> dict[str, Any]:
        document = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        for name in ("checkpoint", "best", "started_from", "learned", "exactness"):
            document[name] = document[name].to_json() if document[name] is not None else None
        return finite(with_said(document))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SessionRecord:
        """Read a JSON object; names that this version does not know are ignored.

        Raises:
            ValueError: It is not a record, or one of a newer, incompatible schema.
        """
        if not isinstance(document, Mapping) or "run_id" not in document:
            raise ValueError("not a session record: it has no run_id")
        if int(document.get("schema", 0)) > SCHEMA:
            raise ValueError(
                f"the record has schema {document['schema']}, this version of the kit reads up to {SCHEMA}"
            )
        names = {item.name for item in dataclasses.fields(cls)}
        values = {key: value for key, value in from_said(document).items() if key in names}
        try:
            for key in ("checkpoint", "best", "started_from"):
                if values.get(key) is not None:
                    values[key] = CheckpointRef.from_json(values[key])
            if "learned" in values:
                values["learned"] = Learned.from_json(values["learned"])
            if "exactness" in values:
                values["exactness"] = Exactness.from_json(values["exactness"])
            for key in ("skipped_validations", "changes", "previous"):
                values[key] = tuple(values.get(key) or ())
            record = cls(**values)
            record._check()
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a session record: {error}") from error
        return record

    def _check(self) -> None:
        """Refuse what a damaged or foreign file may hold in place of what a session writes.

        Raises:
            ValueError: A value is not what its name promises.
        """
        schema.text(self.run_id, "run_id", 64)
        schema.text(self.fingerprint, "fingerprint", 64)
        schema.whole(self.session_index, "session_index", 1, 10**6)
        for name in ("start_iteration", "end_iteration", "max_iters"):
            schema.whole(getattr(self, name), name)
        for name in ("exit_code", "owed_validation"):
            if getattr(self, name) is not None:
                schema.whole(getattr(self, name), name)
        for iteration in self.skipped_validations:
            schema.whole(iteration, "skipped_validations")
        for name, seconds in schema.mapping(self.timings_s, "timings_s").items():
            if seconds is not None:
                schema.number(seconds, f"timings_s.{name[:40]}")
        for name in ("started_s", "ended_s"):
            if getattr(self, name) is not None:
                schema.number(getattr(self, name), name, 0.0, 1e11)
        schema.data(self.data, "data")
        for name, version in schema.mapping(self.versions, "versions").items():
            schema.text(version, f"versions.{name[:40]}")
        for document in self.previous:
            schema.mapping(document, "previous")

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show it as a cell's last value, which IPython asks for."""
        printer.text(
            f"<session {self.session_index} of run {self.run_id}: {self.stop_reason}, iterations "
            f"{self.start_iteration} to {self.end_iteration} of {self.max_iters}>"
        )

    def write(self, path: Path) -> None:
        """Replace ``path`` atomically.

        Raises:
            OSError: The folder is missing, full or read-only; the old record is then unchanged.
        """
        replace_file(path, json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> SessionRecord:
        """Read a record.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is no record; the message names the file.
        """
        try:
            return cls.from_json(read_json(path))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{visible(path, MAX_PATH)}: {visible(str(error))}") from error

    def lineage(self) -> tuple[Mapping[str, Any], ...]:
        """Return what a following session carries as its ``previous``: all before, then this one."""
        own = self.to_json()
        own["previous"] = []
        return (*self.previous, own)

    def closed(self, last_word_s: float | None) -> SessionRecord:
        """Return the record of a session that is over, even where nobody lived to finish it.

        The last word is the time of its last event; None where there is none.
        """
        if self.stop_reason != "running":
            return self
        ended_s = max(last_word_s or 0.0, self.started_s)
        return self.evolve(
            stop_reason="failed",
            exit_code=EXIT_TRAINING,
            message=CUT_OFF,
            ended_s=ended_s,
            timings_s=complete_timings(self.timings_s, ended_s - self.started_s),
        )

    def evolve(self, **changes: Any) -> SessionRecord:
        return dataclasses.replace(self, **changes)


def early_text(iteration: int, max_iters: int, stopped_by: str) -> Message:
    return Message("Stopped early at {iteration} of {max_iters} by {who}.", iteration, max_iters, stopped_by)


def complete_timings(timings_s: Mapping[str, float], session_s: float) -> dict[str, float]:
    """Return a session's timings with its whole time, and with what nobody timed as ``other``."""
    timed = {name: round(float(timings_s.get(name) or 0.0), 2) for name in ACTIVITIES}
    other = max(0.0, session_s - sum(timed.values()))
    return {**timed, "other": round(other, 2), "session": round(session_s, 2)}


def share_of_steps(timings_s: Mapping[str, float]) -> float | None:
    """Return which part of the time outside validation went into training steps, 0 to 1.

    None where nothing but validation was timed, or the session has not ended.
    """
    seconds = {name: float(value or 0.0) for name, value in timings_s.items()}
    outside_s = seconds.get("session", 0.0) - seconds.get("validation", 0.0)
    if outside_s <= 0.0:
        return None
    # Records of version 0.1 timed a step as a whole.
    names = ("forward_backward", "optimizer", "training_step")
    return min(1.0, sum(seconds.get(name, 0.0) for name in names) / outside_s)


def new_run_id() -> str:
    return uuid.uuid4().hex[:12]


def record_beside(checkpoint: Path) -> SessionRecord | None:
    path = checkpoint.parent / "session.json"
    return _read_once(path, stamp) if (stamp := stamp_of(path)) is not None else None


@functools.lru_cache(maxsize=8)
def _read_once(path: Path, stamp: tuple[int, ...]) -> SessionRecord | None:
    """Read a record once for all checkpoints beside it, of which there may be very many."""
    return read_record(path)


def read_record(path: Path) -> SessionRecord | None:
    try:
        return SessionRecord.read(path)
    except (OSError, ValueError):
        return None


def read_packed(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files that were packed, by name; nothing where there are none.

    What is attached may be made to fill memory: a file beyond ``MAX_MEMBER_BYTES`` is passed over, and what
    comes after ``MAX_PACKED_BYTES`` in all.

    Raises:
        ValueError: The archive cannot be read any further.
    """
    if path.is_symlink() or not path.is_file():
        return
    try:
        with zipfile.ZipFile(path) as packed:
            left_bytes = MAX_PACKED_BYTES
            for member in packed.infolist():
                if member.file_size > min(MAX_MEMBER_BYTES, left_bytes) or member.flag_bits & 1:
                    continue
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    continue  # never written here; others raise errors of their own
                with packed.open(member) as stream:
                    content = stream.read(MAX_MEMBER_BYTES + 1)
                left_bytes -= len(content)
                if len(content) == member.file_size:
                    yield member.filename, content
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{visible(path, MAX_PATH)} cannot be read: {visible(str(error))}") from error


def write_packed(path: Path, members: Mapping[str, bytes], budget_bytes: int) -> None:
    """Pack files atomically; of what does not fit, the oldest sessions' are left out.

    Each name ends with its session's number.

    Raises:
        OSError: The folder is full or read-only; the old archive is then unchanged.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in sorted(members, key=lambda name: name.rpartition("_")[2], reverse=True):
            if buffer.tell() + len(members[name]) <= budget_bytes:
                packed.writestr(zipfile.ZipInfo(name), members[name], zipfile.ZIP_DEFLATED)
    replace_file(path, buffer.getvalue())
