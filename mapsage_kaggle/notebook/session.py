"""What the cells of the notebook call, one after the other.

:func:`preflight` opens a session and returns it; its methods are the cells after that. Each shows a
panel, and refuses by raising, so that a batch run that cannot work ends within its first minute.
In a batch run ``train`` blocks; interactively it returns at once, and ``what_next`` waits.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mapsage_kaggle import checks
from mapsage_kaggle.checkpoints.scan import scan
from mapsage_kaggle.clock import SessionClock, format_duration
from mapsage_kaggle.config.modules import find_config
from mapsage_kaggle.config.reading import data_roots_of, read_config
from mapsage_kaggle.config.trainable import check_trainable
from mapsage_kaggle.config.weights import pretrained_of, weights_files
from mapsage_kaggle.data.datasets import (
    EARTHVQA_CLASSES,
    EARTHVQA_PALETTE,
    LOVEDA_CLASSES,
    LOVEDA_PALETTE,
    check_data,
    list_pairs,
)
from mapsage_kaggle.data.find import count_images, find_data, find_pretrained
from mapsage_kaggle.display.cells import check_finding, choice_panel, configuration_panel, refusal_panel
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import Finding, Panel, say, show
from mapsage_kaggle.display.text import TextSink
from mapsage_kaggle.display.widgets import CheckpointPicker, Place, can_show_widgets
from mapsage_kaggle.errors import MapsageError, TrainingError, UsageError
from mapsage_kaggle.events import read_events
from mapsage_kaggle.machine import installed_stack, run_type, survey
from mapsage_kaggle.messages import Message
from mapsage_kaggle.notebook.form import parameters_text, show_form
from mapsage_kaggle.notebook.view import View
from mapsage_kaggle.paths import KagglePaths, WorkDir
from mapsage_kaggle.processes import has_gpu_device
from mapsage_kaggle.setup.install import finish_proof
from mapsage_kaggle.training.follow import Follower
from mapsage_kaggle.training.handle import TrainingHandle
from mapsage_kaggle.training.options import PARAMETERS, Options, in_notebook, options_from
from mapsage_kaggle.training.prepare import Discovery, Prepared, discover, prepare
from mapsage_kaggle.training.supervisor import STOP_GRACE_S

if TYPE_CHECKING:
    from mapsage_kaggle.jobs.evaluate import Evaluation
    from mapsage_kaggle.machine import Machine
    from mapsage_kaggle.records import SessionRecord

R = TypeVar("R")

DATA_SETS = {
    "EarthVQADataset": (EARTHVQA_CLASSES, EARTHVQA_PALETTE),
    "LoveDASplitDataset": (LOVEDA_CLASSES, LOVEDA_PALETTE),
}
"""Classes and colours of the data sets that the kit can check, by their type in the config."""

NUM_SAMPLES = 3
"""How many images the preflight shows with their masks."""

EVALUATION_START_S = 60.0
UNKNOWN_EVALUATION_S = 3600.0
"""How long an evaluation may take besides its images, and in all where no validation has been timed."""

PROGRESS_LINES = 300
"""About how many progress lines a batch session prints in up to 10 hours; then one in 2 minutes."""


def preflight(
    config: str | Path,
    *,
    language: str = "en",
    **asked: Any,
) -> NotebookSession:
    """Check the machine and the data set, and open the session.

    Args:
        config: A config file, or the name of one that comes with the kit.
        language: Of all that is shown.
        asked: The other parameters of the notebook, in small letters: those of
            :data:`mapsage_kaggle.training.options.PARAMETERS` that are ``in_notebook``. Times are texts
            such as ``12h``.

    Raises:
        UsageError: A parameter's value is invalid.
        ConfigError: There is no such config, or it does not parse.
        DataError: The data set is missing or damaged.
        MachineError: This machine cannot run the session.
    """
    unknown = asked.keys() - {item.name for item in PARAMETERS if item.in_notebook}
    if unknown:
        raise TypeError(f"preflight() got an unexpected keyword argument {min(unknown)!r}")
    words = Words(language, in_notebook)
    with words.refusing():
        options = options_from(find_config(config), asked)
        clock = SessionClock.for_this_session(limit_s=options.session_limit_s, reserve_s=options.reserve_s)
        paths = KagglePaths.from_environment()
        # What needs no torch comes first: its refusals need not wait for it.
        seen = _Seen()
        if not checks.stack_problem(installed_stack()):
            seen = _look_around(options, paths, words)
            if seen.error is None and run_type() == "batch" and not has_gpu_device():
                _see_without_gpu(seen, options, paths, clock, words)
        if seen.error is None:
            finish_proof()
            machine = survey(paths)
            rows = checks.preflight(paths, machine, clock=clock)
            seen.findings[:0] = [check_finding(check, words) for check in rows]
        _show_seen(seen, words)
        if seen.error is not None:
            raise seen.error
        checks.require(rows)
        return NotebookSession(options, paths=paths, machine=machine, clock=clock, words=words)


class _OutOfTimeError(Exception):
    """An evaluation has used up the session's time."""


