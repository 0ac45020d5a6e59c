"""A batch in parts gives the gradients of the whole batch, for every loss that allows it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.distributed.nn.functional
import torch.multiprocessing
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS
from support.losses import MEAN, VALID, WEIGHTED, build, images

from mapsage_kaggle.engine.accumulate import accumulated_step, normalised_losses
from mapsage_kaggle.engine.ranks import check_same_weights
from mapsage_kaggle.errors import TrainingError

SIGMOID = {"type": "CrossEntropyLoss", "use_sigmoid": True, "avg_non_ignore": True}  # is float32 by itself
DICE = {"type": "DiceLoss", "loss_name": "loss_dice"}

# The stock loss recommends its other option.
pytestmark = pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore``:UserWarning")


def stock_step(decode: Any, auxiliary: Any) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the weights after mmengine's own step over the whole batch of 4, and what it logs."""
    model = build(decode, auxiliary)
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    logs = model.train_step(images(0, 4), optim)
    return _flat(model), {name: float(value.detach()) for name, value in logs.items() if "loss" in name}


def split_step(
    decode: Any, auxiliary: Any, sizes: Sequence[int], *, rank: int = 0, world_size: int = 1, norm: str = "GN"
) -> tuple[Any, dict[str, float]]:
    """Return the model after a step in micro-batches of ``sizes``; with ranks, each takes its part of 4."""
    model: Any = build(decode, auxiliary, norm)
    core = model
    if world_size > 1:
        model = MMDistributedDataParallel(module=model, broadcast_buffers=False)
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    begin, data = rank * 4 // world_size, []
    for size in sizes:
        data.append(images(begin, begin + size))
        begin += size
    logs = accumulated_step(
        model, optim, data, effective_batch=4, world_size=world_size, before_forward=lambda index: None
    )
    return core, {name: float(value.detach()) for name, value in logs.items() if "loss" in name}


def _flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def _relative(actual: torch.Tensor, expected: torch.Tensor, initial: torch.Tensor) -> float:
    """Return how far the steps are apart, relative to the step itself."""
    return float((actual - expected).norm() / (expected - initial).norm())


@pytest.mark.parametrize("sizes", [(2, 2), (1, 1, 1, 1), (3, 1)])
@pytest.mark.parametrize(
    ("decode", "auxiliary"),
    [
        (MEAN, VALID),
        (VALID, {**MEAN, "loss_weight": 0.4}),
        (WEIGHTED, {**VALID, "loss_weight": 0.4}),
        (SIGMOID, VALID),
        ([VALID, DICE], MEAN),
    ],
    ids=["mean", "avg_non_ignore", "class_weight", "sigmoid", "with_dice"],
)
def test_micro_batches_take_the_step_of_the_whole_batch(decode: Any, auxiliary: Any, sizes: Any) -> None:
    expected, expected_logs = stock_step(decode, auxiliary)
    model, logs = split_step(decode, auxiliary, sizes)
    bound = 1e-6 if decode is SIGMOID else 1e-9
    assert _relative(_flat(model), expected, _flat(build(decode, auxiliary))) < bound
    assert logs == pytest.approx(expected_logs, rel=bound)


