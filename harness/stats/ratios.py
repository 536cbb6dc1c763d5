"""Ratios of times with their intervals.

ratio_of_medians(dense_seconds, pruned_seconds, paired=True)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.stats.bootstrap import CELLS
from harness.stats.intervals import Estimate, gap


class Ratio(NamedTuple):
    """A ratio first / second with its confidence interval."""

    estimate: float
    lo: float
    hi: float


def ratio_of_medians(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    paired: bool = False,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Ratio:
    """Ratio of the median times of two samples, (n,) and (m,), with a percentile bootstrap over repeats.

    `paired`: repeat i of both was timed in the same round, so rounds are resampled. Any unit of time. Raises ValueError
    if times are missing or not positive, and for pairs of different lengths.
    """
    above, below = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not (len(above) and len(below) and (above > 0).all() and (below > 0).all()):
        raise ValueError("a ratio needs times, all of them positive")
    if paired and len(above) != len(below):
        raise ValueError(f"{len(above)} and {len(below)} times: pairs need as many of both")
    random = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    rows = max(1, CELLS // max(len(above), len(below)))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        picks = random.integers(len(above), size=(size, len(above)))
        other_picks = picks if paired else random.integers(len(below), size=(size, len(below)))
        ratios[start : start + size] = np.median(above[picks], axis=1) / np.median(below[other_picks], axis=1)
    lo, hi = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Ratio(float(np.median(above) / np.median(below)), float(lo), float(hi))


def quotient(first: Estimate, second: Estimate) -> Ratio:
    """Quotient of two independent positive estimates, each given with its interval (estimate, lo, hi).

    For the speedups of two records, whose single times are not stored. The interval has the confidence of the two given
    intervals: it is that of `gap` on logarithms. Raises ValueError for values that are not positive.
    """
    if not min(*first, *second) > 0:
        raise ValueError("a quotient needs positive estimates and bounds")
    above, below = (Ratio(*map(math.log, side)) for side in (first, second))
    return Ratio(*map(math.exp, gap(below, above)))


def mean_ratio(ratios: Sequence[Ratio]) -> Ratio:
    """Geometric mean of independent positive ratios, with the confidence of their intervals.

    Raises ValueError if there are none. Source: as `gap`, on logarithms.
    """
    if not ratios:
        raise ValueError("no ratios to average")
    middle, lo, hi = np.log(ratios).T
    mean = float(middle.mean())
    down, up = (float(np.sqrt((side**2).sum())) / len(ratios) for side in (middle - lo, hi - middle))
    return Ratio(math.exp(mean), math.exp(mean - down), math.exp(mean + up))
