"""Join the other ranks, and take from rank 0 what is trained and from where."""

from __future__ import annotations

import datetime
import hashlib
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.model import is_model_wrapper

from mapsage_kaggle.checkpoints.manifest import file_sha256
from mapsage_kaggle.errors import TrainingError
from mapsage_kaggle.messages import Message
from mapsage_kaggle.spec import ChildSpec

_CHUNK_BYTES = 1 << 23
TIMEOUT_S = 600.0
"""How long a rank waits for the others. A rank that dies is noticed at once, unless its machine
vanishes from the network."""
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""What a number's bits are read as, by its size in bytes."""
_timeout = datetime.timedelta(seconds=TIMEOUT_S)
_cpu_group: torch.distributed.ProcessGroup | None = None


def join(cfg: Config) -> None:
    """Join the process group, where torchrun has started several ranks.

    Done here and not by mmengine, which would start all data workers by ``spawn`` and need a GPU for each
    rank.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or torch.distributed.is_initialized():
        return
    global _timeout
    asked = (cfg.get("env_cfg") or {}).get("dist_cfg") or {}
    _timeout = datetime.timedelta(seconds=float(asked.get("timeout", TIMEOUT_S)))
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "nccl" if has_gpu and not share_a_gpu() else "gloo"
    torch.distributed.init_process_group(backend=backend, timeout=_timeout)


def share_a_gpu() -> bool:
    """Return whether this machine has GPUs, but fewer than ranks, which NCCL refuses."""
    return 0 < torch.cuda.device_count() < int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def cpu_group() -> torch.distributed.ProcessGroup:
    """Return the group in which ranks agree without a GPU. The first call is collective."""
    global _cpu_group
    if _cpu_group is None:
        _cpu_group = torch.distributed.new_group(backend="gloo", timeout=_timeout)
    return _cpu_group


def reduce_number(code: int, operation: torch.distributed.ReduceOp.RedOpType) -> int:
    """Return a number reduced over all ranks. Collective with several."""
    if get_world_size() == 1:
        return code
    tensor = torch.tensor([code], dtype=torch.int64)
    torch.distributed.all_reduce(tensor, op=operation, group=cpu_group())
    return int(tensor.item())


def check_same_weights(core: torch.nn.Module, iteration: int) -> None:
    """Check that all ranks still hold the same weights. Collective; with one rank it does nothing.

    It compares a digest of their bits. On a GPU it costs a sum of each weight and one small copy.

    Raises:
        TrainingError: They do not.
    """
    if get_world_size() == 1:
        return
    digest = _digest(core)
    largest = reduce_number(digest, torch.distributed.ReduceOp.MAX)
    if reduce_number(int(digest != largest), torch.distributed.ReduceOp.MAX):
        raise TrainingError(
            Message(
                "The ranks no longer hold the same weights after iteration {iteration}: nothing is "
                "saved, and the checkpoints before it are untouched.",
                iteration,
            ),
            "Resume on one GPU (--gpus 1), and report this with the log: it is a fault of the program.",
        )


@torch.no_grad()
def _digest(core: torch.nn.Module) -> int:
    """Return a 62-bit hash of the sums of each weight's bit patterns, in order."""
    weights = (torch.view_as_real(item) if item.is_complex() else item for item in core.parameters())
    sums = [item.view(_BITS[item.element_size()]).sum(dtype=torch.int64) for item in weights]
    if not sums:
        return 0
    digest = hashlib.blake2b(torch.stack(sums).cpu().numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def follow_rank_0(spec: ChildSpec, cfg: Config, scratch: Path) -> ChildSpec:
    """Make every machine start from what rank 0's machine has chosen; return the spec to use.

    The other machines look for no checkpoint of their own: they get action, seed and run from rank 0 and,
    where they do not have it, the file. Collective; on one machine it does nothing. The config is changed in
    place; ``scratch`` is for a file that is sent over.

    Raises:
        TrainingError: The machines were given configs that are not the same run.
    """
    if num_machines() == 1:
        return spec
    group = cpu_group()
    rank = torch.distributed.get_rank()
    mine = {
        "run": (spec.fingerprint, int(cfg.train_cfg.max_iters)),
        "machine": machine(),
        "spec": {
            "action": spec.action,
            "run_id": spec.run_id,
            "fingerprint": spec.fingerprint,
            "expect_iteration": spec.expect_iteration,
            "extend": spec.extend,
        },
        "seed": int(cfg.randomness.seed),
        "file": _file_facts(spec) if rank == 0 else None,
    }
    everyone: list[Any] = [None] * get_world_size()
    torch.distributed.all_gather_object(everyone, mine, group=group)
    first = everyone[0]
    for other in everyone:
        if other["run"] != first["run"]:
            raise TrainingError(
                Message(
                    "Machine {machine} trains another config than machine 0: fingerprint and max_iters "
                    "are {run} and {end}, not {run_0} and {end_0}.",
                    other["machine"],
                    other["run"][0],
                    other["run"][1],
                    first["run"][0],
                    first["run"][1],
                ),
                "Start every machine with the same config and the same --set and --extend-to.",
            )
    file = first["file"]
    path = _fetch(file, spec.checkpoint, scratch, group) if file is not None else None
    cfg.randomness.seed = first["seed"]
    cfg.load_from = str(path) if path is not None else None
    cfg.resume = first["spec"]["action"] == "resume"
    sha256 = file["sha256"] if file is not None else None
    return replace(spec, **first["spec"], checkpoint=path, checkpoint_sha256=sha256)


def core_model(model: torch.nn.Module) -> torch.nn.Module:
    return model.module if is_model_wrapper(model) else model  # type: ignore[return-value]


def wrappers_of(optim_wrapper: Any) -> tuple[Any, ...]:
    """Return the wrappers of each optimizer, where there are several by name; else the one."""
    several = hasattr(optim_wrapper, "optim_wrappers")
    return tuple(optim_wrapper.values()) if several else (optim_wrapper,)


def broadcast_model(core: torch.nn.Module) -> None:
    """Broadcast rank 0's weights and buffers: machines may differ in what they started from."""
    if get_world_size() > 1:
        for tensor in core.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def num_machines() -> int:
    return int(os.environ.get("GROUP_WORLD_SIZE", 1))


def machine() -> int:
    return int(os.environ.get("GROUP_RANK", 0))


def is_local_rank_zero() -> bool:
    """Return whether this rank reports to its machine's supervisor: one on each machine does."""
    return int(os.environ.get("LOCAL_RANK", 0)) == 0


def _file_facts(spec: ChildSpec) -> dict[str, Any] | None:
    if spec.checkpoint is None:
        return None
    return {
        "name": spec.checkpoint.name,
        "size": spec.checkpoint.stat().st_size,
        "sha256": spec.checkpoint_sha256 or file_sha256(spec.checkpoint),
    }


def _fetch(file: dict[str, Any], mine: Path | None, scratch: Path, group: Any) -> Path:
    """Return this machine's copy of rank 0's file, sent over where any machine lacks it. Collective."""
    rank = torch.distributed.get_rank()
    target = scratch / "from-rank-0" / file["name"]
    has_it = rank == 0 or machine() == 0 or (target.is_file() and file_sha256(target) == file["sha256"])
    lacking = torch.tensor([int(not has_it)])
    torch.distributed.all_reduce(lacking, group=group)
    if int(lacking) > 0:
        with ExitStack() as streams:
            source = streams.enter_context(mine.open("rb")) if rank == 0 and mine is not None else None
            sink = None
            if not has_it and is_local_rank_zero():
                target.parent.mkdir(parents=True, exist_ok=True)
                sink = streams.enter_context(target.open("wb"))
            for begin in range(0, file["size"], _CHUNK_BYTES):
                length = min(_CHUNK_BYTES, file["size"] - begin)
                content = bytearray(source.read(length)) if source is not None else bytearray(length)
                chunk = torch.frombuffer(content, dtype=torch.uint8)
                torch.distributed.broadcast(chunk, src=0, group=group)
                if sink is not None:
                    sink.write(chunk.numpy().tobytes())
    torch.distributed.barrier(group=group)
    if machine() == 0 and mine is not None:
        return mine
    return target
