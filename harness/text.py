"""Text that people are shown, whoever wrote it: printable, on one line, no longer than there is room for.

plain("two\\nlines"), shorten("a long name", 7), some(list("abcd"))  # "two lines", "a long…", "a, b, c and 1 more"
"""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 3  # of things of one sort; the others are counted


def plain(text: str) -> str:
    """Text of a record, safe to print: control characters become spaces, runs of space collapse to one."""
    if not text.isprintable():  # seldom: a board of thousands of records asks often
        text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())


def shorten(text: str, limit: int, mark: str = "…") -> str:
    """At most so many characters of it, the mark at its end where some are missing."""
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def some(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
