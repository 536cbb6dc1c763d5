"""Hypervolume of a Pareto front: one number for a method's accuracies at several budgets.

hypervolume([1 / 3.2, 0.5, 0.75], [0.41, 0.52, 0.55], reference=(1.0, 0.35))
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from harness.stats.bootstrap import quantile, resample


class Hypervolume(NamedTuple):
    """An area (FLOPs kept x accuracy, both fractions) with its confidence interval."""

    estimate: float
    lo: float
    hi: float


def hypervolume(
    flops_kept: npt.ArrayLike,
    accuracy: npt.ArrayLike,
    reference: tuple[float, float],
) -> np.ndarray:
    """Area between a front and a reference point (most FLOPs kept, least accuracy); other points add nothing.

    `flops_kept`: (points,), lower is better. `accuracy`: (..., points), higher is better. Returns areas (...).
    Raises ValueError for shapes that do not fit, and for numbers that are not finite.
    Source: Zitzler and Thiele, IEEE Transactions on Evolutionary Computation 3 (1999).
    """
    x, y = np.asarray(flops_kept, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    if x.ndim != 1 or y.shape[-1:] != x.shape:
        raise ValueError(f"FLOPs of shape {x.shape} and accuracies of shape {y.shape} do not fit")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and np.isfinite(reference).all()):
        raise ValueError("a hypervolume needs finite FLOPs, accuracies and reference")
    order = np.argsort(x)
    edges = np.minimum(np.append(x[order], reference[0]), reference[0])
    best = np.maximum.accumulate(y[..., order], axis=-1)  # best accuracy up to these FLOPs
    return (np.maximum(best - reference[1], 0) * np.diff(edges)).sum(axis=-1)


def hypervolume_intervals(
    fronts: Sequence[np.ndarray],
    scores: np.ndarray,
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable],
    reference: tuple[float, float],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Hypervolume]:
    """Hypervolumes of mean scores over tasks, with a bootstrap over images whose draws all points of all fronts share.

    `fronts`: FLOPs kept, (points,) each; `scores`: (questions, points of all fronts), fractions; `clusters` (images)
    and `strata` (tasks): (questions,). If points tie within their error, the best of them is slightly too high, both in
    the estimate and in the interval. A task with only one image makes the interval infinite. Raises ValueError as
    `hypervolume` does.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or not len(table):
        raise ValueError(f"scores of shape {table.shape}: they must be (questions, points), with a question at least")
    if sum(map(len, fronts)) != table.shape[1]:
        raise ValueError(f"{table.shape[1]} columns of scores and {sum(map(len, fronts))} points: they do not fit")
    sampled = resample(table, clusters, strata, resamples, np.random.default_rng(seed))
    rows = [[task == name for task in strata] for name in dict.fromkeys(strata)]
    means = np.mean([table[in_task].mean(axis=0) for in_task in rows], axis=0)
    tail, volumes, start = (1 - confidence) / 2, [], 0
    for front in fronts:
        columns = slice(start, start + len(front))
        areas = hypervolume(front, sampled.draws[:, columns], reference)
        lo, hi = (quantile(areas, level, sampled.freedom) for level in (tail, 1 - tail))
        volumes.append(Hypervolume(float(hypervolume(front, means[columns], reference)), lo, hi))
        start += len(front)
    return volumes
