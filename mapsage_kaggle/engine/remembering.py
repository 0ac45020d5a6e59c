"""What hooks remember from one iteration to a later one: saved with the checkpoint, or reported as lost.

mmengine saves no hook. Of its own and mmsegmentation's only ``EarlyStoppingHook`` has a state that bears on
training: ``EMAHook`` saves its weights itself, and the schedulers have states of their own.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.logging import MessageHub

from mapsage_kaggle.engine.digests import digest, own_attributes
from mapsage_kaggle.outside import joined

_STATES: Mapping[type[Hook], tuple[str, ...]] = {EarlyStoppingHook: ("wait_count", "best_score")}
"""The attributes that hold the state of stock hooks."""
HOOK_KEY = "mapsage_hook"
"""The prefix of the keys in the message hub that hold hooks' states."""


class HookMemory:
    """The states of a run's hooks.

    A hook with both ``state_dict`` and ``load_state_dict`` is saved and restored by them; another one's
    attributes are watched for changes.
    """

    def __init__(self, hooks: Sequence[Hook]) -> None:
        count: Counter[str] = Counter()
        self._hooks: dict[str, Hook] = {}
        for hook in hooks:
            name = type(hook).__name__
            count[name] += 1
            self._hooks[name if count[name] == 1 else f"{name}#{count[name]}"] = hook
        self._seen: dict[tuple[str, str], str] | None = None
        self._told: dict[str, str] = {}

    def note(self, hub: MessageHub) -> None:
        """Put the hooks' states into the message hub, which checkpoints hold."""
        for name, hook in self._hooks.items():
            state = _state_of(hook)
            if state is not None:
                hub.update_info(f"{HOOK_KEY}.{name}", state)

    def restore(self, hub: MessageHub, *, taken_up: bool = False) -> tuple[str, ...]:
        """Restore the hooks' states from a loaded checkpoint's message hub.

        With ``taken_up``, training continues after an early stop, and patience begins anew.

        Returns:
            What keeps training from continuing as it would have, one sentence each.
        """
        missing: list[str] = []
        for name, hook in self._hooks.items():
            if _state_of(hook) is None:
                continue
            state = hub.get_info(f"{HOOK_KEY}.{name}", None)
            if state is None:
                missing.append(f"the checkpoint does not hold what {name} remembers: it begins anew")
            elif _has_methods(hook):
                hook.load_state_dict(state)
            else:
                vars(hook).update(state)
            if taken_up and isinstance(hook, EarlyStoppingHook):
                hook.wait_count = 0
        return tuple(missing)

    def watch(self) -> tuple[str, ...]:
        """Return a sentence for each hook of which an attribute has changed since the first call.

        It names those that had changed when the hook was first found to be one.
        """
        now = {
            (name, attribute): digest(value)
            for name, hook in self._hooks.items()
            if not _has_methods(hook)
            for attribute, value in own_attributes(hook).items()
            if attribute not in _carried(hook)
        }
        if self._seen is None:
            self._seen = now
        changed: dict[str, list[str]] = {}
        for (name, attribute), value in now.items():
            if self._seen.get((name, attribute)) != value:
                changed.setdefault(name, []).append(attribute)
        for name, attributes in changed.items():
            where = "an attribute" if len(attributes) == 1 else "attributes"
            self._told.setdefault(
                name,
                f"{name} keeps {joined(attributes)} in {where}, which no checkpoint holds (give it "
                "state_dict and load_state_dict)",
            )
        return tuple(self._told.values())


def who_sets() -> str:
    """Return who called the setter that calls this, with its ``message``, to end a sentence."""
    frame = inspect.currentframe()
    for _ in range(2):  # this function and the setter
        frame = frame.f_back if frame is not None else None
    if frame is None:
        return "somebody"
    owner, why = frame.f_locals.get("self"), frame.f_locals.get("message")
    name = frame.f_code.co_name if owner is None else type(owner).__name__
    return f"{name}: {why.strip().rstrip('.')}" if isinstance(why, str) and why.strip() else name


def _has_methods(hook: Hook) -> bool:
    return all(callable(getattr(hook, name, None)) for name in ("state_dict", "load_state_dict"))


def _carried(hook: Hook) -> tuple[str, ...]:
    return next((names for kind, names in _STATES.items() if isinstance(hook, kind)), ())


def _state_of(hook: Hook) -> dict[str, Any] | None:
    """Return a hook's state; None where it offers none."""
    if _has_methods(hook):
        return dict(hook.state_dict())
    names = _carried(hook)
    return {name: getattr(hook, name) for name in names} if names else None
