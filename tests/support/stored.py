"""Made records on disk, with samples that fit: what gates, verdicts and checks are fed in tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from harness.records.record import Code, Cost, Failure, MethodFacts, Record, write
from harness.records.schema import DESCRIBED
from harness.stats import clustered_interval
from harness.types import Plan, Trial, Tuning, regime

TASKS = ("mini_gqa", "mini_textvqa", "mini_vqav2")
PER_IMAGE = 3  # questions
OK: dict[str, Any] = {"kept": 0.5, "speedup": (1.5, 1.47, 1.53), "env": {"cpu": "Example CPU", "threads": 2}}


def trial_of(method: str = "taylor", budget: float = 0.5, seed: int = 0, **changes: Any) -> tuple[Trial, MethodFacts]:
    """A record's trial and contestant; `changes` replace keys of either."""
    content: dict[str, Any] = {
        "board": "made", "model": "reference", "method": method, "options": {}, "tuning": "none", "units": "both",
        "scope": "vision", "budget": budget, "seed": seed, "tasks": list(TASKS), "split": "validation", "limit": 600,
        "metrics": ["flops", "latency", "accuracy"],
        "calibration": {"samples": 128, "tasks": list(TASKS), "split": "calibration"},
        "latency": {"batches": [1, 8], "repeats": 20}, "reference_input": {"image": [96, 96], "text": "?"},
        "dtype": "float32",
    }  # fmt: skip
    about: dict[str, Any] = {
        "title": method,
        "variant": "",
        "role": {"mine": "studied", "random": "floor"}.get(method, "reference"),
    }
    if changes.get("tuning", "none") != "none":
        method, *training = changes["tuning"].split("-")
        content["recovery"] = {
            "method": method,
            **({"loss": training[0], "steps": int(training[1])} if training else {}),
        }
    about["regime"] = regime("none", Tuning(**changes.get("recovery", content.get("recovery", {}))))
    about |= {key: changes.pop(key) for key in list(changes) if key in DESCRIBED}
    return Trial.of(content | changes), MethodFacts(**about)


def samples(scores: np.ndarray | Sequence[float], tasks: Sequence[str] = TASKS) -> pyarrow.Table:
    """Scores, (questions,), as answers: the same number of questions a task, three an image."""
    own = len(scores) // len(tasks)
    rows = [(task, place) for task in tasks for place in range(own)]
    return pyarrow.table(
        {
            "task": [task for task, _ in rows],
            "question_id": [f"q{place}" for _, place in rows],
            "image_id": [f"i{place // PER_IMAGE}" for _, place in rows],
            "answer": ["red"] * len(rows),
            "score": [float(score) for score in scores],
        }
    )


def put(
    results: Path,
    scores: np.ndarray | Sequence[float] | None,
    *,
    kept: float | None = OK["kept"],
    speedup: tuple[float, float, float] | None = OK["speedup"],
    env: dict[str, Any] = OK["env"],
    data: str = "d",
    error: str = "",
    revision: str = "a",
    interval: bool = False,
    more: dict[str, Any] | None = None,
    plan: Plan | None = None,
    **trial: Any,
) -> Path:
    """Write the record of a trial; without scores it measured no accuracy, with an error it failed.

    `interval`: of the accuracy, as a sweep records it. `more` of what the latency metric measured.
    """
    asked, contestant = trial_of(**trial)
    metrics: dict[str, Any] = {}
    answers = None
    if scores is not None and not error:
        names = asked.questions.tasks
        answers = samples(scores, names)
        each = np.asarray(scores, dtype=float).reshape(len(names), -1).mean(axis=1).tolist()
        tasks = {task: {"accuracy": mean} for task, mean in zip(names, each, strict=True)}
        metrics["accuracy"] = {"mean": float(np.mean(each)), "tasks": tasks}
        if interval:
            images, strata = answers["image_id"].to_pylist(), answers["task"].to_pylist()
            ends = clustered_interval(scores, images, strata=strata) or ()
            metrics["accuracy"] |= dict(zip(("lo", "hi"), ends, strict=False))
    if kept is not None:
        metrics["flops"] = {"kept": kept}
    if speedup is not None:
        metrics["latency"] = dict(zip(("speedup", "speedup_lo", "speedup_hi"), speedup, strict=True)) | (more or {})
    record = Record(
        trial=asked,
        contestant=contestant,
        error=Failure("MemoryError", error) if error else None,
        plan=plan,
        metrics={} if error else metrics,
        cost=Cost(total_s=1.0),
        env=env,
        code=Code("0.1.0", revision, False),
        hashes={"data": data},
    )
    write(results / asked.board, record, answers)
    return results / asked.board / f"{record.id}.json"


def scores(number: int, accuracy: float = 0.8, seed: int = 0) -> np.ndarray:
    """Right and wrong answers, (number,), alike within an image."""
    random = np.random.default_rng(seed)
    easy = np.repeat(random.normal(size=-(-number // PER_IMAGE)), PER_IMAGE)[:number] * 0.8
    level = float(np.quantile(easy + random.normal(size=number), 1 - accuracy))
    return (easy + np.random.default_rng(seed + 1).normal(size=number) > level).astype(float)


def flipped(before: np.ndarray, lost: float, gained: float = 0.0, seed: int = 0) -> np.ndarray:
    """The scores after a change: these shares of all answers, exactly, become wrong or right; the places are drawn."""
    random = np.random.default_rng(seed)
    after = before.copy()
    for share, value in ((lost, 1.0), (gained, 0.0)):
        there = np.flatnonzero(before == value)
        after[random.choice(there, round(share * len(before)), replace=False)] = 1 - value
    return after
