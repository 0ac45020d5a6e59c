"""What a training child does beyond training: save, tell, remember the best, keep the record."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import torch

from mapsage_kaggle.checkpoints.host_copy import HostCopy
from mapsage_kaggle.checkpoints.retention import greater_is_better, plan_retention
from mapsage_kaggle.checkpoints.saver import BackgroundSaver, SaveSchedule
from mapsage_kaggle.checkpoints.store import CheckpointStore, SaveFailed
from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.engine.control import Control
from mapsage_kaggle.engine.fast.plan import plan_cache
from mapsage_kaggle.engine.ranks import is_local_rank_zero
from mapsage_kaggle.engine.snapshot import check_resumed, first_poisoned, keep_loadable, snapshot
from mapsage_kaggle.engine.tiles import PredictionTiles
from mapsage_kaggle.errors import EXIT_DONE, TrainingError
from mapsage_kaggle.events import Event, EventLog
from mapsage_kaggle.pace import Pace, SessionPlan, week_start_s
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import ACTIVITIES, CheckpointRef, SessionRecord, complete_timings
from mapsage_kaggle.spec import ChildSpec

if TYPE_CHECKING:
    from mapsage_kaggle.engine.runner import SessionRunner

OWED = "mapsage_owed_validation"
RUN_ID = "mapsage_run_id"
FINGERPRINT = "mapsage_fingerprint"

MAX_OVERFLOWS = 32
"""So many losses in a row that are NaN or Inf are no overflow that a loss scaler will mend."""

STOP_MESSAGES = {
    "completed": "All iterations are done.",
    "deadline": "The session's time is up; everything is saved.",
    "user": "Stopped on request; everything is saved.",
    "orphaned": "The supervising notebook or command is gone; everything is saved.",
}


class WorkerSession:
    """The part of a training child that survives it: checkpoints, events and the record.

    Every rank has one. Only rank 0 writes.

    Args:
        spec: What the supervisor told the child.
        rank: This worker's rank.
        world_size: How many there are.
    """

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
        self.owed_validation: int | None = None
        self.stage: Literal["training", "validation"] = "training"
        self.store: CheckpointStore | None = None
        self.saver: BackgroundSaver | None = None
        self.schedule: SaveSchedule | None = None
        self.timings_s: dict[str, float] = dict.fromkeys(ACTIVITIES, 0.0)
        self._host_copy = HostCopy()
        self._runner: SessionRunner | None = None
        self._config_text = ""
        self._iteration = 0
        self._saved_iteration = -1
        self._proven = ""
        self._stage_began = time.monotonic()
        self._last_shown_s = 0.0
        self._is_first = True
        self._began = time.monotonic()
        self._losses: dict[str, list[float]] = {}
        self._record: SessionRecord | None = None
        self._start_up_s = 0.0
        self._begins_session = False
        self._skipped: tuple[int, ...] = ()
        self._gpu_used_s = 0.0
        self._overflow_began: int | None = None
        self._unloadable: set[str] = set()
        self._tiles: PredictionTiles | None = None

    # -- the life of the child

    def open(self) -> None:
        """Take the work dir for this child. Rank 0 only writes, so only rank 0 locks.

        Raises:
            MachineError: Another process holds the work dir.
        """
        if self.rank != 0:
            return
        self._record = SessionRecord.read(self.files.session)
        self._skipped = self._record.skipped_validations
        for name in ACTIVITIES:  # what the supervisor, and children before this one, have taken
            self.timings_s[name] += float(self._record.timings_s.get(name) or 0.0)
        rule = next(iter(self.spec.best_rules.values()), None)
        self.store = CheckpointStore(
            self.spec.work_dir,
            budget_bytes=self.spec.budget_bytes,
            milestones_every=self.spec.save_interval or None,
            greater_is_better=greater_is_better(self._metric or "", rule),
            on_event=self._emit_store_event,
        )
        self.store.lock(wait_s=60.0)
        self.saver = BackgroundSaver(self.store)
        if self.spec.save_every_s > 0:
            self.schedule = SaveSchedule(
                every_s=self.spec.save_every_s, longest_s=max(1800.0, self.spec.save_every_s)
            )

    def close(self) -> None:
        """Wait for what is being written, and give the work dir free."""
        if self.saver is not None:
            try:
                self.saver.wait()
            except SaveFailed as error:
                self.warn(self._iteration, str(error))
        if self.store is not None:
            self.store.unlock()

    def attach(self, runner: SessionRunner, config_text: str) -> None:
        """Take note of the runner, once it is built."""
        self._runner = runner
        self._config_text = config_text
        self._measure_output()

    def _keep_predictions(self, runner: SessionRunner) -> None:
        """Have validation's predictions on a few images kept, where the data set has colours for them."""
        if runner.val_loop is None:
            return
        if self.spec.action != "resume":
            shutil.rmtree(self.files.predictions, ignore_errors=True)  # of another run
        classes, palette = _classes_and_palette(runner)
        if classes and len(palette) == len(classes):
            self._tiles = PredictionTiles(
                self.files.predictions,
                classes=len(classes),
                palette=palette,
                num_batches=len(runner.val_dataloader),
            )
            runner.register_hook(self._tiles)

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return self._iteration

    @property
    def has_trained(self) -> bool:
        """Whether this child has done an iteration."""
        return not self._is_first

    # -- telling

    def emit(self, event: str, iteration: int, /, **data: Any) -> None:
        """Append an event."""
        self.events.append(Event(event=event, iteration=iteration, data=data))

    def _emit_store_event(self, kind: str, iteration: int, data: Mapping[str, Any]) -> None:
        self.emit(kind, iteration, **{name: value for name, value in data.items() if name != "iteration"})

    def warn(self, iteration: int, message: str) -> None:
        """Append a warning that a person should read."""
        if self.rank == 0:
            self.emit("warning", iteration, message=message)

    # -- what the runner and the loop report

    def loaded(self, runner: SessionRunner) -> None:
        """Take note of what has been loaded: run id, owed validation, best score."""
        hub = runner.message_hub
        if self.spec.action == "resume":
            owed = hub.get_info(OWED, None)
            self.owed_validation = int(owed) if owed is not None else None
        hub.update_info(RUN_ID, self.spec.run_id)
        hub.update_info(FINGERPRINT, self.spec.fingerprint)
        hub.update_info(OWED, self.owed_validation)
        best = self.store.best() if self.store is not None else None
        if best is not None and best.value is not None and self._is_best(best.value):
            # Carried over from a session whose score this checkpoint does not know.
            hub.update_info("best_score", best.value)
            hub.update_info("best_ckpt", best.file)

    def training_begins(self, iteration: int, max_iters: int, *, next_position: int) -> None:
        """Check the resume, say what is true of it, and start the clocks."""
        runner = self._require_runner()
        self._iteration = self._saved_iteration = iteration
        if self.spec.action == "resume":
            assert runner.loaded_checkpoint is not None
            verdict = check_resumed(
                runner,
                runner.loaded_checkpoint,
                iteration=iteration if self.spec.expect_iteration is None else self.spec.expect_iteration,
                next_position=next_position,
                effective_batch=runner.train_dataloader.batch_sampler.effective_batch,
                extended=self.spec.extend,
            )
            runner.logger.info(verdict)
            if self.rank == 0:
                lines = [
                    f"load checkpoint from {self.spec.checkpoint}",
                    f"resumed epoch: {runner.epoch}, iter: {iteration}",
                    f"resume optimizer: {type(runner.optim_wrapper.optimizer)}",
                    *(f"resume lr_scheduler: {type(item)}" for item in runner._flat_schedulers()),
                    verdict,
                ]
                self.emit("resume", iteration, verdict=verdict, lines=lines, owed=self.owed_validation)
        runner.loaded_checkpoint = None
        self._plan_cache(runner)
        if self.rank == 0:
            seconds = self._since_launch()
            self.timings_s["start_up"] += seconds
            self._keep_predictions(runner)
            classes, palette = _classes_and_palette(runner)
            self.emit(
                "training",
                iteration,
                max_iters=max_iters,
                start_up_s=round(seconds, 2),
                palette=dict(zip(classes, palette, strict=False)),
            )
            # What came before the child is part of a session's start, but not what an earlier child did.
            assert self._record is not None
            first = iteration == self._record.start_iteration and not self.spec.restarted
            self._begins_session = first
            self._start_up_s = self.control.clock.elapsed_s() if first else seconds
            self._gpu_used_s = _gpu_s_this_week(self._record, time.time())
            self._foresee(runner)
        self._stage_began = time.monotonic()

    def _plan_cache(self, runner: SessionRunner) -> None:
        """Settle how many decoded images are kept, before the data workers start."""
        loaders = [runner.train_dataloader]
        if runner.val_loop is not None:
            loaders.append(runner.val_dataloader)
        plan = plan_cache(loader.dataset for loader in loaders)
        if plan is not None:
            runner.logger.info(str(plan))
            if plan.share < 1.0:
                self.warn(self._iteration, str(plan))

    def iteration_done(
        self,
        iteration: int,
        losses: Mapping[str, float],
        *,
        data_s: float,
        compute_s: float,
        optimizer_s: float,
        hooks_s: float,
    ) -> None:
        """Take note of an iteration; tell of it now and then.

        Args:
            iteration: How many are done.
            losses: Their values.
            data_s: Seconds in which it waited for data.
            compute_s: Seconds of forward, backward and optimizer step.
            optimizer_s: Those of them that the optimizer took.
            hooks_s: Seconds of everything else in it.
        """
        step_s = compute_s + hooks_s
        first, self._is_first = self._is_first, False
        self._iteration = iteration
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
        for name, value in losses.items():
            self._losses.setdefault(name, []).append(value)
        now = time.monotonic()
        # Often at first, then about as many events in an hour as a curve needs points.
        every_s = min(10.0, max(0.5, (now - self._began) / 200))
        if is_local_rank_zero() and (first or now - self._last_shown_s >= every_s):
            if self.rank == 0:
                self._emit_iteration(iteration, data_s, step_s)
            else:
                # Another machine's supervisor only has to know that training goes on.
                self.emit("iteration", iteration, iteration_s=round(data_s + step_s, 4))
            self._last_shown_s = now

    def _emit_iteration(self, iteration: int, data_s: float, step_s: float) -> None:
        runner = self._require_runner()
        mean = {name: round(sum(values) / len(values), 6) for name, values in self._losses.items() if values}
        self._losses.clear()
        rates = runner.optim_wrapper.get_lr()
        lr = rates["lr"][0] if isinstance(rates.get("lr"), list) else None
        data: dict[str, Any] = {
            **mean,
            "lr": lr,
            "iteration_s": round(self.pace.iteration.mean(data_s + step_s), 4),
            "data_s": round(data_s, 4),
            "left_s": round(self.control.clock.left_s(), 1),
        }
        # One iteration is no pace.
        if len(self.pace.iteration) > 1:
            plan = self._plan(iteration)
            data |= {"iterations_left": plan.reach - iteration, "plan": plan.to_json()}
        if torch.cuda.is_available():
            data["memory_bytes"] = torch.cuda.max_memory_allocated()
        self.emit("iteration", iteration, **data)

    def _plan(self, iteration: int) -> SessionPlan:
        runner = self._require_runner()
        on_gpu = torch.cuda.is_available()
        elapsed_s = self.control.clock.elapsed_s()
        return self.pace.plan(
            self.control.clock,
            iteration=iteration,
            max_iters=runner.max_iters,
            val_interval=(runner.val_interval or 0) if runner.val_loop is not None else 0,
            start_up_s=self._start_up_s,
            quota_used_s=self._gpu_used_s + elapsed_s if on_gpu else None,
        )

    def _foresee(self, runner: SessionRunner) -> None:
        """Guess, on the safe side, what nothing has been measured of."""
        num_bytes = 4.0 * sum(parameter.numel() for parameter in runner.model.parameters())
        # Weights and two moments, by a slow disk, read again to be proven.
        self.pace.guess(save_s=2.0 + 3 * num_bytes / 50e6, best_s=2.0 + num_bytes / 50e6)
        if runner.val_loop is not None:
            # A whole image forward costs about what a crop costs forward and backward.
            loader = runner.val_dataloader
            images = len(loader) * (getattr(loader, "batch_size", None) or 1)
            per_iteration = runner.train_dataloader.batch_sampler.effective_batch / self.world_size
            self.pace.validation_iterations = 1.5 * images / per_iteration

    def whole_s(self) -> float:
        """Return the most that is ever left for a validation: at the start of a session, before training."""
        clock = self.control.clock
        if self._begins_session and not self.has_trained:
            return clock.left_s()
        return clock.limit_s - clock.reserve_s - self._start_up_s

    def skip_validation(self, iteration: int) -> None:
        """Leave a validation out for good, say so, and keep that it is not owed. Collective."""
        takes = format_duration(self.pace.validation_s())
        self.warn(
            iteration,
            f"The validation at {iteration} takes about {takes}, which is more than a whole session has: it "
            "is left out. Validate fewer or smaller images, or give sessions a longer limit.",
        )
        self._skipped = (*self._skipped, iteration)
        self.save(iteration)

    def owed_does_not_fit(self) -> None:
        """Say that this session is too short for the validation that it owes."""
        takes, left = format_duration(self.pace.validation_s()), format_duration(self.control.clock.left_s())
        self.warn(
            self._iteration,
            f"The validation at {self._iteration} is owed and takes about {takes}, but {left} are left: "
            "nothing is trained before it. Give the session a longer limit.",
        )

    def check_losses(self, iteration: int, losses: Mapping[str, float], optim_wrapper: Any) -> None:
        """End training where a loss is NaN or Inf, before a checkpoint with poisoned weights is written.

        A loss scaler leaves out the steps of an overflow by itself and halves its scale each time, so
        with one a few such losses in a row are normal. A scale goes from 2**16 to 1 in 16 steps.

        Raises:
            TrainingError: It is not normal; it says where it began.
        """
        bad = [name for name, value in losses.items() if "loss" in name and not math.isfinite(value)]
        if not bad:
            self._overflow_began = None
            return
        scaler = getattr(optim_wrapper, "loss_scaler", None)
        began = self._overflow_began = self._overflow_began or iteration
        if scaler is not None and scaler.is_enabled() and iteration - began < MAX_OVERFLOWS:
            return
        when = f"{began} and stayed so until {iteration}" if iteration > began else str(began)
        raise TrainingError(
            f"{bad[0]} became {losses[bad[0]]} in iteration {when}; the checkpoints before it are untouched.",
            "Lower the learning rate or clip the gradients more (optim_wrapper.clip_grad), and resume.",
        )

    # -- saving

    @property
    def _metric(self) -> str | None:
        return self.spec.save_best[0] if self.spec.save_best else None

    def save_due(self, iteration: int, *, since: int) -> bool:
        """Tell whether the schedule asks for a checkpoint: by the clock, or after iteration ``since``."""
        if self.rank != 0:
            return False
        interval = self.spec.save_interval
        by_iteration = interval > 0 and iteration // interval > since // interval
        return by_iteration or (self.schedule is not None and self.schedule.due())

    def save(self, iteration: int, *, owed_validation: int | None = None) -> None:
        """Save a resumable checkpoint; training is held up for the copy only. Collective."""
        runner = self._require_runner()
        begin = time.monotonic()
        self.owed_validation = owed_validation
        runner.message_hub.update_info(OWED, owed_validation)
        self._saved_iteration = iteration
        if self.rank == 0:
            state = snapshot(runner, iteration, config_text=self._config_text)
            self._submit(f"iter_{iteration}.pth", state)
        self._count_saving(begin)

    def _submit(
        self, name: str, checkpoint: dict[str, Any], *, metric: str | None = None, value: float | None = None
    ) -> None:
        """Copy a state and have it written; training is held up for the copy only."""
        assert self.saver is not None
        for part in keep_loadable(checkpoint):
            self._warn_of_unloadable(part)
        self.saver.join()  # the buffers of the copy are free only once the save before has ended
        begin = time.monotonic()
        state = self._host_copy.take(checkpoint)
        held_s = time.monotonic() - begin
        self.pace.copy.add(held_s)
        iteration, owed = int(checkpoint["meta"]["iter"]), self.owed_validation
        clock = self.control.clock

        def write(stream: BinaryIO) -> None:
            poisoned = first_poisoned(state)
            if poisoned is not None:
                raise TrainingError(
                    f"The weight {poisoned} holds NaN or Inf after iteration {iteration}: not saved. "
                    "The checkpoints before it are untouched.",
                    "Lower the learning rate or the clipping norm (optim_wrapper.clip_grad), and resume.",
                )
            torch.save(state, stream)

        def proven(ref: CheckpointRef) -> None:
            self._proven = ref.file
            self.pace.write_ends(clock.now())
            self._measure_output()
            self._refresh_record(ref, owed)
            if self.schedule is not None:
                # What this thread computed is lost to training where every core is busy.
                self.schedule.saved(cost_s=held_s + time.thread_time())

        if self.schedule is not None:
            self.schedule.failed()  # until it is proven, so that no second one is begun meanwhile
        self.pace.write_begins(clock.now(), best=metric is not None)
        self.saver.submit(
            name,
            write,
            iteration=iteration,
            metric=metric,
            value=value,
            make_last=metric is None,
            then=proven,
        )

    def _warn_of_unloadable(self, part: str) -> None:
        if part in self._unloadable:
            return
        self._unloadable.add(part)
        self.warn(
            self._iteration,
            f"{part} is left out of checkpoints: it holds an object that cannot be loaded without running "
            "code from the file, so the next session will not have it. Keep tensors, arrays, numbers, texts, "
            "dictionaries and lists instead (such as the object's state_dict()).",
        )

    def _refresh_record(self, ref: CheckpointRef, owed_validation: int | None) -> None:
        """Bring ``session.json`` up to date; called in the saving thread, which is the only writer."""
        assert self._record is not None and self.store is not None
        changes: dict[str, Any] = {
            "best": self.store.best(),
            "skipped_validations": self._skipped,
            "timings_s": self.rounded_timings(),
            "learned": self._learned(self._record.learned),
        }
        if ref.metric is None:
            changes |= {
                "checkpoint": ref,
                "end_iteration": ref.iteration,
                "owed_validation": owed_validation,
            }
        self._record = self._record.evolve(**changes)
        self._record.write(self.files.session)

    def _learned(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the record says was learned; what memory allows is known once an iteration is done."""
        rung = self.spec.rung if self.has_trained else {}
        known = {**before, **rung, "pace": self.pace.learned()}
        return {name: value for name, value in known.items() if value is not None}

    def _count_saving(self, begin: float) -> None:
        self.timings_s["saving"] += time.monotonic() - begin

    def _measure_output(self) -> None:
        """Measure what Kaggle will have to save, and what another checkpoint adds to it.

        Called by the thread that saves: for any other, the store would be locked until it has saved.
        """
        if self.store is None:
            return
        refs = self.store.proven()
        full = max((ref for ref in refs if ref.metric is None), key=lambda ref: ref.iteration, default=None)
        self.pace.output_bytes = now = float(sum(ref.size_bytes for ref in refs))
        if full is None:
            return
        coming = replace(full, file=f"iter_{full.iteration + 1}.pth", iteration=full.iteration + 1)
        gone = plan_retention(
            [*refs, coming],
            budget_bytes=self.spec.budget_bytes,
            milestones_every=self.spec.save_interval or None,
        )
        after = sum(ref.size_bytes for ref in (*refs, coming) if ref.file not in gone)
        self.pace.checkpoint_bytes = max(0.0, after - now)
        self.pace.best_bytes = 0.0 if self.store.best() or not self._metric else full.size_bytes / 3

    # -- validation

    def validation_begins(self) -> None:
        """Start the validation's clock; nothing may still be waiting to be told."""
        self._stage_began = time.monotonic()
        self.stage = "validation"
        if self.rank == 0:
            self.emit("validation_start", self._iteration)

    def validation_left(self) -> None:
        """Note that a validation was left before its end; it stays owed."""
        self.stage = "training"
        self.pace.left_validation(self._lap("validation"))
        self.warn(self._iteration, f"The validation at {self._iteration} was left unfinished; it is owed.")

    def validation_done(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Keep the score, save the best, and note that nothing is owed any more. Collective."""
        from mapsage_kaggle.engine.metric import scores_by_class  # imports mmseg, which the worker does late

        runner = self._require_runner()
        self.stage = "training"
        seconds = self._lap("validation")
        self.pace.validated(seconds)
        score, is_best = self._score(metrics), False
        if score is not None and self._is_best(score):
            noted = {"best_score": score, "best_ckpt": f"best_{self._metric_name}_iter_{iteration}.pth"}
            is_best = self.rank != 0 or self._save_best(iteration, noted)
            # Only what is there to be kept is what later scores have to beat.
            for name, value in noted.items() if is_best else ():
                runner.message_hub.update_info(name, value)
        # Written again, with the score and without the debt; the old file stays until this is proven.
        self.save(iteration)
        if self.rank == 0:
            numbers = {
                name: number for name, value in metrics.items() if (number := _number(value)) is not None
            }
            by_class = scores_by_class(runner.val_loop.evaluator.metrics)
            self.emit(
                "validation", iteration, metrics=numbers, seconds=round(seconds, 2), best=is_best, **by_class
            )
            self._write_predictions(iteration)

    def _save_best(self, iteration: int, noted: Mapping[str, Any]) -> bool:
        """Write the weights with the best score, and tell whether they are proven."""
        assert self.saver is not None
        begin = time.monotonic()
        weights = snapshot(self._require_runner(), iteration, config_text=self._config_text, resumable=False)
        weights["message_hub"]["runtime_info"].update(noted)
        self._submit(noted["best_ckpt"], weights, metric=self._metric_name, value=noted["best_score"])
        self.saver.join()  # the save that follows waits for it all the same
        self._count_saving(begin)
        return self._proven == noted["best_ckpt"]

    def _write_predictions(self, iteration: int) -> None:
        """Write the pictures for the report; that they cannot be written must not end a training."""
        if self._tiles is None:
            return
        try:
            self._tiles.write(iteration)
            problem = self._tiles.problem
        except Exception as error:  # noqa: BLE001 - a picture for the report is worth no training
            problem = error
        if problem is not None:
            reason = getattr(problem, "strerror", None) or f"{type(problem).__name__}: {problem}"
            self.warn(iteration, f"The predictions for the report could not be written: {reason}.")

    @property
    def _metric_name(self) -> str:
        return (self._metric or "").replace("/", "_")

    def _score(self, metrics: Mapping[str, Any]) -> float | None:
        if self._metric is None or not metrics:
            return None
        name = next(iter(metrics)) if self._metric == "auto" else self._metric
        if name not in metrics:
            self.warn(
                self._iteration,
                f"The config asks to keep the best {name}, but validation gives {', '.join(metrics)} only.",
            )
            return None
        return _number(metrics[name])

    def _is_best(self, score: float) -> bool:
        """Tell whether a score beats the one in the message hub, which every rank holds."""
        if math.isnan(score):
            return False
        best = self._require_runner().message_hub.get_info("best_score", None)
        if best is None or math.isnan(float(best)):
            return True
        greater = greater_is_better(self._metric or "", next(iter(self.spec.best_rules.values()), None))
        return score > float(best) if greater else score < float(best)

    def validating(self, done: int) -> None:
        """Say now and then that a validation is going on, so that it is not taken for a hang."""
        now = time.monotonic()
        if is_local_rank_zero() and now - self._last_shown_s >= 5.0:
            self.emit("validating", self._iteration, batches=done)
            self._last_shown_s = now

    # -- the end

    def training_ends(self, iteration: int, stop: str) -> None:
        """Save what is not saved yet. Collective."""
        if iteration != self._saved_iteration:
            self.save(iteration, owed_validation=self.owed_validation)

    def finish(self, iteration: int, stop: str) -> None:
        """Wait until everything is proven, then say that training ended in good order."""
        # Without a supervisor it ends in good order all the same, though nobody is there to be told.
        orphaned = stop == "orphaned"
        reason = "user" if orphaned else stop
        if self.rank != 0:
            if is_local_rank_zero():
                message = "Machine 0 keeps what was saved."
                self.emit("stop", iteration, reason=reason, orphaned=orphaned, message=message)
            return
        assert self.saver is not None
        begin = time.monotonic()
        self.saver.wait()
        self.timings_s["saving"] += time.monotonic() - begin
        self.emit(
            "stop",
            iteration,
            reason=reason,
            message=STOP_MESSAGES.get(stop, ""),
            orphaned=orphaned,
            owed=self.owed_validation,
            timings_s=self.rounded_timings(),
            pace=self.pace.learned(),
        )
        if orphaned:
            # Nobody else is left to finish the record.
            assert self._record is not None
            self._record = self._record.evolve(
                stop_reason=reason,
                exit_code=EXIT_DONE,
                message=STOP_MESSAGES[stop],
                timings_s=complete_timings(self.rounded_timings(), self.control.clock.elapsed_s()),
                ended_s=time.time(),
            )
            self._record.write(self.files.session)

    # -- small things

    def _since_launch(self) -> float:
        if self.spec.launched_s is None:
            return time.monotonic() - self._began
        return max(0.0, self.control.clock.elapsed_s() - self.spec.launched_s)

    def _lap(self, stage: str) -> float:
        now = time.monotonic()
        seconds = now - self._stage_began
        self.timings_s[stage] += seconds
        self._stage_began = now
        return seconds

    def rounded_timings(self) -> dict[str, float]:
        """Return the session's seconds by activity so far."""
        return {name: round(seconds, 2) for name, seconds in self.timings_s.items()}

    def _require_runner(self) -> SessionRunner:
        assert self._runner is not None, "the runner is attached before training starts"
        return self._runner


def _number(value: Any) -> float | None:
    """Return a metric's value; None where it is not one number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _classes_and_palette(runner: SessionRunner) -> tuple[list[str], list[list[int]]]:
    """Return the names and colours of the classes, as far as the data set states them."""
    loader = runner.train_dataloader
    meta = getattr(getattr(loader, "dataset", None), "metainfo", None) or {}
    classes = [str(name) for name in meta.get("classes") or ()]
    return classes, [[int(value) for value in colour] for colour in meta.get("palette") or ()]


def _gpu_s_this_week(record: SessionRecord, now_s: float) -> float:
    """Return how long earlier sessions of the run lasted since the quota's week began."""
    begin_s, used_s = week_start_s(now_s), 0.0
    for earlier in record.previous:
        started_s, ended_s = earlier.get("started_s"), earlier.get("ended_s")
        if started_s and ended_s:
            used_s += max(0.0, float(ended_s) - max(float(started_s), begin_s))
    return used_s


def emit_failure(session: WorkerSession, *, kind: str, message: str, trace: str) -> None:
    """Append the event by which the supervisor learns why a worker failed."""
    # Of the ranks, only the first one's times are the session's.
    times = {"timings_s": session.rounded_timings()} if session.rank == 0 else {}
    session.events.append(
        Event(
            event="failure",
            iteration=session.iteration,
            data={
                "kind": kind,
                "stage": session.stage,
                "message": message,
                "trace": trace,
                "rank": session.rank,
                "pid": os.getpid(),
                **times,
            },
        )
    )
