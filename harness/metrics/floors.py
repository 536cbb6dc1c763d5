"""What needs no seeing: the majority answer, and the same model with its images blanked or exchanged for others.

result = measure(pruned, dense, trial, context)  # {"blank": {"mean": 0.42, ...}, "gain_over_blind": {"mean": 0.5, ...}}
"""

from __future__ import annotations

from typing import Any

from harness import tasks
from harness.metrics.accuracy import answers, label
from harness.types import VLM, Trial


def measure(pruned: VLM, dense: VLM, trial: Trial, context: Any) -> dict[str, Any]:
    """The same figures as `accuracy`, on the same questions, of four kinds.

    majority: every question of a task gets its most common answer. blank: every image is grey, of the same size.
    shuffled: every image is another one of the task; left out where a task has one image only. gain_over_blind: the
    accuracy minus that with blank images, paired per question.
    """
    questions = (trial.tasks, trial.split, trial.limit)
    seeing = answers(pruned, trial, context)
    context.progress("blank floor")
    result, blank = tasks.evaluate(pruned, *questions, images="blank", label=label(trial))
    found = {"majority": tasks.summary(tasks.majority(*questions)), "blank": result}
    if all(own["images"] > 1 for own in result["tasks"].values()):
        context.progress("shuffled floor")
        found["shuffled"], _ = tasks.evaluate(pruned, *questions, images="shuffled", label=label(trial))
    gain = seeing.table["score"].to_numpy() - blank["score"].to_numpy()
    found["gain_over_blind"] = tasks.mean(blank, gain)
    return found
