"""How far the estimate of a sweep is from its truth, for boards of three kinds that have no records yet.

for bar in bars(quick=False, device="cpu"): print(bar.name, bar.ratio)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import registry
from harness.bench.bar import Bar
from harness.progress import Progress, silent
from harness.trials import forecast, spec
from harness.trials.sweep import plan, sweep

GOAL = 1.5  # the longer of both over the shorter
# Answers and timing; rankings of many passes; training, of a method that does not train itself.
BOARDS: dict[str, dict[str, Any]] = {
    "demo": {},
    "options-layers": {},
    "tuned": {"budgets": [0.5], "scopes": ["all"], "floors": False, "tuning.0.steps": 100},
}


def bars(*, quick: bool = False, device: str = "cpu", progress: Progress = silent) -> Iterator[Bar]:
    """A bar per board: estimate and truth of its trials, without the workers' start. `quick`: the first board only."""
    for name, changes in list(BOARDS.items())[: 1 if quick else None]:
        board = spec.read(name, **changes)
        if board.tuning[0].how.trains:
            board = spec.read(name, **changes, methods=[_untrained(board)])
        progress(f"estimate of {name}")
        with tempfile.TemporaryDirectory() as folder:
            todo = plan(board, Path(folder))
            expected = forecast.probe(board, todo, device)
            assert expected is not None, "the embedded model has weights and few of them"
            seconds = sweep(board, Path(folder), device=device, inline=True, todo=todo).seconds
        yield Bar(
            f"estimate of the board {name} ({len(todo.trials)} trials) against its time, the longer over the shorter",
            GOAL,
            max(expected / seconds, seconds / expected),
            at_most=True,
            detail={"estimate_s": expected, "seconds": seconds},
        )


def _untrained(board: spec.Board) -> str:
    """A rival on this board that trains nothing itself."""
    methods = [registry.method(entry.method) for entry in board.methods]
    return next(method.name for method in methods if method.role == "reference" and not method.steps({}))
