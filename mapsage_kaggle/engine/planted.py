"""Faults and meters that the self-test plants in its own sessions, by name in their configs."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner

import mapsage_kaggle.engine.register  # noqa: F401 - the configs' data sets
from mapsage_kaggle.engine.ranks import core_model
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.spec import ask_stop


@HOOKS.register_module()
class Planted(Hook):
    """Injects faults at chosen iterations, counted from 1, each once.

    What has happened is marked by a file: no checkpoint would hold an attribute.

    Args:
        folder: For the marks.
        stop: The iteration after which a stop is requested.
        kill: The iteration after which the process is killed.
        fill: Where device memory is exhausted: ``(iteration, "forward" | "backward")``.
        fill_validation: In how many validations it is exhausted.
    """

    def __init__(
        self,
        folder: str,
        stop: int | None = None,
        kill: int | None = None,
        fill: Sequence[tuple[int, str]] = (),
        fill_validation: int = 0,
    ) -> None:
        self.folder, self.stop, self.kill = Path(folder), stop, kill
        self.fill, self.fill_validation = tuple((at, phase) for at, phase in fill), fill_validation

    def before_train(self, runner: Runner) -> None:
        if not self.fill and not self.fill_validation:
            return

        def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if not module.training:
                if any(self._first(f"validation-{turn}") for turn in range(self.fill_validation)):
                    fill_memory()
                return
            for at, phase in self.fill:
                if runner.iter + 1 == at and self._first(f"{phase}-{at}"):
                    if phase == "forward":
                        fill_memory()
                    output[-1].register_hook(lambda gradient: fill_memory())

        backbone: Any = core_model(runner.model).backbone
        backbone.register_forward_hook(look)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if runner.iter + 1 == self.stop and self._first("stop"):
            ask_stop(WorkDir(Path(runner.work_dir)))
        if runner.iter + 1 == self.kill and self._first("kill"):
            os.kill(os.getpid(), signal.SIGKILL)

    def _first(self, name: str) -> bool:
        try:
            (self.folder / name).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def fill_memory() -> NoReturn:
    """Allocate what the device still has, until its allocator refuses: the error is its own.

    A CPU's memory is not really taken, which would kill other processes: the request is larger than any
    memory.

    Raises:
        RuntimeError: In the allocator's words.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    held, size_bytes = [], torch.cuda.mem_get_info()[0] if device == "cuda" else 1 << 56
    while True:
        try:
            held.append(torch.empty(size_bytes, dtype=torch.uint8, device=device))
        except RuntimeError:
            size_bytes //= 2
            if device == "cpu" or size_bytes < 1 << 20:
                raise


@HOOKS.register_module()
class Metered(Hook):
    """Writes ``[iteration, "begin" | "end", seconds, peak_bytes]`` as a line of JSON around each step.

    The peak is torch's on a GPU, else the process's resident set.
    """

    priority = "LOWEST"

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._write(runner.iter, "begin")

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._write(runner.iter, "end")

    def _write(self, iteration: int, what: str) -> None:
        peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            peak_bytes = torch.cuda.max_memory_allocated()
        with self.file.open("a") as stream:
            stream.write(json.dumps([iteration, what, time.perf_counter(), peak_bytes]) + "\n")


@OPTIM_WRAPPERS.register_module()
class ScaledOnCPU(AmpOptimWrapper):
    """Mixed precision with a loss scaler on a CPU, which ``AmpOptimWrapper`` itself refuses."""

    def __init__(self, loss_scale: dict[str, Any], **options: Any) -> None:
        OptimWrapper.__init__(self, **options)
        self._scale_update_param = None
        self.cast_dtype = torch.bfloat16
        self.loss_scaler = torch.amp.GradScaler("cpu", **loss_scale)
