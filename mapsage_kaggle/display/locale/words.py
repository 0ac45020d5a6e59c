"""Texts by language: labels by key, messages from the other rooms by template.

``<language>.json`` beside this file holds both; English messages are their own templates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from mapsage_kaggle.errors import MapsageError, UsageError
from mapsage_kaggle.messages import Message, say

LANGUAGES = ("en", "zh")


@cache
def catalogue(language: str) -> Mapping[str, Mapping[str, str]]:
    """Return a language's ``labels`` and ``messages``."""
    content = json.loads(Path(__file__).with_name(f"{language}.json").read_text(encoding="utf-8"))
    return {"labels": content["labels"], "messages": content.get("messages", {})}


class _Adapted(dict[str, str]):
    """Messages by template; a missing one falls back to its template, adapted."""

    def __init__(self, messages: Mapping[str, str], adapted: Callable[[str], str]) -> None:
        super().__init__(messages)
        self._adapted = adapted

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key) or self._adapted(default)


class Words:
    """A catalogue in one language: ``words("resume", iteration=8000, path=...)``.

    ``adapted`` is applied to the template of a message without a translation, so that its remedy fits the
    front end.
    """

    def __init__(self, language: str = "en", adapted: Callable[[str], str] = str) -> None:
        if language not in LANGUAGES:
            raise UsageError(
                Message("There are no texts in {language}.", repr(language)),
                Message("Choose one of {choices}.", ", ".join(LANGUAGES)),
            )
        self.language = language
        self._labels, messages = catalogue(language).values()
        self._messages = _Adapted(messages, adapted)

    def __call__(self, key: str, **values: object) -> str:
        """Return the text of a key, formatted with ``values``."""
        text = self._labels[key]
        return text.format(**values) if values else text

    def translate(self, message: str) -> str:
        """Return another room's message in this language."""
        return say(message, self._messages)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Translate a :class:`MapsageError` that is raised within, in place."""
        try:
            yield
        except MapsageError as error:
            error.problem, error.remedy = self.translate(error.problem), self.translate(error.remedy)
            error.lines = tuple(map(self.translate, error.lines))
            error.args = (error.problem, error.remedy, error.lines)
            raise

    def refusal(self, error: MapsageError) -> str:
        """Return an error's problem and remedy in this language."""
        return self.translate(error.text)

    def get(self, key: str) -> str:
        """Return the text of a key; the key itself where it has none."""
        return self._labels.get(key, key)
