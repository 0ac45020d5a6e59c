"""Every way the kit can refuse, each with the exit code that other programs rely on."""

from __future__ import annotations

from collections.abc import Sequence

from mapsage_kaggle.messages import Message, as_message, joined_by

EXIT_DONE = 0
EXIT_USAGE = 2
EXIT_CHECKPOINT = 3
EXIT_MACHINE = 4
EXIT_TRAINING = 5
EXIT_INTERRUPTED = 130


class MapsageError(Exception):
    """A refusal that a person can act on: what is wrong, and what to do next.

    Args:
        problem: One sentence: what was found, where, and what was expected instead.
        remedy: One sentence: the next step to take. Empty where there is none.
        lines: What the problem lists, one line each.
    """

    exit_code = EXIT_TRAINING

    def __init__(self, problem: str, remedy: str = "", lines: Sequence[str] = ()) -> None:
        super().__init__(problem, remedy, tuple(lines))
        self.problem = problem
        self.remedy = remedy
        self.lines = tuple(lines)

    @property
    def text(self) -> Message:
        """All of it: the lines below the problem, and the remedy below those."""
        listed = joined_by("\n  ", map(as_message, (self.problem, *self.lines)))
        separator = "\n" if self.lines else " "
        return joined_by(separator, (listed, as_message(self.remedy))) if self.remedy else listed

    def __str__(self) -> str:
        return self.text

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows of it (IPython asks): where the kit raised it helps nobody."""
        return [f"{type(self).__name__}: {self}"]


class UsageError(MapsageError):
    """The command or call was used wrongly."""

    exit_code = EXIT_USAGE


class ConfigError(MapsageError):
    """A training config that does not parse, or that the kit cannot run."""

    exit_code = EXIT_USAGE


class DataError(MapsageError):
    """A data set that is missing, empty or inconsistent."""

    exit_code = EXIT_USAGE


class CheckpointError(MapsageError):
    """No acceptable checkpoint, or a file that was rejected."""

    exit_code = EXIT_CHECKPOINT


class MachineError(MapsageError):
    """This machine cannot run what was asked: disk, permissions, GPU, packages."""

    exit_code = EXIT_MACHINE


class TrainingError(MapsageError):
    """Training started and failed."""

    exit_code = EXIT_TRAINING


class JobError(MapsageError):
    """Work after training (evaluating, predicting, exporting, averaging) started and failed."""

    exit_code = EXIT_TRAINING


class Interrupted(MapsageError):
    """Stopped by Ctrl-C, after saving."""

    exit_code = EXIT_INTERRUPTED
