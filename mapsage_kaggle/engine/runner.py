"""mmengine's runner with a safe, strict and verified resume."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mapsage_kaggle.engine import seeding
from mapsage_kaggle.engine.session import TrainingSession


class SessionRunner(Runner):
    """A runner that belongs to a training session."""

    session: TrainingSession
    loaded_checkpoint: dict[str, Any] | None = None

    def _init_model_weights(self) -> None:
        seeding.seed_sample(seeding.derive(seeding.INIT, self.seed))
        super()._init_model_weights()

    def load_or_resume(self) -> None:
        """Load what the session was told to load, and check that it arrived."""
        super().load_or_resume()
        self.session.loaded(self)

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str | Callable[..., Any] = "cpu",
    ) -> None:
        """Resume, strictly, by way of the CPU, and say so in the words that people look for."""
        self.logger.info(f"load checkpoint from {filename}")
        super().resume(filename, resume_optimizer, resume_param_scheduler, map_location="cpu")
        self.logger.info(f"resume optimizer: {type(self.optim_wrapper.optimizer)}")
        for scheduler in self._flat_schedulers():
            self.logger.info(f"resume lr_scheduler: {type(scheduler)}")

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable[..., Any] = "cpu",
        strict: bool = False,
        revise_keys: list[tuple[str, str]] | None = None,
    ) -> dict[str, Any]:
        """Load weights; on a resume every name must be there and fit."""
        checkpoint: dict[str, Any] = super().load_checkpoint(
            filename, map_location, strict or self._resume, revise_keys or [(r"^module\.", "")]
        )
        self.loaded_checkpoint = checkpoint
        return checkpoint

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: torch.nn.Module) -> torch.nn.Module:
        """Wrap the model for several ranks; mmengine's way needs a GPU per rank, this one does not."""
        if self.distributed and model_wrapper_cfg is None and get_device() == "cpu":
            return MMDistributedDataParallel(
                module=model,
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get("find_unused_parameters", False),
            )
        return super().wrap_model(model_wrapper_cfg, model)  # type: ignore[no-any-return]

    def _flat_schedulers(self) -> list[Any]:
        schedulers = self.param_schedulers or []
        if isinstance(schedulers, dict):
            return [scheduler for group in schedulers.values() for scheduler in group]
        return list(schedulers)


def build_runner(cfg: Config, session: TrainingSession) -> SessionRunner:
    """Build the runner of a config, on top of the config's own runner class where it has one."""
    custom = RUNNERS.get(cfg.runner_type) if cfg.get("runner_type") else None
    cls = (
        type(SessionRunner.__name__, (SessionRunner, custom), {})
        if custom not in (None, Runner)
        else SessionRunner
    )
    cfg.launcher = "pytorch" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else "none"
    cls.session = session
    runner: SessionRunner = cls.from_cfg(cfg)
    return runner
