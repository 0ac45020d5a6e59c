"""The fields of the form: what they hold, what is wrong with what was entered, and what they ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mapsage_kaggle.config.reading import as_mapping, read_config
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Panel
from mapsage_kaggle.notebook import form
from mapsage_kaggle.notebook.form import Outcome, Problem, Setting, difference, knobs_of, show_form, turn
from mapsage_kaggle.training.options import Options

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "train_loveda_kaggle.py"
OPTIONS = Options(config=CONFIG)
HERE = Setting(on_gpu=True, world_size=2, num_cpus=4)


@pytest.fixture(scope="module")
def cfg() -> Any:
    return read_config(CONFIG)


def asked(cfg: Any, setting: Setting = HERE, **values: str) -> Outcome:
    return turn(values, cfg, OPTIONS, setting)


def test_the_fields_hold_what_the_config_and_the_options_say(cfg: Any) -> None:
    assert {knob.name: knob.value for knob in knobs_of(cfg, OPTIONS)} == {
        "batch": "4",
        "crop": "512",
        "lr": "6e-05",
        "max_iters": "40000",
        "val_interval": "4000",
        "workers": "2",
        "session_limit": "12h 00m",
        "reserve": "10m 00s",
        "precision": "auto",
        "on_memory": "adapt",
    }


def test_fields_left_as_they_are_ask_for_nothing(cfg: Any) -> None:
    values = {knob.name: knob.value for knob in knobs_of(cfg, OPTIONS)}
    assert turn(values, cfg, OPTIONS, HERE) == Outcome(options=OPTIONS)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("batch", "many", "form_whole"),
        ("batch", "0", "form_whole"),
        ("batch", "1", "form_batch"),
        ("crop", "500", "form_multiple"),
        ("lr", "0", "form_rate"),
        ("lr", "nan", "form_rate"),
        ("max_iters", "-3", "form_whole"),
        ("val_interval", "50000", "form_interval"),
        ("precision", "fp8", "form_choice"),
        ("workers", "5", "form_workers"),
        ("session_limit", "a day", "form_duration"),
        ("reserve", "12h", "form_reserve"),
    ],
)
def test_each_field_says_what_is_wrong_with_it(cfg: Any, name: str, text: str, problem: str) -> None:
    outcome = asked(cfg, **{name: text})
    assert outcome.options is None
    assert {key: item.text for key, item in outcome.problems.items()} == {name: problem}


def test_mixed_precision_is_refused_without_a_gpu(cfg: Any) -> None:
    outcome = asked(cfg, Setting(on_gpu=False, world_size=1, num_cpus=2), precision="float16")
    assert outcome.problems["precision"].text == "form_precision"


def test_what_is_asked_for_reaches_the_config(cfg: Any) -> None:
    outcome = asked(
        cfg, batch="8", crop="768", lr="1e-4", max_iters="20000", val_interval="2000",
        precision="bfloat16", workers="0",
    )  # fmt: skip
    assert outcome.options is not None
    after = as_mapping(read_config(CONFIG, outcome.options.overrides))
    values = {knob.name: knob.value for knob in knobs_of(after, outcome.options)}
    assert values["crop"] == "768"
    assert (values["batch"], values["lr"], values["workers"]) == ("8", "0.0001", "0")
    assert outcome.options.precision == values["precision"] == "bfloat16"
    assert tuple(after["model"]["data_preprocessor"]["size"]) == (768, 768)
    assert [item["end"] for item in after["param_scheduler"]] == [1500, 20000]
    assert after["train_dataloader"]["persistent_workers"] is False
    keys = [item.partition("=")[0] for item in outcome.overrides]
    assert "-optim_wrapper.optimizer.lr = 6e-05\n+optim_wrapper.optimizer.lr = 0.0001\n" in difference(
        cfg, after, keys
    )


def test_times_and_the_memory_policy_become_options(cfg: Any) -> None:
    outcome = asked(cfg, session_limit="9h", reserve="15m", on_memory="fail")
    assert outcome.options is not None
    found = outcome.options
    assert (found.session_limit_s, found.reserve_s, found.on_memory) == (9 * 3600, 900, "fail")
    assert found.overrides == ()


def test_a_resumed_run_is_lengthened_by_extension_and_never_cut(cfg: Any) -> None:
    resumed = Setting(on_gpu=True, world_size=2, num_cpus=4, start_iteration=8000)
    longer = asked(cfg, resumed, max_iters="60000")
    assert longer.options is not None
    assert (longer.options.extend_to, longer.options.overrides) == (60_000, ())
    assert asked(cfg, resumed, max_iters="20000").problems["max_iters"].text == "form_end"


def test_an_extended_run_keeps_its_end_beyond_the_config_s(cfg: Any) -> None:
    extended = replace(HERE, start_iteration=8000, end=60_000)
    values = {knob.name: knob.value for knob in knobs_of(cfg, OPTIONS, end=extended.end)}
    assert values["max_iters"] == "60000"
    assert turn(values, cfg, OPTIONS, extended) == Outcome(options=OPTIONS)
    shorter = asked(cfg, extended, max_iters="50000")
    assert shorter.problems["max_iters"] == Problem(text="form_end", values={"end": 60_000})
    longer = asked(cfg, extended, max_iters="80000").options
    assert longer == replace(OPTIONS, extend_to=80_000)


def test_the_form_is_told_where_an_extended_run_ends(monkeypatch: pytest.MonkeyPatch, cfg: Any) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(
        form, "Form", lambda words, fields, **_: SimpleNamespace(display=lambda: shown.extend(fields))
    )
    prepared: Any = SimpleNamespace(
        options=OPTIONS,
        discovery=SimpleNamespace(cfg=cfg),
        facts=SimpleNamespace(on_gpu=True, world_size=2, extend_to=60_000),
        machine=SimpleNamespace(num_cpus=4),
        start_iteration=8000,
    )
    show_form(prepared, Words("en"), on_use=lambda options: Panel(title=""))
    assert {field.name: field.value for field in shown}["max_iters"] == "60000"
