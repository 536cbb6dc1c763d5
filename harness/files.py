"""Files written whole or not at all, and folders that can be written.

put(Path("out.json"), lambda temporary: temporary.write_text("{}"))
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness.types import InputError


def put(path: Path, fill: Callable[[Path], object]) -> None:
    """Have `fill` write a temporary neighbour of `path`, flush it to disk and move it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fill(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path, what: str = "results folder") -> None:
    """Raise InputError unless files can be made in `folder`, which is created if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{what} {folder}: not writable: {os.strerror(error.errno or 0)}") from error
