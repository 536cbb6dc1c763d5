"""Scores without sight: the majority answer, and the same model with blank or shuffled images.

result = measure(pruned, dense, trial, context)  # {"blank": {"mean": 0.42, ...}, "gain_over_blind": {"mean": 0.5, ...}}
"""

from __future__ import annotations

from typing import Any

from harness import tasks
from harness.metrics.accuracy import answers_of, label
from harness.types import VLM, Column, MetricContext, Trial, at

COLUMNS = (
    Column("blank_accuracy", read=at("blank", "mean")),
    Column(
        "gain_over_blind", "over blind", unit="points", form="{:.1f}", scale=100, read=at("gain_over_blind", "mean")
    ),
)


def measure(pruned: VLM, dense: VLM, trial: Trial, context: MetricContext) -> dict[str, Any]:
    """The figures of `accuracy` on the same questions, for four variants.

    majority: every question of a task gets the task's most common answer. blank: a grey image of the same size
    replaces every image. shuffled: another image of the task replaces every image; absent if a task has only one
    image. gain_over_blind: accuracy minus accuracy with blank images, paired per question.
    """
    questions = trial.questions
    seeing = answers_of(pruned, trial, context)
    context.progress("blank floor")
    blank, table = tasks.evaluate(pruned, questions, images="blank", label=label(trial))
    floors = {"majority": tasks.summary(tasks.majority(questions)), "blank": blank}
    if all(task["images"] > 1 for task in blank["tasks"].values()):
        context.progress("shuffled floor")
        floors["shuffled"], _ = tasks.evaluate(pruned, questions, images="shuffled", label=label(trial))
    gain = seeing.table["score"].to_numpy() - table["score"].to_numpy()
    floors["gain_over_blind"] = tasks.mean(table, gain)
    return floors
