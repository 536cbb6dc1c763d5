"""The samples beside a board's records, for flips and intervals. Unusable samples are logged once.

samples = Samples(Path("results/demo")); samples.read(record, ("question_id", "score"))
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from harness.records import store
from harness.records.record import Record
from harness.types import InputError

log = logging.getLogger(__name__)


class Samples:
    """A reader of the samples of records in `folder`. After a fault it skips all samples of that record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._left_out: set[str] = set()

    def read(self, record: Record, columns: Sequence[str]) -> pa.Table | None:
        """These columns, a row per question in one chunk. None if the record has no usable samples."""
        if "samples" not in record.hashes or record.id in self._left_out:
            return None
        try:
            return store.samples(self._path(record), record, columns)
        except InputError as problem:
            self._leave_out(record, str(problem))
        return None

    def leave_out(self, record: Record, why: str) -> None:
        """Skip this record's samples from now on, and log the reason."""
        self._leave_out(record, f"{self._path(record)}: {why}")

    def _path(self, record: Record) -> Path:
        return self.folder / f"{record.id}.parquet"

    def _leave_out(self, record: Record, problem: str) -> None:
        self._left_out.add(record.id)
        log.warning(f"{problem}; left out of flips and intervals")
