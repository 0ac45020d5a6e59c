"""SegFormer's encoder with fused attention, and its head that fuses first, against mmsegmentation's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS, DefaultScope
from mmseg.registry import MODELS

import mapsage_kaggle.engine.register  # noqa: F401
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.engine.runner import SessionRunner, keep_way_of_stepping

OUTPUT_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 1e-4
"""Both in parts of the largest value there is."""

# mmsegmentation calls it without; torch goes on as before until it is an error.
RECOMPUTES = pytest.mark.filterwarnings("ignore:torch.utils.checkpoint. the use_reentrant:UserWarning")

SMALL: dict[str, Any] = {
    "embed_dims": 16,
    "num_layers": [1, 2, 1, 1],
    "num_heads": [1, 2, 4, 2],
    "sr_ratios": [8, 4, 2, 1],
    "drop_path_rate": 0.0,
}


def encoder(kind: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build({"type": kind, **SMALL, **options})
    model.init_weights()
    model.train()
    return model


def both(**options: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    return encoder("MixVisionTransformer", **options), encoder("MapsageMixVisionTransformer", **options)


def step(model: torch.nn.Module, image: torch.Tensor, seed: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    outputs = model(image)
    sum((output**2).mean() for output in outputs).backward()
    return [output.detach() for output in outputs]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    largest = max(float(item.abs().max()) for item in expected)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= tolerance * largest


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_it_starts_from_the_stock_encoder_s_values() -> None:
    stock, fused = both()
    assert list(stock.state_dict()) == list(fused.state_dict())
    assert all(torch.equal(value, fused.state_dict()[name]) for name, value in stock.state_dict().items())


def test_building_it_draws_as_many_random_numbers() -> None:
    ends = []
    for kind in ("MixVisionTransformer", "MapsageMixVisionTransformer"):
        encoder(kind)
        ends.append(torch.rand(1))
    assert torch.equal(*ends)


def test_checkpoints_go_both_ways() -> None:
    stock, fused = both()
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.uniform_(-0.1, 0.1)
    fused.load_state_dict(stock.state_dict(), strict=True)
    image = torch.randn(1, 3, 64, 64)
    assert_close(step(fused, image), step(stock, image), OUTPUT_TOLERANCE)
    again = encoder("MixVisionTransformer")
    again.load_state_dict(fused.state_dict(), strict=True)
    assert all(
        torch.equal(one, other) for one, other in zip(step(again, image), step(stock, image), strict=True)
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"drop_path_rate": 0.5}, {"qkv_bias": False}, {"with_cp": True}],
    ids=["plain", "drop path", "no bias", "recomputed"],
)
@RECOMPUTES
def test_outputs_and_gradients_are_the_stock_encoder_s_to_rounding(options: dict[str, Any]) -> None:
    stock, fused = both(**options)
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert_close(step(fused, image), step(stock, image), OUTPUT_TOLERANCE)
    assert len(gradients(fused)) == len(gradients(stock)) > 0
    assert_close(gradients(fused), gradients(stock), GRADIENT_TOLERANCE)


@RECOMPUTES
def test_recomputing_its_blocks_changes_no_bit() -> None:
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    found = []
    for with_cp in (False, True):
        model = encoder(
            "MapsageMixVisionTransformer", with_cp=with_cp, attn_drop_rate=0.2, drop_path_rate=0.3
        )
        found.append([*step(model, image), *gradients(model)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_dropout_of_the_attention_is_drawn_in_training_only() -> None:
    fused = encoder("MapsageMixVisionTransformer", attn_drop_rate=0.5)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first, second = step_outputs(fused, image, seed=1), step_outputs(fused, image, seed=2)
        assert not torch.equal(first, second)
        assert torch.equal(first, step_outputs(fused, image, seed=1))
        fused.eval()
        assert torch.equal(step_outputs(fused, image, seed=1), step_outputs(fused, image, seed=2))


def test_dropout_of_the_attention_keeps_the_mean_of_the_stock_encoder_s() -> None:
    stock, fused = both(attn_drop_rate=0.4, num_layers=[1, 1, 1, 1])
    # One block's attention by itself: further on, what is not linear moves the mean.
    tokens = torch.randn(1, 64, 16, generator=torch.Generator().manual_seed(3)).expand(512, -1, -1)
    means, spreads = [], []
    for model in (stock, fused):
        torch.manual_seed(0)
        attention = model.layers[0][1][0].attn
        with torch.no_grad():
            out = attention(tokens, (8, 8), identity=torch.zeros(()))
        means.append(out.mean(0))
        spreads.append(out.std(0))
    error = spreads[0] / 512**0.5
    assert bool(((means[0] - means[1]).abs() <= 6 * error + 1e-7).all())
    assert float((spreads[1].mean() / spreads[0].mean() - 1).abs()) < 0.05


def step_outputs(model: torch.nn.Module, image: torch.Tensor, *, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return model(image)[-1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_runs_in_other_precisions(dtype: torch.dtype) -> None:
    stock, fused = (model.to(dtype) for model in both())
    image = torch.randn(1, 3, 64, 64, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 0.05
    assert_close(step(fused, image), step(stock, image), tolerance)


@pytest.mark.parametrize("size", [(72, 88), (50, 61)])
def test_sides_that_the_reduction_does_not_divide_are_the_stock_encoder_s(size: tuple[int, int]) -> None:
    stock, fused = both()
    image = torch.randn(1, 3, *size, requires_grad=True)
    assert_close(step(fused, image), step(stock, image), OUTPUT_TOLERANCE)
    assert_close(gradients(fused), gradients(stock), GRADIENT_TOLERANCE)


def test_dropout_of_the_feed_forward_layers_is_drawn_in_training_only() -> None:
    fused = encoder("MapsageMixVisionTransformer", drop_rate=0.5)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(step_outputs(fused, image, seed=1), step_outputs(fused, image, seed=2))
        fused.eval()
        assert torch.equal(step_outputs(fused, image, seed=1), step_outputs(fused, image, seed=2))


# --- the head ----------------------------------------------------------------------------------------------


def head(kind: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    config = {
        "type": kind, "in_channels": [8, 16, 32, 48], "in_index": [0, 1, 2, 3], "channels": 24,
        "num_classes": 5, "dropout_ratio": 0.0, "norm_cfg": {"type": "BN"}, "align_corners": False,
        "loss_decode": {"type": "CrossEntropyLoss", "avg_non_ignore": True}, **options,
    }  # fmt: skip
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(config)
    model.init_weights()
    model.train()
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"norm_cfg": None}, {"norm_cfg": {"type": "GN", "num_groups": 4}}],
    ids=["BN", "none", "GN"],
)
def test_logits_gradients_and_statistics_are_the_stock_head_s_to_rounding(options: dict[str, Any]) -> None:
    stock, folded = head("SegformerHead", **options), head("MapsageSegformerHead", **options)
    assert list(stock.state_dict()) == list(folded.state_dict())
    assert all(torch.equal(value, folded.state_dict()[name]) for name, value in stock.state_dict().items())
    sizes = ((8, 32, 24), (16, 16, 12), (32, 8, 6), (48, 4, 3))
    found = []
    for model in (folded, stock):
        draws = torch.Generator().manual_seed(1)
        stages = [torch.randn(2, *size, generator=draws, requires_grad=True) for size in sizes]
        logits = model(stages)
        (logits**2).mean().backward()
        buffers = [item.detach().float() for item in model.buffers()]
        found.append([[logits.detach()], [item.grad for item in stages], gradients(model), buffers])
    for one, other, tolerance in zip(
        *found, (OUTPUT_TOLERANCE, GRADIENT_TOLERANCE, GRADIENT_TOLERANCE, OUTPUT_TOLERANCE), strict=True
    ):
        assert len(one) == len(other)
        if other:
            assert_close(one, other, tolerance)


# --- mixed precision ---------------------------------------------------------------------------------------

FURTHER = 1.5
"""How many times as far from float32 as the stock module's, in the mean, a result in bfloat16 may be."""


