"""What is needed next is made on another thread while the caller is busy: images, while a GPU answers.

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
    """Makes values by key in the order they will be taken, one at a time and at most `depth` of them before that.

    With depth 0 each is made when it is taken, in the caller's own thread. An error is raised by the take it concerns.
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
        """The value of `key`, and a beginning with those of the next keys; what was begun for any other is dropped."""
        if self._pool is None:
            return self._make(key)
        wanted = [key, *islice(coming, self._depth)]
        for other in self._begun.keys() - wanted:
            self._begun.pop(other).cancel()
        for one in wanted:
            if one not in self._begun:
                self._begun[one] = self._pool.submit(self._make, one)
        return self._begun.pop(key).result()
