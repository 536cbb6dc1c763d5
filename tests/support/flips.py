"""A set of questions with two records beside it: of a dense model that is right, and of a pruned one that is not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness import tasks
from harness.records import record
from harness.report import examples
from harness.report.samples import Samples
from tests.support.question_files import asked, write_parquet
from tests.support.records import board_record


def examples_of(root: Path, rows: list[dict[str, Any]], wrong: Collection[int]) -> examples.Examples:
    """What a page shows of these rows, if the pruned model is wrong on those with these numbers."""
    folder = write_parquet(root / "set" / "validation.parquet", rows).parent
    answers = tasks.majority(asked([str(folder)]))
    data, about = tasks.data_hash(asked([str(folder)]))[:16], {"tasks": [str(folder)], "limit": None}
    for item, missed in ((board_record(**about), ()), (board_record("random", "vision", 0.5, **about), wrong)):
        scores = pa.array([0.0 if row in missed else 1.0 for row in range(len(rows))])
        table = answers.set_column(answers.schema.get_field_index("score"), "score", scores)
        record.write(root / "results", replace(item, hashes={**item.hashes, "data": data}), table)
    return examples.find(Samples(root / "results"), record.load(root / "results")[0])
