"""Where a schedule ends, and how it is laid out anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mapsage_kaggle.config.planner import Planner
from mapsage_kaggle.config.reading import mapping_or_empty, type_name
from mapsage_kaggle.errors import ConfigError
from mapsage_kaggle.messages import Message

PLATEAU = "ReduceOnPlateau"
"""How the types of mmengine's schedulers begin that step after each validation."""


def plan_extension(planner: Planner, max_iters: int, extend_to: int) -> int:
    if extend_to < max_iters:
        raise ConfigError(
            Message("--extend-to {end} is below the config's max_iters ({max_iters}).", extend_to, max_iters),
            "It sets a new, later end for the schedule; to stop earlier, stop the session.",
        )
    planner.set("train_cfg.max_iters", extend_to, "--extend-to")
    if extend_to > max_iters:
        _plan_schedules(planner, max_iters, extend_to)
    return extend_to


def _plan_schedules(planner: Planner, max_iters: int, extend_to: int) -> None:
    """Lay out for a later end what ends with the run.

    Raises:
        ConfigError: The learning rate would stay where it is at about the old end, or rise again.
    """
    near, goes_on = max(1, max_iters // 100), False
    stops: list[tuple[str, str, int]] = []
    for key, scheduler in typed_with_keys(planner.get("param_scheduler"), "param_scheduler"):
        if scheduler.get("by_epoch", True):
            continue  # an epoch never ends
        kind, begin = type_name(scheduler.get("type")), int(scheduler.get("begin", 0))
        # Without an end of its own it ends with the run.
        lasts = {"end": scheduler.get("end", max_iters)}
        lasts |= {name: begin + scheduler[name] for name in _LENGTHS if scheduler.get(name)}
        if scheduler.get("periods"):
            lasts["periods"] = begin + sum(scheduler["periods"])
        goes_on = goes_on or lasts["end"] == max_iters
        for name, last in lasts.items():
            reaches = last == max_iters if name == "end" else max_iters <= last < extend_to
            if reaches and name != "periods":
                if name in scheduler:
                    value = scheduler[name] + extend_to - max_iters
                    planner.set(f"{key}.{name}", value, "the schedule ends with the run")
            elif last < extend_to and (name == "end" or last >= max_iters - near):
                stops.append((f"{key}.{name}", kind, last))
    for name, kind, last in stops:
        is_warm_up = _is_warm_up(kind, planner.get(name.rpartition(".")[0]))
        if last >= max_iters - near or not (goes_on or is_warm_up):
            raise ConfigError(
                Message(
                    "--extend-to {end}: {key} ({kind}) ends at iteration {last} and not with the run, at "
                    "{max_iters}; the learning rate would not follow a schedule from there on.",
                    extend_to,
                    name,
                    kind,
                    last,
                    max_iters,
                ),
                Message(
                    "Write the schedule for {end} iterations into the config, with max_iters={same}, and "
                    "say --extend-to {too} with it.",
                    extend_to,
                    extend_to,
                    extend_to,
                ),
            )


_LENGTHS = ("T_max", "total_steps")
"""How long a schedule takes, from its begin, where it says so besides its end."""


def typed_with_keys(node: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each scheduler or hook with its dotted key: of one, of a list, or of several by name."""
    if isinstance(node, Mapping) and "type" in node:
        yield key, node
    elif isinstance(node, Mapping):
        for name, value in node.items():
            yield from typed_with_keys(value, f"{key}.{name}")
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from typed_with_keys(value, f"{key}.{index}")


def _is_warm_up(kind: str, scheduler: Any) -> bool:
    """Whether a scheduler leaves the full learning rate behind it."""
    return kind.startswith("Constant") or (
        kind.startswith("Linear") and mapping_or_empty(scheduler).get("end_factor", 1.0) == 1.0
    )
