"""A session from beginning to end: find, choose, configure, train, hand over."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mapsage_kaggle.checkpoints.inspect import inspect
from mapsage_kaggle.checkpoints.proving import SaveFailed
from mapsage_kaggle.checkpoints.retention import greater_is_better
from mapsage_kaggle.checkpoints.store import CheckpointStore
from mapsage_kaggle.config.modules import import_paths
from mapsage_kaggle.config.patch import apply_patch, plan_patch, write_config
from mapsage_kaggle.config.reading import changes_between
from mapsage_kaggle.errors import (
    EXIT_DONE,
    EXIT_TRAINING,
    MachineError,
    TrainingError,
)
from mapsage_kaggle.events import Event, EventLog, last_word_s, read_events
from mapsage_kaggle.pace import decaying_maximum
from mapsage_kaggle.paths import WorkDir
from mapsage_kaggle.records import CheckpointRef, SessionRecord, complete_timings, new_run_id, read_record
from mapsage_kaggle.spec import drop_requests
from mapsage_kaggle.training.fallback import MemoryFallback, Outcome, decide_next
from mapsage_kaggle.training.history import archive_session, copy_content, read_closed
from mapsage_kaggle.training.prepare import MEMORY_KEYS, Prepared, memory_of
from mapsage_kaggle.training.supervisor import Launch, Supervisor
from mapsage_kaggle.training.upload import LAST_LIMIT_S, Uploader

_MAX_CHANGES = 200


# -- find and choose


# -- configure


# -- train


class SessionRun:
    """The steps of one session around its children."""

    def __init__(self, prepared: Prepared, supervisor: Supervisor) -> None:
        self.prepared = prepared
        self.supervisor = supervisor
        self.files = WorkDir(prepared.work_dir)
        patch = prepared.patch
        share = -(-patch.effective_batch // prepared.facts.world_size)
        self.ladder = MemoryFallback(
            micro_batch=patch.micro_batch,
            above=min(share, 2 * patch.micro_batch) if patch.micro_batch < share else None,
            with_cp=prepared.facts.with_cp,
            validation_rung=prepared.facts.validation_rung,
        )
        self.steps: list[str] = []
        self.restarts = 0
        choice = prepared.discovery.choice
        learned: Mapping[str, Any] = choice.record.learned if choice.record is not None else {}
        self.pace: Mapping[str, float] = learned.get("pace", {})
        self.proven_rung = {name: learned[name] for name in MEMORY_KEYS if name in learned}
        self.record = SessionRecord(run_id="", fingerprint="")
        self._log = EventLog(self.files.events)

    # -- before

    def begin(self) -> None:
        """Make the work dir, carry the history over, and write the first record."""
        prepared, choice = self.prepared, self.prepared.discovery.choice
        try:
            self.files.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(
                f"The work dir {self.files.path} cannot be made: {error.strerror}.",
                "Choose another one with --work-dir.",
            ) from error
        with self._store() as store:
            drop_requests(self.files)  # of a session that is over; from now on none is lost
            here, before = read_closed(self.files), choice.record
            same_place = choice.checkpoint is not None and choice.checkpoint.target.parent == self.files.path
            source = (
                choice.checkpoint.target.parent if choice.checkpoint is not None and not same_place else None
            )
            if before is not None and choice.checkpoint is not None:
                events = read_events(WorkDir(choice.checkpoint.target.parent).events)
                before = before.closed(last_word_s(events))
            self._carry_history(source, here)
            if same_place or here is not None:
                store.start_at(prepared.start_iteration)
            if source is not None and before is not None and choice.action == "resume":
                self._carry_best(store, before, source)
        sha256 = self._write_config()
        continued = before if choice.action == "resume" else None
        run_id = (
            continued.run_id
            if continued is not None
            else (choice.inspection.run_id if choice.action == "resume" and choice.inspection else None)
        )
        self.record = SessionRecord(
            run_id=run_id or new_run_id(),
            fingerprint=prepared.patch.fingerprint,
            session_index=continued.session_index + 1 if continued is not None else 1,
            start_iteration=prepared.start_iteration,
            end_iteration=prepared.start_iteration,
            max_iters=prepared.patch.max_iters,
            best=continued.best if continued is not None else None,
            owed_validation=choice.inspection.owed_validation
            if choice.action == "resume" and choice.inspection is not None
            else None,
            config_sha256=sha256,
            changes=self._changes(source or (self.files.path if same_place else None)),
            learned=self._learned(),
            exactness=self._exactness(),
            previous=continued.lineage() if continued is not None else (),
            started_s=time.time() - prepared.clock.elapsed_s(),
        )
        self.record.write(self.files.session)
        log = self._log
        for line in choice.steps_down:
            log.append(Event(event="ladder", iteration=prepared.start_iteration, data={"message": line}))
        warnings = prepared.patch.warnings
        if choice.action == "weights-only" and choice.checkpoint is not None:
            path = choice.checkpoint.path
            line = f"Weights only from {path}: optimizer and schedule start anew, at iteration 0."
            warnings = (line, *warnings)
        for line in warnings:
            log.append(Event(event="warning", iteration=prepared.start_iteration, data={"message": line}))

    def _store(self) -> CheckpointStore:
        patch = self.prepared.patch
        metric = patch.save_best[0] if patch.save_best else ""
        return CheckpointStore(
            self.files.path,
            budget_bytes=self.prepared.options.budget_bytes,
            greater_is_better=greater_is_better(metric, patch.best_rules.get(metric)),
        )

    def _carry_history(self, source: Path | None, here: SessionRecord | None) -> None:
        """Copy an earlier output's history, or put this work dir's own last session into it."""
        history = self.files.history
        if here is not None:
            here.write(self.files.session)  # closed, before the events that tell its end are put away
            archive_session(self.files.path, history, here, move_events=True)
        else:
            self.files.events.unlink(missing_ok=True)
        if source is None:
            return
        origin = WorkDir(source)
        for old, new in ((origin.history, history), (origin.predictions, self.files.predictions)):
            if not old.is_dir():
                continue
            new.mkdir(exist_ok=True)
            for file in sorted(old.iterdir()):
                if file.is_file():
                    copy_content(file, new / file.name)
        record = read_closed(origin)
        if record is not None:
            archive_session(source, history, record, move_events=False)

    def _carry_best(self, store: CheckpointStore, record: SessionRecord, source: Path) -> None:
        best = record.best
        if best is None or best.metric is None or best.value is None or not (source / best.file).is_file():
            return
        try:
            store.carry_over(
                source / best.file,
                iteration=best.iteration,
                metric=best.metric,
                value=best.value,
                sha256=best.sha256,
            )
        except SaveFailed as error:
            self.steps.append(
                f"The best checkpoint of the sessions before could not be carried over: {error}"
            )

    def _write_config(self) -> str:
        effective = apply_patch(self.prepared.discovery.cfg, self.prepared.patch)
        return write_config(effective, self.prepared.patch, self.files.path)

    def _changes(self, before: Path | None) -> tuple[str, ...]:
        """Return what differs from the config of the session before."""
        if before is None:
            return ()
        index = self.prepared.discovery.choice.record
        name = f"config_{index.session_index:03d}.py" if index is not None else ""
        for file in (self.files.history / name, WorkDir(before).config):
            if name and file.is_file() and file != self.files.config:
                old = file.read_text(encoding="utf-8", errors="replace")
                lines = changes_between(old, self.files.config.read_text(encoding="utf-8"))
                return lines[:_MAX_CHANGES]
        return ()

    def _learned(self) -> dict[str, Any]:
        learned: dict[str, Any] = {"threads": self.prepared.threads, "ladder": list(self.steps)}
        learned |= self.proven_rung
        if self.ladder.validation_rung:
            learned["validation_rung"] = self.ladder.validation_rung
            learned.setdefault("machine", self._memory())
        if self.pace:
            learned["pace"] = dict(self.pace)
        return learned

    def _rung(self) -> dict[str, Any]:
        """Return what will be learned of memory once an iteration is done as it is tried now."""
        rung: dict[str, Any] = {}
        if self.ladder.micro_batch * self.prepared.facts.world_size < self.prepared.patch.effective_batch:
            rung["micro_batch"] = self.ladder.micro_batch
        if self.ladder.with_cp:
            rung["with_cp"] = True
        if rung:
            rung["machine"] = self._memory()
        return rung

    def _memory(self) -> dict[str, Any]:
        facts = self.prepared.facts
        return memory_of(self.prepared.machine, facts.ranks_here if facts.on_gpu else 0, facts.ranks_here)

    def _exactness(self) -> dict[str, Any]:
        facts, reasons = self.prepared.facts, list(self.prepared.patch.exactness)
        if facts.on_gpu and not facts.deterministic:
            reasons.append("GPU kernels may add in another order (train with --deterministic to forbid it)")
        inspection = self.prepared.discovery.choice.inspection
        if facts.action == "resume" and inspection is not None and inspection.run_id is None:
            reasons.append("the checkpoint was made by stock mmengine, which walks the data in another order")
            if inspection.seed is None:
                seed = self.prepared.patch.seed
                reasons.append(f"the checkpoint does not say its seed; the config's is taken ({seed})")
        patch = self.prepared.patch
        now = {"ranks": facts.world_size, "micro_batch": patch.micro_batch}
        earlier = self.record.exactness or (
            self.prepared.discovery.choice.record.exactness if self.prepared.discovery.choice.record else {}
        )
        before = {name: earlier.get(name, now[name]) for name in now}
        if facts.action == "resume" and before != now:
            equal = "; the two differ by more than rounding" if patch.split else ": equal to rounding"
            reasons.append(
                f"each batch was split into {before['micro_batch']} image(s) on {before['ranks']} rank(s), "
                f"and now into {now['micro_batch']} on {now['ranks']}{equal}"
            )
        return {"bitwise": not reasons, "reasons": reasons, **now, "split": list(patch.split)}

    # -- children

    def run_children(self) -> tuple[Outcome, str]:
        """Train with one child after another until one ends in good order, or nothing helps."""
        prepared = self.prepared
        done = prepared.start_iteration >= prepared.patch.max_iters
        inspection = prepared.discovery.choice.inspection
        if done and (inspection is None or inspection.owed_validation is None):
            return (
                Outcome(kind="done", reason="completed", iteration=prepared.start_iteration),
                f"The run was complete already, at iteration {prepared.start_iteration}.",
            )
        # Whatever came before the first child is part of starting.
        before = {"start_up": round(prepared.clock.elapsed_s(), 2)}
        self.record = self.record.evolve(timings_s=before)
        self.record.write(self.files.session)
        spec, last = self._first_spec(), None
        while True:
            if self._stop_asked():
                return self._stopped_before_a_child(last)
            if prepared.clock.left_s() <= 0 or self.supervisor.left_to_hand_over_s() < 0:
                return self._late_for_a_child(last)
            outcome = last = self.supervisor.run(self._launch(spec))
            self.record = read_record(self.files.session) or self.record
            timings = outcome.data.get("timings_s") or self.record.timings_s
            self.record = self.record.evolve(timings_s=timings)
            if outcome.trained > 0:
                self.proven_rung = self._rung()
            # Only one that ended in good order says it; of others, the record has what was measured last.
            self.pace = outcome.data.get("pace") or self.record.learned.get("pace") or self.pace
            step = decide_next(
                self.ladder,
                outcome,
                can_recompute=self._can_recompute(),
                time_left_s=prepared.clock.left_s(),
                adapt=prepared.options.on_memory == "adapt",
            )
            if step.ladder is None:
                return outcome, step.message
            if self._stop_asked():
                return outcome, outcome.message
            self._emit("restart", outcome.iteration, message=step.message, kind=outcome.kind)
            self.steps.append(step.message)
            self.ladder = step.ladder
            self.restarts += 1
            _wait(step.wait_s, self.supervisor)
            if self._stop_asked():
                return self._stopped_before_a_child(outcome)
            spec = self._next_spec()

    def _stop_asked(self) -> bool:
        return self.supervisor.stopping

    def _stopped_before_a_child(self, last: Outcome | None) -> tuple[Outcome, str]:
        """Return the end that a person asked for where no child was running; ``last`` was the one before."""
        message = "Stopped on request before training began."
        if last is not None:
            message = f"{last.message} Stopped on request before it was tried again."
        return self._end_without_a_child("user", last), message

    def _late_for_a_child(self, last: Outcome | None) -> tuple[Outcome, str]:
        """Return the end of a session whose time was up where no child was running."""
        message = "The session's time was up before training began."
        if last is not None:
            message = f"{last.message} The session's time was up before it was tried again."
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

    def _first_spec(self) -> dict[str, Any]:
        prepared, choice = self.prepared, self.prepared.discovery.choice
        return self._spec(
            action=choice.action,
            checkpoint=choice.checkpoint.target if choice.checkpoint else None,
            sha256=choice.inspection.sha256 if choice.inspection else None,
            expect=prepared.start_iteration if choice.action == "resume" else None,
        )

    def _next_spec(self) -> dict[str, Any]:
        """Return the spec of a child that goes on from the newest proven checkpoint."""
        newest = self._newest_sound()
        prepared = self.prepared
        facts = replace(
            prepared.facts,
            micro_batch=self.ladder.micro_batch,
            with_cp=self.ladder.with_cp,
            validation_rung=self.ladder.validation_rung,
        )
        if newest is not None:
            path = self.files.path / newest.file
            facts = replace(facts, checkpoint=path, action="resume", checkpoint_seed=prepared.patch.seed)
            spec = self._spec("resume", path, newest.sha256, newest.iteration)
        else:
            spec = self._first_spec()
        patch = plan_patch(prepared.discovery.cfg, prepared.options.config, facts)
        self.prepared = replace(prepared, facts=facts, patch=patch)
        sha256 = self._write_config()
        learned, exactness = self._learned(), self._exactness()
        self.record = self.record.evolve(
            config_sha256=sha256, learned=learned, exactness=exactness,
            # A child that took us for gone has closed the record.
            stop_reason="running", exit_code=None, message="", ended_s=None,
        )  # fmt: skip
        self.record.write(self.files.session)
        return spec

    def _newest_sound(self) -> CheckpointRef | None:
        """Return the newest checkpoint of this work dir that still is what was proven."""
        with self._store() as store:
            for ref in sorted(store.proven(), key=lambda ref: ref.iteration, reverse=True):
                if ref.metric is not None:
                    continue
                verdict = inspect(self.files.path / ref.file, manifest_sha256=ref.sha256)
                if verdict.verdict == "resumable":
                    store.start_at(ref.iteration)
                    return ref
                message = (
                    f"{ref.file} is no longer sound ({'; '.join(verdict.problems)}); going further back."
                )
                self._emit("ladder", ref.iteration, message=message)
                self.steps.append(message)
        return None

    def _spec(
        self, action: str, checkpoint: Path | None, sha256: str | None, expect: int | None
    ) -> dict[str, Any]:
        prepared, options = self.prepared, self.prepared.options
        return {
            "config": self.files.config,
            "work_dir": self.files.path,
            "clock_started_s": prepared.clock.started_s,
            "limit_s": prepared.clock.limit_s,
            "reserve_s": prepared.clock.reserve_s,
            "action": action,
            "checkpoint": checkpoint,
            "checkpoint_sha256": sha256,
            "expect_iteration": expect,
            "run_id": self.record.run_id,
            "fingerprint": self.record.fingerprint,
            "threads": prepared.threads,
            "save_interval": prepared.patch.save_interval,
            "save_every_s": options.save_every_s,
            "budget_bytes": options.budget_bytes,
            "save_best": prepared.patch.save_best,
            "best_rules": dict(prepared.patch.best_rules),
            "deterministic": options.deterministic,
            "pace": dict(self.pace),
            "extend": prepared.facts.extend_to is not None,
            "validation_rung": self.ladder.validation_rung,
            "restarted": self.restarts > 0,
            "rung": dict.fromkeys(MEMORY_KEYS) | self._rung(),
            "launched_s": prepared.clock.elapsed_s(),
        }

    def _launch(self, spec: Mapping[str, Any]) -> Launch:
        from mapsage_kaggle.spec import ChildSpec

        prepared, options = self.prepared, self.prepared.options
        scratch = prepared.discovery.paths.temp
        scratch.mkdir(parents=True, exist_ok=True)
        file = scratch / f"child-{self.record.run_id}.json"
        ChildSpec(**spec).write(file)
        return Launch(
            spec=file,
            work_dir=self.files.path,
            num_workers=prepared.facts.ranks_here,
            threads=prepared.threads,
            gpus=prepared.facts.on_gpu,
            import_paths=import_paths(options.config, prepared.discovery.paths.input),
            scratch=scratch,
            nnodes=options.nnodes,
            node_rank=options.node_rank,
            rdzv_endpoint=options.rdzv_endpoint,
            deterministic=options.deterministic,
        )

    @contextmanager
    def uploads(self) -> Iterator[None]:
        """Upload the newest checkpoint now and then where that is asked for, and once more at the end."""
        prepared, options = self.prepared, self.prepared.options
        if options.upload_to is None or options.node_rank > 0:
            yield
            return
        uploader = Uploader(
            self.files,
            options.upload_to,
            every_s=options.upload_every_s,
            scratch=prepared.discovery.paths.temp,
            after=prepared.start_iteration,
        )
        uploader.start()
        try:
            yield
        finally:
            # Half the reserve, as everywhere in the supervisor, less what Kaggle needs for the output.
            left_s = self.supervisor.left_to_hand_over_s()
            uploader.finish(min(LAST_LIMIT_S, left_s), cancelled=lambda: self.supervisor.killed)
            self.supervisor.pass_on(("upload", "warning"))

    def _can_recompute(self) -> bool:
        backbone = (self.prepared.discovery.cfg.get("model") or {}).get("backbone") or {}
        return str(backbone.get("type", "")).rpartition("::")[2] in (
            "MixVisionTransformer", "ResNet", "ResNetV1c", "ResNetV1d", "SwinTransformer",
        )  # fmt: skip

    def _emit(self, event: str, iteration: int, /, **data: Any) -> None:
        self._log.append(Event(event=event, iteration=iteration, data=data))

    # -- after

    def end(self, outcome: Outcome, message: str) -> SessionRecord:
        """Make sure that the output alone is enough to go on from, and write the last record.

        Raises:
            TrainingError: It failed and there is nothing new to hand over.
        """
        self._carry_checkpoint()
        record = read_record(self.files.session) or self.record
        reason, code = outcome.reason, EXIT_DONE
        if outcome.kind != "done":
            reason, code = ("user", EXIT_DONE) if outcome.kind == "killed" else ("failed", EXIT_TRAINING)
        timings = outcome.data.get("timings_s") or record.timings_s
        newest = record.checkpoint
        record = record.evolve(
            stop_reason=reason,
            exit_code=code,
            end_iteration=newest.iteration if newest is not None else outcome.iteration,
            learned=self._learned(),
            timings_s=complete_timings(timings, self.prepared.clock.elapsed_s()),
            message=message or outcome.message,
            ended_s=time.time(),
        )
        record.write(self.files.session)
        drop_requests(self.files)
        self._emit("end", record.end_iteration, reason=reason, exit_code=code, message=record.message)
        self._write_report()
        if outcome.last_event_s is not None:
            # What the next session must leave for all this.
            self._measure_finish(time.time() - outcome.last_event_s)
            record = record.evolve(learned=self._learned())
            record.write(self.files.session)
        if code == EXIT_TRAINING and record.end_iteration <= record.start_iteration:
            raise TrainingError(record.message, f"The whole log is in {self.files.log}.")
        return record

    def _measure_finish(self, seconds: float) -> None:
        expected_s = decaying_maximum(self.pace.get("finish_s"), seconds)
        self.pace = {**self.pace, "finish_s": round(expected_s, 3)}

    def _write_report(self) -> None:
        """Draw the report. A picture that fails must not cost a session its good end."""
        from mapsage_kaggle.display.report import write_report

        try:
            write_report([self.files.path])
        except Exception as error:  # noqa: BLE001 - drawing libraries raise what they like
            message = f"The report could not be drawn: {type(error).__name__}: {error}."
            self._emit("warning", self.record.end_iteration, message=message)

    def _carry_checkpoint(self) -> None:
        """Put the checkpoint that was resumed into this output, where no newer one has come."""
        choice = self.prepared.discovery.choice
        if choice.action != "resume" or choice.checkpoint is None or choice.inspection is None:
            return
        source, iteration = choice.checkpoint.target, choice.inspection.iteration or 0
        with self._store() as store:
            ref = store.newest()
            if ref is None and source.parent != self.files.path:
                try:
                    ref = store.hand_on(source, iteration=iteration, sha256=choice.inspection.sha256)
                except SaveFailed as error:
                    # The record comes all the same; what was resumed is still attached.
                    self.steps.append(f"The checkpoint that was resumed could not be handed on: {error}")
            best = store.best()
        record = read_record(self.files.session) or self.record
        if ref is not None:
            record.evolve(checkpoint=ref, best=best, end_iteration=ref.iteration).write(self.files.session)


def _wait(seconds: float, supervisor: Supervisor) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not supervisor.stopping:
        time.sleep(0.1)
