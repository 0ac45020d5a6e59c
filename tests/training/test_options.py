"""What may be asked of a session, and by which names."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest

from mapsage_kaggle.clock import DEFAULT_LIMIT_S, DEFAULT_RESERVE_S
from mapsage_kaggle.errors import UsageError
from mapsage_kaggle.notebook.session import preflight
from mapsage_kaggle.training.options import (
    PARAMETERS,
    Options,
    add_arguments,
    check_options,
    in_notebook,
    options_from,
)

CONFIG = Path("small.py")


def test_arguments_that_are_not_given_are_the_fields_defaults() -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    assert options_from(CONFIG, vars(parser.parse_args([]))) == Options(config=CONFIG)


def test_a_session_s_time_is_the_clock_s_where_nothing_is_said() -> None:
    options = Options(config=CONFIG)
    assert (options.session_limit_s, options.reserve_s) == (DEFAULT_LIMIT_S, DEFAULT_RESERVE_S)


def test_patch_has_what_changes_the_plan_only() -> None:
    parser = ArgumentParser()
    add_arguments(parser, planning=True)
    names = {"resume", "run", "allow_weights_only", "expect_iteration", "extend_to", "overrides", "code"}
    assert set(vars(parser.parse_args([]))) == names


def test_the_notebook_has_these_parameters() -> None:
    assert {item.name for item in PARAMETERS if item.in_notebook} == {
        "resume", "run", "expect_iteration", "allow_weights_only", "extend_to", "session_limit", "reserve",
        "gpus", "precision", "on_memory", "overrides", "code", "pass_env", "track", "upload_to",
        "upload_every",
    }  # fmt: skip


def test_a_parameter_that_the_notebook_does_not_have_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'threads'"):
        preflight("demo", threads=2)


@pytest.mark.parametrize("name", [item.name for item in PARAMETERS if item.least is not None])
def test_a_number_that_is_too_low_is_refused_by_its_flag(name: str) -> None:
    [item] = [item for item in PARAMETERS if item.name == name]
    assert item.least is not None
    check_options(options_from(CONFIG, {name: item.least}))
    with pytest.raises(UsageError, match=f"{item.flag} {item.least - 1} is too low"):
        check_options(options_from(CONFIG, {name: item.least - 1}))


def test_gpus_are_auto_or_a_number() -> None:
    assert options_from(CONFIG, {"gpus": "2"}).gpus == 2
    with pytest.raises(UsageError, match="--gpus two is neither auto nor a number"):
        options_from(CONFIG, {"gpus": "two"})


def test_a_named_run_and_a_start_from_elsewhere_contradict_each_other() -> None:
    for resume in ("never", Path("iter_8.pth")):
        with pytest.raises(UsageError, match="contradict each other"):
            check_options(Options(config=Path("a.py"), run="abc", resume=resume))
    check_options(Options(config=Path("a.py"), run="abc", resume="require"))


@pytest.mark.parametrize("endpoint", ["fd00::1", "fd00::1:29500", "host:port", ":29500", "host:99999"])
def test_a_meeting_point_that_is_no_host_and_port_is_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match="is no HOST:PORT"):
        check_options(Options(config=Path("a.py"), nnodes=2, rdzv_endpoint=endpoint))


@pytest.mark.parametrize("endpoint", ["host", "10.0.0.1:29500", "[fd00::1]", "[fd00::1]:29500"])
def test_a_meeting_point_may_be_without_a_port_or_an_ipv6_address(endpoint: str) -> None:
    check_options(Options(config=Path("a.py"), nnodes=2, rdzv_endpoint=endpoint))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Start anew with --resume never.", 'Start anew with RESUME = "never".'),
        ("{path}, which --resume names, was rejected.", "{path}, which RESUME names, was rejected."),
        ("Say --resume {path}; {anew}.", 'Say RESUME = "{path}"; {anew}.'),
        ("leave --expect-iteration out", "leave EXPECT_ITERATION out"),
        ("say so with --extend-to {same}.", "say so with EXTEND_TO = {same}."),
        ("Use --gpus auto, or --gpus {count}.", 'Use GPUS = "auto", or GPUS = {count}.'),
        ("Add --allow-weights-only to start", "Add ALLOW_WEIGHTS_ONLY = True to start"),
        ("name it: --set data_root=FOLDER.", 'name it: OVERRIDES = ["data_root=FOLDER"].'),
        ("--set val_dataloader.data_root=FOLDER", 'OVERRIDES = ["val_dataloader.data_root=FOLDER"]'),
        ("pip install --upgrade torch, --work-dir", "pip install --upgrade torch, --work-dir"),
    ],
)
def test_a_remedy_names_the_notebooks_parameter_where_there_is_one(template: str, expected: str) -> None:
    assert in_notebook(template) == expected
