"""mmengine's runner with a safe, strict and verified resume."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseDataPreprocessor, MMDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS, RUNNERS
from mmengine.runner import Runner
from yapf.yapflib import yapf_api

from mapsage_kaggle.config.reading import written_value
from mapsage_kaggle.engine import seeding
from mapsage_kaggle.engine.fast.optimizer import step_equal_groups_together
from mapsage_kaggle.engine.pretrained import initialise, none_arrived, noted_arrivals
from mapsage_kaggle.engine.ranks import broadcast_model, core_model, wrappers_of
from mapsage_kaggle.engine.session import WorkerSession
from mapsage_kaggle.engine.snapshot import flat_schedulers
from mapsage_kaggle.messages import Message


class SessionRunner(Runner):
    """A runner that belongs to a training session."""

    session: WorkerSession
    _loaded_checkpoint: dict[str, Any] | None = None
    _weights_warnings: tuple[str, ...] = ()

    def _init_model_weights(self) -> None:
        """Only warn: :meth:`wrap_model` has drawn them, before there was a session."""
        for message in self._weights_warnings:
            self.session.warn(0, message)

    def load_or_resume(self) -> None:
        """Load what the session was told to load, and check that it arrived."""
        super().load_or_resume()
        broadcast_model(core_model(self.model))
        self.session.loaded(self, self._loaded_checkpoint)
        self._loaded_checkpoint = None

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str | Callable[..., Any] = "cpu",
    ) -> None:
        """Resume strictly, by way of the CPU, and log it in the words that people search for."""
        self.logger.info(f"load checkpoint from {filename}")
        extend = self.session.spec.extend
        super().resume(filename, resume_optimizer, resume_param_scheduler and not extend, map_location="cpu")
        keep_way_of_stepping(self.optim_wrapper.optimizer)
        if extend:
            self._rebuild_schedulers(self.iter)
        self.logger.info(f"resume optimizer: {type(self.optim_wrapper.optimizer)}")
        for scheduler in flat_schedulers(self.param_schedulers):
            self.logger.info(f"resume lr_scheduler: {type(scheduler)}")

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable[..., Any] = "cpu",
        strict: bool = False,
        revise_keys: list[tuple[str, str]] | None = None,
    ) -> dict[str, Any]:
        """Load weights; on a resume every name must be there and fit.

        Raises:
            ConfigError: Nothing of the file is in the model.
        """
        with noted_arrivals() as arrived:
            checkpoint: dict[str, Any] = super().load_checkpoint(
                filename, map_location, strict or self._resume, revise_keys or [(r"^module\.", "")]
            )
        if not (arrived or self._resume):
            raise none_arrived(filename, core_model(self.model))
        self._loaded_checkpoint = checkpoint
        if self._resume:
            message = begin_scaling_anew(checkpoint, self.optim_wrapper)
            if message:
                self.logger.info(message)
                self.session.warn(int(checkpoint["meta"]["iter"]), message)
        return checkpoint

    def build_optim_wrapper(self, optim_wrapper: Any) -> OptimWrapper:
        """Build the optimizer's wrapper; fused where the optimizer is torch's own and takes the weights."""
        if isinstance(optim_wrapper, OptimWrapper):  # mmengine asks once more as it resumes
            return optim_wrapper
        refused = why_not_fused(optim_wrapper, self.model)
        if not refused:
            try:
                built = super().build_optim_wrapper(optim_wrapper)
                for part in wrappers_of(built):
                    step_equal_groups_together(part.optimizer)
                return built
            except (RuntimeError, TypeError) as error:
                if not _optimizer_of(optim_wrapper).get("fused"):
                    raise
                refused = str(error)
        optimizer = {key: value for key, value in optim_wrapper["optimizer"].items() if key != "fused"}
        built = super().build_optim_wrapper({**optim_wrapper, "optimizer": optimizer})
        self.session.warn(
            self.session.iteration,
            Message(
                "The optimizer takes its steps without fused kernels, which changes nothing else: {why}",
                refused,
            ),
        )
        return built

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Scale the learning rate by the images of an iteration, which mmengine multiplies by the ranks."""
        images = self.train_dataloader.batch_sampler.effective_batch
        this: Any = self
        loader, this._train_dataloader = this._train_dataloader, {"batch_size": images / self.world_size}
        try:
            super().scale_lr(optim_wrapper, auto_scale_lr)
        finally:
            this._train_dataloader = loader

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: torch.nn.Module) -> torch.nn.Module:
        """Draw the initial weights, move the model to its device, and wrap it for several ranks.

        They are drawn by the CPU's generator, so that they are the same on every card. mmengine's way to wrap
        needs a GPU per rank, this one does not, and its gradients lie where they are exchanged: in buckets.

        Raises:
            ConfigError: A pretrained file gives the model no weight.
        """
        if not is_model_wrapper(model):
            seeding.seed_sample(seeding.derive(seeding.INIT, self.seed))
            self._weights_warnings = initialise(model)
        preprocessor: Any = getattr(model, "data_preprocessor", None)
        if isinstance(preprocessor, BaseDataPreprocessor):
            preprocessor._non_blocking = True  # of no effect but from pinned memory
        plain = model_wrapper_cfg is None and not is_model_wrapper(model) and not self.cfg.get("sync_bn")
        if self.distributed and plain:
            return MMDistributedDataParallel(
                module=model.to(get_device()),
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get("find_unused_parameters", False),
                gradient_as_bucket_view=True,
            )
        return super().wrap_model(model_wrapper_cfg, model)

    def _rebuild_schedulers(self, iteration: int) -> None:
        """Build fresh schedulers, which know the new end, and advance them to the present iteration.

        The checkpoint's own would keep the old end, beyond which PolyLR stays at its minimum. They are
        advanced from the start, since each step computes its rate from the one before.
        """
        for group in self.optim_wrapper.param_groups:
            for name in ("lr", "momentum"):
                if f"initial_{name}" in group:
                    group[name] = group[f"initial_{name}"]
        self.param_schedulers = self.build_param_scheduler(self.cfg.param_scheduler)
        for _ in range(iteration):
            for scheduler in flat_schedulers(self.param_schedulers):
                if not scheduler.by_epoch:
                    scheduler.step()


