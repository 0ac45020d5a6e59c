"""Classify an error by what comes next: less memory, another precision, another try, or none.

Libraries raise a plain ``RuntimeError``; the texts below are those of torch 2.6 to 2.13, cuDNN 9, cuBLAS 12,
NCCL 2.21 to 2.28 and gloo.
"""

from __future__ import annotations

import multiprocessing.queues
import os
import re
import shutil
import signal
import traceback
from typing import Any, Literal, TypeAlias

import torch

from mapsage_kaggle.engine.deterministic import is_refusal
from mapsage_kaggle.engine.overflow import HalfPrecisionError
from mapsage_kaggle.engine.problems import causes
from mapsage_kaggle.errors import MapsageError
from mapsage_kaggle.messages import Message, text_of

FailureKind: TypeAlias = Literal["memory", "shared_memory", "precision", "peer", "refused", "error"]

LITTLE_MEMORY = 0.1
"""With less than this share of a GPU's memory free, an ambiguous error means lack of memory."""

_MISTAKES = (
    ValueError, TypeError, LookupError, AttributeError, AssertionError, ImportError, NotImplementedError,
)  # fmt: skip
_ALLOCATION_FAILED = re.compile(
    r"CUDA out of memory|HIP out of memory|CUDA (?:driver )?error: out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_(?:ALLOC_FAILED|\w*DEVICE_ALLOCATION_FAILED)"
    r"|Cuda failure (?:2\b|'out of memory')"
    r"|DefaultCPUAllocator: (?:can't allocate|not enough) memory"
)
_PERHAPS_ALLOCATION_FAILED = re.compile(
    r"unable to find an engine to execute this computation|CUBLAS_STATUS_NOT_INITIALIZED"
)
"""Also raised for an operator that the GPU does not have, and by a GPU that has failed."""
_NO_HALF_PRECISION = re.compile(
    r"not implemented for '(?:Half|BFloat16)'"
    r"|type at::(?:Half|BFloat16) without overflow"
    r"|(?:dtypes?|scalar type|type \().*(?:\bHalf\b|\bBFloat16\b|HalfTensor|BFloat16Tensor)"
)
_PEER_GONE = re.compile(
    r"connection (?:was )?(?:closed|reset|refused|aborted)|connection abort|closed by (?:remote )?peer"
    r"|reset by peer|broken pipe|ncclremoteerror|communicator was aborted|pair closure|timed out waiting",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""Of an object: it says nothing to a person, and differs where an error repeats."""
_LAST_ERROR = re.compile(r"(nccl\w+Error)\b.*?Last error:\s*(.+?)\s*(?:Exception raised from|$)", re.DOTALL)
_NO_SHARED_MEMORY = re.compile(
    r"out of shared memory|unable to (?:allocate shared memory\(shm\) for|write to) file </torch_"
)


def failure_kind(error: BaseException, *, has_trained: bool, has_begun: bool = True) -> FailureKind:
    """Classify what ended the worker.

    ``has_trained`` is whether it had done an iteration, ``has_begun`` whether everything was built: before
    that, only a device, a disk or a connection may do better in another try.

    Returns:
        ``memory`` where it ran out; ``shared_memory`` where the data workers' did; ``precision`` where half
        precision does not work; ``peer`` where another rank failed; ``refused`` where it would fail again;
        else ``error``.
    """
    if is_memory_fault(error, has_trained=has_trained):
        return "memory"
    if is_shared_memory_fault(error):
        return "shared_memory"
    if is_precision_fault(error):
        return "precision"
    if lost_peer(error):
        return "peer"
    is_mistake = (
        isinstance(error, MapsageError)
        or is_refusal(error)
        or (isinstance(error, _MISTAKES) and not has_trained)
        or (not has_begun and isinstance(error, Exception) and not _may_pass(error))
    )
    return "refused" if is_mistake else "error"


def _may_pass(error: Exception) -> bool:
    """Return whether an error in building may be the machine's, and transient."""
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError)
    return isinstance(error, torch.distributed.DistError) or "CUDA" in str(error)


def is_memory_fault(error: BaseException, *, has_trained: bool = False) -> bool:
    """Return whether an error, or one of its causes, is a failed allocation.

    A text that merely mentions memory is none: smaller micro-batches would make training slower, and cure
    nothing. An ambiguous one counts where the same operators have run before, or where little memory is free.
    """
    for cause in causes(error):
        if isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
            return True
        if not isinstance(cause, RuntimeError):
            continue
        if _ALLOCATION_FAILED.search(str(cause)):
            return True
        if _PERHAPS_ALLOCATION_FAILED.search(str(cause)) and (has_trained or _is_little_free()):
            return True
    return False


def is_shared_memory_fault(error: BaseException) -> bool:
    """Return whether an error says that ``/dev/shm`` is too small for the data workers' batches."""
    return any(bool(_NO_SHARED_MEMORY.search(str(cause))) for cause in causes(error))


def end_data_workers_without_shared_memory() -> None:
    """Make a data worker that finds no shared memory for a batch die, like one that is killed for it.

    It hands batches over in a thread of its queue, where torch 2.13 prints the error and drops the batch: the
    loader would wait for it forever.
    """

    def on_error(error: BaseException, batch: Any) -> None:
        traceback.print_exception(error)
        if torch.utils.data.get_worker_info() is not None and is_shared_memory_fault(error):
            os.kill(os.getpid(), signal.SIGBUS)

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(on_error)  # type: ignore[attr-defined]


def is_precision_fault(error: BaseException) -> bool:
    """Return whether an error says that half precision lacks the range, or an operator, for a model."""
    return any(
        isinstance(cause, HalfPrecisionError)
        or (isinstance(cause, RuntimeError) and bool(_NO_HALF_PRECISION.search(str(cause))))
        for cause in causes(error)
    )


def lost_peer(error: BaseException) -> bool:
    """Return whether an error only says that another rank is gone, or that the group was aborted."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return several and isinstance(error, RuntimeError) and bool(_PEER_GONE.search(str(error)))


def _is_little_free() -> bool:
    """Return whether the driver has little free memory; False where it cannot be asked."""
    if not torch.cuda.is_available():
        return False
    try:
        free, total = torch.cuda.mem_get_info()
    except RuntimeError:
        return False
    return bool(free < LITTLE_MEMORY * total)


def failure_message(error: BaseException) -> str:
    """Return what a person reads of an error, with a remedy where one is known."""
    text = _ADDRESS.sub("", str(error)).strip()
    if isinstance(error, MapsageError):
        # A data worker's error arrives with its whole trace; what it says comes last.
        said = text.rpartition(f"{type(error).__name__}: ")[2]
        return said if text.startswith("Caught") else text_of(error)
    first = f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"
    if text.startswith("Caught"):
        first = text.splitlines()[-1]
    told = _LAST_ERROR.search(text)
    if told is not None:  # NCCL's first line says only where it failed
        first = f"{type(error).__name__}: {told[1]}: {' '.join(told[2].split())}"
    if lost_peer(error):
        return Message("Another rank has gone, and rank {rank} missed it ({why}).", os.environ["RANK"], first)
    if is_refusal(error):
        return Message(
            "{error} Train without --deterministic, or replace the layer or loss that needs it.", first
        )
    if is_shared_memory_fault(error):
        return Message(
            "{error}. The data workers need more of /dev/shm than its {size} MB: set fewer (num_workers).",
            first.rstrip("."),
            f"{shutil.disk_usage('/dev/shm').total / 1e6:.0f}",
        )
    return first
