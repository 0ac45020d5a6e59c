"""Text for a person, kept so that it can be said in another language: a template, and the values in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

SAID = "said"
"""The key by which a JSON object has the templates and values of its texts."""
_MAX_LEVELS = 8
"""So deep do messages stand in one another, each of which is at most as long as the whole."""
_MAX_TEMPLATE = 1000


class Message(str):
    """A sentence in English, which knows its template: ``Message("{path} is empty.", path)``.

    To logs, records and programs it is the English text. A view looks the template up in its own
    language and puts the values in, which may be messages themselves; nothing in a value is looked at.

    Attributes:
        template: The sentence with names in braces, as for :meth:`str.format`.
        values: What stands in their places, by name: numbers and messages as they are, all else as text.
    """

    template: str
    values: Mapping[str, Any]

    def __new__(cls, template: str, /, *values: object) -> Message:
        names = dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name)
        named = {
            name: value if isinstance(value, (Message, int, float)) else str(value)
            for name, value in zip(names, values, strict=True)
        }
        self = super().__new__(cls, template.format(**named))
        self.template, self.values = template, named
        return self

    def __str__(self) -> str:
        return self  # and not its English text alone, as str() of a subclass gives

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.template, *self.values.values())

    def __add__(self, other: str) -> Message:
        return joined_by("", (self, other))

    def __radd__(self, other: str) -> Message:
        return joined_by("", (other, self))

    def said(self, table: Mapping[str, str]) -> str:
        """Return the text in another language, as far as ``table`` has the templates; else in English."""
        parts: list[str] = []
        for literal, name, spec, _ in Formatter().parse(table.get(self.template, self.template)):
            # A Chinese full stop needs no space after it.
            parts.append("" if literal == " " and parts and parts[-1].endswith("。") else literal)
            if name is not None:
                value = self.values[name]
                parts.append(format(value.said(table) if isinstance(value, Message) else value, spec or ""))
        return "".join(parts)

    def to_json(self) -> list[Any]:
        """Return template and values as a JSON array."""
        values = self.values.values()
        return [self.template, *(item.to_json() if isinstance(item, Message) else item for item in values)]


def as_message(text: str) -> Message:
    """Return a sentence of the kit's own as a message; one without values is its own template."""
    return text if isinstance(text, Message) else Message(text.replace("{", "{{").replace("}", "}}"))


def joined_by(separator: str, texts: Iterable[str]) -> Message:
    """Return texts as one message, each of which is said in the language that the whole is said in."""
    values = list(texts)
    literal = separator.replace("{", "{{").replace("}", "}}")
    return Message(literal.join(f"{{t{index}}}" for index in range(len(values))), *values)


def settings_text(settings: Iterable[str]) -> Message:
    """Return ``key=value`` settings as a person makes them, in the command or in the notebook."""
    return joined_by(" ", (Message("--set {setting}", setting) for setting in settings))


def say(text: str, table: Mapping[str, str]) -> str:
    """Return a text in another language; one that is no message is looked up as a whole."""
    return text.said(table) if isinstance(text, Message) else table.get(text, text)


def text_of(error: BaseException) -> str:
    """Return what an error says: as the message that it was raised with, where that is one."""
    text = getattr(error, "text", None) or (error.args[0] if len(error.args) == 1 else "")
    return text if isinstance(text, Message) else str(error)


def with_said(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object in which texts are English, with the templates of those that are messages."""
    said: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Message):
            said[name] = value.to_json()
        elif isinstance(value, (list, tuple)) and any(isinstance(item, Message) for item in value):
            said[name] = [item.to_json() if isinstance(item, Message) else None for item in value]
    return {**document, SAID: said} if said else dict(document)


def from_said(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON object of :func:`with_said` with its messages, where text and template agree."""
    found = dict(document)
    said = found.pop(SAID, None)
    for name, template in said.items() if isinstance(said, Mapping) else ():
        value = found.get(name)
        if isinstance(value, list) and isinstance(template, list) and len(template) == len(value):
            found[name] = [_of(text, item) for text, item in zip(value, template, strict=True)]
        elif name in found:
            found[name] = _of(value, template)
    return found


def _of(text: Any, parts: Any) -> Any:
    """Return what was written as ``text`` as the message that it was, if it was one."""
    try:
        message = _read(parts, [_MAX_LEVELS * (len(text) + _MAX_TEMPLATE)])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return text
    return message if message == text else text


def _read(parts: list[Any], room: list[int]) -> Message:
    """Return the message that :meth:`Message.to_json` has written, if it is one of ``room`` characters.

    A file may be anybody's: what a template asks of its values is their text alone, once it is known how
    long that is.
    """
    template, *values = parts
    values = [_read(value, room) if isinstance(value, list) else value for value in values]
    fields = [(name, rest) for _, name, *rest in Formatter().parse(template) if name is not None]
    if not all(name.isidentifier() and not any(rest) for name, rest in fields):
        raise ValueError(f"no template of the kit's: {template[:80]!r}")
    lengths = {
        name: len(str(value))
        for name, value in zip(dict.fromkeys(name for name, _ in fields), values, strict=True)
    }
    room[0] -= len(template) + sum(lengths[name] for name, _ in fields)
    if room[0] < 0:
        raise ValueError("longer than its text")
    return Message(template, *values)