def _cell(method: Callable[[NotebookSession], R]) -> Callable[[NotebookSession], R]:
    """Make a method refuse in the session's language."""

    @functools.wraps(method)
    def call(self: NotebookSession) -> R:
        with self._words.refusing():
            return method(self)

    return call


class NotebookSession:
    """One session in a notebook: what was asked, and how far it has got.

    Attributes:
        options: What was asked.
        paths: Kaggle's folders.
        machine: This machine.
        clock: How long the session has.
        discovery: What it starts from; None before :meth:`discover`.
        prepared: What it will run; None before :meth:`configure`.
        handle: The training; None before :meth:`train`.
    """

    def __init__(
        self,
        options: Options,
        *,
        paths: KagglePaths,
        machine: Machine,
        clock: SessionClock,
        words: Words,
    ) -> None:
        self.options = options
        self.paths = paths
        self.machine = machine
        self.clock = clock
        self.discovery: Discovery | None = None
        self.prepared: Prepared | None = None
        self.handle: TrainingHandle | None = None
        self._words = words
        self._view: View | None = None
        self._follower: Follower | None = None

    def __repr__(self) -> str:
        return f"<session of {self.options.config.name}, {format_duration(self.clock.left_s())} left>"

    @property
    def interactive(self) -> bool:
        """Whether somebody is there to press buttons; else ``train`` blocks."""
        return self.machine.run_type == "interactive"

    # -- the cells

    @_cell
    def discover(self) -> None:
        """Find the checkpoints in the inputs and the work dir, and choose what to start from.

        Raises:
            CheckpointError: No acceptable one where one is needed.
            UsageError: Training is going on in the work dir already.
        """
        words = self._words
        self._wait_for_others()
        try:
            self.discovery = discover(self.options, paths=self.paths, on_wait=say)
        except MapsageError as error:
            show(refusal_panel(words("discovery"), error, self._words))
            raise
        show(choice_panel(words("discovery"), self.discovery.choice, words))
        if self._widgets:
            found = [item.path for item in self.discovery.choice.candidates if item.verdict != "rejected"]
            if found:
                CheckpointPicker(words, found, on_choice=self._pick).display()

    @_cell
    def configure(self) -> None:
        """Plan what changes in the config to run it here, and show it. Only a refusal is recorded.

        Raises:
            MachineError: The machine cannot run it.
            ConfigError: It cannot run here.
            DataError: The data set is missing or inconsistent.
        """
        if self.discovery is None:
            raise UsageError("Nothing has been discovered yet.", "Run the cells from the top.")
        self.prepared = prepare(self.discovery, machine=self.machine, clock=self.clock)
        show(configuration_panel(self.prepared, self._words, clock=self.clock))
        if self._widgets:
            show_form(self.prepared, self._words, on_use=self._use)

    @_cell
    def train(self) -> None:
        """Train until the end, the deadline or a stop request, and hand over.

        In a batch run this blocks and prints plain lines; interrupting the cell then stops in good
        order. Interactively it returns at once, and a view with buttons is kept up to date.

        Raises:
            MapsageError: It failed with nothing new to hand over.
        """
        self._refuse_while_training()
        if self.prepared is None:
            raise UsageError(
                "Nothing has been configured yet.", "Run the cell with session.configure() first."
            )
        if not self.interactive:
            every_s = min(120.0, max(5.0, self.clock.limit_s / PROGRESS_LINES))
            sink = TextSink(max_iters=self.prepared.patch.max_iters, every_s=every_s, words=self._words)
            self.handle = TrainingHandle(self.prepared, [sink]).start()
            self.handle.wait()
            return
        if self.machine.on_kaggle:
            say(self._words("idle_session"))
        record = self.prepared.discovery.choice.record
        best = record.best if record is not None else None
        self._view = View(
            self,
            start_iteration=self.prepared.start_iteration,
            max_iters=self.prepared.patch.max_iters,
            best=(best.iteration, best.value) if best and best.metric == "mIoU" and best.value else None,
        )
        self.handle = TrainingHandle(self.prepared, [self._view.live]).start()
        self._view.close_after(self.handle.wait)

    @_cell
    def watch(self) -> None:
        """Show the training view here, as it stands now.

        That may be training in this work dir that another process supervises, or that a restarted kernel
        left behind; the buttons work as well.

        Raises:
            TrainingError: Nothing is being trained.
        """
        if self._view is not None:
            self._view.display()
            return
        follower = Follower(self.work_dir)
        if not follower.running:
            raise TrainingError(
                Message("Nothing is being trained in {path}.", self.work_dir), "Run the cells from the top."
            )
        record = follower.record()
        if self.interactive:
            self._view = View(
                self,
                start_iteration=record.start_iteration if record is not None else 0,
                max_iters=record.max_iters if record is not None else 0,
            )
            follower = Follower(self.work_dir, [self._view.live])
        self._follower = follower
        follower.read()
        follower.start()
        if self._view is not None:
            self._view.close_after(follower.ended_record)

    @_cell
    def stop(self) -> None:
        """Ask training to save and stop; it then takes some seconds."""
        self._training().stop()
        if self._view is not None:
            self._view.live.asked("stop")

    @_cell
    def save(self) -> None:
        """Ask training to save a checkpoint now."""
        self._training().save()
        if self._view is not None:
            self._view.live.asked("save")

    @_cell
    def wait(self) -> SessionRecord:
        """Wait for the end of training and return the session's record.

        Interrupting the cell stops in good order: everything is saved.

        Raises:
            MapsageError: It failed with nothing new to hand over.
        """
        if self.handle is None:
            raise TrainingError("Nothing is being trained.", "Run the cells from the top.")
        return self.handle.wait()

    def evaluate(self, enabled: bool = True) -> None:
        """Evaluate the run's best checkpoint and show its scores, its confusions and a few predictions.

        It costs the run nothing: it is skipped where the session's time is short, ends before that is used
        up, and where it fails, that is shown, not raised. What was counted is kept for the next evaluation.

        Args:
            enabled: False skips it.
        """
        from mapsage_kaggle.display.evaluated import confusion_of, evaluation_panel

        words = self._words
        panel = Panel(title=words("evaluation"), tone="note")
        reason = words("eval_off") if not enabled else self._reason_not_to_evaluate()
        if reason:
            show(replace(panel, tone="", lead=reason))
            return
        try:
            found = _evaluate_best(self)
            document = found.to_json()
            show(evaluation_panel(document, words, [confusion_of(document, words), *found.examples]))
        except _OutOfTimeError:
            show(replace(panel, lead=words("eval_cut")))
        except Exception as error:  # noqa: BLE001 - drawing libraries raise what they like
            message = words.refusal(error) if isinstance(error, MapsageError) else str(error)
            show(replace(panel, lead=words("eval_failed", message=message)))
        else:
            self._write_report()

    def _reason_not_to_evaluate(self) -> str:
        """Return why the evaluation is skipped; an empty string where it may begin."""
        words = self._words
        if self.handle is None or self.handle.running:
            return words("eval_later")
        if self.handle.wait().best is None:
            return words("eval_nothing")
        needed_s, left_s = _evaluation_needs_s(self.work_dir), self.clock.left_s()
        if needed_s > left_s:
            left, needed = format_duration(max(0.0, left_s)), format_duration(needed_s)
            return words("eval_no_time", left=left, needed=needed, config=self.options.config)
        return ""

    @_cell
    def what_next(self) -> None:
        """Show how the session ended, and what to do now.

        During training this waits or, where buttons must keep working, returns at once, and the panel is
        filled in at the end. A session that failed after a new checkpoint is shown in red and raises
        nothing: Kaggle attaches only outputs of notebooks that end well, and the checkpoint is needed.

        Raises:
            MapsageError: It failed with nothing new to hand over.
        """
        if self._widgets and self.handle is not None and self.handle.running:
            place = Place(Panel(title=self._words("outcome"), lead=self._words("view_later"))).display()
            handle = self.handle

            def fill() -> None:
                try:
                    place.replace(self._outcome(handle.wait()))
                except Exception as error:  # noqa: BLE001 - else it would say for good that it is coming
                    if not isinstance(error, MapsageError):
                        error = TrainingError(f"{type(error).__name__}: {error}")
                    place.replace(refusal_panel(self._words("outcome"), error, self._words))

            threading.Thread(target=fill, name="mapsage-outcome", daemon=True).start()
            return
        show(self._outcome(self.wait()))

    def _outcome(self, record: SessionRecord) -> Panel:
        from mapsage_kaggle.display.report import outcome_panel

        files = WorkDir(self.work_dir)
        stale = not files.report.is_file() or files.report.stat().st_mtime < files.session.stat().st_mtime
        # The supervisor draws it in English, for any reader of the output.
        if stale or self._words.language != "en":
            self._write_report()
        return outcome_panel(record, self.work_dir, self._words)

    def _write_report(self) -> None:
        from mapsage_kaggle.display.report import try_to_write_report

        problem = try_to_write_report([self.work_dir], language=self._words.language)
        if problem:
            say(self._words.translate(problem))

    # -- parts of them

    def _pick(self, path: Path | None, weights_only: bool) -> Panel:
        """Start from the file that a person picked, or fresh; :meth:`configure` must then run again."""
        options = replace(
            self.options,
            resume="never" if path is None else path,
            weights_only=weights_only and path is not None,
            allow_weights_only=weights_only or self.options.allow_weights_only,
            expect_iteration=None,
        )
        try:
            self._refuse_while_training()
            self.discovery = discover(options, paths=self.paths, record_refusals=False)
        except MapsageError as error:
            return refusal_panel(self._words("discovery"), error, self._words)
        self.options, self.prepared = options, None
        return choice_panel(self._words("pick_done"), self.discovery.choice, self._words)

    def _use(self, options: Options) -> Panel:
        """Apply what the form asks for, in memory; if it is refused, the plan stays as it was."""
        words = self._words
        clock = SessionClock.for_this_session(limit_s=options.session_limit_s, reserve_s=options.reserve_s)
        try:
            self._refuse_while_training()
            discovery = discover(options, paths=self.paths, record_refusals=False)
            prepared = prepare(discovery, machine=self.machine, clock=clock, to_train=False)
        except MapsageError as error:
            return refusal_panel(words("configuration"), error, words)
        self.options, self.clock, self.discovery, self.prepared = options, clock, discovery, prepared
        tail = words("form_used", text=parameters_text(options))
        return configuration_panel(prepared, words, clock=clock, tail=(tail,))

    @property
    def work_dir(self) -> Path:
        return self.paths.work_dir(self.options.config, self.options.work_dir)

    @property
    def _widgets(self) -> bool:
        return self.interactive and can_show_widgets()

    def _training(self) -> TrainingHandle | Follower:
        found = self.handle if self.handle is not None else self._follower
        if found is None:
            raise TrainingError("Nothing is being trained.", "Run the cells from the top.")
        return found

    def _refuse_while_training(self) -> None:
        if self.handle is not None and self.handle.running:
            raise UsageError(
                "Training is going on already.", "Wait for it, or press Stop (or session.stop()) first."
            )

    def _wait_for_others(self) -> None:
        """Wait for training that a restarted kernel left in the work dir; refuse beside any other."""
        self._refuse_while_training()
        if self._follower is None and not Follower(self.work_dir).running:
            return
        if self._follower is None:
            self.watch()
        assert self._follower is not None
        if not self._follower.supervised:
            say(self._words("follow_wait"))
            self._follower.wait(STOP_GRACE_S)
        if self._follower.running:
            raise UsageError(
                Message("Another process trains in {path} already; the view above shows it.", self.work_dir),
                "Wait for its end, or press Stop there; then run this cell again.",
            )
        self._follower = self._view = None


