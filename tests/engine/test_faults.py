"""What an error means for what comes next, by the very words of torch and the libraries beneath it."""

from __future__ import annotations

import multiprocessing.queues
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mapsage_kaggle.engine.faults import (
    end_data_workers_without_shared_memory,
    failure_kind,
    failure_message,
)
from mapsage_kaggle.engine.overflow import HalfPrecisionError
from mapsage_kaggle.engine.sampling import Draw, PositionalDataset
from mapsage_kaggle.errors import DataError
from mapsage_kaggle.training.fallback import MemoryFallback, Outcome, decide_next

# --- memory ----------------------------------------------------------------------------------------------

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {}, NCCL version 2.27.5\n{}"
NCCL_MEMORY = NCCL.format(
    "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'",
)
MEMORY_FAULTS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"),
    RuntimeError("CUDA driver error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    torch.distributed.DistBackendError(NCCL_MEMORY),
    torch.distributed.DistBackendError(NCCL_MEMORY.replace("failure 2", "failure")),
]
AMBIGUOUS = [
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", MEMORY_FAULTS, ids=lambda error: str(error)[:60])
def test_an_allocation_that_failed_is_a_memory_fault(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # nor is it another rank's
    assert failure_kind(error, has_trained=False) == "memory"
    wrapped = RuntimeError("the step failed")
    wrapped.__cause__ = error
    assert failure_kind(wrapped, has_trained=False) == "memory"


@pytest.mark.parametrize("error", AMBIGUOUS, ids=lambda error: str(error)[:30])
@pytest.mark.parametrize(
    ("has_trained", "free", "kind"),
    [(False, 0.5, "error"), (False, 0.11, "error"), (False, 0.09, "memory"), (True, 0.5, "memory")],
)
def test_what_may_mean_anything_means_memory_where_it_is_short_or_had_worked(
    error: BaseException, has_trained: bool, free: float, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * 15e9), int(15e9)))
    assert failure_kind(error, has_trained=has_trained) == kind


def test_a_gpu_that_cannot_say_what_is_free_is_not_short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", failed)
    assert failure_kind(AMBIGUOUS[0], has_trained=False) == "error"


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_what_real_allocators_raise_is_known(allocate: Any) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate((1 << 40, 1 << 15))
    assert failure_kind(caught.value, has_trained=True) == "memory"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("the tile server is out of memory"), "error"),
        (OSError("cannot write log: device out of memory"), "error"),
        (ValueError("crop_size runs the model out of memory"), "refused"),
        (IndexError("no memory at this in_index"), "refused"),
        (NotImplementedError("memory of another kind"), "refused"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "error"),
        (RuntimeError("Cuda failure 201 'invalid device context'"), "error"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "error"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_text_that_speaks_of_memory_is_no_memory_fault(error: BaseException, kind: str) -> None:
    assert failure_kind(error, has_trained=False) == kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("Please install onedl-mmcv for PSAMask ops."), "refused"),
        (FileNotFoundError("no list of images"), "refused"),
        (OSError("the disk is busy"), "error"),
        (RuntimeError("CUDA error: device busy"), "error"),
    ],
)
def test_an_error_in_building_is_not_tried_again_unless_it_may_pass(error: Exception, kind: str) -> None:
    assert failure_kind(error, has_trained=False, has_begun=False) == kind


def test_an_error_that_names_an_object_repeats_word_for_word() -> None:
    first, again = (
        RuntimeError(f"cannot pickle <function shown at {at}> here") for at in ("0x7f46", "0x7Fa1")
    )
    assert (
        failure_message(first)
        == failure_message(again)
        == "RuntimeError: cannot pickle <function shown> here"
    )


def test_what_was_merely_handled_before_is_no_cause() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise RuntimeError("something else") from None
    except RuntimeError as error:
        assert failure_kind(error, has_trained=True) == "error"


def test_a_sample_without_memory_is_no_damaged_image(tmp_path: Path) -> None:
    class Scarce:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Any:
            raise MemoryError("Unable to allocate 9 GiB")

    for choice in ("skip", "fail"):
        data = PositionalDataset(Scarce(), on_bad_image=choice)
        with pytest.raises(MemoryError, match="9 GiB"):
            data[Draw(0, 0, 1)]


def test_what_batch_norm_says_of_a_single_value_is_known_for_it() -> None:
    with pytest.raises(ValueError, match="per channel") as caught:
        torch.nn.BatchNorm2d(3)(torch.ones(1, 3, 1, 1))
    kind: Any = failure_kind(caught.value, has_trained=False)
    outcome = Outcome(kind=kind, message=failure_message(caught.value))
    found = decide_next(
        MemoryFallback(micro_batch=1, above=2), outcome, can_recompute=True, time_left_s=3600.0
    )
    assert found.ladder is not None
    assert (found.ladder.micro_batch, found.ladder.with_cp) == (2, True)


# --- half precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "\"grid_sampler_2d_cuda\" not implemented for 'Half'",
        "\"unique\" not implemented for 'BFloat16'",
        "expected scalar type Half but found Float",
        "mat1 and mat2 must have the same dtype, but got Half and Float",
        "Input type (torch.cuda.HalfTensor) and weight type (torch.cuda.FloatTensor) should be the same",
        "Input type (c10::BFloat16) and bias type (float) should be the same",
        "Index put requires the source and destination dtypes match, got Float for the destination and Half",
        "value cannot be converted to type at::Half without overflow",
    ],
)
def test_an_operator_without_half_precision_is_known_by_its_words(text: str) -> None:
    assert failure_kind(RuntimeError(text), has_trained=False) == "precision"


