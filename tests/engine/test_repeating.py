"""Whether the device repeats: measured, and nothing changed by it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.optim import OptimWrapper

from mapsage_kaggle.clock import SessionClock, boot_time_s
from mapsage_kaggle.engine import seeding
from mapsage_kaggle.engine.observed import Observed
from mapsage_kaggle.engine.repeating import Repetition, measure
from mapsage_kaggle.engine.session import WorkerSession
from mapsage_kaggle.events import read_events
from mapsage_kaggle.records import Exactness, SessionRecord
from mapsage_kaggle.spec import ChildSpec

DATA = {"inputs": torch.linspace(-1.0, 2.0, 24).reshape(4, 6)}


class Small(BaseModel):
    """A model with a norm, a drop-out, a number that it counts up, and tensors that it replaces."""

    def __init__(self, data_preprocessor: BaseDataPreprocessor | None = None) -> None:
        super().__init__(data_preprocessor)
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.5)
        )
        self.unused = torch.nn.Linear(2, 2)
        self.calls = 0
        self.bases: torch.Tensor
        self.register_buffer("bases", torch.zeros(6))
        self.plain = torch.zeros(6)
        self.disturb: Callable[[torch.Tensor], torch.Tensor] = lambda values: values

    def forward(self, inputs: torch.Tensor, mode: str = "tensor") -> Any:
        self.calls += 1
        # As mmsegmentation's EMAHead does: not written into, but another tensor each time.
        self.bases = 0.9 * self.bases + 0.1 * inputs.mean(0)
        self.plain = self.plain + self.bases
        random.random()
        np.random.random()
        return {"loss": self.disturb(self.layers(inputs)).square().mean()}


def trained(model: Small, steps: int = 1, *, measured: bool = False) -> OptimWrapper:
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.1))
    for step in range(steps):
        seeding.seed_step(3, step, 0, 0)
        model.train_step(DATA, wrapper)
        if step == 0 and measured:
            measure(model, wrapper, DATA, seed=1)
    return wrapper


def everything(model: Small, wrapper: OptimWrapper) -> list[Any]:
    """Return all that a step leaves behind."""
    tensors = [*model.state_dict().values(), model.plain, *(item.grad for item in model.parameters())]
    state = wrapper.state_dict()["state"]
    tensors += [value for item in state.values() for value in item.values()]
    generators = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    flags = [module.training for module in model.modules()]
    return [[None if item is None else item.tolist() for item in tensors], generators, flags, model.calls,
            wrapper._inner_count]  # fmt: skip


@pytest.fixture(autouse=True)
def _generators_as_before() -> Any:
    with seeding.preserved_generators():
        yield


def test_a_cpu_repeats_a_model_that_draws_and_counts() -> None:
    model = Small()
    assert measure(model, trained(model), DATA, seed=1) == Repetition(repeatable=True, difference=0.0)


def test_everything_is_left_as_it_was() -> None:
    model = Small()
    wrapper = trained(model)
    model.layers(DATA["inputs"]).sum().backward()  # as in the midst of an accumulation
    before = everything(model, wrapper)
    measure(model, wrapper, DATA, seed=1)
    assert everything(model, wrapper) == before


def test_training_goes_on_to_the_same_state_whether_it_is_measured_or_not() -> None:
    ends = []
    for measured in (False, True):
        model = Small()
        ends.append(everything(model, trained(model, 3, measured=measured)))
    assert ends[0] == ends[1]


def test_what_gives_other_gradients_is_told_with_the_largest_difference() -> None:
    model = Small()
    wrapper, noise = trained(model), iter([1.0, 1.5])
    model.disturb = lambda values: values * next(noise)
    seen = measure(model, wrapper, DATA, seed=1)
    assert not seen.repeatable
    assert 0.0 < seen.difference < 100.0


def test_a_difference_of_one_bit_is_one() -> None:
    model = Small()
    wrapper, factors = trained(model), iter([1.0, 1.0 + 2.0**-23])
    model.disturb = lambda values: values * next(factors)
    assert not measure(model, wrapper, DATA, seed=1).repeatable


@pytest.mark.parametrize(("factor", "difference"), [(-0.0, 0.0), (float("nan"), float("inf"))])
def test_another_zero_is_told_and_is_no_distance_and_no_number_is_any(
    factor: float, difference: float
) -> None:
    model = Small()
    wrapper, factors = trained(model), iter([0.0, factor])
    next(model.parameters()).register_hook(lambda gradient: gradient * next(factors))
    assert measure(model, wrapper, DATA, seed=1) == Repetition(repeatable=False, difference=difference)


def test_a_measurement_for_which_memory_runs_out_changes_nothing() -> None:
    model = Small()
    wrapper, before = trained(model), []

    def full(values: torch.Tensor) -> torch.Tensor:
        if len(before) == 2:
            raise torch.OutOfMemoryError
        before.append(1)
        return values

    state = everything(model, wrapper)
    before.append(0)
    model.disturb = full
    with pytest.raises(torch.OutOfMemoryError):
        measure(model, wrapper, DATA, seed=1)
    assert everything(model, wrapper) == state


def test_one_rank_measures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    model, seen = Small(), []
    wrapper = trained(model)

    def look(values: torch.Tensor) -> torch.Tensor:
        seen.append(torch.distributed.is_initialized())
        return values

    model.disturb = look
    measure(model, wrapper, DATA, seed=1)
    assert seen == [False, False]
    assert torch.distributed.is_initialized()


def test_a_model_with_steps_of_its_own_is_not_measured() -> None:
    class Own(Small):
        def train_step(self, data: Any, optim_wrapper: Any) -> Any:
            return super().train_step(data, optim_wrapper)

    model = Own()
    with pytest.raises(TypeError, match="train_step of its own"):
        measure(model, trained(model), DATA, seed=1)


# --- what draws unseen


class Jittering(BaseDataPreprocessor):
    """What a person writes who changes the brightness on the device."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, data: Any, training: bool = False) -> Any:
        data = super().forward(data, training)
        data["inputs"] *= 1.0 + self.draw()  # in place
        return data


