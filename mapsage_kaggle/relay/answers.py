"""What Kaggle answers in place of what was asked, as kinds that can be decided on.

Kaggle explains a refusal in prose alone. It is read here, once, and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from mapsage_kaggle.errors import EXIT_USAGE, MachineError

Kind = Literal["capacity", "quota", "suspended", "verification", "size", "other"]
"""What a refusal is about: no free place for a session, the weekly GPU time, the account, its phone
number, something too large, or none of these."""

_KINDS: Mapping[Kind, re.Pattern[str]] = {
    "suspended": re.compile(r"suspend|banned|\bblocked\b|account (?:is |has been )?disabled", re.IGNORECASE),
    "verification": re.compile(r"phone|verif(?:y|ied|ication)", re.IGNORECASE),
    "size": re.compile(r"\bsizes?\b|too (?:large|big|long)\b|\b[KMG]i?B\b", re.IGNORECASE),
    "quota": re.compile(r"\bquota\b|weekly limit", re.IGNORECASE),
    "capacity": re.compile(
        r"session count|concurren|too many|capacity|(?:maximum|limit)\b.*\bsessions?\b", re.IGNORECASE
    ),
}


REMEDIES: Mapping[Kind, str] = {
    "suspended": "Only Kaggle can lift that: write to https://www.kaggle.com/contact.",
    "verification": "Verify the phone number on kaggle.com (Settings), then run the relay again.",
    "size": "Look at what is pushed, in the --state folder.",
}
"""The next step after a refusal that no second try is met by."""


def kind_of_refusal(text: str) -> Kind:
    """Return what a refusal in Kaggle's words is about."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.search(text)), "other")


class Unreachable(MachineError):
    """Kaggle did not answer, or answered that it cannot now: worth another try.

    Attributes:
        retry_after_s: For how long Kaggle asked to be left alone; 0 where it did not say.
    """

    retry_after_s = 0.0


class Unreadable(Unreachable):
    """Kaggle answered with something else than its client knows: worth another try, too."""


class Refusal(MachineError):
    """Kaggle understood, and said no.

    Attributes:
        stray: Whether it may be an accident that a second try is not met by: a bare 400, 401 or 403.
    """

    kind: Kind = "other"
    stray = False


class Denied(Refusal):
    """The credentials do not allow it."""

    stray = True


class Rejected(Refusal):
    """What was sent is not taken."""


class Absent(Refusal):
    """There is no such thing on Kaggle."""

    exit_code = EXIT_USAGE
    stray = True


def number(value: object) -> int:
    """Return a count as Kaggle tells it; 0 for what is none."""
    return value if isinstance(value, int) and value > 0 else 0


def sentence(text: str) -> str:
    """Return a text with an end, so that another sentence may follow."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) or not text else f"{text}."
