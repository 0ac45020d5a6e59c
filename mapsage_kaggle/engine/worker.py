"""The training child: one process per GPU, started by torchrun with the path of its spec."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path

import cv2
import torch

from mapsage_kaggle.engine.deterministic import is_refusal, only_deterministic
from mapsage_kaggle.engine.ranks import follow_rank_0, join, lost_peer, num_machines
from mapsage_kaggle.engine.reading import EVENTS_VARIABLE
from mapsage_kaggle.engine.safety import expect, install_safe_loading, load_ahead
from mapsage_kaggle.engine.session import WorkerSession, emit_failure
from mapsage_kaggle.errors import EXIT_DONE, EXIT_TRAINING, MapsageError
from mapsage_kaggle.processes import process_start_s
from mapsage_kaggle.spec import SUPERVISOR_VARIABLE, ChildSpec


def main(arguments: list[str]) -> int:
    """Train until the end, the deadline or a stop request; return the exit code."""
    spec = ChildSpec.read(Path(arguments[0]))
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    os.environ[EVENTS_VARIABLE] = str(spec.work_dir / "events.jsonl")
    torch.set_num_threads(spec.threads)
    cv2.setNumThreads(0)
    session = WorkerSession(spec, rank=rank, world_size=world_size)
    supervisor = int(os.environ.get(SUPERVISOR_VARIABLE, 0))
    session.control.install_signal_handlers()
    session.control.end_with_supervisor()
    session.emit(
        "start",
        0,
        rank=rank,
        pid=os.getpid(),
        pid_started_s=process_start_s(),
        world_size=world_size,
        torch=torch.__version__,
        supervisor=supervisor,
        supervisor_started_s=process_start_s(supervisor),
    )
    try:
        session.open()
        _train(spec, session, scratch=Path(arguments[0]).parent)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the supervisor must learn of it
        trace = traceback.format_exc()
        print(trace, file=sys.stderr, flush=True)
        emit_failure(
            session,
            kind=failure_kind(error, has_trained=session.has_trained),
            message=_message(error),
            trace=trace[-4000:],
        )
        return error.exit_code if isinstance(error, MapsageError) else EXIT_TRAINING
    finally:
        session.close()
    return EXIT_DONE


def _train(spec: ChildSpec, session: WorkerSession, *, scratch: Path) -> None:
    if spec.checkpoint is not None and spec.checkpoint_sha256 and num_machines() == 1:
        load_ahead(spec.checkpoint, spec.checkpoint_sha256)
    # Imported here, so that an import that fails is told like any other failure.
    from mmengine.config import Config

    from mapsage_kaggle.engine.runner import build_runner, format_configs_once

    format_configs_once()
    install_safe_loading()
    cfg = Config.fromfile(spec.config)
    join(cfg)
    spec = session.spec = follow_rank_0(spec, cfg, scratch)
    if spec.checkpoint is not None and spec.checkpoint_sha256:
        expect(spec.checkpoint, spec.checkpoint_sha256)
    if spec.deterministic:
        only_deterministic()
    runner = build_runner(cfg, session)
    session.attach(runner, cfg.pretty_text)
    runner.train()


_MISTAKES = (ValueError, TypeError, KeyError, AttributeError, AssertionError, ImportError)
_ALLOCATION_FAILED = (
    "CUDA out of memory",
    "HIP out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)
"""How torch and the libraries beneath it say, in a plain ``RuntimeError``, that an allocation failed."""


def failure_kind(error: BaseException, *, has_trained: bool) -> str:
    """Return ``memory``, ``peer`` (another rank failed), ``refused`` (it will fail again) or ``error``."""
    if is_memory_fault(error):
        return "memory"
    if lost_peer(error):
        return "peer"
    is_mistake = (
        isinstance(error, MapsageError)
        or is_refusal(error)
        or (isinstance(error, _MISTAKES) and not has_trained)
    )
    return "refused" if is_mistake else "error"


def is_memory_fault(error: BaseException) -> bool:
    """Tell whether an error, or the one that it was raised from, is an allocation that failed.

    A text that merely speaks of memory is none: to take it for one would make training slower,
    by smaller micro-batches, and mend nothing.
    """
    cause: BaseException | None = error
    for _ in range(8):  # a chain of causes may be a ring
        if cause is None:
            return False
        if isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(cause, RuntimeError) and any(words in str(cause) for words in _ALLOCATION_FAILED):
            return True
        cause = cause.__cause__
    return False


def _message(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, MapsageError):
        # A data worker's error arrives with its whole trace; what it says comes last.
        return text.splitlines()[-1].partition("TrainingError: ")[2] if text.startswith("Caught") else text
    first = f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
    if text.startswith("Caught"):
        first = text.splitlines()[-1]
    if lost_peer(error):
        return f"Another rank has gone, and rank {os.environ['RANK']} missed it ({first})."
    if is_refusal(error):
        return f"{first} Train without --deterministic, or replace the layer or loss that needs it."
    return first


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*MultiScaleDeformableAttention.*")
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Leave without running other libraries' exit handlers: everything is saved, and a CUDA or
    # data-worker teardown that hangs must not keep the session alive.
    os._exit(code)
