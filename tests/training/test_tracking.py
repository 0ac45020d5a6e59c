"""Where a tracker's key comes from, and when it is written offline."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mapsage_kaggle.config import tracking as trackers
from mapsage_kaggle.config.tracking import check_tracker, tracked, trackers_of
from mapsage_kaggle.errors import MachineError
from mapsage_kaggle.training import tracking as module
from mapsage_kaggle.training.options import Options
from mapsage_kaggle.training.supervisor import Launch
from mapsage_kaggle.training.tracking import tracking

KEY = {"WANDB_API_KEY": "a-key"}
WANDB = {"visualizer": {"vis_backends": [{"type": "mmengine.WandbVisBackend"}]}}


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


def prepared(*, track: str = "wandb", internet: bool = True, cfg: Any = None) -> Any:
    discovery = SimpleNamespace(cfg=cfg or {}, paths=SimpleNamespace(temp=Path("/t")))
    options = replace(Options(config=Path("a.py")), track=track)
    machine = SimpleNamespace(internet=internet)
    return SimpleNamespace(discovery=discovery, options=options, machine=machine, work_dir=Path("/w"))


def test_with_a_key_and_a_network_it_is_online_and_nothing_is_told() -> None:
    env, told = tracking(prepared(), "abc", KEY)
    assert env["WANDB_API_KEY"] == "a-key"
    assert "WANDB_MODE" not in env
    assert told == ""


@pytest.mark.parametrize(
    ("internet", "environ", "why"),
    [
        (False, KEY, "there is no Internet"),
        (True, {}, "there is no WANDB_API_KEY in Kaggle's Secrets or the environment"),
    ],
)
def test_without_one_of_them_it_is_offline_with_how_to_sync(
    internet: bool, environ: dict[str, str], why: str
) -> None:
    env, told = tracking(prepared(internet=internet), "abc", environ)
    assert env["WANDB_MODE"] == "offline"
    assert told == (
        f"Weights & Biases is written offline ({why}). To sync it from elsewhere: "
        "wandb sync /w/trackers/abc/wandb/wandb/*"
    )


def test_the_mode_that_a_person_has_set_stays() -> None:
    env, told = tracking(prepared(internet=False), "abc", {"WANDB_MODE": "shared"})
    assert "WANDB_MODE" not in env
    assert told == ""


def test_the_key_comes_from_kaggle_s_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    kaggle: Any = ModuleType("kaggle_secrets")
    kaggle.UserSecretsClient = lambda: SimpleNamespace(get_secret=lambda name: f"secret of {name}")
    monkeypatch.setitem(sys.modules, "kaggle_secrets", kaggle)
    assert tracking(prepared(), "abc", {})[0]["WANDB_API_KEY"] == "secret of WANDB_API_KEY"


def test_a_login_is_as_good_as_a_key(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
    assert tracking(prepared(), "abc", {})[1] == ""


def test_nobody_asks_for_a_secret_that_no_tracker_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_kaggle_secret", lambda name: pytest.fail("asked"))
    assert tracking(prepared(track="tensorboard"), "abc", KEY) == ({}, "")


def test_the_key_reaches_the_child_and_no_text_of_its_launch() -> None:
    launch = Launch(spec=Path("/t/s"), work_dir=Path("/w"), scratch=Path("/t"), tracking=KEY)
    assert launch.environment({})["WANDB_API_KEY"] == "a-key"
    assert "a-key" not in repr(launch)


def test_a_config_s_own_trackers_count_as_asked_for() -> None:
    assert tracked(WANDB, "") == ("wandb",)
    assert tracked(WANDB, "tensorboard") == ("tensorboard", "wandb")
    assert tracked({}, "") == ()


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="--track wandb was asked for, which needs the package wandb"):
        check_tracker("wandb")
    check_tracker("")


def test_a_run_s_trackers_stay_in_the_work_dir_whatever_its_id(tmp_path: Path) -> None:
    assert trackers_of(tmp_path, "../../etc").parent == tmp_path / "trackers"
