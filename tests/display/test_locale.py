"""The catalogues: complete in both languages, and true to the sentences in the sources."""

from __future__ import annotations

import ast
import re
import string
from dataclasses import replace
from pathlib import Path

import pytest
from support.machines import GOOD, PATHS

from mapsage_kaggle import errors
from mapsage_kaggle.checks import preflight
from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.display.locale.messages import CHINESE, NAMES_CHINESE, translate
from mapsage_kaggle.display.locale.words import CATALOGUES
from mapsage_kaggle.machine import Gpu, Machine

PACKAGE = Path(__file__).resolve().parents[2] / "mapsage_kaggle"


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_the_catalogues_have_the_same_keys() -> None:
    assert set(CATALOGUES["zh"]) == set(CATALOGUES["en"])


@pytest.mark.parametrize("key", sorted(CATALOGUES["en"]))
def test_a_text_takes_the_same_values_in_both_languages(key: str) -> None:
    assert placeholders(CATALOGUES["zh"][key]) == placeholders(CATALOGUES["en"][key])


def test_a_template_takes_the_same_values_in_both_languages() -> None:
    assert [text for text, other in CHINESE.items() if placeholders(text) != placeholders(other)] == []


def sentences() -> set[str]:
    """Return every string of the sources, with ``{}`` where a value is put in."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name in ("messages.py", "messages_errors.py", "messages_jobs.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
                found.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    for path in PACKAGE.rglob("*.j2"):
        found.update(re.findall(r't\("([^"]+)"', path.read_text(encoding="utf-8")))
    return found


def test_every_template_is_a_sentence_of_the_sources() -> None:
    known = sentences()
    bare = {text: re.sub(r"\{\w+\}", "{}", text) for text in CHINESE}
    unknown = [text for text, form in bare.items() if form not in known]
    assert unknown == []


MACHINES = {
    "good": GOOD,
    "old python": replace(GOOD, python="3.9.1"),
    "no torch": replace(GOOD, torch=None, torch_problem="No module named 'torch'"),
    "old torch": replace(GOOD, torch="2.1.0"),
    "upstream": replace(GOOD, installed={**GOOD.installed, "mmcv": "2.1.0"}),
    "nothing installed": replace(GOOD, installed={}),
    "no gpu": replace(GOOD, gpus=(), internet=False, installed={}),
    "no gpu elsewhere": replace(GOOD, gpus=(), on_kaggle=False, internet=False),
    "p100": replace(
        GOOD,
        gpus=(Gpu(name="Tesla P100", memory_bytes=2**34, capability=(6, 0), supported=False),),
    ),
    "driver only": replace(GOOD, gpus=(Gpu(name="Tesla T4", memory_bytes=2**34),)),
    "bare": replace(GOOD, inputs=(), working_free_bytes=10, working_num_files=450),
    "unreadable": replace(GOOD, working_free_bytes=None, temp_free_bytes=None),
    "read-only": replace(GOOD, working_problem="/kaggle/working: No space left on device"),
}


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("elapsed_s", [60.0, 41_760.0, 43_200.0])
def test_all_that_preflight_says_is_said_in_chinese(name: str, elapsed_s: float) -> None:
    machine: Machine = MACHINES[name]
    clock = SessionClock(started_s=0.0, now=lambda: elapsed_s)
    for check in preflight(PATHS, machine, clock=clock):
        assert check.name in NAMES_CHINESE
        if not check.ok or check.name not in ("stack", "gpu"):  # those then give names and versions only
            assert translate(check.message, "zh") != check.message


def test_values_stay_as_they_are_and_an_unknown_message_too() -> None:
    text = (
        "torch 2.10 has no kernels for Tesla P100 (sm_60): it would take memory and then fail at the first "
    )
    text += "step. Choose another accelerator (on Kaggle: GPU T4 x2)."
    assert "Tesla P100 (sm_60)" in translate(text, "zh")
    assert translate("Something new.", "zh") == "Something new."
    assert translate(text, "en") == text


# -- the other way round: whatever a notebook can meet has its Chinese

ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)} | {"SaveFailed"}

NOT_MET = {
    "setup/bundle.py": "packed on one's own machine, by a command",
    "cli.py": "only the command's own options",
    "demo.py": "a command",
    "imagery/": "a command, after training",
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


def said_in(tree: ast.AST) -> list[tuple[int, str]]:
    """Return what a module refuses, warns of, or tells as ``message=``, with its line."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        told = [item.value for item in node.keywords if item.arg in ("message", "found", "expected")]
        if name in ERRORS:
            told += node.args
        elif name in ("warn", "_refusal", "_turn_off"):
            told += node.args[-2:]
        elif name == "tell_once":
            told += node.args[-1:]
        elif name == "filterwarnings":
            continue
        found += [(node.lineno, text) for item in told for text in texts_of(item)]
    return found


def without_values(text: str) -> bool:
    return not re.search(r"[A-Za-z]{4}", re.sub(r"\{\w*\}", "", text))


def test_whatever_a_cell_can_refuse_or_warn_of_has_its_chinese() -> None:
    known = {re.sub(r"\{\w+\}", "{}", text) for text in CHINESE}
    missing = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if met_in_a_notebook(path)
        for line, text in said_in(ast.parse(path.read_text(encoding="utf-8")))
        if text not in known and not without_values(text)
    ]
    assert missing == []


@pytest.mark.parametrize("place", NOT_MET)
def test_what_stays_in_english_is_still_there(place: str) -> None:
    assert (PACKAGE / place).exists()


def filled(template: str) -> tuple[str, dict[str, str]]:
    values = {name: f"⟨{name}⟩" for name in placeholders(template)}
    return template.format(**values), values


@pytest.mark.parametrize("template", CHINESE)
def test_a_message_is_taken_for_no_other(template: str) -> None:
    text, values = filled(template)
    assert translate(text, "zh") == CHINESE[template].format(**values)


def test_problem_and_remedy_joined_are_both_said_in_chinese() -> None:
    text = "The data root /x has no ann.txt, which the config reads. Attach the whole data set."
    assert translate(text, "zh") == "数据根目录 /x 没有配置要读取的 ann.txt。请挂载完整的数据集。"


def test_an_unknown_sentence_stays_and_the_one_after_it_is_translated() -> None:
    text = "Something new. Attach the whole data set."
    assert translate(text, "zh") == "Something new. 请挂载完整的数据集。"


def test_a_list_of_files_is_translated_line_by_line() -> None:
    text = (
        "There is no checkpoint to resume from, and starting fresh was not allowed.\n"
        "  /in/iter_8.pth: not taken: it is of a run with another config \n"
        "Attach the output of the session before, or start anew with --resume never."
    )
    assert translate(text, "zh").splitlines() == [
        "没有可恢复的检查点，而设置又不允许从头训练。",
        "  /in/iter_8.pth: 未采用：属于配置不同的任务",
        '请挂载上一次会话的输出；要从头训练，请设 RESUME = "never"。',
    ]
