"""Which checkpoint a session starts from: a ladder, walked from the newest down, each step explained.

Which run is continued, :mod:`mapsage_kaggle.checkpoints.runs` decides. Of its files, those with this
config's fingerprint (in the file, or in the record beside it) come before those that state none, as plain
mmengine writes them; files of another config are taken only where they are named. Within each group the
highest iteration comes first. They are inspected in this order until one
passes; the rest are not opened. Where only files of another run are found, the session does not
start fresh but ends: a config edited in the middle of a run looks just like that, and hours would go
into training the same again.

A ``load_from`` in a config that does not ask to resume is first of all a candidate like the others.
Where it cannot be one (weights only, another run, or already at ``max_iters`` without a word that it
belongs here) and nothing else could be resumed, its weights are what the config asks to start from,
and no permission is needed. They need not fit the whole model then (a head for other classes is the
usual case), but what does not fit is a step down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mapsage_kaggle.checkpoints.candidates import (
    Candidate,
    Origin,
    Prospect,
    diverged_from,
    why_not_needed,
    without_duplicates,
)
from mapsage_kaggle.checkpoints.inspect import inspect as inspect_any
from mapsage_kaggle.checkpoints.names import iteration_of, likely_kind_of
from mapsage_kaggle.checkpoints.selector import Inspect, Selector
from mapsage_kaggle.errors import CheckpointError
from mapsage_kaggle.messages import Message, joined_by
from mapsage_kaggle.outside import MAX_PATH, listed, visible
from mapsage_kaggle.records import SessionRecord, record_beside

if TYPE_CHECKING:
    from mapsage_kaggle.checkpoints.inspect import Inspection
    from mapsage_kaggle.checkpoints.scan import FoundCheckpoint, Rejected

Action = Literal["resume", "weights-only", "fresh"]
WhyFresh = Literal["fresh", "fresh_asked", "fresh_sent"]
"""There is nothing to resume, ``--resume`` says so, or another machine sends what there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a session starts from, and why.

    Attributes:
        action: ``resume`` with everything; ``weights-only`` with a fresh optimizer, from iteration
            0; ``fresh`` from the config's own initialisation.
        checkpoint: What to load, by its ``target``; None when fresh.
        record: The session record beside it, if there is one.
        explanations: One line for each candidate: taken, or why not.
        steps_down: One line for each step down the ladder, each to be an event and in the record.
        candidates: The first files, each once, the one that was taken before all.
        notice: What a person must see before all else: that nothing says whose checkpoint it is.
        fresh: Why it starts fresh, where it does.
    """

    action: Action
    checkpoint: FoundCheckpoint | None = None
    inspection: Inspection | None = None
    record: SessionRecord | None = None
    explanations: tuple[str, ...] = ()
    steps_down: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    notice: str = ""
    fresh: WhyFresh = "fresh"

    @property
    def target(self) -> Path | None:
        """The file to load."""
        return self.checkpoint.target if self.checkpoint is not None else None

    @property
    def resumed(self) -> Inspection | None:
        """What is known of the checkpoint that is resumed; None where training starts at iteration 0."""
        return self.inspection if self.action == "resume" else None


def choose(
    *,
    inspect: Inspect,
    resume: Literal["auto", "require", "never"] | Path = "auto",
    work_dir: Sequence[FoundCheckpoint] = (),
    load_from: FoundCheckpoint | Path | None = None,
    inputs: Sequence[FoundCheckpoint] = (),
    rejected: Sequence[Rejected] = (),
    fingerprint: str | None = None,
    config_asks_resume: bool = False,
    allow_weights_only: bool = False,
    weights_only: bool = False,
    expect_iteration: int | None = None,
    max_iters: int | None = None,
    run: str | None = None,
    work_dir_run: str | None = None,
    inspect_alone: Inspect = inspect_any,
) -> Choice:
    """Choose what a session starts from, by the rules at the top of this module.

    What is not explained here is an attribute of :class:`Selector`. ``resume``: ``auto`` starts fresh only
    where there is nothing to resume and the config does not ask for it; ``require`` never starts fresh;
    ``never`` resumes nothing; a path means exactly that file, of which ``weights_only`` takes no more than
    the weights. ``rejected`` is what the scans rejected: a place named like a checkpoint that is none (an
    empty file, a ``last_checkpoint`` that leads nowhere) is a candidate that failed. ``inspect_alone`` judges
    weights that need not fit all of the config's model.

    Raises:
        CheckpointError: Nothing acceptable was found where starting fresh is not allowed, or what
            was found is not at ``expect_iteration``. The message lists every candidate.
    """
    ladder = _Ladder(
        inspect_file=inspect,
        inspect_alone=inspect_alone,
        fingerprint=fingerprint,
        config_asks_resume=config_asks_resume or resume == "require",
        allow_weights_only=allow_weights_only,
        expect_iteration=expect_iteration,
        max_iters=max_iters,
        named_run=run,
        work_dir_run=work_dir_run,
    )
    if isinstance(resume, Path):
        return ladder.take_named(resume, weights_only=weights_only)
    if resume == "never":
        return ladder.start_anew([*work_dir, *inputs], load_from)
    found: list[tuple[FoundCheckpoint | Path, Origin]] = [(item, "work dir") for item in work_dir]
    if load_from is not None:
        found.append((load_from, "load_from"))
    found += [(item, "input") for item in inputs]
    return ladder.walk(found, rejected, may_start_fresh=resume == "auto" and not config_asks_resume)


@dataclass(kw_only=True, slots=True)
class _Ladder(Selector):
    """One walk down the ladder, its arguments those of :func:`choose`: collects explanations on the way."""

    allow_weights_only: bool = False
    expect_iteration: int | None = None
    max_iters: int | None = None

    # -- the three ways in

    def take_named(self, path: Path, *, weights_only: bool) -> Choice:
        candidate = self.candidate(path, "named")
        inspection = self.inspect(candidate)
        if inspection is None or inspection.verdict == "rejected":
            raise CheckpointError(
                Message("{path}, which --resume names, was rejected: {problem}.", path, candidate.problem),
                "Name another file, or let the kit choose with --resume auto.",
            )
        if self.lineage_of(inspection.fingerprint, candidate) == "another run":
            self.account.step(candidate, "is of a run with another config; taken, as it is named")
        if weights_only:
            return self._take(candidate, inspection, "weights-only", "taken as named, weights only, as asked")
        if inspection.verdict == "weights-only":
            if not self.allow_weights_only:
                raise CheckpointError(
                    Message(
                        "{path} holds weights only ({problem}): nothing can be resumed from it.",
                        path,
                        candidate.problem,
                    ),
                    "Add --allow-weights-only to start at iteration 0 from its weights.",
                )
            return self._take(candidate, inspection, "weights-only", "taken as named, weights only")
        return self._take(candidate, inspection, "resume", "taken as named")

    def start_anew(self, seen: Sequence[FoundCheckpoint], load_from: FoundCheckpoint | Path | None) -> Choice:
        """Resume nothing; the weights that a config names to start from are still its own wish."""
        if self.expect_iteration:
            raise CheckpointError(
                Message(
                    "--resume never starts at iteration 0, and --expect-iteration asks for {iteration}.",
                    self.expect_iteration,
                ),
                "Leave one of them out.",
            )
        for item in seen:
            reason = Message("not considered, as --resume says never")
            self.account.explanations.append(joined_by(": ", (visible(item.path, MAX_PATH), reason)))
            self.account.note(self.candidate(item, "named"), reason)
        if load_from is None:
            return self._fresh("starting fresh, as --resume says never", "fresh_asked")
        candidate = self.candidate(load_from, "load_from")
        if self.config_asks_resume:
            self.account.explain(candidate, "not considered, as --resume says never")
            return self._fresh("starting fresh, as --resume says never", "fresh_asked")
        choice = self._weights_of_config(candidate)
        if choice is None:
            raise self.account.refusal(
                Message("The config's load_from, {path}, cannot be used.", candidate.found.path)
            )
        return choice

    def walk(
        self,
        found: Sequence[tuple[FoundCheckpoint | Path, Origin]],
        rejected: Sequence[Rejected],
        *,
        may_start_fresh: bool,
    ) -> Choice:
        """Walk down: newest resumable, older resumable, best weights if allowed, refusal."""
        candidates = without_duplicates([self.candidate(item, origin) for item, origin in found])
        self.read_headers(candidates)
        resumable = [item for item in candidates if self._may_resume(item)]
        strangers = [item for item in candidates if self.is_stranger(item) and item.is_best]
        known = [item for item in candidates if not self.is_stranger(item)]
        ours = self.of_one_run([item for item in known if item in resumable] or known)
        ranked = sorted(
            (item for item in resumable if item in ours or self.is_stranger(item)), key=Prospect.order
        )
        start = next((item for item in resumable if item not in ranked and self.is_start(item)), None)
        for position, candidate in enumerate(ranked):
            if not self.is_stranger(candidate):
                inspection = self.inspect(candidate)
                if inspection is not None and inspection.verdict == "resumable":
                    candidate.lineage = self.lineage_of(inspection.fingerprint, candidate)
                    if not self.is_stranger(candidate) and not self._is_done_start(candidate):
                        self._explain_rest(candidate, [*ranked[position + 1 :], *strangers])
                        self._step_over(candidate, rejected)
                        return self._take(candidate, inspection, "resume", self._why_taken(candidate))
            if self.is_start(candidate):
                start = candidate
            elif self.is_stranger(candidate):
                strangers.append(candidate)
            else:
                self.fail(candidate)
        for candidate in strangers:
            self.account.explain(candidate, "not taken: it is of a run with another config")
        for place in rejected:
            if likely_kind_of(place.path.name) not in ("epoch", "other"):
                self.num_failed += 1
                self.account.no_checkpoint(place)
        if start is not None and self.num_failed:
            self.account.explain(start, "not taken: it would start anew, and this run has been further")
        elif start is not None:
            choice = self._weights_of_config(start)
            if choice is not None:
                return choice
            self.num_failed += 1
        runs = {item.run for item in ours}
        weights = [
            item
            for item in known
            if item.run in runs and (item.is_best or item.verdict == "weights-only") and item is not start
        ]
        choice = self._weights_if_allowed(sorted(weights, key=Prospect.order))
        if choice is not None:
            return choice
        if may_start_fresh and not (self.num_failed or strangers or weights):
            return self._fresh("starting fresh: there is no checkpoint of this run")
        raise self._nothing(strangers, weights)

    # -- rungs

    def _weights_of_config(self, candidate: Prospect) -> Choice | None:
        inspection = self.inspect(candidate)
        if inspection is not None and inspection.verdict == "rejected":
            misfit = candidate.problem
            inspection = self.inspect(candidate, must_fit=False)
            if inspection is not None and inspection.verdict != "rejected":
                self.account.step(
                    candidate, Message("its weights are loaded as far as they fit: {why}", misfit)
                )
        if inspection is None or inspection.verdict == "rejected":
            self.account.step(candidate, Message("not taken: {why}", candidate.problem))
            return None
        return self._take(
            candidate, inspection, "weights-only", "taken, weights only, as the config's load_from asks"
        )

    def _weights_if_allowed(self, candidates: Sequence[Prospect]) -> Choice | None:
        for candidate in candidates:
            if not self.allow_weights_only:
                if candidate.verdict != "weights-only":
                    self.account.explain(candidate, "not taken: a best checkpoint holds weights only")
                continue
            inspection = self.inspect(candidate)
            if inspection is not None and inspection.verdict != "rejected":
                if self.lineage_of(inspection.fingerprint, candidate) == "another run":
                    self.account.explain(candidate, "not taken: it is of a run with another config")
                    continue
                self.account.step(
                    candidate,
                    "WEIGHTS ONLY: nothing can be resumed, so training starts at iteration 0 from these "
                    "weights, with a fresh optimizer and schedule, as --allow-weights-only permits",
                )
                return self._take(candidate, inspection, "weights-only", None)
            self.account.step(candidate, Message("not taken: {why}", candidate.problem))
        return None

    def _take(
        self, candidate: Prospect, inspection: Inspection, action: Action, reason: str | None
    ) -> Choice:
        iteration = inspection.iteration if action == "resume" else 0
        self.account.taken(candidate, reason)
        if self.expect_iteration is not None and iteration != self.expect_iteration:
            raise self.account.refusal(
                Message(
                    "--expect-iteration asks for {wanted}, and {path} starts at {iteration}.",
                    self.expect_iteration,
                    candidate.found.path,
                    iteration,
                ),
                Message(
                    "Attach the output that holds iteration {iteration}, name its file with --resume, or "
                    "leave --expect-iteration out.",
                    self.expect_iteration,
                ),
            )
        return Choice(
            action=action,
            checkpoint=candidate.found,
            inspection=inspection,
            record=candidate.record,
            explanations=tuple(listed(self.account.explanations)),
            steps_down=tuple(listed(self.account.steps_down)),
            candidates=self.account.candidates,
            notice=self.taken_run.notice if self.taken_run else "",
        )

    def _fresh(self, reason: str, why: WhyFresh = "fresh") -> Choice:
        if self.expect_iteration:
            raise self.account.refusal(
                Message(
                    "--expect-iteration asks for {wanted}, and there is nothing to resume.",
                    self.expect_iteration,
                ),
                "Attach the output of the session before, or leave --expect-iteration out.",
            )
        return Choice(
            action="fresh",
            explanations=(*listed(self.account.explanations), reason),
            candidates=self.account.candidates,
            fresh=why,
        )

    # -- what is known of a candidate

    def _may_resume(self, candidate: Prospect) -> bool:
        if candidate.counts_epochs and candidate.origin != "load_from":
            self.account.explain(candidate, "not taken: it counts epochs, and this run counts iterations")
            return False
        return not candidate.is_best or candidate.origin == "load_from"

    def _is_done_start(self, candidate: Prospect) -> bool:
        """Whether a resumable ``load_from`` is meant as a start for a new run rather than resumed."""
        return (
            self.is_start(candidate)
            and candidate.lineage != "this run"
            and self.max_iters is not None
            and (candidate.iteration or 0) >= self.max_iters
        )

    # -- words

    def _why_taken(self, candidate: Prospect) -> str:
        if candidate.lineage == "this run":
            return Message("taken: the highest iteration of this run that passes")
        if candidate.lineage == "another run":
            self.account.step(
                candidate, "is of a run with another config; taken, as the config's load_from names it"
            )
            return Message("taken, as the config's load_from names it")
        return Message(
            "taken: the highest iteration that passes; it states no run, but fits the model and classes"
        )

    def _explain_rest(self, taken: Prospect, rest: Sequence[Prospect]) -> None:
        apart = diverged_from(taken, rest)
        if apart is not None:
            self.account.step(
                apart, Message("not taken: it and {path} are one run that was trained apart", taken.target)
            )
        for candidate in rest:
            if self.is_stranger(candidate):
                reason: str = Message("it is of a run with another config; name it with --resume to take it")
            else:
                reason = why_not_needed(candidate, taken)
            self.account.explain(candidate, Message("not needed: {why}", reason))

    def _step_over(self, taken: Prospect, rejected: Sequence[Rejected]) -> None:
        """Tell of what is named like a later checkpoint of the run and holds nothing: a step down, too."""
        for place in rejected:
            record = record_beside(place.path)
            ours = record is None or not taken.run_id or record.run_id == taken.run_id
            if ours and (iteration_of(place.path.name) or 0) > (taken.iteration or 0):
                self.account.no_checkpoint(place)

    def _nothing(self, strangers: Sequence[Prospect], weights: Sequence[Prospect]) -> CheckpointError:
        if weights and not self.allow_weights_only:
            return self.account.refusal(
                "No checkpoint can be resumed; there are weights without an optimizer.",
                "Add --allow-weights-only to start at iteration 0 from the best of them, or attach the "
                "output that holds an iter_N.pth.",
            )
        if strangers and not self.num_failed:
            return self._only_strangers(strangers)
        if self.num_failed or weights:
            return self.account.refusal(
                "Every checkpoint found was rejected.",
                "Attach an earlier output of this run, or start anew with --resume never.",
            )
        return self.account.refusal(
            "There is no checkpoint to resume from, and starting fresh was not allowed.",
            "Attach the output of the session before, or start anew with --resume never.",
        )

    def _only_strangers(self, strangers: Sequence[Prospect]) -> CheckpointError:
        """Return the refusal of checkpoints of other runs, with what sets the newest apart."""
        newest = min(strangers, key=lambda item: (item.is_best, -(item.iteration or 0)))
        problem = Message("Every checkpoint found is of a run with another config.")
        anew = Message("to start a new one, --resume never")
        inspection = self.inspect(newest)
        if inspection is not None and inspection.verdict == "resumable":
            return self.account.refusal(
                problem,
                Message(
                    "To continue that run with this config, say --resume {path}; {anew}.", newest.target, anew
                ),
            )
        return self.account.refusal(
            Message(
                "{problem} The newest, {path}, does not fit: {why}.", problem, newest.target, newest.problem
            ),
            Message("Use the config that it was trained with; {anew}.", anew),
        )
