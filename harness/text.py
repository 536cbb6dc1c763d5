"""Text from any source made fit to show: printable, on one line, of limited length.

plain("two\\nlines"), shorten("a long name", 7), some(list("abcd"))  # "two lines", "a long…", "a, b, c and 1 more"
"""

from __future__ import annotations

from collections.abc import Sequence

TOO_FEW = "too few images"  # stands where an interval would be, if all questions are about one image
SHOWN = 3  # names of one list that are shown; the others are counted


def plain(text: str) -> str:
    """Text that is safe to print: control characters become spaces, and runs of spaces become one space."""
    if not text.isprintable():  # rarely; this test saves time on boards with thousands of records
        text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters of the text; an ellipsis ends a text that was cut."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def reason(error: OSError) -> str:
    """Why the system refused."""
    return error.strerror or f"{type(error).__name__}: {error}"


def some(names: Sequence[str]) -> str:
    """The first SHOWN names, and the number of further ones."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
