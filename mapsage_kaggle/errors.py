"""Every way the kit can refuse, each with the exit code that other programs rely on."""

from __future__ import annotations

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
    """

    exit_code = EXIT_TRAINING

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".rstrip()

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
