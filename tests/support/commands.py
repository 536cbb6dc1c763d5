"""The command line in this process: a call, what came of it, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Done(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Done]


def refused(done: Done, *words: str, left: Path | None = None) -> None:
    """Exit code 2, one line on stderr with these words, no traceback, nothing on stdout, nothing written."""
    assert done.code == 2, done
    assert done.out == "", done
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and "Traceback" not in done.err, done
    for word in words:
        assert word in done.err, (word, done.err)
    assert not list((left or Path()).iterdir())


def put(path: Path, content: dict[str, Any] | str | bytes) -> Path:
    if isinstance(content, dict):
        content = yaml.safe_dump(content, sort_keys=False)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