def test_what_torch_itself_raises_of_mixed_types_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.ones(2, 2, dtype=torch.float16) @ torch.ones(2, 2)
    assert failure_kind(caught.value, has_trained=True) == "precision"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HalfPrecisionError("the scale"), "precision"),
        (RuntimeError("Half of the tiles are missing"), "error"),
        (RuntimeError("\"x\" not implemented for 'Long'"), "error"),
        (TypeError("expected scalar type Half but found Float"), "refused"),
    ],
)
def test_what_is_of_another_kind_is_not_taken_for_it(error: Exception, kind: str) -> None:
    assert failure_kind(error, has_trained=False) == kind


# --- other ranks -----------------------------------------------------------------------------------------

NCCL_PEER = NCCL.format(
    "remote process exited or there was a network error",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
    "prematurely.\nLast error:\nsocketProgress: Connection closed by remote peer 172.19.2.2<44190>",
)
NCCL_SYSTEM = NCCL.format(
    "unhandled system error (run with NCCL_DEBUG=INFO for details)",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \n"
    "Last error:\nError while creating shared memory segment /dev/shm/nccl-ukQ7bM (size 9637888), error: "
    "No space left on device (28)\nException raised from checkForNCCLErrorsInternal",
)


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/third_party/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3021",
        "[../third_party/gloo/transport/tcp/pair.cc:534] Read error [127.0.0.1]:1: Connection reset by peer",
        "[../gloo/transport/tcp/buffer.cc:72] Timed out waiting 600000ms for send operation to complete",
        "Application timeout caused pair closure",
        "writev [127.0.0.1]:53: Broken pipe",
        "NCCL communicator was aborted on rank 1.",
        NCCL_PEER,
    ],
)
def test_a_connection_that_ends_says_that_another_rank_has_gone(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert failure_kind(RuntimeError(text), has_trained=True) == "peer"
    assert failure_message(RuntimeError(text)).startswith("Another rank has gone, and rank 1 missed it (")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert failure_kind(RuntimeError(text), has_trained=True) == "error"


def test_a_fault_of_nccl_s_own_is_no_other_rank_s_and_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = torch.distributed.DistBackendError(NCCL_SYSTEM)
    assert failure_kind(error, has_trained=False) == "error"
    assert failure_message(error) == (
        "DistBackendError: ncclSystemError: Error while creating shared memory segment "
        "/dev/shm/nccl-ukQ7bM (size 9637888), error: No space left on device (28)"
    )
    assert "Cuda failure 2 'out of memory'" in failure_message(
        torch.distributed.DistBackendError(NCCL_MEMORY)
    )


KILLED = RuntimeError(
    "DataLoader worker (pid 81) is killed by signal: Bus error. It is possible that dataloader's workers are "
    "out of shared memory. Please try to raise your shared memory limit."
)
EXITED = RuntimeError("DataLoader worker (pid(s) 81) exited unexpectedly")
EXITED.__cause__ = KILLED
FULL = RuntimeError(
    "unable to allocate shared memory(shm) for file </torch_27768_3330124339_0>: No space left on device (28)"
)


@pytest.mark.parametrize("error", [KILLED, EXITED, FULL], ids=["killed", "exited", "full"])
def test_data_workers_without_shared_memory_say_how_much_there_is(error: Exception) -> None:
    assert failure_kind(error, has_trained=True) == "shared_memory"
    megabytes = f"{shutil.disk_usage('/dev/shm').total / 1e6:.0f} MB"
    assert failure_message(error).endswith(
        f"The data workers need more of /dev/shm than its {megabytes}: set fewer (num_workers)."
    )


class Refusing(torch.utils.data.Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        raise DataError("These are odd:", "Mend them.", ["a.png", "b.png"])

    def __len__(self) -> int:
        return 4


def test_a_data_worker_s_refusal_of_any_kind_is_told_whole() -> None:
    loader = torch.utils.data.DataLoader(Refusing(), num_workers=1, collate_fn=list)
    with pytest.raises(DataError) as caught:
        next(iter(loader))
    assert failure_message(caught.value) == "These are odd:\n  a.png\n  b.png\nMend them."


class Unsendable:
    """What a data worker cannot hand over, as where ``/dev/shm`` is full."""

    def __reduce__(self) -> Any:
        raise FULL


class Samples(torch.utils.data.Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return Unsendable()

    def __len__(self) -> int:
        return 4


def test_a_data_worker_that_cannot_hand_a_batch_over_ends_instead_of_dropping_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue: Any = multiprocessing.queues.Queue
    monkeypatch.setattr(queue, "_on_queue_feeder_error", queue._on_queue_feeder_error)
    end_data_workers_without_shared_memory()
    loader = torch.utils.data.DataLoader(Samples(), num_workers=1, collate_fn=list, timeout=60)
    with pytest.raises(RuntimeError, match="DataLoader worker") as caught:
        next(iter(loader))
    assert failure_kind(caught.value, has_trained=True) == "shared_memory"
