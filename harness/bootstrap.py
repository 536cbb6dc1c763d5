"""Bootstrap draws of mean scores when questions share images.

sampled = resample(scores, image_ids, task_names, 10_000, np.random.default_rng(0))
quantile(sampled.draws[:, 0], 0.975, sampled.freedom)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

CELLS = 1_000_000  # of a chunk of draws: 8 MB, which stays in the cache


class Resampled(NamedTuple):
    """Bootstrap draws of means over strata, (resamples, columns), and the degrees of freedom of their spread."""

    draws: np.ndarray
    freedom: float


def resample(
    scores: np.ndarray,
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable],
    resamples: int,
    random: np.random.Generator,
) -> Resampled:
    """Bootstrap the mean over strata of each column's mean, drawing whole clusters within each stratum.

    `scores`: (n, columns); `clusters`, `strata`: (n,). All columns see the same draws. Deviations are widened by
    sqrt(g / (g - 1)) for g clusters; the degrees of freedom are Satterthwaite's, and 0 where a stratum has one
    cluster only, whose spread nobody knows. Memory is bounded whatever the sizes.
    Source: Davison and Hinkley (1997), section 3.8; Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    groups, images = codes(strata), codes(clusters)
    if not len(scores) == len(groups) == len(images):
        raise ValueError(f"{len(scores)} scores, {len(images)} clusters and {len(groups)} strata: lengths differ")
    count = int(groups.max()) + 1
    draws = np.zeros((resamples, scores.shape[1]))
    spread, free = np.zeros(count), np.zeros(count)
    for group in range(count):
        inside = groups == group
        _, own = np.unique(images[inside], return_inverse=True)
        columns = [np.bincount(own), *(np.bincount(own, column) for column in scores[inside].T)]
        table = np.column_stack(columns).astype(np.float64) + 0.0  # no -0.0, which sorts apart from 0.0
        totals = _resampled_totals(table, resamples, random)
        centre = table[:, 1:].sum(axis=0) / table[:, 0].sum()
        deviations = totals[:, 1:] / totals[:, :1] - centre
        deviations *= math.sqrt(len(table) / max(len(table) - 1, 1))
        spread[group], free[group] = deviations.var(axis=0).mean(), len(table) - 1
        draws += (centre + deviations) / count
    if not free.all():
        return Resampled(draws, 0.0)
    if not spread.any():
        return Resampled(draws, float(free.sum()))
    return Resampled(draws, float(spread.sum() ** 2 / (spread**2 / free).sum()))


def _resampled_totals(table: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """Column sums of as many rows, drawn with replacement, as the table has: (resamples, columns)."""
    number = len(table)
    # Rows that are equal are exchangeable: how often each kind is drawn is all that matters, and 0/1 scores make few.
    kinds, first, members = np.unique(table, axis=0, return_index=True, return_counts=True)
    few = 10 * len(kinds) < number  # a kind costs what ten rows do
    order = np.argsort(first)  # of first appearance: the same draws when all signs are swapped
    kinds, shares = kinds[order], members[order] / number
    totals = np.empty((resamples, table.shape[1]))
    rows = max(1, CELLS // (len(kinds) if few else number))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        if few:
            totals[start : start + size] = random.multinomial(number, shares, size=size) @ kinds
        else:
            picked = random.integers(number, size=(size, number))
            weights = np.array([np.bincount(row, minlength=number) for row in picked], dtype=np.float64)
            totals[start : start + size] = weights @ table
    return totals


def quantile(draws: np.ndarray, level: float, freedom: float) -> float:
    """The bootstrap quantile at a level, moved out as Student's t is wider than the normal; infinite at 0 freedom.

    Source: Hesterberg, The American Statistician 69 (2015) (expanded percentile interval).
    """
    from scipy import special  # late: a fifth of a second, which a command's help should not wait for

    if not freedom:
        return -math.inf if level < 0.5 else math.inf
    return float(np.quantile(draws, special.ndtr(special.stdtrit(freedom, level))))


def p_above_zero(draws: np.ndarray, freedom: float) -> float:
    """One-sided p of draws that should lie above 0: the level at which `quantile` is 0."""
    from scipy import special

    if not freedom:
        return 1.0
    share = (1 + np.count_nonzero(draws <= 0)) / (1 + len(draws))
    return float(special.stdtr(freedom, special.ndtri(share)))


def codes(labels: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """Small integers in order of first appearance, so that any hashable label (also a mix of types) will do."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)
