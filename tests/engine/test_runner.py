"""A chain that moves between GPUs of different half precision: where the loss scale goes on from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from mapsage_kaggle.config.reading import written_value
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine import runner as runner_module
from mapsage_kaggle.engine.runner import SessionRunner, begin_scaling_anew, format_configs_once
from mapsage_kaggle.errors import ConfigError

FIRST_SCALE = 2.0**16


class OnCPU(AmpOptimWrapper):
    """mmengine's mixed precision with its loss scaler, on a CPU."""

    def __init__(self, dtype: torch.dtype | None, loss_scale: float | None = None) -> None:
        weight = torch.nn.Parameter(torch.ones(3))
        OptimWrapper.__init__(self, torch.optim.AdamW([weight], lr=0.1))  # AmpOptimWrapper's asks for a GPU
        self.weight = weight
        self._scale_update_param = loss_scale
        self.cast_dtype = dtype
        self.loss_scaler = torch.amp.GradScaler("cpu", init_scale=loss_scale or FIRST_SCALE)

    def train(self, iterations: int) -> None:
        for _ in range(iterations):
            self.update_params((self.weight**2).sum())


def config_text(**options: Any) -> str:
    return str(Config({"optim_wrapper": {"type": "AmpOptimWrapper", **options}, "max": 1}).pretty_text)


def checkpoint(wrapper: OnCPU, cfg: str | None) -> dict[str, Any]:
    return {"meta": {"iter": 7, "cfg": cfg}, "optimizer": wrapper.state_dict()}


BFLOAT16 = config_text(dtype="bfloat16", loss_scale=1.0)
FLOAT16 = config_text(dtype="float16")
UNREADABLE = "import os"


@pytest.mark.parametrize("cfg", [BFLOAT16, None, UNREADABLE])
@pytest.mark.parametrize("dtype", [torch.float16, None])
def test_from_bfloat16_to_float16_the_scale_begins_anew(cfg: str | None, dtype: torch.dtype | None) -> None:
    before, after = OnCPU(torch.bfloat16, loss_scale=1.0), OnCPU(dtype)
    before.train(3)
    saved = checkpoint(before, cfg)
    told = begin_scaling_anew(saved, after)
    after.load_state_dict(saved["optimizer"])
    assert after.loss_scaler.get_scale() == FIRST_SCALE
    assert told == (
        "The checkpoint's loss scale of 1.0 is of training that needed none or was fixed; for float16 it "
        "begins anew at 65536.0."
    )
    assert Words("zh").translate(told) == (
        "检查点中的损失缩放系数 1.0 来自无需缩放或系数固定的训练；在 float16 下重新从 65536.0 开始。"
    )
    after.train(1)
    assert torch.isfinite(after.weight).all()


@pytest.mark.parametrize("cfg", [FLOAT16, config_text(), None, UNREADABLE])
def test_within_float16_it_goes_on_where_it_was(cfg: str | None) -> None:
    before, after = OnCPU(torch.float16), OnCPU(torch.float16)
    before.train(3)
    before.loss_scaler.load_state_dict({**before.loss_scaler.state_dict(), "scale": 512.0})
    saved = checkpoint(before, cfg)
    assert begin_scaling_anew(saved, after) == ""
    after.load_state_dict(saved["optimizer"])
    assert after.loss_scaler.get_scale() == 512.0
    assert after.loss_scaler.state_dict()["_growth_tracker"] == 3


def test_a_scale_that_overflows_have_brought_down_to_one_goes_on() -> None:
    before, after = OnCPU(torch.float16), OnCPU(torch.float16)
    before.loss_scaler.load_state_dict({**before.loss_scaler.state_dict(), "scale": 1.0})
    assert begin_scaling_anew(checkpoint(before, FLOAT16), after) == ""


def test_a_scale_that_grew_in_bfloat16_is_not_taken_over() -> None:
    before, after = OnCPU(torch.bfloat16), OnCPU(torch.float16)
    before.loss_scaler.load_state_dict({**before.loss_scaler.state_dict(), "scale": 2.0**90})
    assert begin_scaling_anew(checkpoint(before, config_text(dtype="bfloat16")), after) != ""