def _evaluation_needs_s(work_dir: Path) -> float:
    """Return a generous estimate from validations, which look at the same images."""
    seconds = [
        float(event.data["seconds"])
        for event in read_events(WorkDir(work_dir).events)
        if event.event == "validation" and event.data.get("seconds")
    ]
    return EVALUATION_START_S + 2.0 * seconds[-1] if seconds else UNKNOWN_EVALUATION_S


def _evaluate_best(session: NotebookSession) -> Evaluation:
    """Evaluate the run's best checkpoint, until the session's deadline at most."""
    from mapsage_kaggle.jobs.evaluate import EvaluationOptions, evaluate
    from mapsage_kaggle.jobs.subject import ModelOptions, open_subject

    subject = open_subject(
        ModelOptions(
            config=session.options.config,
            run=session.options.run,
            work_dir=session.work_dir,
            overrides=session.options.overrides,
            code=session.options.code,
            pass_env=session.options.pass_env,
            device="cpu" if session.options.gpus == 0 else "auto",
            needs_data=True,
        ),
        paths=session.paths,
    )

    def in_time(event: Mapping[str, Any]) -> None:
        if session.clock.left_s() <= 0:
            raise _OutOfTimeError

    return evaluate(subject, EvaluationOptions(), on_event=in_time)