@pytest.mark.parametrize("decode", [SIGMOID, VALID, MEAN], ids=["sigmoid", "avg_non_ignore", "mean"])
def test_a_batch_of_which_nothing_counts_has_no_loss(decode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found_of = images  # those up to the first ignore everything
    monkeypatch.setattr(sys.modules[__name__], "images", lambda begin, end: found_of(begin - 3, end - 3))
    _, expected = stock_step(decode, MEAN)
    _, found = split_step(decode, MEAN, (2, 2))
    assert found == expected
    assert found["decode.loss_ce"] == 0.0


class HalvesLabels(CrossEntropyLoss):
    """A loss that looks at other labels than its head has."""

    def forward(self, cls_score: Any, label: Any, **options: Any) -> Any:  # type: ignore[override]
        return super().forward(cls_score[..., ::2], label[..., ::2], **options)


def test_a_loss_that_the_kit_does_not_know_is_weighted_by_images() -> None:
    MODELS.register_module(module=HalvesLabels, force=True)
    own = {"type": "HalvesLabels", "avg_non_ignore": True}
    model, _ = split_step(own, MEAN, (1, 3))
    start = _flat(build(own, MEAN))
    expected = torch.zeros_like(start)
    for share, begin, end in ((0.25, 0, 1), (0.75, 1, 4)):
        part = build(own, MEAN)
        optim = OptimWrapper(torch.optim.SGD(part.parameters(), lr=1.0))
        part.train_step(images(begin, end), optim)
        expected += share * (_flat(part) - start)
    assert _relative(_flat(model), start + expected, start) < 1e-9


@pytest.mark.parametrize(
    ("decode", "known"),
    [
        (VALID, 1),
        (WEIGHTED, 1),
        ([VALID, DICE], 1),
        (DICE, 0),
        ({**VALID, "reduction": "sum"}, 0),
        ({"type": "CrossEntropyLoss", "use_mask": True}, 0),
        ({"type": "HalvesLabels"}, 0),
    ],
)
def test_only_cross_entropy_that_is_a_mean_is_weighted_by_what_it_divides_by(decode: Any, known: int) -> None:
    MODELS.register_module(module=HalvesLabels, force=True)
    head = build(decode, MEAN).decode_head
    assert len(normalised_losses(head)) == known
    head.sampler = object()  # one that chooses pixels by the predictions
    assert normalised_losses(head) == ()


def accumulating_steps(rank: int, sizes: Sequence[int], iterations: int, every: int) -> list[torch.Tensor]:
    """Return the weights after each iteration, of which ``every`` share an optimizer step."""
    core: Any = build(VALID, MEAN)
    model = MMDistributedDataParallel(module=core, broadcast_buffers=False)
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=every)
    optim.initialize_count_status(model, 0, iterations)
    seen = []
    for iteration in range(iterations):
        data, begin = [], 4 * iteration + 2 * rank
        for size in sizes:
            data.append(images(begin, begin + size))
            begin += size
        accumulated_step(
            model, optim, data, effective_batch=4, world_size=2, before_forward=lambda index: None
        )
        seen.append(_flat(core).clone())
    return seen


def refusals(rank: int) -> list[str]:
    """Return what the comparison of the ranks' weights says: of equal ones, and of a changed bit."""
    core, said = build(VALID, MEAN), []
    for bit in (0, rank):
        next(core.parameters()).data.view(torch.int64).reshape(-1)[3] ^= bit
        try:
            check_same_weights(core, 7)
            said.append("")
        except TrainingError as error:
            said.append("".join(str(error)))
    return said


