"""Render an evaluation's JSON document for the terminal, the notebook and the report.

The document is what :mod:`mapsage_kaggle.jobs.evaluate` writes into ``<work dir>/evaluation``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mapsage_kaggle.display.class_plots import confusion_picture
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Panel, Table, Tone
from mapsage_kaggle.display.plots import LIGHT, Theme, labels_in
from mapsage_kaggle.display.sound import is_sound_evaluation
from mapsage_kaggle.display.text import table
from mapsage_kaggle.outside import read_json
from mapsage_kaggle.paths import WorkDir

Document = Mapping[str, Any]
_COLUMNS = ("iou", "f1", "precision", "recall")
_MAX_READ = 24


def evaluation_text(document: Document, words: Words | None = None) -> str:
    """Return scores by class, overall with their interval, by area, and the comparison."""
    words = words or Words("en")
    header, rows = class_rows(document, words)
    lines = [
        headline(document, words),
        table(rows, header),
        *(f"{name}: {value}" for name, value in facts(document, words)),
        *notes(document, words),
    ]
    return "\n".join(lines)


def family_text(documents: Sequence[Document]) -> str:
    """Return the scores of an averaged model and of its parents, and whether it beats the best of them."""
    words = Words("en")
    rows = [
        (
            Path(item["checkpoint"]).name,
            _with_interval(item),
            percent(item["fwiou"]),
            percent(item["mean_f1"]),
        )
        for item in documents
    ]
    header = ("checkpoint", "mIoU, %", words("eval_fwiou"), words("eval_mean_f1"))
    return "\n".join([table(rows, header), *notes(documents[0], words)])


def headline(document: Document, words: Words) -> str:
    """Return which checkpoint was evaluated, how, and on how many images."""
    return words(
        "eval_headline",
        file=Path(document["checkpoint"]).name,
        count=document["num_images"],
        split=document["split"],
        looked=words.translate(document["looked"]),
    )


def class_rows(document: Document, words: Words) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the header and the rows of the table by class, in percent."""
    header = (words("eval_class"), "IoU", "F1", *(words(f"eval_{name}") for name in _COLUMNS[2:]))
    rows = [
        (str(item["name"]), *(percent(item[name]) for name in _COLUMNS), _share(item, document))
        for item in document["classes"]
    ]
    return (*header, words("eval_share")), rows


def facts(document: Document, words: Words) -> list[tuple[str, str]]:
    """Return names and values of the scores over all classes, and of each area."""
    found = [("mIoU", _with_interval(document))]
    found += [
        (words(f"eval_{name}"), percent(document[name]))
        for name in ("fwiou", "mean_f1", "mean_accuracy", "accuracy")
    ]
    for area, part in document["areas"].items():
        images = words("eval_images", count=part["num_images"])
        found.append((words(f"area_{area.lower()}"), f"mIoU {_with_interval(part)}, {images}"))
    return found


def notes(document: Document, words: Words) -> list[str]:
    """Return the comparison with another checkpoint, and a warning where images are too few."""
    found = []
    other = document["against"]
    if other is not None and other["gain"] is not None:
        gain = other["gain"]
        kind = "noise" if not other["settled"] else "better" if gain["value"] > 0 else "worse"
        found.append(
            words(
                f"eval_{kind}",
                file=Path(document["checkpoint"]).name,
                other=Path(other["checkpoint"]).name,
                other_miou=percent(other["miou"]),
                gain=signed(gain["value"]),
                low=signed(gain["low"]),
                high=signed(gain["high"]),
            )
        )
    if document["too_few_images"]:
        found.append(words("eval_few", count=document["num_images"]))
    return found


def read_evaluations(work_dir: Path) -> list[dict[str, Any]]:
    """Return a work dir's last evaluations, newest first; unreadable ones are left out."""
    found = []
    for file in _newest_files(work_dir):
        try:
            document = read_json(file)
        except (OSError, ValueError):
            continue
        if is_sound_evaluation(document):
            found.append(document)
    return found


def num_left_out(work_dir: Path) -> int:
    """Return how many of those files are unreadable."""
    return len(_newest_files(work_dir)) - len(read_evaluations(work_dir))


def _newest_files(work_dir: Path) -> list[Path]:
    files = WorkDir(work_dir).evaluation.glob("*.json")
    return sorted(files, key=lambda file: file.lstat().st_mtime, reverse=True)[:_MAX_READ]


def evaluation_panel(document: Document, words: Words, pictures: Sequence[Path | bytes] = ()) -> Panel:
    header, rows = class_rows(document, words)
    other = document["against"]
    tone: Tone = "note" if other is not None and not other["settled"] else "good"
    return Panel(
        title=words("evaluation"),
        tone=tone,
        lead=headline(document, words),
        facts=tuple(facts(document, words)),
        table=Table(header=header, rows=tuple(rows), right=frozenset(range(1, len(header)))),
        tail=tuple(notes(document, words)),
        pictures=tuple(pictures),
    )


def confusion_of(document: Document, words: Words, theme: Theme = LIGHT) -> bytes:
    """Draw an evaluation's confusion matrix, as PNG."""
    return confusion_picture(
        document["confusion"],
        [item["name"] for item in document["classes"]],
        document["palette"],
        theme,
        labels_in(words),
    )


def percent(share: float | None) -> str:
    """Return a fraction in percent with two decimals."""
    return "–" if share is None else f"{100 * share:.2f}"


def signed(share: float) -> str:
    """Return a difference of fractions in percentage points, with its sign."""
    return f"{100 * share:+.2f}"


def _with_interval(part: Document) -> str:
    interval = part["miou_interval"]
    value = percent(part["miou"])
    return value if interval is None else f"{value} [{percent(interval['low'])}, {percent(interval['high'])}]"


def _share(item: Document, document: Document) -> str:
    total = sum(other["num_pixels"] for other in document["classes"])
    return percent(item["num_pixels"] / total) if total else "–"