def why_not_fused(optim_wrapper: Any, model: torch.nn.Module) -> str:
    """Return why an optimizer that is configured as fused may not be, in a sentence; empty where it may.

    A custom optimizer, even one that extends torch's, may step in another way, and a loss scaler would leave
    it to a fused one to divide the gradients by the scale.
    """
    optimizer = _optimizer_of(optim_wrapper)
    if not optimizer.get("fused"):
        return ""
    kind = optimizer.get("type")
    if isinstance(kind, str):
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    if str(getattr(kind, "__module__", "")).startswith("torch.optim."):
        complex_ones = [name for name, item in model.named_parameters() if not item.is_floating_point()]
        return Message("{name} does not hold real numbers.", complex_ones[0]) if complex_ones else ""
    name = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', kind)}"
    return Message("{name} is none of torch's own.", name)


def _optimizer_of(optim_wrapper: Any) -> Mapping[str, Any]:
    found = optim_wrapper.get("optimizer") if isinstance(optim_wrapper, Mapping) else None
    return found if isinstance(found, Mapping) else {}


_WAYS_OF_STEPPING = ("fused", "foreach", "capturable")


def keep_way_of_stepping(optimizer: torch.optim.Optimizer) -> None:
    """Make a loaded optimizer step as it was built to, not as the one that was saved did.

    The state may come from another device or from stock mmengine.
    """
    for group in optimizer.param_groups:
        for name in _WAYS_OF_STEPPING:
            if name in optimizer.defaults:
                group[name] = optimizer.defaults[name]
        on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            step = optimizer.state.get(parameter, {}).get("step")
            if isinstance(step, torch.Tensor):
                wanted = parameter.device if on_device else torch.device("cpu")
                optimizer.state[parameter]["step"] = step.to(wanted)


def begin_scaling_anew(checkpoint: dict[str, Any], optim_wrapper: Any) -> str:
    """Remove a loss scaler's state from a checkpoint where it means nothing in float16.

    bfloat16 needs no scale, so the kit fixes it at 1.0 there. A session on a GPU without bfloat16 would
    continue from that: the scale doubles every 2,000 iterations, and small gradients would underflow for tens
    of thousands. The checkpoint, which is about to be resumed, is changed in place.

    Returns:
        What was done, in a sentence; empty where the state is left.
    """
    state = checkpoint.get("optimizer") or {}
    scaler, saved = getattr(optim_wrapper, "loss_scaler", None), state.get("loss_scaler")
    is_dynamic = getattr(optim_wrapper, "_scale_update_param", None) is None
    # None is what autocast computes in by default on a GPU, which is float16.
    in_float16 = getattr(optim_wrapper, "cast_dtype", None) in (None, torch.float16)
    if scaler is None or not scaler.is_enabled() or not saved or not (is_dynamic and in_float16):
        return ""
    text = checkpoint["meta"].get("cfg")
    before = written_value(text, "optim_wrapper") if isinstance(text, str) else None
    if isinstance(before, Mapping):
        was_dynamic = not isinstance(before.get("loss_scale"), float)
        is_of_float16 = was_dynamic and before.get("dtype") in (None, "float16")
    else:
        # Nothing moves the count towards the next growth of a scale that is fixed.
        is_of_float16 = saved.get("scale") != 1.0 or saved.get("_growth_tracker") != 0
    if is_of_float16:
        return ""
    del state["loss_scaler"]
    return Message(
        "The checkpoint's loss scale of {before} is of training that needed none or was "
        "fixed; for float16 it begins anew at {scale}.",
        saved.get("scale"),
        scaler.get_scale(),
    )


def format_configs_once(formatted: str) -> None:
    """Make yapf format each text once, and not at all what says the same as a text that is ``formatted``.

    mmengine's Runner asks for the config's text five times while it starts, and formats it anew each time,
    which together takes two seconds.
    """
    format_code = yapf_api.FormatCode
    tree = ast.dump(ast.parse(formatted))
    known: dict[str, Any] = {}

    def format_once(text: str, **options: Any) -> Any:
        key = f"{options}\n{text}"
        if key not in known:
            same = ast.dump(ast.parse(text)) == tree
            known[key] = (formatted, True) if same else format_code(text, **options)
        return known[key]

    yapf_api.FormatCode = format_once


def build_runner(cfg: Config, session: WorkerSession) -> SessionRunner:
    """Build the runner of a config, on top of the config's own runner class where it has one."""
    custom = RUNNERS.get(cfg.runner_type) if cfg.get("runner_type") else None
    cls: type[SessionRunner] = (
        type(SessionRunner.__name__, (SessionRunner, custom), {})
        if custom not in (None, Runner)
        else SessionRunner
    )
    launcher = "pytorch" if int(os.environ.get("WORLD_SIZE", 1)) > 1 else "none"
    if cfg.get("launcher", "none") != launcher:
        cfg.launcher = launcher
    runner: SessionRunner = cls.from_cfg(cfg)
    runner.session = session
    return runner
