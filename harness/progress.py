"""Progress of long work: one way to say it, and one bar to show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

quiet = False  # no bar is drawn, which --quiet asks for


class Progress(Protocol):
    """Called with what is going on, and with how much is done of how much, where that is counted."""

    def __call__(self, text: str = "", *, done: int | None = None, total: int | None = None) -> None: ...


def silent(text: str = "", *, done: int | None = None, total: int | None = None) -> None:
    """Progress that nobody looks at."""


# Yields the items, and shows the text and how far the loop is.
Track = Callable[[Sequence[Any], str], Iterable[Any]]


def untracked(items: Sequence[Any], text: str) -> Iterable[Any]:
    """A `Track` that shows nothing."""
    return items


def progress_bar(console: Console | None = None) -> Bar:
    """A bar with count, times and the current work, to use as a context manager. By default it writes to stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console or Console(stderr=True),
        disable=quiet,
    )
