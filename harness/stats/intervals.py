"""Confidence intervals of mean scores when questions share images, and of the difference of two such means.

interval = clustered_interval(scores, image_ids, strata=task_names)    # (lo, hi)
gap((0.81, 0.79, 0.83), (0.84, 0.82, 0.86))               # (0.03, 0.0017, 0.0583)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from harness.stats.bootstrap import codes

Estimate = tuple[float, float, float]  # an estimate and the ends of its interval


def clustered_interval(
    scores: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    strata: Sequence[Hashable] | np.ndarray | None = None,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean over strata of their mean score, resampling whole clusters.

    `scores`, `clusters` and `strata`: one entry per question, (n,). Clusters are drawn with replacement within each
    stratum. The same inputs and seed give the same interval. None if a stratum has one cluster only, because its spread
    is then unknown. Raises ValueError if there are no scores.
    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8 (cluster bootstrap).
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        raise ValueError("an interval needs at least one score")
    groups = codes(strata if strata is not None else np.zeros(len(values)))
    images = codes(clusters)
    if not len(values) == len(groups) == len(images):
        raise ValueError(f"{len(values)} scores, {len(images)} clusters and {len(groups)} strata: lengths differ")
    random = np.random.default_rng(seed)
    count = groups.max() + 1
    means = np.zeros(resamples)
    for group in range(count):
        in_group = groups == group
        _, image_codes = np.unique(images[in_group], return_inverse=True)
        if image_codes.max() == 0:
            return None
        sums, sizes = np.bincount(image_codes, values[in_group]), np.bincount(image_codes).astype(np.float64)
        draws = random.integers(len(sums), size=(resamples, len(sums)))
        means += sums[draws].sum(axis=1) / sizes[draws].sum(axis=1) / count
    tail = 50 * (1 - confidence)
    lo, hi = np.percentile(means, [tail, 100 - tail])
    return float(lo), float(hi)


def gap(first: Estimate, second: Estimate) -> Estimate:
    """Difference second - first of two independent estimates, with the confidence of their two intervals.

    Source: Zou and Donner, Statistics in Medicine 27 (2008) (variance estimates recovered from limits).
    """
    (a, a_lo, a_hi), (b, b_lo, b_hi) = first, second
    return b - a, b - a - math.hypot(b - b_lo, a_hi - a), b - a + math.hypot(b_hi - b, a - a_lo)
