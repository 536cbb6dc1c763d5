"""Compute the next values on another thread while the caller is busy, such as images while a GPU answers.

with Ahead(encode, depth=2) as ahead:
    for key, coming in ...: batch = ahead.take(key, coming)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


class Ahead(Generic[Key, Made]):
    """Computes values by key in the order of their `take`, one at a time, and at most `depth` of them early.

    With depth 0, `take` computes the value in the caller's thread. An error is raised by the `take` of its key.
    """

    def __init__(self, make: Callable[[Key], Made], depth: int) -> None:
        self._make, self._depth = make, depth
        self._begun: dict[Key, Future[Made]] = {}
        self._pool = ThreadPoolExecutor(1) if depth else None

    def __enter__(self) -> Ahead[Key, Made]:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def take(self, key: Key, coming: Iterable[Key]) -> Made:
        """The value of `key`. Also starts the values of the next keys, and cancels those of all other keys."""
        if self._pool is None:
            return self._make(key)
        keys = [key, *islice(coming, self._depth)]
        for stale_key in self._begun.keys() - keys:
            self._begun.pop(stale_key).cancel()
        for next_key in keys:
            if next_key not in self._begun:
                self._begun[next_key] = self._pool.submit(self._make, next_key)
        return self._begun.pop(key).result()
