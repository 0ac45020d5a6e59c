"""mmengine's training and validation loops, with every draw placed and every stop foreseen."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from mmengine.hooks import Hook
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, ValLoop

from mapsage_kaggle.engine import seeding
from mapsage_kaggle.engine.accumulate import accumulated_step
from mapsage_kaggle.engine.buffers import keep_in_backward
from mapsage_kaggle.engine.fast.prediction import quick_prediction
from mapsage_kaggle.engine.overflow import OverflowWatch
from mapsage_kaggle.engine.ranks import core_model, wrappers_of
from mapsage_kaggle.engine.remembering import who_sets
from mapsage_kaggle.engine.sampling import PositionBatches
from mapsage_kaggle.engine.validation_memory import less_memory
from mapsage_kaggle.errors import TrainingError
from mapsage_kaggle.messages import Message

if TYPE_CHECKING:
    from mapsage_kaggle.engine.session import WorkerSession

MAX_PENDING_STEPS = 64
"""Steps whose times on a GPU wait to be read."""
_Mark: TypeAlias = Any  # a torch.cuda.Event, which torch leaves untyped


class ValidationAborted(Exception):
    """A validation was left: a stop was requested, or it took too long."""


class ValidationPulse(Hook):
    """Reports a running validation, in whatever loop, and lets it be left between two batches."""

    def __init__(self, session: WorkerSession) -> None:
        self._session = session

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Leave the validation where that is due.

        Raises:
            ValidationAborted: It is; the validation is then owed.
        """
        self._session.validated_images = _images_of(data_batch)
        if self._session.control.stop_asked():
            raise ValidationAborted

    def after_val_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._session.validated_images = ()
        self._session.validating(batch_idx + 1)


