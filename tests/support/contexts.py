"""Metric contexts for metrics that need no reference input."""

from __future__ import annotations

import pyarrow

from harness.progress import Progress, silent
from harness.trials.caches import ModelCache
from harness.trials.context import Context
from harness.types import ReferenceInput


class Attached(Context):
    """Keeps every table that it is given, in order."""

    def __init__(self, progress: Progress = silent, values: ModelCache | None = None) -> None:
        super().__init__(ReferenceInput(), progress, values=values)
        self.tables: list[pyarrow.Table] = []

    def attach_samples(self, table: pyarrow.Table) -> None:
        super().attach_samples(table)
        self.tables.append(table)