@dataclass(kw_only=True)
class _Seen:
    """What a look around has found, and why the session cannot run."""

    findings: list[Finding] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    error: MapsageError | None = None


def _look_around(options: Options, paths: KagglePaths, words: Words) -> _Seen:
    """Look for checkpoints, pretrained weights and the data set, without torch."""
    checkpoint, is_missing = _look_for_checkpoints(options, paths, words)
    seen = _Seen(findings=[checkpoint, *_look_for_weights(options, paths, words)])
    try:
        found, seen.pictures = _look_at_data(options, paths, words)
        seen.findings += found
    except MapsageError as error:
        seen.error = error
        seen.findings.append(Finding(tone="bad", name=words.translate("data"), message=words.refusal(error)))
        return seen
    if is_missing:
        try:
            discover(options, paths=paths, on_wait=say)
            seen.findings[0], _ = _look_for_checkpoints(options, paths, words)  # it was mounted late
        except MapsageError as error:
            seen.error = error
            seen.findings[0] = replace(checkpoint, tone="bad", message=words.refusal(error))
    return seen


def _see_without_gpu(
    seen: _Seen, options: Options, paths: KagglePaths, clock: SessionClock, words: Words
) -> None:
    """Note why a batch session without any GPU would be refused, which needs no torch either."""
    try:
        prepare(discover(options, paths=paths, on_wait=say), machine=survey(paths, ask=False), clock=clock)
    except MapsageError as error:
        seen.error = error
        seen.findings.insert(
            0, Finding(tone="bad", name=words("configuration"), message=words.refusal(error))
        )


