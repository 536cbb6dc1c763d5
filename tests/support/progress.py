"""Progress that remembers what it was told."""

from __future__ import annotations


class Heard(list[str]):
    """The texts of all calls, in order."""

    def __call__(self, text: str = "", *, done: int | None = None, total: int | None = None) -> None:
        self.append(text)