@pytest.mark.parametrize(
    "after",
    [
        OnCPU(torch.bfloat16, loss_scale=1.0), OnCPU(torch.bfloat16), OnCPU(torch.float16, loss_scale=8.0),
        OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)),
    ],
    ids=["fixed in bfloat16", "dynamic in bfloat16", "fixed in float16", "float32"],
)  # fmt: skip
def test_elsewhere_the_state_is_left(after: Any) -> None:
    saved = checkpoint(OnCPU(torch.bfloat16, loss_scale=1.0), BFLOAT16)
    assert begin_scaling_anew(saved, after) == ""
    assert saved["optimizer"]["loss_scaler"]["scale"] == 1.0


def test_a_checkpoint_of_float32_has_none_to_go_on_from() -> None:
    saved = {"meta": {"iter": 7}, "optimizer": {"state": {}, "param_groups": []}}
    assert begin_scaling_anew(saved, OnCPU(torch.float16)) == ""


@pytest.mark.parametrize("resume", [True, False])
def test_a_resume_asks_for_it_and_tells_it(resume: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = checkpoint(OnCPU(torch.bfloat16, loss_scale=1.0), BFLOAT16)
    model = torch.nn.Linear(1, 1)

    def load(*_: Any) -> Any:
        model.load_state_dict(model.state_dict())
        return saved

    monkeypatch.setattr(Runner, "load_checkpoint", load)
    told: list[tuple[int, str]] = []
    runner = SessionRunner.__new__(SessionRunner)
    runner.session = SimpleNamespace(warn=lambda *item: told.append(item))  # type: ignore[assignment]
    runner.logger = SimpleNamespace(info=lambda _: None)
    runner._resume, runner.optim_wrapper = resume, OnCPU(torch.float16)
    runner.load_checkpoint("iter_7.pth")
    assert ("loss_scaler" in saved["optimizer"]) != resume
    assert [iteration for iteration, _ in told] == [7] * resume


def test_a_file_to_start_from_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    runner = SessionRunner.__new__(SessionRunner)
    runner.model, runner._resume, runner._hooks = torch.nn.Linear(2, 1), False, []
    runner.logger = SimpleNamespace(info=lambda _: None)  # type: ignore[assignment]
    runner.optim_wrapper = OnCPU(torch.float16)
    for name, value in (("encoder.weight", torch.ones(1, 2)), ("weight", torch.ones(1, 3))):
        torch.save({"state_dict": {name: value}}, tmp_path / "zoo.pth")
        with pytest.raises(ConfigError, match=f"holds none of the 2 weights of Linear.*such as {name}"):
            runner.load_checkpoint(str(tmp_path / "zoo.pth"))
    torch.save({"state_dict": {"weight": torch.ones(1, 2)}}, tmp_path / "zoo.pth")
    runner.load_checkpoint(str(tmp_path / "zoo.pth"))
    assert runner.model.weight.tolist() == [[1.0, 1.0]]


def test_a_written_config_is_read_and_never_run() -> None:
    assert written_value("a = dict(b=dict(c=[1, 2]))", "a.b.c") == [1, 2]
    assert written_value("a = dict(b=1)", "a.c") is None
    assert written_value("a = print(1)", "a") is None
    assert written_value("a = (", "a") is None


@pytest.mark.parametrize(("world_size", "effective"), [(1, 4), (2, 4), (3, 4)])
def test_a_learning_rate_is_scaled_by_the_images_of_an_iteration(world_size: int, effective: int) -> None:
    loader = SimpleNamespace(batch_sampler=SimpleNamespace(effective_batch=effective))
    runner: Any = object.__new__(type("Built", (SessionRunner,), {"train_dataloader": loader}))
    runner._world_size, runner.param_schedulers = world_size, None
    runner.logger = SimpleNamespace(info=lambda line: None)
    runner._train_dataloader = {"batch_size": effective}
    wrapper = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.8))
    runner.scale_lr(wrapper, {"enable": True, "base_batch_size": 16})
    assert wrapper.param_groups[0]["lr"] == pytest.approx(0.8 * effective / 16)
    assert runner._train_dataloader == {"batch_size": effective}


