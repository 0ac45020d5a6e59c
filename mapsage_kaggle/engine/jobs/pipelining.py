"""Threads that read ahead and write behind, no further than memory allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Bounded:
    """A pool whose ``submit`` waits while too much is pending, and raises what has failed."""

    def __init__(self, pool: ThreadPoolExecutor, limit: int) -> None:
        self._pool, self._limit = pool, limit
        self._under_way: deque[Future[None]] = deque()

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        while len(self._under_way) >= self._limit:
            self._under_way.popleft().result()
        self._under_way.append(self._pool.submit(work, *arguments))

    def wait(self) -> None:
        while self._under_way:
            self._under_way.popleft().result()


def ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], limit: int
) -> Iterator[tuple[Item, Future[Result]]]:
    """Yield each item with its future, of which up to ``limit`` are pending ahead of the one yielded."""
    coming: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        coming.append((item, pool.submit(work, item)))
        if len(coming) > limit:
            yield coming.popleft()
    while coming:
        yield coming.popleft()
