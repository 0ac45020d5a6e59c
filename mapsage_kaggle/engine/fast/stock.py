"""Register the kit's classes, each used for as long as the stock name means the stock class."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from mmengine.registry import Registry

from mapsage_kaggle.engine.fast.warnings import warn_once
from mapsage_kaggle.messages import Message

_Kind = TypeVar("_Kind", bound=type)


def stands_in_for(
    stock: type, registry: Registry, *, name: str | None = None, own_options: Collection[str] = ()
) -> Callable[[_Kind], _Kind]:
    """Register a class in place of a stock one, which configs refer to by name alone.

    A custom class that is registered under the stock name, in mmsegmentation's scope, is looked up when a
    part is built. Where there is one, it is built, with a warning.

    Args:
        stock: The class that it stands in for.
        registry: Where it is registered.
        name: What to register it as; its own name if None.
        own_options: Options that the stock class does not have.
    """

    def register(kind: _Kind) -> _Kind:
        def build(*args: Any, **options: Any) -> Any:
            meant = registry.root.get(f"mmseg.{stock.__name__}")
            if meant is stock:
                return kind(*args, **options)
            what = f"{getattr(meant, '__module__', '')}.{getattr(meant, '__qualname__', meant)}"
            warn_once(
                f"stock {stock.__name__}",
                Message(
                    "{name} is {kind} here, not mmsegmentation's own, and runs as it is.",
                    stock.__name__,
                    what,
                ),
            )
            return meant(*args, **{key: value for key, value in options.items() if key not in own_options})

        registry.register_module(name=name or kind.__name__, module=build)
        return kind

    return register