# --- fused optimizers ------------------------------------------------------------------------------------


def test_an_optimizer_that_is_built_already_is_taken_as_it_is() -> None:
    runner = SessionRunner.__new__(SessionRunner)
    runner.model = torch.nn.Linear(2, 1)
    optimizer = {"type": "AdamW", "lr": 0.1, "fused": True}
    built = runner.build_optim_wrapper({"type": "OptimWrapper", "optimizer": optimizer})
    assert len(built.optimizer._optimizer_step_pre_hooks) == 1
    assert runner.build_optim_wrapper(built) is built
    assert len(built.optimizer._optimizer_step_pre_hooks) == 1


# --- initial weights -------------------------------------------------------------------------------------


def bare_runner() -> Any:
    runner: Any = SessionRunner.__new__(SessionRunner)
    runner._seed, runner._distributed, runner.cfg = 3, False, Config()
    runner.logger = SimpleNamespace(info=lambda _: None)
    return runner


class Drawn(torch.nn.Linear):
    """A weight that is drawn where it lies."""

    def init_weights(self) -> None:
        self.drawn_on = self.weight.device.type
        torch.nn.init.normal_(self.weight)


def test_initial_weights_are_drawn_from_the_seed_before_the_model_is_moved() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(len(drawn))
        model = Drawn(2, 2)
        model.to = lambda device, model=model: drawn.append((model.drawn_on, model.weight.tolist())) or model  # type: ignore[method-assign]
        bare_runner().wrap_model(None, model)
    assert drawn[0] == drawn[1]
    assert drawn[0][0] == "cpu"


@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated")
def test_gradients_lie_in_the_buckets_that_ranks_exchange(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        runner = bare_runner()
        runner._distributed = True
        wrapped = runner.wrap_model(None, Drawn(2, 2))
        for _ in range(2):
            wrapped(torch.ones(1, 2)).sum().backward()
            weight, bias = (parameter.grad for parameter in wrapped.parameters())
            assert weight.untyped_storage().data_ptr() == bias.untyped_storage().data_ptr()
            assert (weight.tolist(), bias.tolist()) == ([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0])
            wrapped.zero_grad()
    finally:
        torch.distributed.destroy_process_group()


def test_a_batch_is_copied_to_its_device_without_waiting() -> None:
    class Batch(BaseDataElement):
        def to(self, device: Any, **options: Any) -> Any:
            return options

    class Model(BaseModel):
        def forward(self) -> None: ...

    model = Model()
    bare_runner().wrap_model(None, model)
    assert model.data_preprocessor.cast_data(Batch()) == {"non_blocking": True}


def test_what_pretrained_weights_lack_is_told_once_there_is_a_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mapsage_kaggle.engine.runner.initialise", lambda model: ("half of them",))
    runner, told = bare_runner(), []
    runner.wrap_model(None, Drawn(2, 2))
    runner.session = SimpleNamespace(warn=lambda *item: told.append(item))
    runner._init_model_weights()
    assert told == [(0, "half of them")]


def test_a_config_s_text_is_formatted_once_and_not_where_it_was_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    formatting = Mock(side_effect=lambda text, **_: (f"formatted {text}", True))
    monkeypatch.setattr(runner_module.yapf_api, "FormatCode", formatting)
    format_configs_once("a = 1\nb = [\n    2,\n]\n")
    asked = runner_module.yapf_api.FormatCode
    assert asked("a = 1\nb = [2]", style_config={}) == ("a = 1\nb = [\n    2,\n]\n", True)
    assert formatting.call_count == 0
    for _ in range(2):
        assert asked("a = 2", style_config={}) == ("formatted a = 2", True)
    assert formatting.call_count == 1
