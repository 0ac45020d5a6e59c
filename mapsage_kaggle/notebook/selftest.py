"""What the self-test's notebook and command call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mapsage_kaggle.clock import parse_duration_s
from mapsage_kaggle.display.locale.words import Words
from mapsage_kaggle.display.panels import say
from mapsage_kaggle.display.selftest import finding_text, selftest_text
from mapsage_kaggle.jobs import selftest as job


def selftest(
    *, only: Sequence[str] = (), limit: str | None = None, language: str = "en", out: Path | None = None
) -> job.SelfTest:
    """Check whether the kit's promises hold on this machine, and print each finding as it is made.

    A promise that does not hold is printed, not raised, so that Kaggle keeps the output.

    Args:
        only: The names of checks; all by default.
        limit: How long it may take, such as ``10m``.
        language: Of all that is shown.
        out: The JSON file; by default in the output folder, or here.

    Raises:
        UsageError: An argument is invalid.
        MachineError: This machine cannot train at all.
    """
    words = Words(language)
    with words.refusing():
        test = job.selftest(
            out=out,
            only=only,
            limit_s=parse_duration_s(limit) if limit else None,
            on_begin=lambda name: say(words("selftest_begins", name=name)),
            on_finding=lambda finding: say(finding_text(finding, words)),
        )
    say(selftest_text(test, words))
    return test