@LOOPS.register_module(name="MapsageTrainLoop")
class SessionTrainLoop(IterBasedTrainLoop):
    """An iteration-based training loop that ends in good order and continues where it ended.

    An iteration is one effective batch, in one forward pass or, where the card is too small, in several
    micro-batches. The loop saves, validates and stops between iterations, but not within a config's own
    gradient accumulation.
    """

    session: WorkerSession
    optimizer_clock: OptimizerClock
    overflow_watch: OverflowWatch
    stopped_by = ""
    """Who has ended training before its last iteration, and why; empty while nobody has."""

    @property
    def stop_training(self) -> bool:
        """Whether a hook, or anything else, has ended the run before its last iteration."""
        return bool(self.stopped_by)

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        self.stopped_by = who_sets() if value else ""

    def run(self) -> torch.nn.Module:
        session = self.session = self.runner.session
        batches = self._batch_sampler()
        device = next(self.runner.model.parameters()).device
        keep_in_backward(self.runner.optim_wrapper, core_model(self.runner.model))
        self.optimizer_clock = OptimizerClock(self.runner.optim_wrapper, device)
        self.overflow_watch = OverflowWatch(self.runner.optim_wrapper)
        self.runner.register_hook(ValidationPulse(session))
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        batches.start_iteration = self._iter
        session.training_begins(self._iter, self._max_iters, next_position=self._next_position(batches))

        stop = self._run_owed_validation()
        if not stop and self._iter < self._max_iters:
            stop = self._decide_saved()  # a session may have been asked to stop, or be over, as it begins
        loader: Iterator[Any] | None = None
        while not stop and self._iter < self._max_iters:
            if loader is None:
                loader = iter(self.dataloader)
            self._run_iteration(loader, batches)
            stop = self._boundary()
        # A run whose last validation is owed is not complete: the next session makes up for it.
        is_last = self._iter >= self._max_iters and session.checkpoints.owed_validation is None
        if is_last and stop != "orphaned":
            stop = "completed"
        session.checkpoints.save_end(self._iter)
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        session.finish(self._iter, stop)
        return self.runner.model

    def _batch_sampler(self) -> PositionBatches:
        sampler = self.dataloader.batch_sampler
        if not isinstance(sampler, PositionBatches):
            raise TrainingError(
                Message(
                    "The training data loader has a batch sampler of its own ({kind}).",
                    type(sampler).__name__,
                ),
                "Remove train_dataloader.batch_sampler from the config: the kit decides what a batch is.",
            )
        return sampler

    def _next_position(self, batches: PositionBatches) -> int:
        """Return the global position of the next sample, as the sampler itself will draw it."""
        return batches.draws(self._iter, 0)[0].position - batches.slices[0][0]

    def _run_iteration(self, loader: Iterator[Any], batches: PositionBatches) -> None:
        session, runner = self.session, self.runner
        begin = time.monotonic()
        data = [next(loader) for _ in range(batches.micro_batches)]
        loaded = time.monotonic()
        runner.model.train()
        runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data[0])
        self.optimizer_clock.begin()
        stepping = time.monotonic()
        outputs = self._step(data, batches)
        losses = _scalars(outputs)
        compute_s = time.monotonic() - stepping
        optimizer_s = self.optimizer_clock.end(compute_s)
        # Read before mmengine's logger sets it back.
        peak_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=data[0], outputs=outputs)
        self._iter += 1
        first = not session.has_trained
        self.overflow_watch.check(self._iter, losses)
        session.iteration_done(
            self._iter,
            losses,
            data_s=loaded - begin,
            compute_s=compute_s,
            optimizer_s=optimizer_s,
            hooks_s=time.monotonic() - loaded - compute_s,
            peak_bytes=peak_bytes,
        )
        if first:
            session.measure_repetition(data[0], step_s=compute_s)

    def _step(self, data: Sequence[Any], batches: PositionBatches) -> Mapping[str, Any]:
        runner = self.runner
        if len(data) == 1 and batches.world_size == 1:
            seeding.seed_step(runner.seed, self._iter, batches.rank, 0)
            outputs: Mapping[str, Any] = runner.model.train_step(data[0], optim_wrapper=runner.optim_wrapper)
            return outputs
        return accumulated_step(
            runner.model,
            runner.optim_wrapper,
            data,
            effective_batch=batches.effective_batch,
            world_size=batches.world_size,
            before_forward=lambda index: seeding.seed_step(runner.seed, self._iter, batches.rank, index),
        )

    def _boundary(self) -> str:
        """Save, validate and decide after an iteration; return why to stop, empty to continue."""
        session = self.session
        self._decide_current_val_interval()
        accumulation = self._accumulation()
        may_stop = self._iter % accumulation == 0 or self._iter == self._max_iters
        # Inside a gradient accumulation nothing can be saved: what falls due there waits for its end.
        since = self._iter - (self._iter % accumulation or accumulation)
        due = self.runner.val_loop is not None and may_stop and self._validation_due(since)
        decision = session.control.decide(
            validation_due=due,
            save_due=may_stop and session.checkpoints.due(self._iter, since=since),
            may_stop=may_stop,
            stride=accumulation,
            whole_s=session.whole_s(),
            early=self.stop_training,
        )
        if due and decision.skip:
            session.skip_validation(self._iter)
            return decision.stop
        if due:
            # Saved before it is validated, and noted as owed: whatever happens now, nothing is lost.
            session.checkpoints.save(self._iter, owed_validation=self._iter)
            if decision.validate:
                return self._validate() or self._decide_saved()
            return decision.stop
        if decision.save:
            session.checkpoints.save(self._iter)
        return decision.stop

    def _validation_due(self, since: int) -> bool:
        """Return whether a validation falls between ``since``, excluded, and now."""
        if self._iter == self._max_iters:
            return bool(self._iter >= self.val_begin)
        latest = self._iter - self._iter % self.val_interval
        return bool(latest > since and latest >= self.val_begin)

    def _run_owed_validation(self) -> str:
        owed = self.session.checkpoints.owed_validation
        if owed is None:
            return ""
        if self.runner.val_loop is None:  # nobody will make up for it
            self.session.checkpoints.owed_validation = None
            return ""
        if owed != self._iter:
            self.session.checkpoints.owed_validation = None
            self.session.warn(
                self._iter,
                Message(
                    "The validation at {owed} is owed by a checkpoint that holds iteration {iteration}: "
                    "it is left out.",
                    owed,
                    self._iter,
                ),
            )
            return ""
        decision = self.session.control.decide(
            validation_due=True, save_due=False, saved=True, whole_s=self.session.whole_s()
        )
        if decision.skip:
            self.session.skip_validation(self._iter)
            return decision.stop
        if decision.stop == "deadline":
            self.session.owed_does_not_fit()
        return self._validate() or self._decide_saved() if decision.validate else decision.stop

    def _decide_saved(self) -> str:
        """Decide again at a boundary whose state is saved; return why to stop, empty to continue."""
        stop: str = self.session.control.decide(
            validation_due=False,
            save_due=False,
            saved=True,
            stride=self._accumulation(),
            early=self.stop_training,
        ).stop
        return stop

    def _accumulation(self) -> int:
        """Return how many iterations share an optimizer step, by the config's own accumulation."""
        return int(getattr(self.runner.optim_wrapper, "_accumulative_counts", 1))

    def _validate(self) -> str:
        """Run a validation and keep its result; return why to stop, empty to continue."""
        session = self.session
        session.validation_begins()
        # A model may draw here too, and a validation that is owed begins elsewhere.
        seeding.seed_all(seeding.derive(seeding.VALIDATION, self.runner.seed, self._iter))
        try:
            with less_memory(core_model(self.runner.model), session.spec.validation_rung):
                metrics = self.runner.val_loop.run()
        except ValidationAborted:
            session.validation_left()
            return self._decide_saved() or "user"
        session.validation_done(self._iter, metrics)
        return ""