def in_bfloat16(model: torch.nn.Module, inputs: Any, *, enabled: bool = True) -> list[list[torch.Tensor]]:
    """Return outputs, and gradients of a weighted sum of them, under autocast on the CPU."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        found = model(inputs)
    outputs = [item.float() for item in (found if isinstance(found, (list, tuple)) else [found])]
    draws = torch.Generator().manual_seed(2)
    sum((item * torch.randn(item.shape, generator=draws)).sum() for item in outputs).backward()
    assert all(item.dtype == torch.float32 for item in gradients(model))
    return [[item.detach() for item in outputs], [item.clone() for item in gradients(model)]]


def apart(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Return how far two lists are apart, relative to the length of what is expected."""
    pairs = list(zip(found, expected, strict=True))
    difference = sum(float(((one - other) ** 2).sum()) for one, other in pairs)
    return float((difference / sum(float((other**2).sum()) for _, other in pairs)) ** 0.5)


def assert_as_near_to_float32(ours: torch.nn.Module, stock: torch.nn.Module, inputs: Any) -> None:
    exact = in_bfloat16(stock, inputs, enabled=False)
    for found, expected, reference in zip(
        in_bfloat16(ours, inputs), in_bfloat16(stock, inputs), exact, strict=True
    ):
        assert 0.0 < apart(expected, reference) < 0.1
        assert apart(found, reference) <= FURTHER * apart(expected, reference)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": False}, {"sr_ratios": [1, 1, 1, 1]}])
