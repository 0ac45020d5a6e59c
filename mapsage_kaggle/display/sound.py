"""Validate records, events and evaluations before they are shown: bad values are left out, and counted.

What a report is drawn from may be anybody's. The checks below are what pictures and tables rely on; other
names are not shown, or as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mapsage_kaggle.events import Event
from mapsage_kaggle.records import GRADES, STOP_REASONS, SessionRecord

_Check = Callable[[Any], bool]
_MAX_TEXT = 10_000
_MAX_CLASSES = 1000


def _within(low: float, high: float, *kinds: type) -> _Check:
    return lambda value: type(value) in kinds and low <= value <= high


_whole = _within(0, 10**9, int)
_size = _within(0, 2**60 - 1, int)
_byte = _within(0, 255, int)
_number = _within(-1e12, 1e12, int, float)
_moment = _within(0, 1e11, int, float)
_share = _within(0, 1, int, float)
_gain = _within(-1, 1, int, float)


def _flag(value: Any) -> bool:
    return type(value) is bool


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _or_none(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


def _each(check: _Check, most: int = 10**6) -> _Check:
    return lambda value: isinstance(value, (list, tuple)) and len(value) <= most and all(map(check, value))


def _by_name(check: _Check) -> _Check:
    def checked(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) <= _MAX_CLASSES
            and all(_text(name) and check(item) for name, item in value.items())
        )

    return checked


def _with(**checks: _Check) -> _Check:
    """Return a check that an object has all of these, each of its kind."""
    return lambda value: (
        isinstance(value, Mapping)
        and all(name in value and check(value[name]) for name, check in checks.items())
    )


def _if_there(**checks: _Check) -> _Check:
    """Return a check that each of these is of its kind, where an object has it."""
    return lambda value: (
        isinstance(value, Mapping)
        and all(check(value[name]) for name, check in checks.items() if value.get(name) is not None)
    )


def _colour(value: Any) -> bool:
    return _each(_byte)(value) and len(value) == 3


def _square(value: Any) -> bool:
    row = _each(_size, _MAX_CLASSES)
    return _each(row, _MAX_CLASSES)(value) and all(len(item) == len(value) for item in value)


def _class_score(value: Any) -> bool:
    return _or_none(_share)(value.get("IoU") if isinstance(value, Mapping) else value)


_REF = _with(file=_text, iteration=_whole, sha256=_text, size_bytes=_size)


def _ref(value: Any) -> bool:
    return _REF(value) and _or_none(_text)(value.get("metric")) and _or_none(_number)(value.get("value"))


_OF_RECORDS: Mapping[str, _Check] = {
    "run_id": _text,
    "fingerprint": _text,
    "session_index": _whole,
    "start_iteration": _whole,
    "end_iteration": _whole,
    "max_iters": _whole,
    "stop_reason": lambda value: type(value) is str and value in STOP_REASONS,
    "exit_code": _or_none(_whole),
    "checkpoint": _or_none(_ref),
    "best": _or_none(_ref),
    "started_from": _or_none(_ref),
    "owed_validation": _or_none(_whole),
    "skipped_validations": _each(_whole),
    "config_sha256": _text,
    "changes": _each(_text),
    "data": _object,
    "versions": _object,
    "learned": _object,
    "exactness": _if_there(
        bitwise=_flag, grade=lambda value: value in GRADES, reasons=_each(_text), split=_each(_text)
    ),
    "timings_s": _by_name(_or_none(_moment)),
    "previous": _each(_object),
    "message": _text,
    "started_s": _moment,
    "ended_s": _or_none(_moment),
}

_OF_EVENTS: Mapping[str, _Check] = {
    "loss": _or_none(_number),
    "lr": _or_none(_number),
    "seconds": _or_none(_number),
    "metrics": _by_name(_or_none(_number)),
    "per_class": _or_none(_by_name(_class_score)),
    "confusion": _or_none(_square),
    "palette": _or_none(_by_name(_colour)),
    "pace": _by_name(_or_none(_number)),
    "best": _or_none(lambda value: _flag(value) or _number(value) or _ref(value)),
    "message": _or_none(_text),
    "kind": _or_none(_text),
    "verdict": _or_none(_text),
    "max_iters": _or_none(_whole),
}

_INTERVAL = _or_none(_with(low=_share, high=_share))
_AREA = {"miou": _or_none(_share), "miou_interval": _INTERVAL, "num_images": _whole}
_CLASS = {name: _or_none(_share) for name in ("iou", "f1", "precision", "recall")}
_EVALUATION = _with(
    checkpoint=_text,
    split=_text,
    looked=_text,
    classes=_each(_with(name=_text, num_pixels=_size, **_CLASS), _MAX_CLASSES),
    areas=_by_name(_with(**_AREA)),
    against=_or_none(
        _with(
            checkpoint=_text,
            miou=_or_none(_share),
            settled=_or_none(_flag),
            gain=_or_none(_with(value=_gain, low=_gain, high=_gain)),
        )
    ),
    too_few_images=_flag,
    confusion=_square,
    palette=_each(_colour, _MAX_CLASSES),
    **{name: _or_none(_share) for name in ("fwiou", "mean_f1", "mean_accuracy", "accuracy")},
    **_AREA,
)


def sound_record(document: object) -> tuple[SessionRecord | None, int]:
    """Return the record that a document holds, and how many of its values were left out.

    The record is None where the document is none, or lacks what identifies it.
    """
    if not isinstance(document, Mapping):
        return None, 1
    kept = {
        name: value for name, value in document.items() if name not in _OF_RECORDS or _OF_RECORDS[name](value)
    }
    try:
        return SessionRecord.from_json(kept), len(document) - len(kept)
    except (ValueError, TypeError, OverflowError):
        return None, 1


def is_sound_event(event: Event) -> bool:
    """Return whether every value of an event that is drawn is of its kind."""
    return all(check(event.data[name]) for name, check in _OF_EVENTS.items() if name in event.data)


def is_sound_evaluation(document: object) -> bool:
    """Return whether a document is an evaluation that can be shown."""
    return (
        isinstance(document, Mapping)
        and _EVALUATION(document)
        and len(document["classes"]) > 0
        and len(document["palette"]) == len(document["classes"])
        and len(document["confusion"]) - len(document["classes"]) in (0, 1)
    )
