"""Render the self-test's findings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapsage_kaggle.clock import format_duration
from mapsage_kaggle.display.locale.words import Words

if TYPE_CHECKING:
    from mapsage_kaggle.jobs.selftest import SelfTest
    from mapsage_kaggle.jobs.selftest_checks import Finding

_MARKS = {"holds": "✓", "does not hold": "✗", "measured": "·", "not measured": "?"}


def finding_text(finding: Finding, words: Words) -> str:
    took = f" ({format_duration(finding.seconds)})" if finding.seconds else ""
    state = words(f"selftest_{finding.state.replace(' ', '_')}")
    return f"{_MARKS[finding.state]} {finding.name}: {state}{took}. {words.translate(finding.message)}"


def selftest_text(test: SelfTest, words: Words) -> str:
    """Return the last line: counts by state, and the file that holds all of it."""
    states = [finding.state for finding in test.findings.values()]
    counts = {
        name.replace(" ", "_"): states.count(name) for name in ("holds", "does not hold", "not measured")
    }
    return words("selftest_end", file=test.file, **counts)
