"""A copy of a training state in the host's memory, so that saving it need not hold training up."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class HostCopy:
    """Copies a state out of what training changes, into buffers that are kept for the next copy.

    The first copy pays for the memory, a page at a time; the later ones run at the speed of the
    bus. On a GPU the buffers are pinned, and all copies are under way before the first is waited
    for. A copy is valid until the next one: wait for its save to end before taking another.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @property
    def size_bytes(self) -> int:
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def take(self, state: Any) -> Any:
        """Return ``state`` with every tensor copied, and everything else that can change.

        Dictionaries, lists and tuples keep their types; two places that hold one tensor still
        hold one. A view is copied alone, without the rest of its storage.
        """
        import torch

        shared: dict[tuple[object, ...], torch.Tensor] = {}
        kept: dict[str, torch.Tensor] = {}
        devices: set[torch.device] = set()

        def copied(tensor: torch.Tensor, place: str) -> torch.Tensor:
            tensor = tensor.detach()
            if tensor.layout != torch.strided:
                return tensor.cpu().clone()
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if tensor.numel() and key in shared:
                return shared[key]
            buffer = self._buffers.get(place)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = _buffer_like(tensor, pinned=tensor.is_cuda)
            buffer.copy_(tensor, non_blocking=tensor.is_cuda)
            if tensor.is_cuda:
                devices.add(tensor.device)
            kept[place] = buffer
            shared[key] = buffer
            return buffer

        def walk(value: Any, place: str) -> Any:
            if isinstance(value, torch.Tensor):
                return copied(value, place)
            if isinstance(value, dict):
                items = [(key, walk(item, f"{place}/{key}")) for key, item in value.items()]
                if type(value) is dict:
                    return dict(items)
                twin = copy.copy(value)  # keeps its type and attributes, such as a state_dict's _metadata
                for key, item in items:
                    twin[key] = item
                return twin
            if type(value) in (list, tuple):
                return type(value)(walk(item, f"{place}/{number}") for number, item in enumerate(value))
            return copy.deepcopy(value)

        result = walk(state, "")
        self._buffers = kept
        for device in devices:
            torch.cuda.synchronize(device)
        return result


def _buffer_like(tensor: torch.Tensor, *, pinned: bool) -> torch.Tensor:
    """Return memory of the host for a tensor; where none can be pinned, such as can be paged out."""
    import torch

    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
    except RuntimeError:  # torch calls it a CUDA error, though the GPU is not at fault
        if not pinned:
            raise
        return torch.empty(tensor.shape, dtype=tensor.dtype)
