"""Averaging the weights of several checkpoints of a run, in a child (Izmailov et al., 2018).

Averaged weights have other activations than any of their parents', so BatchNorm's statistics are computed
anew over images of the training set: those that a run with the same seed begins with, augmented as there.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmseg.models.segmentors import EncoderDecoder
from torch.nn.modules.batchnorm import _BatchNorm

from mapsage_kaggle.checkpoints.load import load_checkpoint
from mapsage_kaggle.engine.jobs.child import Emit
from mapsage_kaggle.engine.jobs.evaluate import build_data
from mapsage_kaggle.engine.jobs.inference import TrainedModel, load_model, load_weights
from mapsage_kaggle.engine.sampling import PositionalDataset, PositionBatches, PositionOrder
from mapsage_kaggle.errors import CheckpointError, MachineError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.paths import replace_file
from mapsage_kaggle.records import SCALE_KEY


def run(job: Mapping[str, Any], emit: Emit) -> dict[str, Any]:
    """Average, and write the result; return ``{"num_parents", "num_batch_norms", "num_images"}``.

    Args:
        job: ``config``, ``device``; ``checkpoint`` and ``sha256`` of the first parent; ``parents`` (``file``,
            ``sha256`` and ``iteration`` of each), ``batch_norm_images``, ``seed``, ``scale``, ``out``.
        emit: Called with ``progress``, and ``done`` and ``total`` images.

    Raises:
        CheckpointError: The parents are of different models.
        MachineError: The file cannot be written.
    """
    cfg = Config.fromfile(job["config"])
    parents: Sequence[Mapping[str, Any]] = job["parents"]
    model = load_model(cfg, Path(job["checkpoint"]), sha256=job["sha256"], device=job["device"])
    state = average([(Path(item["file"]), item["sha256"]) for item in parents])
    load_weights(model.net, state, Path(job["checkpoint"]))
    norms = batch_norms(model.net)
    num_images = 0
    if norms and job["batch_norm_images"]:
        num_images = gather_statistics(model, cfg, int(job["batch_norm_images"]), int(job["seed"]), emit)
        state |= {name: value.cpu() for name, value in model.net.state_dict().items() if name in state}
    meta = {
        "dataset_meta": dict(model.meta.get("dataset_meta") or {"classes": model.classes}),
        "averaged": [dict(item) for item in parents],
        "batch_norm_images": num_images,
    }
    content = io.BytesIO()
    hub = {"runtime_info": {SCALE_KEY: job.get("scale")}}
    torch.save({"meta": meta, "state_dict": state, "message_hub": hub}, content)
    try:
        replace_file(Path(job["out"]), content.getvalue())
    except OSError as error:
        raise MachineError(
            Message("{folder} cannot be written: {why}.", job["out"], error.strerror or error),
            "Give another --out.",
        ) from error
    return {"num_parents": len(parents), "num_batch_norms": len(norms), "num_images": num_images}


def average(parents: Sequence[tuple[Path, str]]) -> dict[str, torch.Tensor]:
    """Return the mean of some checkpoints' weights, added up in float64; integers are the last one's.

    ``parents`` are files with the sha256 that each must have.

    Raises:
        CheckpointError: Names or shapes of the weights differ; the message names what does.
    """
    total: dict[str, torch.Tensor] = {}
    last: dict[str, torch.Tensor] = {}
    for file, sha256 in parents:
        found = load_checkpoint(file, sha256=sha256)
        state = found.get("state_dict", found)
        last = {
            name.removeprefix("module."): value
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
        if not total:
            total = {name: _wide(value) for name, value in last.items()}
            continue
        differing = sorted(
            {name for name in total.keys() | last.keys() if _shape(total, name) != _shape(last, name)}
        )
        if differing:
            raise CheckpointError(
                Message(
                    "{path} is of another model than {other}: {name} differs, and {count} more.",
                    file,
                    parents[0][0],
                    differing[0],
                    len(differing) - 1,
                ),
                "Average checkpoints of one run.",
            )
        for name, value in last.items():
            if value.is_floating_point():
                total[name] += value
    return {
        name: (total[name] / len(parents)).to(value.dtype) if value.is_floating_point() else value
        for name, value in last.items()
    }


def batch_norms(net: torch.nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers that track running statistics."""
    return [layer for layer in net.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]


@torch.no_grad()
def gather_statistics(model: TrainedModel, cfg: Config, num_images: int, seed: int, emit: Emit) -> int:
    """Let every BatchNorm see training images anew, and keep the plain mean of what it saw.

    The config's ``train_dataloader`` says which images, in batches of which size; ``seed`` decides their
    order and augmentation.

    Returns:
        How many images were seen, at most ``num_images``.
    """
    net: EncoderDecoder = model.net
    layers = batch_norms(net)
    found = build_data(cfg, "train_dataloader")
    # The config that a session ran, config.py, has it already.
    data = found if isinstance(found, PositionalDataset) else PositionalDataset(found)
    num_images = min(num_images, len(data))
    # A batch of one may be too few to have a variance.
    loader = cfg.train_dataloader
    batch = loader.get("batch_size") or (loader.get("batch_sampler") or {}).get("batch_size")
    size = min(num_images, max(2, int(batch or 2)))
    batches = PositionBatches(PositionOrder(data, seed=seed), size, size, rank=0, world_size=1)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
        layer.train()
    done = 0
    try:
        for iteration in range(num_images // size):
            items = [data[draw] for draw in batches.draws(iteration, 0)]
            inputs = net.data_preprocessor(pseudo_collate(items), True)["inputs"]
            net.encode_decode(inputs, [{"img_shape": inputs.shape[2:]}] * len(inputs))
            done += len(inputs)
            emit("progress", done=done, total=num_images // size * size)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
    return done


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


def _shape(state: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
