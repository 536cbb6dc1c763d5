"""Accuracies with intervals from a table of scored answers.

summary(evaluate(vlm, Questions(("mini_gqa",)))[1])  # {"mean": 0.75, "lo": 0.7, "hi": 0.8, "tasks": {...}}
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from harness import stats


def summary(table: pa.Table) -> dict[str, Any]:
    """The accuracies of a table of answers as fractions, over all tasks and per task.

    {"mean", "lo", "hi", "tasks": {name: {"accuracy", "lo", "hi", "n", "images"}}}: the mean is over tasks; the
    intervals are 95 % bootstrap intervals clustered by image. A task with one image has none, and neither has the mean.
    """
    task, image = table["task"].to_pylist(), table["image_id"].to_pylist()
    score = table["score"].to_numpy()
    clusters = list(zip(task, image, strict=True))
    per_task = {}
    for name in dict.fromkeys(task):
        rows = [i for i, other in enumerate(task) if other == name]
        images = [image[i] for i in rows]
        figures = {"accuracy": float(score[rows].mean()), **_bounds(stats.clustered_interval(score[rows], images))}
        per_task[name] = {**figures, "n": len(rows), "images": len(set(images))}
    mean = float(np.mean([figures["accuracy"] for figures in per_task.values()]))
    return {"mean": mean, **_bounds(stats.clustered_interval(score, clusters, strata=task)), "tasks": per_task}


def _bounds(interval: tuple[float, float] | None) -> dict[str, float]:
    return dict(zip(("lo", "hi"), interval, strict=True)) if interval else {}


def mean(table: pa.Table, values: np.ndarray) -> dict[str, float]:
    """The mean over tasks and its interval, as in `summary`, of one value per question of this table."""
    place = table.schema.get_field_index("score")
    figures = summary(table.set_column(place, "score", pa.array(values.astype(np.float64))))
    return {name: figures[name] for name in ("mean", "lo", "hi") if name in figures}
