"""What a command prints on: two consoles, the one kind of table, and streams that end the program in their own way.

with streams(): out.print(table("trial", "accuracy"))
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import rich.box
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness import progress
from harness.progress import Progress
from harness.text import reason

WIDE = 10_000  # columns of a pipe or a file: nothing there needs to be cut or wrapped
READER_GONE, UNWRITABLE = 141, 74  # exit codes: as of a program that SIGPIPE ends, and EX_IOERR
# Our signs in ASCII, each one character wide. Any other character that a stream cannot encode is written as its code.
SIGNS = {"✓": "+", "✗": "x", "–": "-", "…": ".", "×": "x", "◆": "*"}


class Screen(Console):
    """A console that wraps at the width of a terminal, or of COLUMNS, only."""

    @property
    def size(self) -> ConsoleDimensions:
        return super().size if self.is_terminal or "COLUMNS" in os.environ else ConsoleDimensions(WIDE, 25)


out = Screen(highlight=False)
err = Screen(stderr=True, highlight=False)
# How help is laid out: typer cuts names in its panels where they are narrow.
MARKUP: Any = "markdown" if out.width >= 70 else None


class _Table(Table):
    """A table of which nothing is cut: cells wrap, and where not even words fit, each cell has a line of its own."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.__rich_measure__(console, options.update(max_width=WIDE)).minimum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text.from_markup(str(self.title))
        for row in zip(*(column.cells for column in self.columns), strict=True):
            for place, (column, cell) in enumerate(zip(self.columns, row, strict=True)):
                yield Text.from_markup(f"{'  ' if place else ''}{column.header}: {cell}".rstrip())


def table(*heads: str, title: str | None = None, texts: int | None = None) -> Table:
    """A table of markup texts. The first `texts` columns (None: all) align left, the others right."""
    new = _Table(box=rich.box.SIMPLE_HEAD, pad_edge=False, title=title)
    for place, head in enumerate(heads):
        new.add_column(escape(head), overflow="fold", justify="left" if texts is None or place < texts else "right")
    return new


def quiet() -> bool:
    """Whether --quiet is given."""
    return progress.quiet


def status(text: str) -> Any:
    """A line that says what is being done, on a terminal and without --quiet."""
    return Console(quiet=True).status("") if quiet() or not err.is_terminal else err.status(text)


def shown_on(status: Any) -> Progress:
    """Progress that is the text of a rich status line."""

    def show(text: str = "", *, done: int | None = None, total: int | None = None) -> None:
        status.update(escape(text))

    return show


def note(text: str, console: Console = err) -> None:
    """A line that --quiet leaves out."""
    if not quiet():
        console.print(text, soft_wrap=True, markup=False)


# --- streams --------------------------------------------------------------------------------------------------


@contextmanager
def streams() -> Iterator[None]:
    """Standard streams that take any text, and that end the program once they cannot be written.

    When the reader of stdout is gone (`| head`), the program ends silently with exit code READER_GONE; when its disk
    is full, with a line on stderr and UNWRITABLE. Neither is a verdict. Without stderr it goes on.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Stream(stream) for stream in before)  # None: closed by the caller
    try:
        yield
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        finally:
            sys.stdout, sys.stderr = before


class _Stream:
    """A text stream; all but writing is the original's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="signs")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._watched():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._watched():
            self._stream.flush()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # What is left in the buffer goes nowhere, or Python would fail again when it exits.
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
            if self is sys.stderr:
                return
            if error.errno == errno.EPIPE:
                raise SystemExit(READER_GONE) from None
            err.print(f"[red]error:[/red] stdout: cannot be written: {reason(error)}", soft_wrap=True)
            raise SystemExit(UNWRITABLE) from None


def _readable(error: UnicodeError) -> tuple[str, int]:
    """Signs in words, other characters as codes."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(SIGNS.get(char) or char.encode("ascii", "backslashreplace").decode() for char in text), error.end


codecs.register_error("signs", _readable)
