"""Claims on trials, so that two sweeps on one folder never run the same trial at the same time.

    with Claims(folder) as claims:
        if claims.take(trial_id): ...

A claim is a lock on one byte of `<folder>/.claims`; the trial's id gives the offset. The kernel drops the lock when its
process ends in any way, on local disks and on network file systems with locks. So a claim is never stale.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO

from harness.text import reason
from harness.types import InputError

NAME = ".claims"
PAUSES = (0.01, 0.01, 0.0)  # `held` and `tidy` lock a byte for an instant, which is no claim


class Claims:
    """The claims of this process on a folder's trials. The end of the `with` block releases all of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._file = (folder / NAME).open("ab")
        except OSError as error:
            raise InputError(f"results folder {folder}: not writable: {reason(error)}") from error

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()  # which releases all locks

    def take(self, trial_id: str) -> bool:
        """Try to claim a trial. False if another process holds it.

        Raises InputError if the file system has no locks.
        """
        for pause in PAUSES:
            try:
                if _lock(self._file, fcntl.LOCK_EX, trial_id):
                    return True
            except OSError as error:
                raise InputError(
                    f"results folder {self.folder}: cannot lock: {reason(error)}; use a folder with locks"
                ) from error
            time.sleep(pause)
        return False

    def give_up(self, trial_id: str) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _place(trial_id))

    def check(self) -> None:
        """Raise InputError if the folder was moved, deleted or mounted over since the claims began."""
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._file.fileno()), (self.folder / NAME).stat()):
                return
        raise InputError(
            f"results folder {self.folder}: vanished during the sweep (moved or deleted), with all finished records"
        )

    def tidy(self) -> None:
        """Remove temporary files of killed sweeps. Files of trials that another process holds stay."""
        for path in self.folder.glob(".*.tmp"):
            trial_id = path.name[1:17]
            if is_id(trial_id) and self.take(trial_id):
                path.unlink(missing_ok=True)
                self.give_up(trial_id)


def held(folder: Path, trial_ids: Iterable[str]) -> set[str]:
    """The ids of trials that another living process has claimed. A process must not ask about its own claims."""
    if not (folder / NAME).is_file():
        return set()
    claimed = set()
    with (folder / NAME).open("rb") as file:
        for trial_id in trial_ids:
            if _lock(file, fcntl.LOCK_SH, trial_id):
                fcntl.lockf(file, fcntl.LOCK_UN, 1, _place(trial_id))
            else:
                claimed.add(trial_id)
    return claimed


def _lock(file: IO[bytes], kind: int, trial_id: str) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB, 1, _place(trial_id))
    except (BlockingIOError, PermissionError):  # POSIX allows both
        return False
    return True


def is_id(value: object) -> bool:
    """Whether this is the text of a trial's id."""
    return isinstance(value, str) and len(value) == 16 and set(value) <= set("0123456789abcdef")


def _place(trial_id: str) -> int:
    return int(trial_id[:15], 16)  # a file's offsets have 63 bits
