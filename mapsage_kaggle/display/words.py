"""The sentences that panels and the report show, by language."""

from __future__ import annotations

from collections.abc import Mapping

from mapsage_kaggle.display import words_notebook
from mapsage_kaggle.errors import UsageError

_ENGLISH: Mapping[str, str] = {
    # Stop reasons.
    "running": "running",
    "completed": "completed",
    "deadline": "out of time",
    "user": "stopped",
    "failed": "failed",
    "refused": "refused",
    # The preflight panel.
    "preflight": "Preflight",
    "preflight_good": "This machine can run the session.",
    "preflight_bad": "This machine cannot run the session.",
    "data_good": "{path}: {pairs}; {decoded} pairs decoded, all sound. Classes: {shares}.",
    "data_unchecked": "{path}: not one of the kit's own layouts, so only its folders were looked for.",
    # The discovery panel.
    "discovery": "Discovery",
    "resume": "Resuming at iteration {iteration} from {path}",
    "weights-only": "Weights only from {path}: optimizer and schedule start anew, from iteration 0",
    "fresh": "Starting fresh: there is no checkpoint of this run",
    "candidates": "What was found, and why it was taken or not",
    # The configuration panel.
    "configuration": "Configuration",
    "iterations": "iterations",
    "from_to": "{start:,} to {end:,}",
    "batch": "batch",
    "batch_of": "{effective} images an iteration, {micro} at a time",
    "processes": "runs on",
    "gpus": "{count} GPU(s)",
    "cpu": "CPU, {threads} threads",
    "time_left": "time",
    "until_written": "{left} until everything must be written",
    "work_dir": "work dir",
    "changed_keys": "{count} keys of the config are changed to run it here",
    # The training view.
    "training": "Training",
    "waiting": "Starting the training process …",
    "loss": "loss",
    "lr": "learning rate",
    "pace": "pace",
    "s_per_iteration": "{value:.2f} s/iteration",
    "saved": "last checkpoint",
    "left": "left",
    # The outcome.
    "outcome": "What next",
    "session": "Session {index}",
    "newest": "newest checkpoint",
    "best": "best {metric}",
    "at_iteration": "{value} at iteration {iteration:,}",
    "next_completed": "The run is finished. {best}Nothing is left to attach.",
    "next_best": "Its best checkpoint is {file}. ",
    "next_refused": "Nothing was trained, and nothing was changed. {message}",
    "next_failed": "What is proven is safe. Read the message and the end of {log}; then attach the output of "
    "this session as an input and run the same notebook again: it must resume at iteration {iteration:,}.",
    "next_go_on": "To go on, attach the output of this session as an input and run the same notebook again: "
    'it must resume at iteration {iteration:,}. To be sure of that, set RESUME = "require" and '
    "EXPECT_ITERATION = {iteration}.",
    "report_at": "The whole report is {path}",
}

CATALOGUES: Mapping[str, Mapping[str, str]] = {"en": {**_ENGLISH, **words_notebook.ENGLISH}}


def check_language(language: str) -> None:
    """Refuse a language that nothing is written in.

    Raises:
        UsageError: It is none of ``CATALOGUES``.
    """
    if language not in CATALOGUES:
        raise UsageError(f"There are no texts in {language!r}.", f"Choose one of {', '.join(CATALOGUES)}.")


class Words:
    """A catalogue in one language: ``words("resume", iteration=8000, path=...)``."""

    def __init__(self, language: str = "en") -> None:
        check_language(language)
        self.language = language
        self._texts = CATALOGUES[language]

    def __call__(self, key: str, **values: object) -> str:
        """Return the text of a key, with values put into it."""
        text = self._texts[key]
        return text.format(**values) if values else text

    def get(self, key: str) -> str:
        """Return the text of a key; the key itself where it is a name that needs none."""
        return self._texts.get(key, key)
