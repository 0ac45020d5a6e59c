"""What replaces torch's operators without a deterministic kernel gives the same numbers and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.utils.deterministic
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from support.losses import MEAN, SIZE, VALID, WEIGHTED, build, images
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from mapsage_kaggle.engine import deterministic
from mapsage_kaggle.engine.faults import failure_kind, failure_message

# In CUDA's kernels these call alertNotDeterministic. Bilinear enlarging does as well, but never gets
# there: torch.nn.functional.interpolate takes another way on CUDA where determinism is asked for.
REFUSED = {
    "nll_loss2d_forward", "nll_loss2d_backward", "_adaptive_avg_pool2d_backward", "histc", "cumsum",
    "kthvalue", "median", "grid_sampler_2d_backward", "upsample_bicubic2d_backward", "bincount.weights",
    "reflection_pad2d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward",
}  # fmt: skip


def with_gradient(function: Any, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = inputs.clone().requires_grad_()
    output = function(inputs)
    (output * torch.linspace(1, 2, output.numel(), dtype=output.dtype).view(output.shape)).sum().backward()
    assert inputs.grad is not None
    return output, inputs.grad


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 1.0, 3.0]])
@pytest.mark.parametrize("shape", [(2, 4, 5, 7), (3, 4, 6), (5, 4)])
def test_cross_entropy_is_torch_s(reduction: str, weight: list[float] | None, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (shape[0], *shape[2:]), generator=generator)
    labels[0] = 255
    options: dict[str, Any] = {"reduction": reduction, "ignore_index": 255}
    if weight is not None:
        options["weight"] = torch.tensor(weight, dtype=torch.float64)
    expected = with_gradient(lambda item: functional.cross_entropy(item, labels, **options), logits)
    actual = with_gradient(lambda item: deterministic.cross_entropy(item, labels, **options), logits)
    for first, second in zip(expected, actual, strict=True):
        torch.testing.assert_close(first, second)


def test_cross_entropy_leaves_probabilities_and_smoothing_to_torch() -> None:
    logits, probabilities = torch.randn(2, 4, 3, 3), torch.rand(2, 4, 3, 3)
    labels = torch.zeros(2, 3, 3, dtype=torch.long)
    for target, options in ((probabilities, {}), (labels, {"label_smoothing": 0.1})):
        expected = functional.cross_entropy(logits, target, **options)
        torch.testing.assert_close(deterministic.cross_entropy(logits, target, **options), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 8, (2, 5), (None, 3)])
@pytest.mark.parametrize("shape", [(2, 3, 7, 10), (3, 8, 8), (1, 2, 5, 4)])
def test_adaptive_pooling_is_torch_s(size: Any, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = with_gradient(lambda item: functional.adaptive_avg_pool2d(item, size), inputs)
    actual = with_gradient(lambda item: deterministic.adaptive_avg_pool2d(item, size), inputs)
    for first, second in zip(expected, actual, strict=True):
        torch.testing.assert_close(first, second)


SIZES = [((5, 7), (20, 28)), ((8, 8), (13, 9)), ((9, 6), (4, 6)), ((1, 1), (7, 7)), ((4, 5), (1, 1))]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_bilinear_resizing_is_torch_s(before: Any, after: Any, align_corners: bool) -> None:
    inputs = torch.randn(2, 3, *before, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"size": after, "mode": "bilinear", "align_corners": align_corners}
    expected = with_gradient(lambda item: functional.interpolate(item, **options), inputs)
    actual = with_gradient(lambda item: deterministic.interpolate(item, **options), inputs)
    for first, second in zip(expected, actual, strict=True):
        torch.testing.assert_close(first, second)


def test_bilinear_resizing_in_float32_differs_from_torch_s_by_rounding() -> None:
    inputs = torch.randn(1, 8, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = functional.interpolate(inputs, 128, mode="bilinear", align_corners=False)
    actual = deterministic.interpolate(inputs, 128, mode="bilinear", align_corners=False)
    assert float((expected - actual).detach().abs().max()) < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"size": 6},
        {"scale_factor": 2.0, "mode": "bilinear"},
        {"size": 6, "mode": "bicubic"},
        {"size": 2, "mode": "bilinear", "antialias": True},
    ],
)
def test_other_ways_to_resize_are_left_to_torch(options: dict[str, Any]) -> None:
    inputs = torch.randn(1, 2, 4, 4).requires_grad_()
    expected = functional.interpolate(inputs, **options)
    assert torch.equal(deterministic.interpolate(inputs, **options), expected)


def test_without_a_gradient_resizing_is_torch_s_bit_for_bit() -> None:
    inputs = torch.randn(1, 2, 4, 4)
    expected = functional.interpolate(inputs, 9, mode="bilinear")
    assert torch.equal(deterministic.interpolate(inputs, 9, mode="bilinear"), expected)


@pytest.mark.parametrize(
    "replaced",
    [
        lambda item: deterministic.interpolate(item, 16, mode="bilinear"),
        lambda item: deterministic.adaptive_avg_pool2d(item, 3),
    ],
)
def test_under_autocast_it_computes_in_float32_and_returns_what_it_was_given(replaced: Any) -> None:
    inputs = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = replaced(inputs)
    assert found.dtype == torch.bfloat16
    exact = replaced(inputs.detach().float().requires_grad_())
    assert torch.equal(found, exact.to(torch.bfloat16))


def test_memory_is_not_filled_before_it_is_written(only_deterministic: None) -> None:
    assert torch.utils.deterministic.fill_uninitialized_memory is False


class Recording(TorchDispatchMode):
    """Notes the name of every operator that is run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, _, _ = str(func).removeprefix("aten.").partition(".")
        weighted = packet == "bincount" and len(args) > 1 and args[1] is not None
        self.names.add("bincount.weights" if weighted else packet)
        return func(*args, **(kwargs or {}))


def operators(decode: Any, auxiliary: Any) -> set[str]:
    """Return what a training step and a validated image run."""
    from mapsage_kaggle.engine.metric import confusion_matrix

    model = build(decode, auxiliary)
    model.test_cfg = ConfigDict(mode="whole")
    pooling = torch.nn.AdaptiveAvgPool2d(3)
    optim = OptimWrapper(torch.optim.AdamW(model.parameters()))
    batch = images(2, 3)
    batch["data_samples"][0].set_metainfo({"ori_shape": (SIZE, SIZE)})
    with Recording() as recording:
        model.train_step(images(0, 2), optim)
        pooling(torch.randn(1, 2, 8, 8, requires_grad=True)).sum().backward()
        with torch.no_grad():
            prediction = model.eval().val_step(batch)[0].pred_sem_seg.data
        confusion_matrix(prediction, prediction, 4, 255)
    return recording.names


@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``:UserWarning")
@pytest.mark.parametrize("loss", [MEAN, VALID, WEIGHTED])
def test_training_needs_no_operator_that_torch_refuses_on_cuda(only_deterministic: None, loss: Any) -> None:
    used = operators(loss, MEAN)
    assert {"nll_loss_forward", "convolution", "native_layer_norm"} <= used
    assert used & REFUSED == set()


@pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``:UserWarning")
def test_without_the_replacements_it_would() -> None:
    assert operators(VALID, MEAN) & REFUSED >= {"nll_loss2d_forward", "_adaptive_avg_pool2d_backward"}


def test_an_operator_that_torch_refuses_is_not_tried_again_and_the_remedy_is_said() -> None:
    error = RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set ...")
    assert failure_kind(error, has_trained=True) == "refused"
    assert "Train without --deterministic" in failure_message(error)
