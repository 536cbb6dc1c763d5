"""What is left of the accuracy when the model cannot see: every image is replaced by a grey one of the same size.

result = measure(pruned, dense, trial, context)  # {"blank": {"mean": 0.42, ...}}
"""

from __future__ import annotations

from typing import Any

from harness import tasks
from harness.metrics.accuracy import label
from harness.types import VLM, Trial


def measure(pruned: VLM, dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """The same figures as `accuracy`, for the same questions with blank images."""
    context.progress("blank floor")
    blank, _ = tasks.evaluate(pruned, trial.tasks, trial.split, trial.limit, blank=True, label=label(trial))
    return {"blank": blank}
