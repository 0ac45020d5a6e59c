"""Fused optimizers whose equal parameter groups are stepped together."""

from __future__ import annotations

from typing import Any

import torch


def step_equal_groups_together(optimizer: torch.optim.Optimizer) -> None:
    """Make a fused optimizer step over as few groups as there are kinds of them.

    With ``paramwise_cfg`` mmengine gives each weight a group of its own: MiT-B2 has 317 groups of three
    kinds, so that a step launches hundreds of kernels where a few would do. Outside a step the groups are as
    they were, so that schedulers, hooks and checkpoints see what they expect. Each weight's step depends on
    its own group's options and gradient only, so that no bit changes. An optimizer that is not torch's own,
    or not fused, is left alone.
    """
    if not (optimizer.defaults.get("fused") and type(optimizer).__module__.startswith("torch.optim.")):
        return
    apart: list[dict[str, Any]] = []
    num_states = 0

    def merge(*_: Any) -> None:
        nonlocal apart
        apart = optimizer.param_groups
        kinds: dict[Any, dict[str, Any]] = {}
        for group in apart:
            options = {name: value for name, value in group.items() if name not in ("params", "param_names")}
            try:
                kind = kinds.setdefault(tuple(sorted(options.items())), {**options, "params": []})
            except TypeError:  # an option that cannot be compared, such as a tensor
                return
            kind["params"] += group["params"]
        optimizer.param_groups = list(kinds.values())

    def part(*_: Any) -> None:
        nonlocal num_states
        optimizer.param_groups = apart
        if len(optimizer.state) != num_states:  # the first step makes them, in another order
            weights = [weight for group in apart for weight in group["params"] if weight in optimizer.state]
            states = {weight: optimizer.state[weight] for weight in weights}
            optimizer.state.clear()
            optimizer.state.update(states)
            num_states = len(states)

    optimizer.register_step_pre_hook(merge)
    optimizer.register_step_post_hook(part)
