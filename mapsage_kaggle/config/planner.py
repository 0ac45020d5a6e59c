"""Collect the changes of a patch, each with its reason."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mapsage_kaggle.config.reading import MISSING, at_path, find_keys, plain
from mapsage_kaggle.messages import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One key that the patch sets or removes.

    Attributes:
        key: Dotted, as ``--set`` takes it; list items by their number.
        old: What the config says; None where it says nothing.
        new: What will run; None where the key is removed.
        reason: Why, in a few words.
        added: Whether the config did not have the key.
    """

    key: str
    old: Any
    new: Any
    reason: str
    removed: bool = False
    added: bool = False

    def apply_to(self, node: Any, key: str) -> None:
        """Make the change in place, at a dotted key of a config or of a part; parents that lack are made."""
        *parents, last = key.split(".")
        for name in parents:
            if isinstance(node, (list, tuple)):
                node = node[int(name)]
                continue
            if name not in node or node[name] is None:
                node[name] = {}
            node = node[name]
        if self.removed:
            node.pop(last, None)
        elif isinstance(node, list):
            node[int(last)] = copy.deepcopy(self.new)
        else:
            node[last] = copy.deepcopy(self.new)


class Planner:
    """Collects changes, and looks keys up with those so far applied."""

    def __init__(self, cfg: Mapping[str, Any]) -> None:
        self._cfg = cfg
        self.changes: list[Change] = []
        self.warnings: list[str] = []

    def get(self, key: str, default: Any = None) -> Any:
        value = self._lookup(key)
        return default if value is MISSING else value

    def warn(self, template: str, *values: object) -> None:
        self.warnings.append(Message(template, *values))

    def set(self, key: str, new: Any, reason: str) -> None:
        old = self._lookup(key)
        if old is not MISSING and plain(old) == plain(new) and type(old) is type(new):
            return
        self.changes.append(
            Change(
                key=key,
                old=None if old is MISSING else old,
                new=new,
                reason=reason,
                added=old is MISSING,
            )
        )

    def remove(self, key: str, reason: str) -> None:
        old = self._lookup(key)
        if old is not MISSING:
            self.changes.append(Change(key=key, old=old, new=None, reason=reason, removed=True))

    def _lookup(self, key: str) -> Any:
        for change in reversed(self.changes):
            if change.key == key:
                return MISSING if change.removed else change.new
        return at_path(self._cfg, key)

    def find(self, prefix: str, name: str) -> Iterator[tuple[str, Any]]:
        yield from find_keys(self.get(prefix), prefix, name)
