"""The catalogues: complete in both languages, and true to the sentences in the sources."""

from __future__ import annotations

import ast
import re
import string
from dataclasses import replace
from pathlib import Path

import pytest
from test_environment import GOOD, PATHS

from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.display.messages import CHINESE, NAMES_CHINESE, translate
from mapsage_kaggle.display.words import CATALOGUES
from mapsage_kaggle.environment import Gpu, Machine, preflight

PACKAGE = Path(__file__).resolve().parents[1] / "mapsage_kaggle"


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
        if path.name == "messages.py":
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
