"""A checkpoint in mmengine's own format, taken from a running training."""

from __future__ import annotations

import io
import time
from collections import OrderedDict
from typing import Any, BinaryIO

import mmengine
import numpy as np
import torch
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_state_dict

from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.engine.ranks import core_model
from mapsage_kaggle.errors import TrainingError
from mapsage_kaggle.messages import Message

_OWN_PARTS = ("meta", "state_dict", "message_hub", "optimizer", "param_schedulers")
_PLAIN = (type(None), bool, int, float, str, bytes, torch.Tensor, torch.nn.Parameter)


def snapshot(runner: Runner, iteration: int, *, config_text: str, resumable: bool = True) -> dict[str, Any]:
    """Return the state after ``iteration`` iterations, as views of what is being trained.

    Nothing is copied here that the model or the optimizer holds; see ``HostCopy`` for that.

    Args:
        runner: What is being trained.
        iteration: Iterations done.
        config_text: The config that goes into ``meta``; formatting it takes long, so it is passed in.
        resumable: With optimizer and schedulers; else the weights alone, as mmengine's best files.

    Returns:
        ``meta``, ``state_dict``, ``message_hub`` and, where resumable, ``optimizer`` and
        ``param_schedulers``; whatever the hooks add.
    """
    meta = {
        "epoch": runner.epoch,
        "iter": iteration,
        "cfg": config_text,
        "seed": runner.seed,
        "experiment_name": runner.experiment_name,
        "time": time.strftime("%Y%m%d_%H%M%S"),
        "mmengine_version": mmengine.__version__,
        "dataset_meta": getattr(runner.train_dataloader.dataset, "metainfo", None),
    }
    checkpoint: dict[str, Any] = {
        "meta": meta,
        "state_dict": get_state_dict(core_model(runner.model)),
        "message_hub": runner.message_hub.state_dict(),
    }
    if resumable:
        checkpoint["optimizer"] = runner.optim_wrapper.state_dict()
        schedulers = runner.param_schedulers
        if isinstance(schedulers, dict):
            checkpoint["param_schedulers"] = {
                name: [scheduler.state_dict() for scheduler in group] for name, group in schedulers.items()
            }
        elif schedulers is not None:
            checkpoint["param_schedulers"] = [scheduler.state_dict() for scheduler in schedulers]
    runner.call_hook("before_save_checkpoint", checkpoint=checkpoint)
    return checkpoint


def keep_loadable(checkpoint: dict[str, Any]) -> tuple[str, ...]:
    """Remove from a checkpoint what the kit's own loader would refuse, and return the names of that.

    A custom hook may add anything. The loader builds tensors, arrays, numbers, texts, dictionaries and lists,
    and no object of a class that a file names; one such object would cost the next session the whole file. It
    is changed in place.
    """
    hub, meta = checkpoint["message_hub"], checkpoint["meta"]
    taken: list[str] = []
    for prefix, owner, names in (
        ("", checkpoint, [name for name in checkpoint if name not in _OWN_PARTS]),
        ("message_hub.", hub["runtime_info"], list(hub["runtime_info"])),
        ("meta.", meta, list(meta)),
    ):
        for name in names:
            if not _is_loadable(owner[name]):
                del owner[name]
                taken.append(f"{prefix}{name}")
    return tuple(taken)


def _is_loadable(value: Any) -> bool:
    if _is_plain(value):
        return True
    try:
        stream = io.BytesIO()
        torch.save({"state_dict": {}, "value": value}, stream)
        stream.seek(0)
        load_checkpoint(stream)
    except Exception:  # noqa: BLE001 - an object may raise anything when it is pickled
        return False
    return True