class OwnJittering(Jittering):
    def __init__(self) -> None:
        self.rng = np.random.default_rng()
        super().__init__(lambda: self.rng.random())


class Dropping(torch.nn.Module):
    """A layer that draws from a generator of its own; ``matters`` or not."""

    def __init__(self, *, matters: bool) -> None:
        super().__init__()
        self.rng, self.matters = np.random.default_rng(), matters

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        drawn = self.rng.random()
        return values * drawn if self.matters else values


def seen_of(model: Small) -> Repetition:
    data = {"inputs": DATA["inputs"].clone()}
    seen = measure(model, trained(model, 0), data, seed=1)
    assert torch.equal(data["inputs"], DATA["inputs"])
    return seen


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: float(torch.rand(()))])
def test_a_preprocessor_that_draws_from_a_seeded_generator_repeats(draw: Callable[[], float]) -> None:
    assert seen_of(Small(Jittering(draw))) == Repetition(repeatable=True, difference=0.0)


@pytest.mark.parametrize("preprocessor", [OwnJittering(), Jittering(map(float, range(9)).__next__)])
def test_a_preprocessor_that_draws_unseen_is_named_and_the_device_repeats(preprocessor: Jittering) -> None:
    seen = seen_of(Small(preprocessor))
    assert seen == Repetition(repeatable=True, difference=0.0, unseen=(type(preprocessor).__name__,))


@pytest.mark.parametrize("matters", [True, False])
def test_a_layer_with_a_generator_of_its_own_is_named(matters: bool) -> None:
    model = Small()
    model.layers.append(Dropping(matters=matters))
    seen = seen_of(model)
    assert seen.unseen == ("Dropping",)
    assert seen.repeatable is not matters


# --- told ------------------------------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path: Path) -> ChildSpec:
    return ChildSpec(
        config=tmp_path / "c.py", work_dir=tmp_path, clock_started_s=boot_time_s(), limit_s=3600.0,
        reserve_s=0.0, action="fresh", run_id="r", fingerprint="f",
    )  # fmt: skip


APART = Repetition(repeatable=False, difference=0.25)


