"""Bootstrap draws of mean scores when questions share images.

sampled = resample(scores, image_ids, task_names, 10_000, np.random.default_rng(0))
quantile(sampled.draws[:, 0], 0.975, sampled.freedom)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

CELLS = 1_000_000  # table cells of a chunk of draws: 8 MB, which fits into the processor's cache


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

    `scores`: (n, columns); `clusters`, `strata`: (n,). All columns use the same draws. Deviations are widened by
    sqrt(g / (g - 1)) for g clusters. The degrees of freedom are Satterthwaite's; they are 0 if a stratum has only one
    cluster, because its spread is then unknown. Memory is bounded for any input size. Raises ValueError if lengths
    differ.
    Source: Davison and Hinkley (1997), section 3.8; Satterthwaite, Biometrics Bulletin 2 (1946).
    """
    groups, images = codes(strata), codes(clusters)
    if not len(scores) == len(groups) == len(images):
        raise ValueError(f"{len(scores)} scores, {len(images)} clusters and {len(groups)} strata: lengths differ")
    count = int(groups.max()) + 1
    draws = np.zeros((resamples, scores.shape[1]))
    spread, free = np.zeros(count), np.zeros(count)
    for group in range(count):
        in_group = groups == group
        _, members = np.unique(images[in_group], return_inverse=True)
        columns = [np.bincount(members), *(np.bincount(members, column) for column in scores[in_group].T)]
        table = np.column_stack(columns).astype(np.float64) + 0.0  # -0.0 becomes 0.0: they would be different rows
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
    """Column sums of as many rows as the table has, drawn with replacement: (resamples, columns)."""
    number = len(table)
    # Equal rows are interchangeable, so only the number of draws of each kind matters. 0/1 scores give few kinds.
    kinds, first, members = np.unique(table, axis=0, return_index=True, return_counts=True)
    use_kinds = 10 * len(kinds) < number  # drawing one kind costs as much as drawing ten rows
    order = np.argsort(first)  # order of first appearance, so that the draws stay the same when all signs change
    kinds, shares = kinds[order], members[order] / number
    totals = np.empty((resamples, table.shape[1]))
    rows = max(1, CELLS // (len(kinds) if use_kinds else number))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        if use_kinds:
            totals[start : start + size] = random.multinomial(number, shares, size=size) @ kinds
        else:
            picks = random.integers(number, size=(size, number))
            weights = np.array([np.bincount(row, minlength=number) for row in picks], dtype=np.float64)
            totals[start : start + size] = weights @ table
    return totals


def quantile(draws: np.ndarray, level: float, freedom: float) -> float:
    """The bootstrap quantile at a level, moved outwards as Student's t is wider than the normal; infinite at 0 freedom.

    Source: Hesterberg, The American Statistician 69 (2015) (expanded percentile interval).
    """
    from scipy import special  # imported late: it takes 0.2 s, and `--help` must not wait for it

    if not freedom:
        return -math.inf if level < 0.5 else math.inf
    return float(np.quantile(draws, special.ndtr(special.stdtrit(freedom, level))))


def p_above_zero(draws: np.ndarray, freedom: float) -> float:
    """One-sided p against a value of 0 or less: the level at which `quantile` is 0."""
    from scipy import special

    if not freedom:
        return 1.0
    share = (1 + np.count_nonzero(draws <= 0)) / (1 + len(draws))
    return float(special.stdtr(freedom, special.ndtri(share)))


def codes(labels: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """Small integers for any hashable labels (also of mixed types), in order of first appearance: (n,)."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)
