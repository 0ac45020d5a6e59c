"""How a training child saves: resumable checkpoints, the best weights, and the record beside them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed
from mmengine.runner import Runner

from mapsage_kaggle.checkpoints.host_copy import HostCopy
from mapsage_kaggle.checkpoints.names import best_name, iteration_name
from mapsage_kaggle.checkpoints.retention import added_bytes, beats, greater_is_better
from mapsage_kaggle.checkpoints.saver import BackgroundSaver, SaveSchedule
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.clock import SessionClock
from mapsage_kaggle.engine.observed import Observed
from mapsage_kaggle.engine.ranks import check_same_weights, core_model, reduce_number
from mapsage_kaggle.engine.snapshot import keep_loadable, snapshot, write_finite
from mapsage_kaggle.errors import EXIT_DONE
from mapsage_kaggle.events import EventKind
from mapsage_kaggle.messages import Message
from mapsage_kaggle.pace import Pace
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import (
    ACTIVITIES,
    OWED_VALIDATION_KEY,
    CheckpointRef,
    Learned,
    SessionRecord,
    complete_timings,
)
from mapsage_kaggle.spec import ChildSpec

MAX_INTERVAL_S = 1800.0
"""The longest time between two saves by the clock, where saving is expensive."""
LOCK_WAIT_S = 60.0
FULL_TO_BEST = 3
"""A resumable checkpoint holds two moments beside each weight; the best file holds the weights alone."""


class SessionCheckpoints:
    """The checkpoints that a session writes, and its record, brought up to date with each proven one.

    Every rank has one, since all note in the message hub what a save means; only rank 0's writes. Seconds of
    saving are added to ``timings_s``.

    Attributes:
        owed_validation: The iteration whose validation the newest checkpoint owes.
        skipped_validations: The iterations whose validation was skipped for good.
        has_trained: Whether an iteration is done, so that what memory allows is known.
        observed: What was observed of how exactly a resume continues.
        store: Where they are kept; on rank 0, once opened.
        record: The session's, as it stands in the work dir; on rank 0, once opened.
    """

    _runner: Runner  # attached before training starts

    def __init__(
        self,
        spec: ChildSpec,
        *,
        rank: int,
        pace: Pace,
        clock: SessionClock,
        timings_s: dict[str, float],
        emit: Callable[..., None],
    ) -> None:
        self.owed_validation: int | None = None
        self.skipped_validations: tuple[int, ...] = ()
        self.has_trained = False
        self.store: CheckpointStore | None = None
        self.record: SessionRecord | None = None
        self._spec = spec
        self._rank = rank
        self._pace = pace
        self._clock = clock
        self._timings_s = timings_s
        self._emit = emit
        self._metric = spec.save_best[0] if spec.save_best else ""
        self._rule = next(iter(spec.best_rules.values()), None)
        self._greater_is_better = greater_is_better(self._metric, self._rule)
        self._path = WorkDir(spec.work_dir).session
        self._saver: BackgroundSaver | None = None
        self._schedule: SaveSchedule | None = None
        self._host_copy = HostCopy()
        self._config_text = ""
        self._saved_iteration = -1
        self._proven = ""
        self.observed = Observed(spec)
        self._unloadable: set[str] = set()

    # -- opening and closing

    def open(self) -> None:
        """Lock the work dir, and read its record and its checkpoints.

        Raises:
            MachineError: Another process holds the work dir.
        """
        self.record = SessionRecord.read(self._path)
        self.skipped_validations = self.record.skipped_validations
        for name in ACTIVITIES:  # what the supervisor, and children before this one, have taken
            self._timings_s[name] += float(self.record.timings_s.get(name) or 0.0)
        self.store = CheckpointStore(
            self._spec.work_dir,
            budget_bytes=self._spec.budget_bytes,
            milestones_every=self._spec.save_interval or None,
            greater_is_better=self._greater_is_better,
            on_event=self._emit_store_event,
        )
        self.store.lock(wait_s=LOCK_WAIT_S)
        self._saver = BackgroundSaver(self.store)
        every_s = self._spec.save_every_s
        if every_s > 0:
            self._schedule = SaveSchedule(every_s=every_s, longest_s=max(MAX_INTERVAL_S, every_s))

    def close(self) -> None:
        """Wait for a save in progress, and unlock the work dir.

        Raises:
            SaveFailed: The last save failed; the work dir is unlocked all the same.
        """
        try:
            self.wait()
        finally:
            if self.store is not None:
                self.store.unlock()

    def attach(self, runner: Runner, config_text: str) -> None:
        self._runner = runner
        self._config_text = config_text
        self._measure_output()

    def loaded(self, runner: Runner) -> None:
        """Take the owed validation and the best score from what was loaded."""
        hub = runner.message_hub
        if self._spec.action == "resume":
            owed = hub.get_info(OWED_VALIDATION_KEY, None)
            self.owed_validation = int(owed) if owed is not None else None
        self.observed.loaded(runner)
        hub.update_info(OWED_VALIDATION_KEY, self.owed_validation)
        if self.store is None:
            return
        best = self.store.best()
        if best is None and self._metric:
            # Damaged, or not carried over: weights that are not here set no score to beat.
            hub.runtime_info.pop("best_score", None)
            hub.runtime_info.pop("best_ckpt", None)
        elif best is not None and best.value is not None and self.is_best(best.value):
            # Carried over from a session whose score this checkpoint does not know.
            hub.update_info("best_score", best.value)
            hub.update_info("best_ckpt", best.file)

    def training_begins(self, iteration: int) -> None:
        """Note that the state after ``iteration`` is saved already, or not worth a save."""
        self._saved_iteration = iteration
        self.observed.look()

    def not_exact(self, reason: str, *, grade: str = "neither") -> None:
        """Record why a resume equals no uninterrupted run; only while nothing is being saved."""
        self.observed.add(reason, grade=grade)
        self.refresh_seen()

    def refresh_seen(self) -> None:
        """Write what was observed into the record; only while nothing is being saved."""
        if self.record is not None:
            self.record = self.observed.told_in(self.record)
            with contextlib.suppress(OSError):  # on a full disk it waits for the next checkpoint
                self.record.write(self._path)

    # -- resumable checkpoints

    def due(self, iteration: int, *, since: int) -> bool:
        """Return whether a checkpoint is due: by the clock, or after iteration ``since``; only on rank 0."""
        if self._rank != 0:
            return False
        interval = self._spec.save_interval
        by_iteration = interval > 0 and iteration // interval > since // interval
        return by_iteration or (self._schedule is not None and self._schedule.due())

    def save(self, iteration: int, *, owed_validation: int | None = None) -> None:
        """Save a resumable checkpoint; training waits for the copy, and for a save in progress. Collective.

        Raises:
            TrainingError: The ranks' weights differ; nothing is saved.
        """
        runner = self._runner
        begin = time.monotonic()
        check_same_weights(core_model(runner.model), iteration)
        self.owed_validation = owed_validation
        runner.message_hub.update_info(OWED_VALIDATION_KEY, owed_validation)
        self.observed.note(runner)
        warning = self.observed.look()
        if warning and self._rank == 0:
            self._emit("warning", iteration, message=warning)
        self._saved_iteration = iteration
        if self._rank == 0:
            self._submit(
                iteration_name(iteration), snapshot(runner, iteration, config_text=self._config_text)
            )
        self._timings_s["saving"] += time.monotonic() - begin

    def save_end(self, iteration: int) -> None:
        """Save the final state, unless it is saved already. Collective."""
        if iteration != self._saved_iteration:
            self.save(iteration, owed_validation=self.owed_validation)

    def wait(self) -> None:
        """Wait until everything is proven.

        Raises:
            SaveFailed: The last save failed.
        """
        if self._saver is None:
            return
        begin = time.monotonic()
        self._saver.wait()
        self._timings_s["saving"] += time.monotonic() - begin

    def _submit(
        self, name: str, checkpoint: dict[str, Any], *, metric: str | None = None, value: float | None = None
    ) -> None:
        assert self._saver is not None
        for part in keep_loadable(checkpoint):
            self._warn_of_unloadable(part, int(checkpoint["meta"]["iter"]))
        self._saver.join()  # the buffers of the copy are free only once the save before has ended
        begin = time.monotonic()
        state = self._host_copy.take(checkpoint)
        held_s = time.monotonic() - begin
        self._pace.copy.add(held_s)
        iteration, owed = int(checkpoint["meta"]["iter"]), self.owed_validation

        def proven(ref: CheckpointRef) -> None:
            self._proven = ref.file
            self._pace.write_ends(self._clock.now())
            self._measure_output()
            self._refresh_record(ref, owed)
            if self._schedule is not None:
                # This thread's CPU time is lost to training where every core is busy.
                self._schedule.saved(cost_s=held_s + time.thread_time())

        if self._schedule is not None:
            self._schedule.failed()  # until it is proven, so that no second one is begun meanwhile
        self._pace.write_begins(self._clock.now(), best=metric is not None)
        self._saver.submit(
            name,
            partial(write_finite, state),
            iteration=iteration,
            metric=metric,
            value=value,
            make_last=metric is None,
            then=proven,
        )

    def _warn_of_unloadable(self, part: str, iteration: int) -> None:
        if part in self._unloadable:
            return
        self._unloadable.add(part)
        self._emit(
            "warning",
            iteration,
            message=Message(
                "{part} is left out of checkpoints: it holds an object that cannot be loaded without "
                "running code from the file, so the next session will not have it. Keep tensors, "
                "arrays, numbers, texts, dictionaries and lists instead (such as the object's "
                "state_dict()).",
                part,
            ),
        )

    def _emit_store_event(self, kind: EventKind, iteration: int, data: Mapping[str, Any]) -> None:
        self._emit(kind, iteration, **{name: value for name, value in data.items() if name != "iteration"})

    # -- the best weights

    def score_of(self, metrics: Mapping[str, Any], iteration: int) -> float | None:
        if not self._metric or not metrics:
            return None
        if self._metric == "auto":  # mmengine's word for the first that validation gives
            self._metric = next(iter(metrics))
            self._greater_is_better = greater_is_better(self._metric, self._rule)
            if self.store is not None:
                self.store.greater_is_better = self._greater_is_better
        name = self._metric
        if name in metrics:
            return number(metrics[name])
        if self._rank == 0:
            self._emit(
                "warning",
                iteration,
                message=Message(
                    "The config asks to keep the best {name}, but validation gives {names} only.",
                    name,
                    ", ".join(metrics),
                ),
            )
        return None

    def is_best(self, score: float) -> bool:
        best = self._runner.message_hub.get_info("best_score", None)
        known = None if best is None else float(best)
        return beats(score, known, greater_is_better=self._greater_is_better)

    def keep_best(self, iteration: int, score: float) -> bool:
        """Write the weights if their score is the best; return whether they were kept. Collective.

        Only then is the score noted in every rank's message hub: weights that were not kept set no score to
        beat. Rank 0 decides, which alone knows what was kept.
        """
        hub = self._runner.message_hub
        name = self._metric.replace("/", "_")
        noted = {"best_score": score, "best_ckpt": best_name(name, iteration)}
        kept = self._rank == 0 and self.is_best(score) and self._write_best(iteration, noted, metric=name)
        if not reduce_number(int(kept), torch.distributed.ReduceOp.MAX):
            return False
        for key, value in noted.items():
            hub.update_info(key, value)
        return True

    def _write_best(self, iteration: int, noted: Mapping[str, Any], *, metric: str) -> bool:
        assert self._saver is not None
        begin = time.monotonic()
        weights = snapshot(self._runner, iteration, config_text=self._config_text, resumable=False)
        weights["message_hub"]["runtime_info"].update(noted)
        self._submit(noted["best_ckpt"], weights, metric=metric, value=noted["best_score"])
        self._saver.join()  # the save that follows waits for it all the same
        self._timings_s["saving"] += time.monotonic() - begin
        return self._proven == noted["best_ckpt"]

    # -- the record

    def _refresh_record(self, ref: CheckpointRef, owed_validation: int | None) -> None:
        """Bring ``session.json`` up to date; called by the saving thread."""
        assert self.record is not None and self.store is not None
        changes: dict[str, Any] = {
            "best": self.store.best(),
            "skipped_validations": self.skipped_validations,
            "timings_s": rounded(self._timings_s),
            "learned": self.learned(self.record.learned),
        }
        if ref.metric is None:
            changes |= {
                "checkpoint": ref,
                "end_iteration": ref.iteration,
                "owed_validation": owed_validation,
            }
        self.record = self.observed.told_in(self.record.evolve(**changes))
        self.record.write(self._path)

    def learned(self, before: Learned) -> Learned:
        """Return what was learned of the machine; what memory allows is known after an iteration."""
        known = before.with_memory(self._spec.rung) if self.has_trained else before
        return replace(known, pace=self._pace.learned())

    def finish_record(self, *, reason: str, message: str) -> None:
        """Finish the record where no supervisor is left to do it."""
        assert self.record is not None
        self.record = self.record.evolve(
            stop_reason=reason,
            exit_code=EXIT_DONE,
            message=message,
            timings_s=complete_timings(rounded(self._timings_s), self._clock.elapsed_s()),
            ended_s=time.time(),
        )
        self.record.write(self._path)

    def _measure_output(self) -> None:
        """Measure what Kaggle will have to save, and what another checkpoint adds to it.

        Called by the thread that saves: any other would wait for the store's lock until it has saved.
        """
        if self.store is None:
            return
        refs, newest = self.store.proven(), self.store.newest()
        self._pace.output_bytes = float(sum(ref.size_bytes for ref in refs))
        if newest is None:
            return
        self._pace.checkpoint_bytes = added_bytes(
            refs, budget_bytes=self._spec.budget_bytes, milestones_every=self._spec.save_interval or None
        )
        first_best = bool(self._metric) and not self.store.best()
        self._pace.best_bytes = newest.size_bytes / FULL_TO_BEST if first_best else 0.0


def rounded(timings_s: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 2) for name, seconds in timings_s.items()}


def number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
