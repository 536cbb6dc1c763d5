"""Accuracies with intervals from a table of scored answers.

summary(evaluate(vlm, ["mini_gqa"])[1])  # {"mean": 0.75, "lo": 0.7, "hi": 0.8, "tasks": {...}}
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from harness import stats


def summary(table: pa.Table) -> dict[str, Any]:
    """The accuracies of a table of answers as fractions, over all tasks and per task.

    {"mean", "lo", "hi", "tasks": {name: {"accuracy", "lo", "hi", "n", "images"}}}: the mean is over tasks; the
    intervals are 95 % bootstrap intervals clustered by image.
    """
    task, image = table["task"].to_pylist(), table["image_id"].to_pylist()
    score = table["score"].to_numpy()
    clusters = list(zip(task, image, strict=True))
    per_task = {}
    for name in dict.fromkeys(task):
        rows = [i for i, other in enumerate(task) if other == name]
        lo, hi = stats.clustered_interval(score[rows], [image[i] for i in rows])
        images = len({image[i] for i in rows})
        per_task[name] = {"accuracy": float(score[rows].mean()), "lo": lo, "hi": hi, "n": len(rows), "images": images}
    lo, hi = stats.clustered_interval(score, clusters, strata=task)
    mean = float(np.mean([figures["accuracy"] for figures in per_task.values()]))
    return {"mean": mean, "lo": lo, "hi": hi, "tasks": per_task}


def mean(table: pa.Table, values: np.ndarray) -> dict[str, float]:
    """The mean over tasks and its interval, as in `summary`, of one value per question of this table."""
    place = table.schema.get_field_index("score")
    figures = summary(table.set_column(place, "score", pa.array(values.astype(np.float64))))
    return {name: figures[name] for name in ("mean", "lo", "hi")}