@LOOPS.register_module(name="MapsageValLoop")
class SessionValLoop(ValLoop):
    """A validation loop that turns logits into classes faster.

    Without ``fast`` it is ``ValLoop``; with it, see :mod:`mapsage_kaggle.engine.fast.prediction`.
    """

    def __init__(self, *args: Any, fast: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fast = fast

    def run(self) -> dict[str, float]:
        if not self.fast:
            return super().run()
        session = getattr(self.runner, "session", None)
        saves_memory = session is not None and session.spec.validation_rung > 0
        at_once = {"windows_at_once": 1} if saves_memory else {}
        with quick_prediction(core_model(self.runner.model), **at_once):
            return super().run()


def _images_of(data_batch: Any) -> tuple[str, ...]:
    """Return the files that a batch of a data loader was made of, as far as it says."""
    samples = data_batch.get("data_samples") if isinstance(data_batch, Mapping) else None
    return tuple(str(sample.img_path) for sample in samples or () if hasattr(sample, "img_path"))


def _scalars(outputs: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value.detach().mean()) if isinstance(value, torch.Tensor) else float(value)
        for name, value in outputs.items()
        if isinstance(value, (torch.Tensor, float, int))
    }


class OptimizerClock:
    """Measures the optimizer's part of each training step: unscaling, clipping, stepping, zeroing.

    On a CPU it reads the time before and after. On a GPU work is only queued, and waiting for it would slow
    training: it records events in the queue, and reads them once they have passed.
    """

    def __init__(self, optim_wrapper: Any, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._share = 0.0
        self._began: _Mark | None = None
        self._marks: list[_Mark] = []
        self._pending: deque[tuple[_Mark, list[_Mark]]] = deque(maxlen=MAX_PENDING_STEPS)
        for part in wrappers_of(optim_wrapper):
            for name in ("step", "zero_grad"):
                setattr(part, name, self._timed(getattr(part, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            begin = time.monotonic()
            if self._on_gpu:
                self._marks.append(_mark())
            try:
                return method(*args, **options)
            finally:
                self._seconds += time.monotonic() - begin
                if self._on_gpu:
                    self._marks.append(_mark())

        return timed

    def begin(self) -> None:
        self._seconds, self._marks = 0.0, []
        if self._on_gpu:
            self._began = _mark()

    def end(self, step_s: float) -> float:
        """Return how many of a step's ``step_s`` seconds its optimizer took.

        On a GPU, by its share of the newest step that the GPU has completed.
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