def _show_seen(seen: _Seen, words: Words) -> None:
    good = not any(item.tone == "bad" for item in seen.findings)
    show(
        Panel(
            title=words("preflight"),
            tone="good" if good else "bad",
            lead=words("preflight_good" if good else "preflight_bad"),
            findings=tuple(seen.findings),
            pictures=tuple(seen.pictures),
        )
    )


def _look_for_checkpoints(options: Options, paths: KagglePaths, words: Words) -> tuple[Finding, bool]:
    """Look for checkpoints among the inputs and in the work dir, by their names alone.

    Returns:
        What was found, and whether one that was asked for is missing.
    """
    name = words("checkpoint")
    work_dir = paths.work_dir(options.config, options.work_dir)
    places = [folder for folder in (work_dir, paths.input) if folder.is_dir()]
    files = [item for folder in places for item in scan(folder).files if item.iteration is not None]
    if isinstance(options.resume, Path):
        found = options.resume.is_file()
        key = "checkpoint_named" if found else "checkpoint_missing"
        message = words(key, path=options.resume)
        return Finding(tone="good" if found else "bad", name=name, message=message), not found
    if not files:
        needed = options.resume == "require"
        key = "checkpoint_needed" if needed else "checkpoint_none"
        return Finding(tone="note" if needed else "good", name=name, message=words(key)), needed
    newest = max(files, key=lambda item: item.iteration or 0)
    count = len({item.target.resolve() for item in files})
    message = words("checkpoint_found", count=count, iteration=newest.iteration, path=newest.target)
    return Finding(tone="good", name=name, message=message), False


