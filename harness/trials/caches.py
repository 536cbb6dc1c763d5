"""A worker's caches between trials: the last value of each kind, and values that live as long as a model."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from harness.types import VLM

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class LatestValue(Generic[T]):
    """A cache of one value. The trials of a board are sorted, so the next trial often needs the last value."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._value: T | None = None

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of this key. If another key is cached, drop its value first, then call `make`."""
        if self._value is None or self._key != key:
            self.drop()
            self._key, self._value = key, make()
        return self._value

    def peek(self, key: Hashable) -> T | None:
        """The value of this key if it is cached, else None."""
        return self._value if self._key == key else None

    def put(self, key: Hashable, value: T) -> None:
        self._key, self._value = key, value

    def drop(self) -> None:
        self._key = self._value = None


class ModelCache:
    """A cache by model and key. Values die with their model. Only for models whose weights no longer change."""

    def __init__(self) -> None:
        self._values: WeakKeyDictionary[torch.nn.Module, dict[Any, Any]] = WeakKeyDictionary()

    def get(self, vlm: VLM, key: Any, make: Callable[[], T]) -> T:
        """The value of this key for this model. The first call runs `make`."""
        values = self._values.setdefault(vlm.model, {})
        if key not in values:
            values[key] = make()
        return values[key]
