"""A session from its beginning, through its children, to its end."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mapsage_kaggle.checkpoints.choose import Choice
from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.recovery import remove_strays
from mapsage_kaggle.checkpoints.retention import greater_is_better
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.config.patch import apply_patch, plan_patch, write_config
from mapsage_kaggle.errors import (
    EXIT_DONE,
    EXIT_TRAINING,
    CheckpointError,
    ConfigError,
    MachineError,
    MapsageError,
    TrainingError,
)
from mapsage_kaggle.events import Event, EventKind, EventLog, last_word_s, read_events
from mapsage_kaggle.machine import versions_of
from mapsage_kaggle.messages import Message, joined_by, text_of
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import (
    CheckpointRef,
    Exactness,
    SessionRecord,
    complete_timings,
    early_text,
    new_run_id,
    read_record,
)
from mapsage_kaggle.spec import ChildSpec, drop_requests
from mapsage_kaggle.training.child import first_spec, launch_of, next_spec
from mapsage_kaggle.training.exactness import exactness_of
from mapsage_kaggle.training.fallback import Outcome, decide_next
from mapsage_kaggle.training.history import (
    carry_best,
    carry_history,
    carry_resumed,
    changes_since,
    read_closed,
)
from mapsage_kaggle.training.learning import Learning
from mapsage_kaggle.training.prepare import Prepared
from mapsage_kaggle.training.supervisor import Supervisor
from mapsage_kaggle.training.tracking import tracking

_REFUSALS: Mapping[int, type[MapsageError]] = {
    cls.exit_code: cls for cls in (ConfigError, CheckpointError, MachineError)
}
"""The error of a child's refusal to train, by its exit code."""
IN_USE_S = 1.0
"""A younger temporary file may be about to be renamed, such as a stop request."""


