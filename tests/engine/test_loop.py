"""Which part of a training step the optimizer is said to have taken."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict

from mapsage_kaggle.engine import loop
from mapsage_kaggle.engine.loop import OptimizerClock, SessionTrainLoop

CPU = torch.device("cpu")


class Clock:
    """A clock that only goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        # The module's alone: what other tests have left to be collected waits by the real clock.
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: self.now_s))

    def model(self, seconds: float) -> torch.nn.Linear:
        model = torch.nn.Linear(2, 1)
        model.register_forward_pre_hook(lambda *_: self.wait(seconds))
        return model

    def sgd(self, model: torch.nn.Module, seconds: float) -> torch.optim.SGD:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: self.wait(seconds))
        return optimizer

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def step(wrapper: Any, model: torch.nn.Module) -> None:
    wrapper.update_params(model(torch.ones(1, 2)).sum())


def test_the_optimizer_s_time_is_told_and_the_model_s_is_not(clock: Clock) -> None:
    model = clock.model(7.0)
    wrapper = OptimWrapper(clock.sgd(model, 2.0), clip_grad={"max_norm": 1.0})
    times = OptimizerClock(wrapper, CPU)
    for _ in range(2):  # the second step does not tell of the first one
        times.begin()
        step(wrapper, model)
        assert times.end(9.0) == 2.0


def test_a_step_that_only_accumulates_takes_none(clock: Clock) -> None:
    model = clock.model(7.0)
    wrapper = OptimWrapper(clock.sgd(model, 2.0), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    times, found = OptimizerClock(wrapper, CPU), []
    for _ in range(2):
        times.begin()
        step(wrapper, model)
        found.append(times.end(9.0))
    assert found == [0.0, 2.0]


def test_several_optimizers_are_added_up(clock: Clock) -> None:
    model = clock.model(1.0)
    wrappers = {name: OptimWrapper(clock.sgd(model, seconds)) for name, seconds in (("a", 2.0), ("b", 3.0))}
    together = OptimWrapperDict(**wrappers)
    times = OptimizerClock(together, CPU)
    times.begin()
    for wrapper in together.values():
        step(wrapper, model)
    assert times.end(60.0) == 5.0


def test_it_changes_no_step(clock: Clock) -> None:
    ends = []
    for watched in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 1)
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), clip_grad={"max_norm": 0.5})
        if watched:
            OptimizerClock(wrapper, CPU)
        step(wrapper, model)
        ends.append(model.weight.detach().clone())
        assert model.weight.grad is None
    assert torch.equal(*ends)


@pytest.mark.parametrize(("owed", "validates"), [(8, False), (6, True)])
def test_a_finished_run_whose_owed_validation_cannot_be_made_up_for_is_complete(
    owed: int, validates: bool
) -> None:
    ends, told = [], []
    kept = SimpleNamespace(owed_validation=owed, save_end=lambda _: None)
    session = SimpleNamespace(
        checkpoints=kept,
        training_begins=lambda *_, **__: None,
        warn=lambda *item: told.append(item),
        finish=lambda *end: ends.append(end),
    )
    model = torch.nn.Linear(2, 1)
    made: Any = object.__new__(SessionTrainLoop)
    made._iter = made._max_iters = 8
    made._batch_sampler, made._next_position = SimpleNamespace, lambda batches: 0
    made._runner = SimpleNamespace(
        session=session,
        model=model,
        optim_wrapper=OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)),
        val_loop=SimpleNamespace() if validates else None,
        call_hook=lambda _: None,
        register_hook=lambda _: None,
    )
    made.run()
    assert ends == [(8, "completed")]
    assert len(told) == validates


@pytest.mark.gpu
def test_on_a_gpu_it_is_a_share_of_the_step_and_waits_for_nothing() -> None:
    device = torch.device("cuda")
    model = torch.nn.Linear(1024, 1024, device=device)
    wrapper = AmpOptimWrapper(optimizer=torch.optim.AdamW(model.parameters(), fused=True))
    times = OptimizerClock(wrapper, device)
    found = []
    for _ in range(8):
        times.begin()
        with wrapper.optim_context(model):
            loss = model(torch.ones(4096, 1024, device=device)).sum()
        wrapper.update_params(loss)
        torch.cuda.synchronize()
        found.append(times.end(1.0))
    assert all(0.0 < share < 1.0 for share in found)
