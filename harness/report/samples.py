"""The samples beside a board's records, for its flips and intervals; what cannot be used is said once, in the log.

samples = Samples(Path("results/demo")); samples.read(record, ("question_id", "score"))
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness import results
from harness.types import InputError

log = logging.getLogger(__name__)


class Samples:
    """What reads the samples of records in `folder`, and leaves out those of a record once one reason was found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._left_out: set[str] = set()

    def read(self, record: Mapping[str, Any], columns: Sequence[str]) -> pa.Table | None:
        """These columns, a row per question in one chunk; None if the record has no samples, or they are left out."""
        if "samples" not in record["hashes"] or record["id"] in self._left_out:
            return None
        try:
            return results.samples(self._path(record), record, columns)
        except InputError as problem:
            self._leave_out(record, str(problem))
        return None

    def leave_out(self, record: Mapping[str, Any], why: str) -> None:
        """Use this record's samples no more, and say why."""
        self._leave_out(record, f"{self._path(record)}: {why}")

    def _path(self, record: Mapping[str, Any]) -> Path:
        return self.folder / f"{record['id']}.parquet"

    def _leave_out(self, record: Mapping[str, Any], problem: str) -> None:
        self._left_out.add(record["id"])
        log.warning(f"{problem}; left out of flips and intervals")