class SessionRun:
    """One session: :meth:`begin`, :meth:`run_children`, and then :meth:`end`, however they ended.

    Attributes:
        prepared: As prepared, with the settings of the newest child.
        supervisor: Runs its children.
        files: Its work dir.
        learning: What it has learned so far.
        record: As last written.
    """

    def __init__(self, prepared: Prepared, supervisor: Supervisor) -> None:
        self.prepared = prepared
        self.supervisor = supervisor
        self.files = WorkDir(prepared.work_dir)
        self.learning = Learning(prepared)
        self.record = SessionRecord(run_id="", fingerprint="")
        self._log = EventLog(self.files.events)
        self._damaged: list[str] = []
        """What is said of each best checkpoint that is one no more."""

    # -- before

    def begin(self) -> None:
        """Make the work dir, carry the history over, and write the first record.

        Raises:
            MachineError: The work dir cannot be made, or another process holds it.
        """
        prepared, choice = self.prepared, self.prepared.discovery.choice
        resumed = choice.resumed
        try:
            self.files.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(
                Message("The work dir {path} cannot be made: {why}.", self.files.path, error.strerror),
                "Choose another one with --work-dir.",
            ) from error
        with self._store() as store:
            drop_requests(self.files)  # of a session that is over; from now on none is lost
            here, before = read_closed(self.files), choice.record
            folder = choice.target.parent if choice.target is not None else None
            source = folder if folder != self.files.path else None
            if before is not None and folder is not None:
                before = before.closed(last_word_s(read_events(WorkDir(folder).events)))
            carry_history(self.files, source, here)
            if folder == self.files.path or here is not None:
                store.start_at(prepared.start_iteration)
            if source is not None and before is not None and resumed is not None:
                problem = carry_best(store, before, source)
                if problem:
                    self.learning.steps.append(problem)
            self._damaged += store.drop_damaged_best()
            best = store.best()
        sha256, versions = self._write_config(), versions_of(prepared.machine)
        continued = before if resumed is not None else None
        stated = continued or resumed
        self.record = SessionRecord(
            run_id=(stated.run_id if stated is not None else None) or new_run_id(),
            fingerprint=prepared.patch.fingerprint,
            session_index=continued.session_index + 1 if continued is not None else 1,
            start_iteration=prepared.start_iteration,
            end_iteration=prepared.start_iteration,
            max_iters=prepared.patch.max_iters,
            best=best if continued is not None else None,
            owed_validation=resumed.owed_validation if resumed is not None else None,
            started_from=_started_from(choice),
            versions=versions,
            config_sha256=sha256,
            changes=changes_since(self.files, folder, choice.record),
            learned=self.learning.learned(),
            exactness=exactness_of(
                prepared, choice.record.exactness if choice.record else Exactness(), versions
            ),
            previous=continued.lineage() if continued is not None else (),
            container=os.environ.get("KAGGLE_CONTAINER_NAME", ""),
            started_s=time.time() - prepared.clock.elapsed_s(),
        )
        self.record.write(self.files.session)
        if choice.notice:
            self._emit("warning", prepared.start_iteration, message=choice.notice)
        for line in (*choice.steps_down, *self._damaged):
            self._emit("ladder", prepared.start_iteration, message=line)
        warnings = prepared.patch.warnings
        if choice.action == "weights-only" and choice.checkpoint is not None:
            template = "Weights only from {path}: optimizer and schedule start anew, at iteration 0."
            warnings = (Message(template, choice.checkpoint.path), *warnings)
        for line in warnings:
            self._emit("warning", prepared.start_iteration, message=line)

    def _store(self) -> CheckpointStore:
        patch = self.prepared.patch
        metric = patch.save_best[0] if patch.save_best else ""
        return CheckpointStore(
            self.files.path,
            budget_bytes=self.prepared.options.budget_bytes,
            greater_is_better=greater_is_better(metric, patch.best_rules.get(metric)),
        )

    def _write_config(self) -> str:
        effective = apply_patch(self.prepared.discovery.cfg, self.prepared.patch)
        return write_config(effective, self.prepared.patch, self.files.path)

    # -- children

    def run_children(self) -> tuple[Outcome, str]:
        """Run children until one ends in good order, or nothing helps; return its outcome and a message."""
        prepared = self.prepared
        done = prepared.start_iteration >= prepared.patch.max_iters
        choice = prepared.discovery.choice
        if choice.inspection is None or choice.inspection.owed_validation is None:
            stopped_by = choice.inspection.stopped_by if choice.inspection is not None else None
            if done:
                message = Message(
                    "The run was complete already, at iteration {iteration}.", prepared.start_iteration
                )
                return Outcome(kind="done", reason="completed", iteration=prepared.start_iteration), message
            if stopped_by and choice.action == "resume" and prepared.options.extend_to is None:
                message = early_text(prepared.start_iteration, prepared.patch.max_iters, stopped_by)
                return Outcome(kind="done", reason="early", iteration=prepared.start_iteration), message
        # Everything before the first child counts as start-up.
        before = {"start_up": round(prepared.clock.elapsed_s(), 2)}
        self.record = self.record.evolve(timings_s=before)
        self.record.write(self.files.session)
        last: Outcome | None = None
        trackers, told = tracking(prepared, self.record.run_id, os.environ)
        if told:
            self._emit("warning", prepared.start_iteration, message=told)
        spec = first_spec(prepared, self.record, self.learning)
        while True:
            if self._stop_asked():
                return self._stopped_before_a_child(last)
            if prepared.clock.left_s() <= 0 or self.supervisor.left_to_hand_over_s() < 0:
                return self._late_for_a_child(last)
            outcome = last = self.supervisor.run(launch_of(self.prepared, spec, trackers))
            self.record = read_record(self.files.session) or self.record
            timings = outcome.data.get("timings_s") or self.record.timings_s
            self.record = self.record.evolve(timings_s=timings)
            if outcome.trained > 0:
                self.learning.has_trained()
            # Only one that ended in good order reports it; for others, the record has what was measured last.
            self.learning.pace = outcome.data.get("pace") or self.record.learned.pace or self.learning.pace
            step = decide_next(
                self.learning.ladder,
                outcome,
                can_recompute=outcome.kind in ("memory", "refused")
                and prepared.discovery.shapes.can_recompute(),
                time_left_s=prepared.clock.left_s(),
                adapt=prepared.options.on_memory == "adapt",
                chose_half=self.prepared.patch.chose_half,
            )
            if step.ladder is None:
                return outcome, step.message
            if self._stop_asked():
                return outcome, outcome.message
            self._emit("restart", outcome.iteration, message=step.message, kind=outcome.kind)
            self.learning.steps.append(step.message)
            self.learning.ladder = step.ladder
            _wait(step.wait_s, self.supervisor)
            if self._stop_asked():
                return self._stopped_before_a_child(outcome)
            spec = self._next_spec()

    def _stop_asked(self) -> bool:
        return self.supervisor.stopping

    def _stopped_before_a_child(self, last: Outcome | None) -> tuple[Outcome, str]:
        """Return the outcome of a stop request while no child was running; ``last`` is the one before."""
        message = Message("Stopped on request before training began.")
        if last is not None:
            message = Message("{message} Stopped on request before it was tried again.", last.message)
        return self._end_without_a_child("user", last), message

    def _late_for_a_child(self, last: Outcome | None) -> tuple[Outcome, str]:
        """Return the outcome where time was up while no child was running."""
        message = Message("The session's time was up before training began.")
        if last is not None:
            message = Message("{message} The session's time was up before it was tried again.", last.message)
        return self._end_without_a_child("deadline", last), message

    def _end_without_a_child(self, reason: str, last: Outcome | None) -> Outcome:
        proven = last.proven if last is not None else None
        return Outcome(
            kind="done",
            reason=reason,
            iteration=self.prepared.start_iteration if proven is None else proven,
            proven=proven,
            data={"timings_s": self.record.timings_s},
        )

    def _next_spec(self) -> ChildSpec:
        """Plan anew as adapted; return the spec of a child that resumes from the newest sound checkpoint."""
        newest = self._newest_sound()
        prepared, ladder = self.prepared, self.learning.ladder
        spec = next_spec(prepared, self.record, self.learning, newest)
        facts = replace(
            prepared.facts,
            micro_batch=ladder.micro_batch,
            with_cp=ladder.with_cp,
            validation_rung=ladder.validation_rung,
            most_workers=ladder.workers
            if ladder.workers < prepared.patch.num_workers
            else prepared.facts.most_workers,
            precision="" if ladder.float32 else prepared.facts.precision,
            # What the last child resumed from may be damaged by now: then it is the first child's again.
            action=spec.action,
            checkpoint=spec.checkpoint,
        )
        if newest is not None:
            facts = replace(facts, checkpoint_seed=prepared.patch.seed)
        patch = plan_patch(prepared.discovery.cfg, prepared.options.config, facts)
        self.prepared = replace(prepared, facts=facts, patch=patch)
        self.record = self.record.evolve(
            config_sha256=self._write_config(),
            learned=self.learning.learned(),
            exactness=exactness_of(
                self.prepared, self.record.exactness, self.record.versions, same_session=True
            ),
            # A child that lost its supervisor has closed the record.
            stop_reason="running", exit_code=None, message="", ended_s=None,
        )  # fmt: skip
        self.record.write(self.files.session)
        return spec

    def _newest_sound(self) -> CheckpointRef | None:
        """Return the newest checkpoint of this work dir that is still what was proven."""
        with self._store() as store:
            for ref in sorted(store.proven(), key=lambda ref: ref.iteration, reverse=True):
                if ref.metric is not None:
                    continue
                verdict = inspect(self.files.path / ref.file, manifest_sha256=ref.sha256)
                if verdict.verdict == "resumable":
                    store.start_at(ref.iteration)
                    return ref
                message = Message(
                    "{file} is no longer sound ({problems}); going further back.",
                    ref.file,
                    joined_by("; ", verdict.problems),
                )
                self._emit("ladder", ref.iteration, message=message)
                self.learning.steps.append(message)
        return None

    def _emit(self, event: EventKind, iteration: int, /, **data: Any) -> None:
        self._log.append(Event(event=event, iteration=iteration, data=data))

    # -- after

    def end(self, outcome: Outcome, message: str) -> SessionRecord:
        """Make sure that the run can be resumed from the output alone, and write the final record.

        Raises:
            TrainingError: It failed with nothing new to hand over.
            ConfigError, CheckpointError, MachineError: The same, where a child refused to train.
        """
        best = self._carry_checkpoint()
        self.supervisor.output.look(at_the_end=True)
        record = read_record(self.files.session) or self.record
        reason, code = outcome.reason, EXIT_DONE
        if outcome.kind != "done":
            reason, code = ("user", EXIT_DONE) if outcome.kind == "killed" else ("failed", EXIT_TRAINING)
        refused = int(outcome.data.get("exit_code") or 0)
        if outcome.kind == "refused" and refused in _REFUSALS and outcome.trained == 0:
            reason, code = "refused", refused
        timings = outcome.data.get("timings_s") or record.timings_s
        newest = record.checkpoint
        record = record.evolve(
            stop_reason=reason,
            exit_code=code,
            end_iteration=newest.iteration if newest is not None else outcome.iteration,
            best=best,
            learned=self.learning.learned(),
            timings_s=complete_timings(timings, self.prepared.clock.elapsed_s()),
            message=joined_by(" ", filter(None, (message or outcome.message, *self._damaged))),
            ended_s=time.time(),
        )
        try:
            record.write(self.files.session)
        except OSError as error:  # a full disk: the next session reads the last one that was written
            told = Message("The session's record could not be written: {why}.", error.strerror or error)
            record = record.evolve(message=joined_by(" ", filter(None, (record.message, told))))
        drop_requests(self.files)
        self._emit("end", record.end_iteration, reason=reason, exit_code=code, message=record.message)
        if self.prepared.options.report:
            self._write_report()
        if outcome.last_event_s is not None:
            # What the next session must reserve for all this.
            self.learning.measure_finish(time.time() - outcome.last_event_s)
            record = record.evolve(learned=self.learning.learned())
            with suppress(OSError):
                record.write(self.files.session)
        # What was told where no child was running to be followed.
        self.supervisor.pass_on(("warning", "ladder", "upload"))
        for folder in (self.files.path, self.files.history, self.files.predictions):
            remove_strays(folder, age_s=IN_USE_S)
        if code != EXIT_DONE and record.end_iteration <= record.start_iteration:
            raise _REFUSALS.get(code, TrainingError)(
                record.message, Message("The whole log is in {path}.", self.files.log)
            )
        return record

    def _write_report(self) -> None:
        from mapsage_kaggle.display.report import try_to_write_report

        problem = try_to_write_report([self.files.path])
        if problem:
            self._emit("warning", self.record.end_iteration, message=problem)

    def _carry_checkpoint(self) -> CheckpointRef | None:
        """Hand on the resumed checkpoint unless there is a newer one; return the best that is sound."""
        choice = self.prepared.discovery.choice
        record = read_record(self.files.session) or self.record
        try:
            with self._store() as store:
                problem = carry_resumed(self.files, store, choice, record)
                damaged, best = store.drop_damaged_best(), store.best()
        except (OSError, MachineError) as error:
            problem = Message("The checkpoints were not looked over: {why}", text_of(error))
            damaged, best = (), record.best
        if problem:
            self.learning.steps.append(problem)
        self._damaged += damaged
        for message in damaged:
            self._emit("warning", self.record.end_iteration, message=message)
        return best


def _wait(seconds: float, supervisor: Supervisor) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not supervisor.stopping:
        time.sleep(0.1)


def _started_from(choice: Choice) -> CheckpointRef | None:
    """Return the checkpoint that a session begins from, as its record keeps it."""
    if choice.checkpoint is None or choice.inspection is None or choice.inspection.sha256 is None:
        return None
    return CheckpointRef(
        file=choice.checkpoint.target.name,
        iteration=choice.inspection.iteration or 0,
        sha256=choice.inspection.sha256,
        size_bytes=choice.inspection.size_bytes or 0,
    )
