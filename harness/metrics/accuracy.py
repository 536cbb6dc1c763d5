"""Accuracy on the trial's tasks with their official scorers. The record's samples hold every answer.

result = measure(pruned, dense, trial, context)  # {"mean": 0.91, "lo": ..., "hi": ..., "tasks": {...}, "collapse": []}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from harness import tasks
from harness.types import VLM, Column, MetricContext, Trial, at

COLUMNS = (
    Column(
        "accuracy",
        "accuracy",
        better="higher",
        form="{:.1f}",
        scale=100,
        interval=("accuracy_lo", "accuracy_hi"),
        axis="accuracy (points, mean over tasks)",
        read=at("mean"),
    ),
    Column("accuracy_lo", read=at("lo")),
    Column("accuracy_hi", read=at("hi")),
)

# Shares of answers from which a model counts as collapsed (constant: answers of one task with at least FEW questions).
COLLAPSED = {"empty": 0.1, "constant": 0.9, "repeating": 0.1, "overlong": 0.1}
FEW = 20
# The same word three times in a row, or the same piece of up to eight characters six times.
REPEATING = re.compile(r"\b(\w+)(?:\W+\1\b){2}|(.{1,8}?)\2{5}", re.DOTALL)


def measure(pruned: VLM, dense: VLM, trial: Trial, context: MetricContext) -> dict[str, Any]:
    """The mean over tasks and each task's accuracy, as fractions, with 95 % intervals clustered by image.

    `collapse` lists the kinds of degenerate answers whose share in `degenerate` reaches COLLAPSED. `batch` exists only
    if memory was short: the number of questions per batch, halved until they fitted. The report computes differences
    from the dense model from the stored answers. Raises FloatingPointError for NaN or Inf logits.
    """
    answers = answers_of(pruned, trial, context)
    context.attach_samples(answers.table)
    shares = degenerate(answers)
    collapse = [name for name, share in shares.items() if share >= COLLAPSED[name]]
    smaller_batch = {"batch": answers.batch} if answers.batch < tasks.BATCH else {}
    return {**tasks.summary(answers.table), "collapse": collapse, "degenerate": shares, **smaller_batch}


def answers_of(vlm: VLM, trial: Trial, context: MetricContext) -> tasks.Answers:
    """The pruned model's answers to the trial's questions, cached for all metrics that use them."""
    context.progress("accuracy")
    return kept_answers(
        vlm, trial, context, first="fidelity" in trial.metrics, name=label(trial), replies=context.replies
    )


def kept_answers(
    vlm: VLM, trial: Trial, context: MetricContext, *, first: bool, name: str, replies: Mapping[Any, Any] | None = None
) -> tasks.Answers:
    """The result of `tasks.answer`, cached while the model lives and the question files stay unchanged.

    `name` distinguishes variants of one model in lmms-eval's logs.
    """
    questions = trial.questions
    key = ("answers", questions, tasks.stamps(questions), first)
    return context.once(vlm, key, lambda: tasks.answer(vlm, questions, first=first, label=name, replies=replies))


def degenerate(answers: tasks.Answers) -> dict[str, float]:
    """Shares of degenerate answers, by kind.

    Shares of all answers: empty, repeating (the answer repeats itself), overlong (it does not end within the limit).
    constant: the largest share of one answer in a task (0 for tasks of fewer than FEW questions).
    """
    texts = answers.table["answer"].to_pylist()
    by_task: dict[str, Counter[str]] = {}
    for task, text in zip(answers.table["task"].to_pylist(), texts, strict=True):
        by_task.setdefault(task, Counter())[text] += 1
    return {
        "empty": sum(not text for text in texts) / len(texts),
        "constant": max(
            max(counts.values()) / counts.total() if counts.total() >= FEW else 0.0 for counts in by_task.values()
        ),
        "repeating": sum(bool(REPEATING.search(text)) for text in texts) / len(texts),
        "overlong": sum(answers.overlong) / len(texts),
    }


def label(trial: Trial) -> str:
    """A text that distinguishes this trial's model from other variants of the same weights."""
    return f"{trial.method} {trial.variant} {trial.scope} {trial.units} {trial.budget} seed {trial.seed} {trial.tuning}"
