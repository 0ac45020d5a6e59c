"""What the cells of the notebook call, one after the other.

:func:`preflight` opens a session and returns it; its methods are the cells after that. Each shows a
panel, and refuses by raising, so that a batch run that cannot work ends within its first minute.
In a batch run ``train`` blocks; interactively it returns at once, and ``what_next`` waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mapsage_kaggle.clock import SessionClock, format_duration, parse_duration_s
from mapsage_kaggle.dataset import EARTHVQA_CLASSES, LOVEDA_CLASSES
from mapsage_kaggle.display.panels import Finding, Panel, Tone, in_kernel, say, show
from mapsage_kaggle.display.words import Words
from mapsage_kaggle.errors import ConfigError, MapsageError, TrainingError, UsageError
from mapsage_kaggle.paths import KagglePaths, WorkDir, bundled

if TYPE_CHECKING:
    from mapsage_kaggle import training
    from mapsage_kaggle.environment import Check, Machine
    from mapsage_kaggle.events import ProgressSink
    from mapsage_kaggle.records import SessionRecord

CLASSES = {"EarthVQADataset": EARTHVQA_CLASSES, "LoveDASplitDataset": LOVEDA_CLASSES}
"""The classes of the data sets that the kit can look into, by the type that reads them."""

PROGRESS_LINES = 300
"""About how many progress lines a batch session prints, however long it is."""


def preflight(
    config: str | Path,
    *,
    resume: str = "auto",
    expect_iteration: int | None = None,
    allow_weights_only: bool = False,
    extend_to: int | None = None,
    session_limit: str | float = "12h",
    reserve: str | float = "10m",
    gpus: int | Literal["auto"] = "auto",
    overrides: Sequence[str] = (),
    language: str = "en",
) -> Session:
    """Look at the machine and the data set, and open the session.

    Args:
        config: A config file, or the name of one that comes with the kit.
        resume: ``auto``, ``require``, ``never``, or the path of a checkpoint.
        expect_iteration: The iteration that must be resumed from, else nothing is trained.
        allow_weights_only: Whether weights alone may be taken where nothing can be resumed.
        extend_to: A new, later end for the run.
        session_limit: How long the platform lets the session live, such as ``12h``.
        reserve: What is kept free at its end.
        gpus: ``auto``, or how many; 0 trains on the CPU.
        overrides: ``key=value`` with mmengine's dotted keys.
        language: Of all that is shown.

    Raises:
        UsageError: An argument makes no sense.
        ConfigError: There is no such config, or it does not parse.
        DataError: The data set is missing or damaged.
        MachineError: This machine cannot run the session.
    """
    from mapsage_kaggle import environment
    from mapsage_kaggle.training import Options

    words = Words(language)
    options = Options(
        config=find_config(config),
        resume=resume if resume in ("auto", "require", "never") else Path(resume),  # type: ignore[arg-type]
        expect_iteration=expect_iteration,
        allow_weights_only=allow_weights_only,
        extend_to=extend_to,
        session_limit_s=parse_duration_s(session_limit),
        reserve_s=parse_duration_s(reserve),
        gpus=gpus,
        overrides=tuple(overrides),
    )
    clock = SessionClock.for_this_session(limit_s=options.session_limit_s, reserve_s=options.reserve_s)
    paths = KagglePaths.from_environment()
    machine = environment.survey(paths)
    session = Session(options, paths=paths, machine=machine, clock=clock, words=words)
    checks = environment.preflight(paths, machine, clock=clock)
    findings = [_finding(check) for check in checks]
    fatal = [item for item in findings if item.tone == "bad"]
    data_error: MapsageError | None = None
    if not fatal:
        try:
            findings += session.look_at_data()
        except MapsageError as error:
            data_error = error
            findings.append(Finding(tone="bad", name="data", message=str(error)))
    good = not fatal and data_error is None
    show(
        Panel(
            title=words("preflight"),
            tone="good" if good else "bad",
            lead=words("preflight_good" if good else "preflight_bad"),
            findings=tuple(findings),
        )
    )
    environment.require(checks)
    if data_error is not None:
        raise data_error
    return session


class Session:
    """One session in a notebook: what was asked, and how far it has got.

    Attributes:
        options: What was asked.
        paths: Kaggle's folders.
        machine: What this machine is.
        clock: How long the session has.
        discovery: What it starts from; None before :meth:`discover`.
        prepared: What it will run; None before :meth:`configure`.
        handle: The training; None before :meth:`train`.
    """

    def __init__(
        self,
        options: training.Options,
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
        self.discovery: training.Discovery | None = None
        self.prepared: training.Prepared | None = None
        self.handle: training.TrainingHandle | None = None
        self._words = words

    def __repr__(self) -> str:
        return f"<session of {self.options.config.name}, {format_duration(self.clock.left_s())} left>"

    @property
    def interactive(self) -> bool:
        """Whether somebody is there to press buttons; else ``train`` blocks."""
        return self.machine.run_type == "interactive"

    # -- the cells

    def discover(self) -> None:
        """Find the checkpoints that are attached or here, and choose what to start from.

        Raises:
            CheckpointError: No acceptable one where one is needed; nothing is trained.
        """
        from mapsage_kaggle import training
        from mapsage_kaggle.display.text import choice_text

        words = self._words
        try:
            self.discovery = training.discover(self.options, paths=self.paths, on_wait=say)
        except MapsageError as error:
            show(Panel(title=words("discovery"), tone="bad", lead=str(error)))
            raise
        choice = self.discovery.choice
        show(
            Panel(
                title=words("discovery"),
                tone="note" if choice.action == "weights-only" or choice.steps_down else "good",
                lead=choice_text(choice, words) + ".",
                notes=choice.steps_down,
                lists=((words("candidates"), choice.explanations),) if choice.checkpoint else (),
            )
        )

    def configure(self) -> None:
        """Plan what changes in the config to run it here, and show it. Writes nothing.

        Raises:
            ConfigError: It cannot run here.
            DataError: The data set is missing or inconsistent.
        """
        from mapsage_kaggle import training

        words = self._words
        if self.discovery is None:
            raise UsageError("Nothing has been discovered yet.", "Run the cells from the top.")
        self.prepared = training.prepare(self.discovery, machine=self.machine, clock=self.clock)
        prepared, patch = self.prepared, self.prepared.patch
        where = (
            words("gpus", count=prepared.facts.world_size)
            if prepared.facts.on_gpu
            else words("cpu", threads=prepared.threads)
        )
        facts = (
            (words("iterations"), words("from_to", start=prepared.start_iteration, end=patch.max_iters)),
            (words("batch"), words("batch_of", effective=patch.effective_batch, micro=patch.micro_batch)),
            (words("processes"), where),
            (words("time_left"), words("until_written", left=format_duration(self.clock.left_s()))),
            (words("work_dir"), str(prepared.work_dir)),
        )
        show(
            Panel(
                title=words("configuration"),
                aside=self.options.config.name,
                tone="note" if patch.warnings else "good",
                facts=facts,
                notes=patch.warnings,
                diff=patch.diff(),
                diff_title=words("changed_keys", count=len(patch.changes)),
            )
        )

    def train(self) -> None:
        """Train until the end, the deadline or a stop request, and hand over.

        In a batch run this blocks and prints plain lines. Interactively it returns at once, and one
        panel is kept up to date; :meth:`stop` and :meth:`save` may be called meanwhile. An interrupt
        of a blocking cell is a stop in good order.

        Raises:
            MapsageError: It failed before there was anything new to hand over.
        """
        from mapsage_kaggle.training import TrainingHandle

        if self.handle is not None and self.handle.running:
            raise UsageError("Training is going on already.", "Wait for it, or call session.stop() first.")
        if self.prepared is None:
            raise UsageError("Nothing has been configured yet.", "Run the cells from the top.")
        self.handle = TrainingHandle(self.prepared, [self._sink(self.prepared)]).start()
        if not self.interactive:
            self.handle.wait()

    def stop(self) -> None:
        """Ask training to save and stop; it then takes some seconds."""
        self._training().stop()

    def save(self) -> None:
        """Ask training for a checkpoint now."""
        self._training().save()

    def wait(self) -> SessionRecord:
        """Wait for the end of training and return the session's record.

        Raises:
            MapsageError: It failed before there was anything new to hand over.
        """
        return self._training().wait()

    def what_next(self) -> None:
        """Wait for the end of training, show how the session ended, and what to do now.

        A session that failed after a new checkpoint is shown in red and raises nothing: Kaggle lets
        only notebooks that end well be attached to the next session, and the checkpoint is needed.

        Raises:
            MapsageError: It failed before there was anything new to hand over.
        """
        from mapsage_kaggle.display.report import outcome_panel, write_report

        record = self.wait()
        work_dir = self._training().prepared.work_dir
        files = WorkDir(work_dir)
        if not files.report.is_file() or files.report.stat().st_mtime < files.session.stat().st_mtime:
            try:
                write_report([work_dir], language=self._words.language)
            except (OSError, ValueError) as error:
                say(f"The report could not be drawn: {error}")
        show(outcome_panel(record, work_dir, self._words))

    # -- parts of them

    def look_at_data(self) -> list[Finding]:
        """Find the data set of the config and decode a sample of it.

        Raises:
            ConfigError: The config does not parse, or cannot be trained by the kit.
            DataError: The data set is missing or damaged.
        """
        from mapsage_kaggle import configure, training
        from mapsage_kaggle.dataset import check_data

        words = self._words
        cfg = configure.read_config(self.options.config, self.options.overrides)
        configure.check_trainable(cfg, self.options.config)
        roots = training.find_data(cfg, self.paths.input)
        kinds = configure.data_roots_of(cfg)
        findings = []
        for name, path in roots.items():
            classes = CLASSES.get(kinds.get(name, ""))
            if classes is None:
                findings.append(Finding(tone="good", name="data", message=words("data_unchecked", path=path)))
                continue
            report = check_data(path, len(classes))
            report.raise_for_problems()
            pairs = ", ".join(f"{split} {count}" for split, count in report.pairs.items())
            total = sum(report.pixels[1:]) or 1
            shares = ", ".join(
                f"{label} {100 * count / total:.0f} %"
                for label, count in zip(classes, report.pixels[1:], strict=True)
            )
            message = words("data_good", path=path, pairs=pairs, decoded=report.decoded, shares=shares)
            findings.append(Finding(tone="good", name="data", message=message))
        return findings

    def _sink(self, prepared: training.Prepared) -> ProgressSink:
        from mapsage_kaggle.display.live import LiveView
        from mapsage_kaggle.display.text import TextSink

        if self.interactive and in_kernel():
            return LiveView(
                start_iteration=prepared.start_iteration,
                max_iters=prepared.patch.max_iters,
                language=self._words.language,
            )
        every_s = min(120.0, max(5.0, self.clock.limit_s / PROGRESS_LINES))
        return TextSink(max_iters=prepared.patch.max_iters, every_s=every_s)

    def _training(self) -> training.TrainingHandle:
        if self.handle is None:
            raise TrainingError("Nothing is being trained.", "Run the cells from the top.")
        return self.handle


def find_config(name: str | Path) -> Path:
    """Return the config file of a given path, or of that name among the kit's own.

    Raises:
        ConfigError: There is none; the message has the names that there are.
    """
    path = Path(name)
    if path.is_file():
        return path.absolute()
    folder = bundled("configs")
    own = folder / path.name if path.suffix == ".py" else folder / f"{path.name}.py"
    if not path.is_absolute() and own.is_file():
        return own
    names = ", ".join(sorted(item.name for item in folder.glob("*.py") if not item.name.startswith("_")))
    raise ConfigError(
        f"There is no config {name}.", f"Give the path of a file, or one of the kit's own: {names}."
    )


def _finding(check: Check) -> Finding:
    tones: dict[str, Tone] = {"warning": "note", "error": "bad"}
    return Finding(
        tone="good" if check.ok else tones.get(check.level, ""), name=check.name, message=check.message
    )
