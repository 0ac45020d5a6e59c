"""What hooks remember: it travels with checkpoints, and what cannot is named."""

from __future__ import annotations

import io
import random
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.hooks import EarlyStoppingHook, EMAHook, Hook, IterTimerHook
from mmengine.logging import MessageHub

from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.clock import SessionClock, boot_time_s
from mapsage_kaggle.engine.control import Control
from mapsage_kaggle.engine.digests import digest
from mapsage_kaggle.engine.loop import SessionTrainLoop
from mapsage_kaggle.engine.remembering import HookMemory
from mapsage_kaggle.pace import Pace


class Counts(Hook):
    """A person's hook that remembers in an attribute alone."""

    def __init__(self) -> None:
        self.every, self.seen = 4, 0


class Travels(Counts):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Own:
    """Something that a hook may hold."""

    def __init__(self) -> None:
        self.value = 1


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> MessageHub:
    return MessageHub.get_instance(request.node.name)


def after_a_checkpoint(hub: MessageHub, name: str) -> MessageHub:
    """Return the message hub of a session that has loaded what another one's held."""
    stream = io.BytesIO()
    torch.save({"state_dict": {}, "message_hub": hub.state_dict()}, stream)
    stream.seek(0)
    loaded = MessageHub.get_instance(f"{name} resumed")
    loaded.load_state_dict(load_checkpoint(stream)["message_hub"])
    return loaded


def early(wait: int = 0, best: float = -float("inf")) -> EarlyStoppingHook:
    hook = EarlyStoppingHook(monitor="mIoU", patience=3)
    hook.wait_count, hook.best_score = wait, best
    return hook


def test_early_stopping_goes_on_counting_where_the_session_before_was(hub: MessageHub) -> None:
    HookMemory([early(2, 41.5)]).note(hub)
    resumed = early()
    assert HookMemory([resumed]).restore(after_a_checkpoint(hub, "early")) == ()
    assert (resumed.wait_count, resumed.best_score) == (2, 41.5)


def test_early_stopping_that_is_taken_up_again_waits_anew_for_a_better_score(hub: MessageHub) -> None:
    HookMemory([early(3, 41.5)]).note(hub)
    resumed = early()
    HookMemory([resumed]).restore(after_a_checkpoint(hub, "anew"), taken_up=True)
    assert (resumed.wait_count, resumed.best_score) == (0, 41.5)


def test_two_hooks_of_one_class_each_get_their_own_state_back(hub: MessageHub) -> None:
    HookMemory([early(1, 10.0), early(2, 20.0)]).note(hub)
    resumed = [early(), early()]
    HookMemory(resumed).restore(after_a_checkpoint(hub, "two"))
    assert [(hook.wait_count, hook.best_score) for hook in resumed] == [(1, 10.0), (2, 20.0)]


def test_a_person_s_hook_is_asked_for_its_state_and_given_it(hub: MessageHub) -> None:
    hook, resumed = Travels(), Travels()
    hook.seen = 7
    HookMemory([hook]).note(hub)
    assert HookMemory([resumed]).restore(after_a_checkpoint(hub, "travels")) == ()
    assert resumed.seen == 7


def test_a_checkpoint_that_holds_no_state_is_told_to_let_the_hook_begin_anew(hub: MessageHub) -> None:
    [told] = HookMemory([early(), Counts()]).restore(hub)
    assert "does not hold what EarlyStoppingHook remembers" in told