@pytest.mark.parametrize(
    ("device", "deterministic", "loud"),
    [("Tesla T4", False, False), ("Tesla T4", True, True), ("CPU", False, True)],
)
def test_a_device_that_should_repeat_and_does_not_is_told_loudly(
    spec: ChildSpec, device: str, deterministic: bool, loud: bool
) -> None:
    observed = Observed(replace(spec, deterministic=deterministic))
    warning = observed.repeated(APART, device)
    assert bool(warning) is loud
    assert not loud or (device in warning and "no seed sets, or the device computes wrongly" in warning)
    exactness = observed.told_in(SessionRecord(run_id="r", fingerprint="f")).exactness
    assert (exactness.bitwise, exactness.repeatable, exactness.difference) == (False, False, 0.25)
    assert exactness.grade == ("neither" if loud else "rounding")
    assert f"{device} computed two different gradients" in (exactness.reasons or ("",))[0]


def test_a_device_that_repeats_is_no_reason(spec: ChildSpec) -> None:
    observed = Observed(spec)
    assert observed.repeated(Repetition(repeatable=True, difference=0.0), "CPU") == ""
    record = SessionRecord(run_id="r", fingerprint="f", exactness=Exactness(bitwise=True, reasons=()))
    assert observed.told_in(record).exactness == Exactness(
        bitwise=True, reasons=(), repeatable=True, difference=0.0
    )


def measured(spec: ChildSpec, model: Small, **exactness: Any) -> Exactness:
    """Return what the record of a session says that measures after its first step."""
    session = WorkerSession(spec, rank=0, world_size=1)
    record = SessionRecord(run_id="r", fingerprint="f", exactness=Exactness(device="CPU", **exactness))
    record.write(session.files.session)
    session.open()
    logger = SimpleNamespace(info=lambda text: None)
    runner: Any = SimpleNamespace(model=model, optim_wrapper=trained(model), seed=1, logger=logger)
    session.attach(runner, "")
    session.measure_repetition(DATA, step_s=0.1)
    session.close()
    return session.checkpoints.observed.told_in(record).exactness


def test_a_session_measures_and_warns(spec: ChildSpec) -> None:
    model = Small()
    model.disturb = lambda values: values * (1.0 + os.urandom(1)[0])
    assert measured(spec, model).repeatable is False
    warnings = [event for event in read_events(spec.work_dir / "events.jsonl") if event.event == "warning"]
    assert "CPU computed two different gradients" in warnings[0].data["message"]


@pytest.mark.parametrize("part", ["OwnJittering", "Dropping"])
def test_a_session_names_what_draws_unseen_and_not_the_device(spec: ChildSpec, part: str) -> None:
    model = Small(OwnJittering() if part == "OwnJittering" else None)
    if part == "Dropping":
        model.layers.append(Dropping(matters=True))
    exactness = measured(spec, model, bitwise=True, grade="bitwise", reasons=())
    assert (exactness.bitwise, exactness.grade) == (False, "neither")
    assert exactness.reasons == (f"{part} goes by more than the batch and the seed",)
    (warning,) = [event for event in read_events(spec.work_dir / "events.jsonl") if event.event == "warning"]
    assert warning.data["message"].startswith(f"{part} goes by more than the batch and the seed, such as")
    assert "CPU" not in warning.data["message"]


def test_a_session_measures_once(spec: ChildSpec) -> None:
    model = Small()
    calls = model.calls + 1
    assert measured(spec, model, repeatable=True).repeatable is True
    assert model.calls == calls


def test_little_time_is_not_spent_on_measuring(spec: ChildSpec) -> None:
    clock = SessionClock(started_s=boot_time_s(), limit_s=0.5, reserve_s=0.0)
    assert measured(replace(spec, limit_s=clock.limit_s), Small()).repeatable is None


def test_what_cannot_be_measured_is_said_nothing_of(spec: ChildSpec) -> None:
    model = Small()

    def fails(values: torch.Tensor) -> torch.Tensor:
        if model.calls > 1:
            raise torch.OutOfMemoryError
        return values

    model.disturb = fails
    assert measured(spec, model) == Exactness(device="CPU")
