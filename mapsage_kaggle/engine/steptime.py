"""How much of a training step its optimizer takes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

_MOST_PENDING = 64
_Mark: TypeAlias = Any  # a torch.cuda.Event, which torch leaves untyped


class OptimizerClock:
    """Measures the optimizer's part of each training step: unscaling, clipping, stepping, zeroing.

    On a CPU it reads the time before and after. On a GPU work is only queued, and waiting for it would slow
    training; there it marks the places in the queue and reads them later, when they have been passed.

    Args:
        optim_wrapper: mmengine's, whose methods it wraps from now on.
        device: Where the model is.
    """

    def __init__(self, optim_wrapper: Any, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._share = 0.0
        self._began: _Mark | None = None
        self._marks: list[_Mark] = []
        self._pending: deque[tuple[_Mark, list[_Mark]]] = deque(maxlen=_MOST_PENDING)
        parts = optim_wrapper.values() if hasattr(optim_wrapper, "optim_wrappers") else (optim_wrapper,)
        for part in parts:
            for name in ("step", "zero_grad"):
                setattr(part, name, self._timed(getattr(part, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            if self._on_gpu:
                self._marks.append(_mark())
                try:
                    return method(*args, **options)
                finally:
                    self._marks.append(_mark())
            begin = time.monotonic()
            try:
                return method(*args, **options)
            finally:
                self._seconds += time.monotonic() - begin

        return timed

    def begin(self) -> None:
        """Begin a step."""
        self._seconds, self._marks = 0.0, []
        if self._on_gpu:
            self._began = _mark()

    def end(self, step_s: float) -> float:
        """Return how many of a step's ``step_s`` seconds its optimizer took.

        On a GPU it is the share that the newest step had of which the GPU has got through.
        """
        if not self._on_gpu:
            return min(step_s, self._seconds)
        assert self._began is not None
        if self._marks:
            self._pending.append((self._began, self._marks))
        while self._pending and self._pending[0][1][-1].query():
            began, marks = self._pending.popleft()
            whole = began.elapsed_time(marks[-1])
            own = sum(a.elapsed_time(b) for a, b in zip(marks[::2], marks[1::2], strict=True))
            self._share = own / whole if whole else 0.0
        return step_s * self._share


def _mark() -> _Mark:
    event: _Mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