def test_in_mixed_precision_the_encoder_is_as_near_to_float32_as_the_stock_one(
    options: dict[str, Any],
) -> None:
    stock, fused = both(**options)
    assert_as_near_to_float32(fused, stock, torch.randn(2, 3, 64, 96, generator=seeded(1)))


@pytest.mark.parametrize("norm", [{"type": "BN"}, {"type": "GN", "num_groups": 4}, None])
def test_in_mixed_precision_the_head_is_as_near_to_float32_as_the_stock_one(norm: Any) -> None:
    stock, folded = (head(kind, norm_cfg=norm) for kind in ("SegformerHead", "MapsageSegformerHead"))
    sizes = ((8, 32, 24), (16, 16, 12), (32, 8, 6), (48, 4, 3))
    draws = seeded(1)
    assert_as_near_to_float32(folded, stock, [torch.randn(2, *size, generator=draws) for size in sizes])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- the optimizer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [None, True])
def test_a_loaded_optimizer_goes_on_in_its_own_way(fused: bool | None) -> None:
    """As after a resume of a run that stepped in the other way."""

    def optimizer(fused: bool | None) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 7))
        return weight, torch.optim.AdamW([weight], lr=0.1, fused=fused)

    def walk(weight: torch.nn.Parameter, way: torch.optim.AdamW, num: int) -> None:
        for _ in range(num):
            weight.grad = weight.detach().sin()
            way.step()

    (weight, other), (uncut, own) = optimizer(None if fused else True), optimizer(fused)
    walk(weight, other, 3)
    walk(uncut, own, 6)
    resumed, mine = optimizer(fused)
    resumed.data.copy_(weight.data)
    mine.load_state_dict(other.state_dict())
    assert mine.param_groups[0]["fused"] != fused  # what torch does by itself

    keep_way_of_stepping(mine)
    walk(resumed, mine, 3)

    assert mine.param_groups[0]["fused"] == fused
    assert torch.allclose(resumed, uncut, rtol=1e-5, atol=1e-7)


class Runs(SessionRunner):
    """A runner as far as it builds an optimizer."""

    def __init__(self, weight: torch.nn.Parameter) -> None:
        self.model = torch.nn.ParameterList([weight])
        self.told: list[str] = []
        self.session: Any = SimpleNamespace(iteration=0, warn=lambda _, message: self.told.append(message))


def wrapper(kind: Any, **options: Any) -> dict[str, Any]:
    return {"type": "OptimWrapper", "optimizer": {"type": kind, "lr": 0.1, **options}}


def weights(dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("kind", ["AdamW", "torch.optim.AdamW", torch.optim.AdamW])
def test_torch_s_own_optimizer_is_fused(kind: Any) -> None:
    runner = Runs(weights())
    assert runner.build_optim_wrapper(wrapper(kind, fused=True)).optimizer.defaults["fused"] is True
    assert runner.told == []


def test_an_optimizer_of_one_s_own_under_torch_s_name_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.optim.AdamW):
        pass

    monkeypatch.setitem(OPTIMIZERS.module_dict, "AdamW", Own)
    runner = Runs(weights())
    cfg = wrapper("AdamW", fused=True)
    built = runner.build_optim_wrapper(cfg).optimizer
    assert type(built) is Own
    assert not built.defaults["fused"]
    assert cfg == wrapper("AdamW", fused=True)
    (told,) = runner.told
    assert told.endswith("Own is none of torch's own.")
    assert Words("zh").translate(told).startswith("优化器不使用融合（fused）内核，其他都不变：")
    assert Words("zh").translate(told).endswith(" 不是 torch 自带的优化器。")


def test_weights_that_torch_cannot_step_fused_are_stepped_without() -> None:
    runner = Runs(weights(torch.complex64))
    assert not runner.build_optim_wrapper(wrapper("AdamW", fused=True)).optimizer.defaults["fused"]
    (told,) = runner.told
    assert told.endswith("kernels, which changes nothing else: 0 does not hold real numbers.")


def test_options_with_which_torch_refuses_to_be_fused_are_kept() -> None:
    runner = Runs(weights())
    built = runner.build_optim_wrapper(wrapper("AdamW", fused=True, differentiable=True)).optimizer
    assert built.defaults["differentiable"]
    assert not built.defaults["fused"]
    (told,) = runner.told
    assert "differentiable" in told


@pytest.mark.parametrize("options", [{}, {"fused": True}])
def test_another_error_of_an_optimizer_is_raised(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        Runs(weights()).build_optim_wrapper(wrapper("AdamW", no_such_option=1, **options))


def test_an_optimizer_s_wrapper_that_is_built_already_is_taken() -> None:
    built = OptimWrapper(torch.optim.AdamW([weights()]))
    assert Runs(weights()).build_optim_wrapper(built) is built