def _is_plain(value: Any) -> bool:
    """Return whether a value is of the kinds that nearly all are, and that the loader knows."""
    kind = type(value)
    if kind in _PLAIN or (isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf"):
        return True
    if kind in (dict, OrderedDict):
        return all(type(key) in (str, int) and _is_plain(item) for key, item in value.items())
    return kind in (list, tuple) and all(map(_is_plain, value))


def write_finite(checkpoint: dict[str, Any], stream: BinaryIO) -> None:
    """Write a checkpoint as ``torch.save`` does, unless its weights are not finite.

    Raises:
        TrainingError: A weight holds NaN or Inf; nothing is written.
    """
    iteration = checkpoint["meta"]["iter"]
    for name, tensor in checkpoint["state_dict"].items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise TrainingError(
                Message(
                    "The weight {name} holds NaN or Inf after iteration {iteration}: not saved. The "
                    "checkpoints before it are untouched.",
                    name,
                    iteration,
                ),
                "Lower the learning rate or the clipping norm (optim_wrapper.clip_grad), and resume.",
            )
    torch.save(checkpoint, stream)


def check_resumed(
    runner: Runner,
    checkpoint: dict[str, Any],
    *,
    iteration: int,
    next_position: int,
    effective_batch: int,
    extended: bool = False,
) -> str:
    """Compare what a resume has set up with what was loaded; return the verdict in one line.

    Raises:
        TrainingError: Iteration, optimizer state, schedulers or data position are not the checkpoint's.
            Nothing has been trained then.
    """
    saved_iteration = int(checkpoint["meta"]["iter"])
    if not saved_iteration == runner.iter == iteration:
        raise TrainingError(
            Message(
                "The resume did not take: the checkpoint holds iteration {saved}, training stands at "
                "{stands}, expected was {expected}.",
                saved_iteration,
                runner.iter,
                iteration,
            )
        )
    num_states = _check_optimizer(
        runner.optim_wrapper.state_dict(), checkpoint["optimizer"], same_rates=not extended
    )
    steps = _check_schedulers(
        runner.param_schedulers, checkpoint.get("param_schedulers", []), same_steps=not extended
    )
    if next_position != iteration * effective_batch:
        raise TrainingError(
            Message(
                "The data loader stands at sample {position}; after {iteration} iterations of "
                "{images} images it must be {expected}.",
                next_position,
                iteration,
                effective_batch,
                iteration * effective_batch,
            )
        )
    done = ", ".join(str(max(0, step)) for step in steps) or "no"  # -1 where one has not begun
    return Message(
        "resume verified: iteration {iteration}, optimizer state of {states} parameters, "
        "{count} learning-rate schedulers after {steps} steps of their own, next sample "
        "position {position}",
        iteration,
        num_states,
        len(steps),
        done,
        next_position,
    )


def flat_schedulers(schedulers: Any) -> list[Any]:
    """Return a runner's schedulers in one list, those of several optimizers too."""
    if isinstance(schedulers, dict):
        return [scheduler for group in schedulers.values() for scheduler in group]
    return list(schedulers or [])


def _check_optimizer(actual: Any, saved: Any, *, same_rates: bool) -> int:
    if "state" not in saved:  # several optimizers, by name
        return sum(
            _check_optimizer(actual[name], state, same_rates=same_rates)
            for name, state in saved.items()
            if "state" in state
        )
    if set(actual["state"]) != set(saved["state"]):
        raise TrainingError(
            Message(
                "The optimizer holds state for {count} parameters, the checkpoint for {saved}: they "
                "do not belong together.",
                len(actual["state"]),
                len(saved["state"]),
            )
        )
    for key, state in saved["state"].items():
        for name, value in state.items():
            mine = actual["state"][key][name]
            same = (
                torch.equal(mine.cpu(), value.cpu().to(mine.dtype))
                if isinstance(value, torch.Tensor)
                else mine == value
            )
            if not same:
                raise TrainingError(
                    Message("The optimizer's {name} of parameter {key} is not the checkpoint's.", name, key)
                )
    rates = [[group["lr"] for group in state["param_groups"]] for state in (actual, saved)]
    if same_rates and rates[0] != rates[1]:
        raise TrainingError(
            Message(
                "The learning rates are {rates}…, the checkpoint has {saved}….", rates[0][:3], rates[1][:3]
            )
        )
    return len(saved["state"])


def _check_schedulers(actual: Any, saved: Any, *, same_steps: bool) -> list[int]:
    if isinstance(saved, dict):
        return [
            step
            for name, states in saved.items()
            for step in _check_schedulers(actual[name], states, same_steps=same_steps)
        ]
    actual = actual or []
    if len(actual) != len(saved):
        raise TrainingError(
            Message(
                "The config has {count} learning-rate schedulers, the checkpoint {saved}.",
                len(actual),
                len(saved),
            ),
            "Resume with the config that the checkpoint was trained with.",
        )
    for scheduler, state in zip(actual, saved, strict=True):
        if same_steps and scheduler.last_step != state["last_step"]:
            raise TrainingError(
                Message(
                    "{kind} stands at step {step}, the checkpoint at {saved}.",
                    type(scheduler).__name__,
                    scheduler.last_step,
                    state["last_step"],
                )
            )
    return [int(scheduler.last_step) for scheduler in actual]
