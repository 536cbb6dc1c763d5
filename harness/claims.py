"""Which trials of a board's folder a running sweep works on, so that two sweeps on one folder do not collide.

    with Claims(folder) as claims:
        if claims.take(trial_id): ...

A claim is a lock on one byte of `<folder>/.claims`, at the place that the trial's id gives: the kernel drops it with
the process that holds it, however that ends, on one machine and on a network file system that has locks. Nothing is
ever stale and nothing has to be taken over.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from harness.text import plain
from harness.types import InputError

NAME = ".claims"
PAUSES = (0.01, 0.01, 0.0)  # whoever only asks, or tidies up, has a trial for an instant: that is no claim


class Claims:
    """The claims of this process on a folder's trials; leaving the block gives all of them up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._file = (folder / NAME).open("ab")
        except OSError as error:
            raise InputError(plain(f"results folder {folder}: not writable: {error.strerror or error}")) from error

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()  # with it go all locks

    def take(self, trial_id: str) -> bool:
        """Whether the trial is now this process's to run; not if another process has it.

        Raises InputError where the file system has no locks.
        """
        for pause in PAUSES:
            try:
                if _lock(self._file, fcntl.LOCK_EX, trial_id):
                    return True
            except OSError as error:
                raise InputError(
                    plain(f"results folder {self.folder}: cannot lock: {error.strerror or error}")
                ) from error
            time.sleep(pause)
        return False

    def give_up(self, trial_id: str) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(trial_id))

    def check(self) -> None:
        """Raise InputError if the folder is no longer the one that was claimed in: moved, deleted, mounted over."""
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._file.fileno()), (self.folder / NAME).stat()):
                return
        raise InputError(
            plain(f"results folder {self.folder}: vanished during the sweep; what was finished went with it")
        )

    def tidy(self) -> None:
        """Remove temporary files that killed sweeps left behind, but those of trials that another process has."""
        for path in self.folder.glob(".*.tmp"):
            trial_id = path.name[1:17]
            if _is_id(trial_id) and self.take(trial_id):
                path.unlink(missing_ok=True)
                self.give_up(trial_id)


def held(folder: Path, trial_ids: Iterable[str]) -> set[str]:
    """Those of the trials that a living process has claimed; not to be asked by the process that claims."""
    if not (folder / NAME).is_file():
        return set()
    found = set()
    with (folder / NAME).open("rb") as file:
        for trial_id in trial_ids:
            if _lock(file, fcntl.LOCK_SH, trial_id):
                fcntl.lockf(file, fcntl.LOCK_UN, 1, _place(trial_id))
            else:
                found.add(trial_id)
    return found


def _lock(file: IO[bytes], kind: int, trial_id: str) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB, 1, _place(trial_id))
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    return True


def _is_id(text: str) -> bool:
    return len(text) == 16 and set(text) <= set("0123456789abcdef")


def _place(trial_id: str) -> int:
    return int(trial_id[:15], 16)  # a file's offsets have 63 bits
