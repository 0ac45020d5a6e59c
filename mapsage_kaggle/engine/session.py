"""What a training child does beyond training: events, times, checkpoints and an end in good order."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Literal

from mmengine.runner import Runner

from mapsage_kaggle.checkpoints.proving import SaveFailed
from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.engine.checkpointing import SessionCheckpoints, number, rounded
from mapsage_kaggle.engine.contents import CHANGED_REMEDY, TrainingData
from mapsage_kaggle.engine.control import Control
from mapsage_kaggle.engine.drawing import NUM_DRAWN, what_differs
from mapsage_kaggle.engine.fast.plan import plan_cache
from mapsage_kaggle.engine.looking import look, note_scale
from mapsage_kaggle.engine.progress import Progress
from mapsage_kaggle.engine.ranks import core_model, is_local_rank_zero
from mapsage_kaggle.engine.repeating import measure
from mapsage_kaggle.engine.snapshot import check_resumed, flat_schedulers
from mapsage_kaggle.engine.tiles import PredictionTiles, classes_and_palette, keep_predictions
from mapsage_kaggle.errors import DataError
from mapsage_kaggle.events import Event, EventKind, EventLog
from mapsage_kaggle.machine import return_freed_memory
from mapsage_kaggle.messages import Message, text_of
from mapsage_kaggle.pace import Pace, week_start_s
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import (
    ACTIVITIES,
    FINGERPRINT_KEY,
    NOT_SHOWN,
    RUN_ID_KEY,
    SessionRecord,
    early_text,
)
from mapsage_kaggle.spec import ChildSpec

VALIDATION_TOLD_EVERY_S = 5.0
LEAST_STEPS_LEFT = 10
STOP_MESSAGES = {
    "completed": Message("All iterations are done."),
    "deadline": Message("The session's time is up; everything is saved."),
    "user": Message("Stopped on request; everything is saved."),
    "orphaned": Message("The supervising notebook or command is gone; everything is saved."),
}


class WorkerSession:
    """The part of a training child that survives it: checkpoints, events and the record.

    Every rank has one. Only rank 0 writes checkpoints and the record.
    """

    _runner: Runner  # attached before training starts

    def __init__(self, spec: ChildSpec, *, rank: int, world_size: int) -> None:
        self.spec = spec
        self.rank = rank
        self.world_size = world_size
        self.files = WorkDir(spec.work_dir)
        self.events = EventLog(self.files.events)
        self.pace = Pace(expected=dict(spec.pace))
        self.control = Control(
            clock=spec.clock(),
            pace=self.pace,
            stop_request=self.files.stop_request,
            save_request=self.files.save_request,
        )
        self.progress = Progress(self.control)
        self.stage: Literal["training", "validation"] = "training"
        self.validated_images: tuple[str, ...] = ()
        self.has_begun = False
        self.timings_s: dict[str, float] = dict.fromkeys(ACTIVITIES, 0.0)
        self.checkpoints = SessionCheckpoints(
            spec,
            rank=rank,
            pace=self.pace,
            clock=self.control.clock,
            timings_s=self.timings_s,
            emit=self.emit,
        )
        self._loaded: dict[str, Any] | None = None
        self._of_other_data = ""
        self.iteration = 0
        self._stage_began = time.monotonic()
        self._began = time.monotonic()
        self._begins_session = False
        self._tiles: PredictionTiles | None = None

    # -- the life of the child

    def open(self) -> None:
        """Lock the work dir, on rank 0, which alone saves.

        Raises:
            MachineError: Another process holds the work dir.
        """
        if self.rank == 0:
            self.checkpoints.open()

    def close(self) -> None:
        try:
            self.checkpoints.close()
        except SaveFailed as error:
            self.warn(self.iteration, text_of(error))

    def attach(self, runner: Runner, config_text: str) -> None:
        self._runner = runner
        self.checkpoints.attach(runner, config_text)

    @property
    def has_trained(self) -> bool:
        return self.checkpoints.has_trained

    # -- events

    def emit(self, event: EventKind, iteration: int, /, **data: Any) -> None:
        self.events.append(Event(event=event, iteration=iteration, data=data))

    def warn(self, iteration: int, message: str) -> None:
        if self.rank == 0:
            self.emit("warning", iteration, message=message)

    # -- what the runner and the loop report

    def loaded(self, runner: Runner, checkpoint: dict[str, Any] | None) -> None:
        """Note the run, and take over what was loaded; compare the training data with the checkpoint's.

        Without a checkpoint nothing was loaded.

        Raises:
            DataError: The training data have changed, and that is refused.
        """
        self._loaded = checkpoint
        runner.message_hub.update_info(RUN_ID_KEY, self.spec.run_id)
        runner.message_hub.update_info(FINGERPRINT_KEY, self.spec.fingerprint)
        self.checkpoints.loaded(runner)
        dataset = runner.train_dataloader.dataset
        contents = dataset.contents = TrainingData(dataset)
        contents.refuses_changes = self.spec.on_changed_data == "fail"
        change = self.checkpoints.observed.trains_on(contents, runner.message_hub)
        self.checkpoints.refresh_seen()
        if change.message and contents.refuses_changes:
            raise DataError(change.message, CHANGED_REMEDY)
        if change.message:
            self.warn(runner.iter, Message("{message} Training goes on with what is here.", change.message))
        if change.reason:
            known = "are not those of" if change.message else "are not listed in"
            self._of_other_data = f"; the training data {known} the checkpoint"

    def training_begins(self, iteration: int, max_iters: int, *, next_position: int) -> None:
        """Check the resume and the data, say that training begins, and start the clocks.

        Raises:
            TrainingError: The resume is not what the checkpoint holds.
            DataError: Training on the data cannot work.
        """
        runner = self._runner
        self.iteration = iteration
        self.has_begun = True
        self.checkpoints.training_begins(iteration)
        if self.spec.action == "resume":
            _check_resume(self, runner, self._loaded, iteration, next_position=next_position)
        self._loaded = None
        return_freed_memory()  # the checkpoint was read by a thread of its own
        _plan_cache(self, runner)
        if self.rank == 0:
            _look(self, runner, iteration)
            if not self.spec.restarted:
                _draw_twice(self, runner, iteration)
        if self.rank == 0:
            seconds = self._since_launch()
            self.timings_s["start_up"] += seconds
            self._tiles = keep_predictions(runner, self.files.predictions, anew=self.spec.action != "resume")
            classes, palette = classes_and_palette(runner)
            self.emit(
                "training",
                iteration,
                max_iters=max_iters,
                start_up_s=round(seconds, 2),
                palette=dict(zip(classes, palette, strict=False)),
            )
            # What came before the child is part of a session's start, but not what an earlier child did.
            record = self.checkpoints.record
            assert record is not None
            first = iteration == record.start_iteration and not self.spec.restarted
            self._begins_session = first
            self.progress.start_up_s = self.control.clock.elapsed_s() if first else seconds
            self.progress.gpu_used_s = _gpu_s_this_week(record, time.time())
            _guess_costs(self.pace, runner, self.world_size)
        self._stage_began = time.monotonic()

    def iteration_done(
        self,
        iteration: int,
        losses: Mapping[str, float],
        *,
        data_s: float,
        compute_s: float,
        optimizer_s: float,
        hooks_s: float,
        peak_bytes: int | None = None,
    ) -> None:
        """Account for an iteration; emit it now and then.

        ``iteration`` is how many are done. It waited ``data_s`` for data; forward, backward and optimizer
        step took ``compute_s``, of which the optimizer ``optimizer_s``, and all else ``hooks_s``.
        ``peak_bytes`` is the most that was taken of the GPU's memory; None without one.
        """
        step_s = compute_s + hooks_s
        first, self.checkpoints.has_trained = not self.has_trained, True
        self.iteration = iteration
        self.timings_s["waiting_for_data"] += data_s
        self.timings_s["forward_backward"] += compute_s - optimizer_s
        self.timings_s["optimizer"] += optimizer_s
        if first:
            # The first one pays for the start of the data workers and for lazy initialisation.
            self.timings_s["start_up"] += data_s
            self.timings_s["waiting_for_data"] -= data_s
            self.pace.guess(iteration_s=step_s)
        else:
            self.pace.iteration.add(data_s + step_s)
        self.progress.add(losses, peak_bytes=peak_bytes)
        if is_local_rank_zero() and self.progress.is_due(at_once=first):
            if self.rank == 0:
                runner = self._runner
                self.emit("iteration", iteration, **self.progress.take(runner, iteration, data_s, step_s))
            else:
                # Another machine's supervisor only has to know that training goes on.
                self.emit("iteration", iteration, iteration_s=round(data_s + step_s, 4))

    def measure_repetition(self, data: Any, *, step_s: float) -> None:
        """Measure once a session whether the device is reproducible; a failure changes nothing.

        ``data`` is the micro-batch of the step before, which took ``step_s``: with little more time left,
        nothing is measured.
        """
        record, runner = self.checkpoints.record, self._runner
        if record is None or record.exactness.repeatable is not None:
            return
        if self.control.clock.left_s() < LEAST_STEPS_LEFT * step_s:
            return
        try:
            seen = measure(core_model(runner.model), runner.optim_wrapper, data, seed=runner.seed or 0)
        except Exception as error:  # noqa: BLE001 - such as for want of memory
            runner.logger.info(
                f"Whether the device repeats was not measured: {type(error).__name__}: {error}"
            )
            return
        device = record.exactness.device or "This device"
        warning = self.checkpoints.observed.repeated(seen, device)
        if warning:
            self.warn(self.iteration, warning)

    # -- validation

    def whole_s(self) -> float:
        """Return the most seconds that a session has for a validation: at its start, before training."""
        clock = self.control.clock
        if self._begins_session and not self.has_trained:
            return clock.left_s()
        return clock.limit_s - clock.reserve_s - self.progress.start_up_s

    def skip_validation(self, iteration: int) -> None:
        """Skip a validation for good, with a warning, and save that it is not owed. Collective."""
        takes = format_duration(self.pace.validation_s())
        self.warn(
            iteration,
            Message(
                "The validation at {iteration} takes about {takes}, which is more than a whole "
                "session has: it is left out. Validate fewer or smaller images, or give sessions a "
                "longer limit.",
                iteration,
                takes,
            ),
        )
        self.checkpoints.skipped_validations += (iteration,)
        self.checkpoints.save(iteration)

    def owed_does_not_fit(self) -> None:
        """Warn that this session is too short for the validation that it owes."""
        takes, left = format_duration(self.pace.validation_s()), format_duration(self.control.clock.left_s())
        self.warn(
            self.iteration,
            Message(
                "The validation at {iteration} is owed and takes about {takes}, but {left} are left: "
                "nothing is trained before it. Give the session a longer limit.",
                self.iteration,
                takes,
                left,
            ),
        )

    def validation_begins(self) -> None:
        """Start the validation's clock."""
        self._stage_began = time.monotonic()
        self.stage = "validation"
        if self.rank == 0:
            self.emit("validation_start", self.iteration)

    def validating(self, done: int) -> None:
        """Emit now and then that a validation is running, so that it is not taken for a hang."""
        if is_local_rank_zero() and self.progress.is_due(every_s=VALIDATION_TOLD_EVERY_S):
            self.emit("validating", self.iteration, batches=done)

    def validation_left(self) -> None:
        """Warn that a validation was left before its end; it stays owed."""
        self.stage = "training"
        self.pace.left_validation(self._lap_validation())
        self.warn(
            self.iteration,
            Message("The validation at {iteration} was left unfinished; it is owed.", self.iteration),
        )

    def validation_done(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Keep the score, save the best, and note that nothing is owed any more. Collective."""
        from mapsage_kaggle.engine.metric import scores_by_class  # imports mmseg, which the worker does late

        runner = self._runner
        self.stage = "training"
        seconds = self._lap_validation()
        self.pace.validated(seconds)
        score = self.checkpoints.score_of(metrics, iteration)
        is_best = score is not None and self.checkpoints.keep_best(iteration, score)
        # Written again, with the score and without the debt; the old file stays until this is proven.
        self.checkpoints.save(iteration)
        if self.rank == 0:
            numbers = {name: value for name, item in metrics.items() if (value := number(item)) is not None}
            by_class = scores_by_class(runner.val_loop.evaluator.metrics)
            self.emit(
                "validation", iteration, metrics=numbers, seconds=round(seconds, 2), best=is_best, **by_class
            )
            problem = self._tiles.try_to_write(iteration) if self._tiles is not None else ""
            if problem:
                self.warn(
                    iteration, Message("The predictions for the report could not be written: {why}.", problem)
                )

    # -- the end

    def finish(self, iteration: int, stop: str) -> None:
        """Wait until everything is proven, then emit that training ended in good order."""
        # Without a supervisor it ends in good order all the same, though nobody is there to be told.
        orphaned = stop == "orphaned"
        reason = "user" if orphaned else stop
        if self.rank != 0:
            if is_local_rank_zero():
                kept = Message("Machine 0 keeps what was saved.")
                self.emit("stop", iteration, reason=reason, orphaned=orphaned, message=kept)
            return
        self.checkpoints.wait()
        message: str = STOP_MESSAGES.get(stop, "")
        if stop == "early":
            runner = self._runner
            message = early_text(iteration, runner.max_iters, runner.train_loop.stopped_by)
        self.emit(
            "stop",
            iteration,
            reason=reason,
            message=message,
            orphaned=orphaned,
            owed=self.checkpoints.owed_validation,
            timings_s=rounded(self.timings_s),
            pace=self.pace.learned(),
        )
        if orphaned:
            self.checkpoints.finish_record(reason=reason, message=STOP_MESSAGES[stop])

    # -- times

    def _since_launch(self) -> float:
        if self.spec.launched_s is None:
            return time.monotonic() - self._began
        return max(0.0, self.control.clock.elapsed_s() - self.spec.launched_s)

    def _lap_validation(self) -> float:
        seconds = time.monotonic() - self._stage_began
        self.timings_s["validation"] += seconds
        self._stage_began += seconds
        return seconds


def _check_resume(
    session: WorkerSession,
    runner: Runner,
    checkpoint: dict[str, Any] | None,
    iteration: int,
    *,
    next_position: int,
) -> None:
    assert checkpoint is not None
    spec = session.spec
    verdict = check_resumed(
        runner,
        checkpoint,
        iteration=iteration if spec.expect_iteration is None else spec.expect_iteration,
        next_position=next_position,
        effective_batch=runner.train_dataloader.batch_sampler.effective_batch,
        extended=spec.extend,
    )
    verdict += session._of_other_data
    runner.logger.info(verdict)
    if session.rank == 0:
        lines = [
            f"load checkpoint from {spec.checkpoint}",
            f"resumed epoch: {runner.epoch}, iter: {iteration}",
            f"resume optimizer: {type(runner.optim_wrapper.optimizer)}",
            *(f"resume lr_scheduler: {type(item)}" for item in flat_schedulers(runner.param_schedulers)),
            verdict,
        ]
        owed = session.checkpoints.owed_validation
        session.emit("resume", iteration, verdict=verdict, lines=lines, owed=owed)


def _plan_cache(session: WorkerSession, runner: Runner) -> None:
    """Plan how many decoded images are kept, before the data workers start."""
    loaders = [runner.train_dataloader]
    if runner.val_loop is not None:
        loaders.append(runner.val_dataloader)
    plan = plan_cache(loader.dataset for loader in loaders)
    if plan is not None:
        runner.logger.info(str(plan))
        if plan.share < 1.0:
            session.warn(session.iteration, str(plan))


def _look(session: WorkerSession, runner: Runner, iteration: int) -> None:
    """Check some of the data: what cannot work ends the session here, what is odd is a warning.

    Where an earlier child has checked, only the scale is noted, if that has not been.
    """
    if session.spec.restarted:
        note_scale(runner)
        return
    classes, _ = classes_and_palette(runner)
    for message in look(runner, core_model(runner.model), classes):
        session.warn(iteration, message)


def _draw_twice(session: WorkerSession, runner: Runner, iteration: int) -> None:
    """Check that samples follow from their positions; warn of what does not before training begins."""
    batches = runner.train_dataloader.batch_sampler
    draws = [draw for step in range(NUM_DRAWN) for draw in batches.draws(iteration + step, 0)][:NUM_DRAWN]
    try:
        names = what_differs(runner.cfg.train_dataloader.dataset, draws)
    except Exception as error:  # noqa: BLE001 - a pipeline may raise anything, and training will say it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        session.checkpoints.not_exact(
            f"it was not seen whether samples follow from their positions: {reason}", grade=NOT_SHOWN
        )
        return
    for name in names:
        session.checkpoints.not_exact(f"{name} gives another result each time, whatever is seeded")
        session.warn(
            iteration,
            Message(
                "{name} gives another result for the same sample each time, whatever is seeded: a "
                "resumed run and an uninterrupted one will differ. Have it draw from NumPy's, "
                "Python's or torch's own generator, or from one that it keeps as an attribute.",
                name,
            ),
        )


def _guess_costs(pace: Pace, runner: Runner, world_size: int) -> None:
    """Guess, on the safe side, what nothing has been measured of."""
    num_bytes = 4.0 * sum(parameter.numel() for parameter in runner.model.parameters())
    # Weights and two moments, by a slow disk, read again to be proven.
    pace.guess(save_s=2.0 + 3 * num_bytes / 50e6, best_s=2.0 + num_bytes / 50e6)
    if runner.val_loop is not None:
        # A whole image forward costs about what a crop costs forward and backward.
        loader = runner.val_dataloader
        images = len(loader) * (getattr(loader, "batch_size", None) or 1)
        per_iteration = runner.train_dataloader.batch_sampler.effective_batch / world_size
        pace.validation_iterations = 1.5 * images / per_iteration


def _gpu_s_this_week(record: SessionRecord, now_s: float) -> float:
    """Return how long earlier sessions of the run were on a GPU since the quota's week began."""
    begin_s, used_s = week_start_s(now_s), 0.0
    for earlier in record.previous:
        started_s, ended_s = earlier.get("started_s"), earlier.get("ended_s")
        exactness = earlier.get("exactness")
        on_cpu = isinstance(exactness, Mapping) and exactness.get("device") == "CPU"
        if started_s and ended_s and not on_cpu:
            used_s += max(0.0, float(ended_s) - max(float(started_s), begin_s))
    return used_s


def emit_failure(session: WorkerSession, *, kind: str, message: str, trace: str, exit_code: int) -> None:
    """Append the event by which the supervisor learns why a worker failed."""
    # Of the ranks, only the first one's times are the session's.
    times = {"timings_s": rounded(session.timings_s)} if session.rank == 0 else {}
    session.emit(
        "failure",
        session.iteration,
        kind=kind,
        exit_code=exit_code,
        stage=session.stage,
        message=message,
        trace=trace,
        rank=session.rank,
        pid=os.getpid(),
        **times,
    )
