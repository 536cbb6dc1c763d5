"""Accuracy on the trial's tasks by their official scorers; every answer goes into the record's samples.

result = measure(pruned, dense, trial, context)  # {"mean": 0.91, "lo": ..., "hi": ..., "tasks": {...}}
"""

from __future__ import annotations

from typing import Any

from harness import tasks
from harness.types import VLM, Trial


def measure(pruned: VLM, dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """The mean over tasks and each task's accuracy, as fractions, with 95 % intervals clustered by image.

    Differences from the dense model are not made here but in the report, from the stored answers.
    """
    context.progress("accuracy")
    result, answers = tasks.evaluate(pruned, trial.tasks, trial.split, trial.limit, label=label(trial))
    context.attach_samples(answers)
    return result


def label(trial: Trial) -> str:
    """What tells this trial's model from other variants of the same weights."""
    return f"{trial.method} {trial.variant} {trial.scope} {trial.units} {trial.budget} seed {trial.seed} {trial.tuning}"