class BatchNormOverRanks(torch.nn.BatchNorm2d):
    """What SyncBN computes, by gloo: in each pass statistics of all ranks' parts, forward and backward."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.distributed.is_initialized():
            return super().forward(input)
        axes = (0, 2, 3)
        count = torch.full_like(self.weight, input.numel() / input.shape[1])
        sums = torch.stack([count, input.sum(axes), input.square().sum(axes)])
        count, total, squares = torch.distributed.nn.functional.all_reduce(sums).unbind()
        mean = (total / count)[:, None, None]
        variance = (squares / count)[:, None, None] - mean.square()
        normed = (input - mean) / (variance + self.eps).sqrt()
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


def refusal_of_sync_bn() -> str:
    try:
        torch.nn.SyncBatchNorm(2)(torch.zeros(1, 2, 4, 4))
    except ValueError as error:
        return "".join(str(error))
    return ""


def _two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    seen = {}
    for name, (decode, auxiliary, sizes, norm) in RANK_CASES.items():
        model, logs = split_step(decode, auxiliary, sizes[rank], rank=rank, world_size=2, norm=norm)
        buffers = {key: value.clone() for key, value in model.named_buffers()}
        seen[name] = (_flat(model), logs, buffers)
    for name, (sizes, every) in ACCUMULATING.items():
        seen[name] = accumulating_steps(rank, sizes[rank], 5, every)
    seen["refusals"] = refusals(rank)
    seen["SyncBN"] = refusal_of_sync_bn()
    torch.save(seen, f"{folder}/rank{rank}.pth")
    torch.distributed.destroy_process_group()


RANK_CASES = {
    "avg_non_ignore": (VALID, WEIGHTED, ((2,), (2,)), "GN"),
    "other micro-batches": (WEIGHTED, MEAN, ((2,), (1, 1)), "GN"),
    "batch norm": (VALID, MEAN, ((1, 1), (2,)), "BN"),
    "norm over ranks": (VALID, MEAN, ((1, 1), (1, 1)), "BatchNormOverRanks"),
}
MODELS.register_module(module=BatchNormOverRanks, force=True)


# Five iterations: the last step takes what is left of the accumulation.
ACCUMULATING = {
    "one pass in each iteration": (((2,), (2,)), 2),
    "several passes": (((1, 1), (1, 1)), 2),
    "several passes on one rank": (((1, 1), (2,)), 3),
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two gloo ranks ended with, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_two_ranks, args=(str(folder),), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    return [torch.load(Path(folder, f"rank{rank}.pth"), weights_only=True) for rank in range(2)]


@pytest.mark.slow(scope_s=20)
@pytest.mark.parametrize("case", ["avg_non_ignore", "other micro-batches"])
def test_two_ranks_take_the_step_of_one(two_ranks: list[dict[str, Any]], case: str) -> None:
    decode, auxiliary, _, _ = RANK_CASES[case]
    expected, expected_logs = stock_step(decode, auxiliary)
    start = _flat(build(decode, auxiliary))
    for rank in range(2):
        weights, logs, _ = two_ranks[rank][case]
        assert _relative(weights, expected, start) < 1e-9
        assert logs == pytest.approx(expected_logs, rel=1e-6)  # the sigmoid loss is float32 by itself


@pytest.mark.slow
@pytest.mark.parametrize("case", ACCUMULATING)
def test_ranks_that_accumulate_hold_the_same_weights_bit_for_bit(
    two_ranks: list[dict[str, Any]], case: str
) -> None:
    first, second = (seen[case] for seen in two_ranks)
    assert [torch.equal(*pair) for pair in zip(first, second, strict=True)] == [True] * 5
    every = ACCUMULATING[case][1]
    stepped = [not torch.equal(*pair) for pair in pairwise(first)]
    assert stepped == [(iteration + 1) % every == 0 or iteration == 4 for iteration in range(1, 5)]


@pytest.mark.slow
def test_ranks_that_accumulate_take_the_steps_of_one_pass(two_ranks: list[dict[str, Any]]) -> None:
    start = _flat(build(VALID, MEAN))
    whole, parts = (two_ranks[0][case] for case in ("one pass in each iteration", "several passes"))
    assert _relative(parts[-1], whole[-1], start) < 1e-9


@pytest.mark.slow
def test_one_bit_in_one_rank_s_weights_is_noticed_by_every_rank(two_ranks: list[dict[str, Any]]) -> None:
    for seen in two_ranks:
        same, other = seen["refusals"]
        assert same == ""
        assert other.startswith(
            "The ranks no longer hold the same weights after iteration 7: nothing is saved"
        )


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_gradients_are_exchanged_in_the_last_pass_of_a_step_alone(passes: int, every: int) -> None:
    exchanged: list[bool] = []

    class Wrapped(type(build(VALID, MEAN))):  # type: ignore[misc]
        held = 0

        @contextmanager
        def no_sync(self) -> Iterator[None]:
            self.held += 1
            yield
            self.held -= 1

        def _run_forward(self, *args: Any, **options: Any) -> Any:
            exchanged.append(self.held == 0)
            return super()._run_forward(*args, **options)

    model = build(VALID, MEAN)
    model.__class__ = Wrapped
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=every)
    for iteration in range(2):
        data = [images(index, index + 1) for index in range(passes)]
        accumulated_step(
            model, optim, data, effective_batch=passes, world_size=1, before_forward=lambda index: None
        )
        last = (iteration + 1) % every == 0
        assert exchanged == [False] * (passes - 1) + [last]
        exchanged.clear()
    assert optim._inner_count == 2


@pytest.mark.slow
def test_batch_norm_s_running_figures_are_the_same_on_all_ranks(two_ranks: list[dict[str, Any]]) -> None:
    first, second = (seen["batch norm"][2] for seen in two_ranks)
    assert any(name.endswith("running_mean") for name in first)
    for name, buffer in first.items():
        assert torch.equal(buffer, second[name]), name
    # Rank 0 ran two micro-batches, rank 1 one.
    assert {int(value) for name, value in first.items() if name.endswith("num_batches_tracked")} == {2}


@pytest.mark.slow
def test_torch_has_no_sync_bn_for_a_cpu(two_ranks: list[dict[str, Any]]) -> None:
    """Where it has one, it belongs in the place of the norm that computes the same below."""
    assert "expected input tensor to be on GPU" in two_ranks[0]["SyncBN"]


@pytest.mark.slow
def test_a_norm_over_ranks_sees_in_each_pass_what_all_of_them_pass(two_ranks: list[dict[str, Any]]) -> None:
    def both(index: int) -> dict[str, Any]:
        first, second = images(index, index + 1), images(2 + index, 3 + index)
        return {name: first[name] + second[name] for name in first}

    model = build(VALID, MEAN, "BN")
    optim = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    accumulated_step(
        model, optim, [both(0), both(1)], effective_batch=4, world_size=1, before_forward=lambda index: None
    )
    start = _flat(build(VALID, MEAN, "BN"))
    for seen in two_ranks:
        assert _relative(seen["norm over ranks"][0], _flat(model), start) < 1e-9
