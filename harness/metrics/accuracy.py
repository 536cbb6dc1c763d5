"""Accuracy on the trial's tasks by their official scorers; every answer goes into the record's samples.

result = measure(pruned, dense, trial, context)  # {"mean": 0.91, "lo": ..., "hi": ..., "tasks": {...}, "collapse": []}
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from harness import tasks
from harness.types import VLM, Trial

# From this share of the answers on (constant: of one task's, if it asks at least FEW), a model has collapsed.
COLLAPSED = {"empty": 0.1, "constant": 0.9, "repeating": 0.1, "overlong": 0.1}
FEW = 20
# The same word three times in a row, or the same piece of up to eight characters six times.
REPEATING = re.compile(r"\b(\w+)(?:\W+\1\b){2}|(.{1,8}?)\2{5}", re.DOTALL)


def measure(pruned: VLM, dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """The mean over tasks and each task's accuracy, as fractions, with 95 % intervals clustered by image.

    `collapse` names what the answers have collapsed to, by the shares in `degenerate` (see COLLAPSED). Raises
    FloatingPointError at NaN or Inf logits. Differences from the dense model are made in the report, from the
    stored answers. `batch` is there if memory was short: questions answered at a time, halved until they fitted.
    """
    found = answers(pruned, trial, context)
    context.attach_samples(found.table)
    shares = degenerate(found)
    collapse = [name for name, share in shares.items() if share >= COLLAPSED[name]]
    short = {"batch": found.batch} if found.batch < tasks.BATCH else {}
    return {**tasks.summary(found.table), "collapse": collapse, "degenerate": shares, **short}


def answers(vlm: VLM, trial: Trial, context: Any) -> tasks.Answers:
    """The pruned model's answers to the trial's questions, made once for all metrics that look at them."""
    context.progress("accuracy")
    first = "fidelity" in trial.metrics
    replies = context.replies
    return tasks.answer_cached(
        vlm, trial.tasks, trial.split, trial.limit, first=first, label=label(trial), replies=replies
    )


def degenerate(found: tasks.Answers) -> dict[str, float]:
    """Shares of all answers: empty, repeating themselves, not ended within the limit; and of the task whose most common
    answer is given most often, that answer's share (constant; 0 for tasks of fewer than FEW questions)."""
    texts = found.table["answer"].to_pylist()
    by_task: dict[str, Counter[str]] = {}
    for task, text in zip(found.table["task"].to_pylist(), texts, strict=True):
        by_task.setdefault(task, Counter())[text] += 1
    return {
        "empty": sum(not text for text in texts) / len(texts),
        "constant": max(max(own.values()) / own.total() if own.total() >= FEW else 0.0 for own in by_task.values()),
        "repeating": sum(bool(REPEATING.search(text)) for text in texts) / len(texts),
        "overlong": sum(found.overlong) / len(texts),
    }


def label(trial: Trial) -> str:
    """What tells this trial's model from other variants of the same weights."""
    return f"{trial.method} {trial.variant} {trial.scope} {trial.units} {trial.budget} seed {trial.seed} {trial.tuning}"