@pytest.mark.parametrize(
    "value", [1, "a", [1], {"a": (1,)}, deque([1]), np.zeros(3), torch.zeros(3), Own(), random.Random(3),
              np.random.default_rng(3), torch.Generator(), torch.nn.Linear(2, 2)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_hook_whose_attribute_changes_is_named_with_it(value: Any) -> None:
    hook = Counts()
    vars(hook)["kept"] = value
    memory = HookMemory([hook])
    assert memory.watch() == ()
    assert memory.watch() == ()
    change(hook, value)
    [told] = memory.watch()
    assert "Counts keeps kept in an attribute" in told


def test_a_hook_is_named_once_with_all_its_attributes() -> None:
    hook = Counts()
    memory = HookMemory([hook])
    memory.watch()
    hook.every, hook.seen = 5, 1
    found = memory.watch()
    assert [line.partition(", which")[0] for line in found] == ["Counts keeps every, seen in attributes"]
    hook.every = 4
    assert memory.watch() == found


def change(hook: Any, value: Any) -> None:
    if isinstance(value, Own):
        value.value = 2
    elif isinstance(value, (list, deque)):
        value.append(2)
    elif isinstance(value, dict):
        value["b"] = 2
    elif isinstance(value, torch.Generator):
        torch.rand(1, generator=value)
    elif hasattr(value, "random"):
        value.random()
    elif isinstance(value, torch.nn.Linear):
        value.bias.data += 1
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        value += 1
    else:
        hook.kept = value * 2


def test_an_attribute_that_comes_later_is_named_too() -> None:
    hook = Counts()
    memory = HookMemory([hook])
    memory.watch()
    vars(hook)["last_score"] = 3.5
    [told] = memory.watch()
    assert "last_score" in told


def test_hooks_that_give_their_state_and_stock_ones_are_not_named() -> None:
    hooks: list[Any] = [Travels(), early(), IterTimerHook(), EMAHook()]
    memory = HookMemory(hooks)
    memory.watch()
    for hook in hooks:
        hook.seen = hook.wait_count = hook.time_sec_tot = 9
    assert memory.watch() == ()


def test_a_digest_tells_values_of_other_kinds_apart() -> None:
    values: list[Any] = [1, 1.0, "1", True, None, [1], (1,), {1: 1}, np.float32(1), np.ones(1), torch.ones(1),
                         torch.ones(1, dtype=torch.bfloat16), b"1"]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)


def test_a_digest_follows_what_refers_to_itself_once() -> None:
    own = Own()
    vars(own)["itself"] = [own]
    assert digest(own) == digest(own)


# --- who ends training -----------------------------------------------------------------------------------


def loop() -> Any:
    made = object.__new__(SessionTrainLoop)
    made.stop_training = False
    return made


def test_who_stops_training_is_named_with_the_reason_that_it_logs() -> None:
    runner, hook = SimpleNamespace(train_loop=loop(), logger=SimpleNamespace(info=lambda _: None)), early()
    hook.best_score, hook.wait_count = 50.0, 2
    hook.after_val_epoch(runner, {"mIoU": 40.0})
    assert runner.train_loop.stop_training
    assert runner.train_loop.stopped_by == (
        "EarlyStoppingHook: the monitored metric did not improve in the last 3 records. best score: 50.000"
    )


def test_a_function_that_stops_training_is_named_and_may_take_it_back() -> None:
    made = loop()
    made.stop_training = True
    assert made.stopped_by == "test_a_function_that_stops_training_is_named_and_may_take_it_back"
    made.stop_training = False
    assert not made.stop_training


def control(tmp_path: Path, *, left_s: float = 3600.0) -> Control:
    clock = SessionClock(started_s=boot_time_s(), limit_s=left_s, reserve_s=0.0)
    pace = Pace(expected={"iteration_s": 1.0, "validation_s": 10.0, "save_s": 1.0, "finish_s": 1.0})
    return Control(
        clock=clock,
        pace=pace,
        stop_request=tmp_path / "stop",
        save_request=tmp_path / "save",
        watch_pipe=False,
    )


def test_an_early_stop_ends_training_at_the_boundary(tmp_path: Path) -> None:
    decided = control(tmp_path).decide(validation_due=False, save_due=False, early=True)
    assert (decided.stop, decided.validate) == ("early", False)


def test_a_validation_that_is_due_comes_before_an_early_stop(tmp_path: Path) -> None:
    decided = control(tmp_path).decide(validation_due=True, save_due=False, early=True)
    assert (decided.stop, decided.validate) == ("", True)


def test_an_early_stop_waits_for_the_end_of_an_accumulation(tmp_path: Path) -> None:
    decided = control(tmp_path).decide(validation_due=False, save_due=False, early=True, may_stop=False)
    assert decided.stop == ""


def test_an_early_stop_goes_before_a_request_to_stop(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    decided = control(tmp_path).decide(validation_due=False, save_due=False, early=True)
    assert decided.stop == "early"
