"""The catalogues: complete in both languages, and true to the sentences in the sources."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from mapsage_kaggle import errors
from mapsage_kaggle.display.locale.words import LANGUAGES, Words, catalogue
from mapsage_kaggle.messages import Message

PACKAGE = Path(__file__).resolve().parents[2] / "mapsage_kaggle"
LABELS = {language: catalogue(language)["labels"] for language in LANGUAGES}
CHINESE = catalogue("zh")["messages"]


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_the_catalogues_have_the_same_labels() -> None:
    assert set(LABELS["zh"]) == set(LABELS["en"])


@pytest.mark.parametrize("key", sorted(LABELS["en"]))
def test_a_label_takes_the_same_values_in_both_languages(key: str) -> None:
    assert placeholders(LABELS["zh"][key]) == placeholders(LABELS["en"][key])


def test_a_template_takes_the_same_values_in_both_languages() -> None:
    assert [text for text, other in CHINESE.items() if placeholders(text) != placeholders(other)] == []


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_no_template_outlives_its_sentence() -> None:
    known = {
        node.value
        for _, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    for path in PACKAGE.rglob("*.j2"):
        known.update(re.findall(r't\("([^"]+)"', path.read_text(encoding="utf-8")))
    assert [template for template in CHINESE if template not in known] == []


# -- the other way round: whatever a notebook can meet has its Chinese

ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)} | {"SaveFailed"}

NOT_MET = {
    "setup/bundle.py": "packed on one's own machine, by a command",
    "cli.py": "only the command's own options",
    "demo.py": "a command",
    "relay/": "a command, on one's own machine",
}
"""What stays in English, and why: no cell of the notebook gets there. The commands speak English."""


def met_in_a_notebook(path: Path) -> bool:
    return not str(path.relative_to(PACKAGE)).startswith(tuple(NOT_MET))


def texts_of(node: ast.expr) -> list[str]:
    """Return the sentences that an argument can be, with ``{}`` for values; none where it is a value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    if isinstance(node, ast.IfExp):
        return texts_of(node.body) + texts_of(node.orelse)
    if isinstance(node, ast.BinOp):
        return texts_of(node.left) + texts_of(node.right)
    return []


def said_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield what a module says as a message, refuses, warns of, or tells as ``message=``, with its line."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        told = [item.value for item in node.keywords if item.arg in ("message", "found", "expected")]
        if name == "Message":
            told += node.args[:1]
        elif name in ERRORS:
            told += node.args
        elif name in ("warn", "_warn", "_refusal"):
            told += [*node.args[:1], *node.args[-2:]]
        elif name == "tell_once":
            told += node.args[-1:]
        elif name == "filterwarnings":
            continue
        yield from ((node.lineno, text) for item in told for text in texts_of(item))


def without_words(text: str) -> bool:
    return not re.search(r"[A-Za-z]{2}", re.sub(r"\{\w*\}", "", text))


def test_whatever_a_cell_can_refuse_or_warn_of_has_its_chinese() -> None:
    missing = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path, tree in modules()
        if met_in_a_notebook(path)
        for line, text in said_in(tree)
        if text not in CHINESE and not without_words(text)
    ]
    assert missing == []


@pytest.mark.parametrize("place", NOT_MET)
def test_what_stays_in_english_is_still_there(place: str) -> None:
    assert (PACKAGE / place).exists()


def test_an_error_is_refused_in_the_language_with_what_it_lists() -> None:
    reason = Message("not taken: {why}", Message("it is empty"))
    with pytest.raises(errors.CheckpointError) as raised, Words("zh").refusing():
        raise errors.CheckpointError(
            "There is no checkpoint to resume from, and starting fresh was not allowed.",
            "Attach the output of the session before, or start anew with --resume never.",
            [Message("{path} ({origin}, {at}): {reason}", "/in/iter_8.pth", "input", "?", reason)],
        )
    assert str(raised.value).splitlines() == [
        "没有可恢复的检查点，而设置又不允许从头训练。",
        "  /in/iter_8.pth（input，?）：未采用：it is empty",
        '请挂载上一次会话的输出；要从头训练，请设 RESUME = "never"。',
    ]
