"""A small board of a model and a question file, and what a sweep of it left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from harness.records.record import Record, load
from harness.trials import spec
from harness.trials.sweep import Outcome, sweep


def read_board(folder: Path, model: Path, data: Path, methods: list[Any], **more: Any) -> spec.Board:
    content = {
        "name": "small",
        "model": str(model),
        "methods": methods,
        "budgets": [0.5],
        "tasks": [str(data)],
        "calibration": {"samples": 3},
        "latency": {"batches": [1], "repeats": 3},
        "reference_input": {"image": [64, 64]},
        **more,
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    return spec.read(str(file))


class FinishedSweep:
    """Its board, where its records are, what it said."""

    def __init__(self, board: spec.Board, results: Path, inline: bool) -> None:
        self.board, self.results = board, results
        self.steps: list[tuple[int, str]] = []

        def progress(text: str = "", *, done: int | None = None, total: int | None = None) -> None:
            self.steps.append((done or 0, text))

        self.outcome: Outcome = sweep(board, results, inline=inline, progress=progress)

    def records(self) -> dict[str, Record]:
        """By method."""
        records, problems = load(self.results / "small")
        assert not problems
        return {record.trial.method: record for record in records}
