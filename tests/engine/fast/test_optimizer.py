"""Equal parameter groups are stepped together, and nothing else tells that they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mapsage_kaggle.engine.fast.optimizer import step_equal_groups_together


def optimizer_of(kind: Any, *, together: bool, **options: Any) -> tuple[list[torch.nn.Parameter], Any]:
    """Return twelve weights and their optimizer, with a group each of three kinds, as mmengine makes them."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(5, 3, generator=generator)) for _ in range(12)]
    kinds: list[dict[str, Any]] = [{}, {"weight_decay": 0.0}, {"lr": 1e-2, "weight_decay": 0.1}]
    groups = [{"params": [weight], **kinds[index % 3]} for index, weight in enumerate(weights)]
    optimizer = kind(groups, lr=1e-3, **options)
    if together:
        step_equal_groups_together(optimizer)
    return weights, optimizer


def train(weights: list[torch.nn.Parameter], optimizer: Any, steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(5, 3, generator=generator)
        optimizer.step()
        for index, group in enumerate(optimizer.param_groups):
            group["lr"] *= 0.9 if index % 2 else 0.99  # as a schedule that knows each group


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_weights_and_state_are_the_same_bit_for_bit(kind: Any) -> None:
    apart, together = (optimizer_of(kind, together=item, fused=True) for item in (False, True))
    for weights, optimizer in (apart, together):
        train(weights, optimizer)
    for first, second in zip(apart[0], together[0], strict=True):
        assert torch.equal(first, second)
    expected, found = apart[1].state_dict(), together[1].state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert list(found["state"]) == list(expected["state"])
    for key, state in expected["state"].items():
        for name, value in state.items():
            mine = found["state"][key][name]
            assert torch.equal(mine, value) if isinstance(value, torch.Tensor) else mine == value


def test_a_step_is_over_as_many_groups_as_there_are_kinds() -> None:
    weights, optimizer = optimizer_of(torch.optim.AdamW, together=True, fused=True)
    seen: list[list[int]] = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append([len(group["params"]) for group in optimizer.param_groups])
    )
    train(weights, optimizer, steps=1)
    assert seen == [[4, 4, 4]]
    assert len(optimizer.param_groups) == 12


def test_it_goes_on_after_a_state_was_loaded() -> None:
    weights, optimizer = optimizer_of(torch.optim.AdamW, together=True, fused=True)
    train(weights, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    other_weights, other = optimizer_of(torch.optim.AdamW, together=True, fused=True)
    with torch.no_grad():
        for mine, theirs in zip(other_weights, weights, strict=True):
            mine.copy_(theirs)
    other.load_state_dict(state)
    for item in ((weights, optimizer), (other_weights, other)):
        train(*item)
    assert all(torch.equal(*pair) for pair in zip(weights, other_weights, strict=True))


@pytest.mark.parametrize("fused", [False, None])
def test_one_that_is_not_fused_is_left_alone(fused: bool | None) -> None:
    _, optimizer = optimizer_of(torch.optim.AdamW, together=True, fused=fused)
    assert not optimizer._optimizer_step_pre_hooks


def test_an_optimizer_of_a_person_s_own_is_left_alone() -> None:
    class Own(torch.optim.AdamW):
        """Steps in a way that may depend on its groups."""

    _, optimizer = optimizer_of(Own, together=True, fused=True)
    assert not optimizer._optimizer_step_pre_hooks


def test_groups_whose_options_cannot_be_compared_stay_apart() -> None:
    weights, optimizer = optimizer_of(torch.optim.AdamW, together=True, fused=True)
    optimizer.param_groups[3]["note"] = ["mine"]
    train(weights, optimizer)
    assert len(optimizer.param_groups) == 12