def _look_for_weights(options: Options, paths: KagglePaths, words: Words) -> list[Finding]:
    """Look for the pretrained weights that the config names; a resume needs none."""
    cfg = read_config(options.config, options.overrides)
    found = find_pretrained(cfg, paths.input)
    return [
        Finding(
            tone="good" if name in found else "note",
            name=words("weights_row"),
            message=words("weights_found", path=found[name])
            if name in found
            else words("weights_missing", file=weights_files(name)[0], name=name),
        )
        for name in pretrained_of(cfg)
    ]


def _look_at_data(options: Options, paths: KagglePaths, words: Words) -> tuple[list[Finding], list[bytes]]:
    """Find the data set of the config and decode a sample of it.

    Returns:
        What was found, and a PNG of each data set: classes, images and masks.
    """
    from mapsage_kaggle.display.plots import data_picture

    cfg = read_config(options.config, options.overrides)
    check_trainable(cfg, options.config, lambda: count_images(cfg, paths.input))
    roots = find_data(cfg, paths.input)
    kinds = data_roots_of(cfg)
    findings: list[Finding] = []
    pictures: list[bytes] = []
    for name, path in roots.items():
        known = DATA_SETS.get(kinds.get(name, ""))
        if known is None:
            findings.append(
                Finding(tone="good", name=words.translate("data"), message=words("data_unchecked", path=path))
            )
            continue
        classes, palette = known
        report = check_data(path, len(classes))
        report.raise_for_problems()
        pairs = ", ".join(f"{split} {count}" for split, count in report.pairs.items())
        total = sum(report.pixels[1:]) or 1
        shares = ", ".join(
            f"{label} {100 * count / total:.0f} %"
            for label, count in zip(classes, report.pixels[1:], strict=True)
        )
        message = words("data_good", path=path, pairs=pairs, decoded=report.decoded, shares=shares)
        findings.append(Finding(tone="good", name=words.translate("data"), message=message))
        pairs_of = list_pairs(report.root.splits[0])
        step = max(1, len(pairs_of) // NUM_SAMPLES)
        pictures.append(
            data_picture(
                [(pair.image, pair.mask) for pair in pairs_of[::step][:NUM_SAMPLES] if pair.mask],
                report.pixels,
                classes,
                palette,
            )
        )
    return findings, pictures
