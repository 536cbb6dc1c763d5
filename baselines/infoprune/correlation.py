"""Correlation of two measurements, over all points and within groups of points.

correlation(erank, information, groups=heads_kept)  # {"n", "pearson", "spearman", "within": {"n", "spearman"}}
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

LEAST = 3  # two points always lie on a line


def correlation(x: Sequence[float], y: Sequence[float], groups: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """Pearson's r and Spearman's rho of the points (x, y), with their number n; None if x or y does not vary.

    groups: one label per point. `within` is then the stratified rho: the correlation of ranks inside each group, minus
    the group's mean rank, so differences between groups do not count. Its n leaves out points that are alone in their
    group.
    """
    first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    result: dict[str, Any] = {
        "n": len(first),
        "pearson": _pearson(first, second),
        "spearman": _pearson(rankdata(first), rankdata(second)),
    }
    if groups is not None:
        members: dict[Hashable, list[int]] = defaultdict(list)
        for place, group in enumerate(groups):
            members[group].append(place)
        pairs = [
            (_centred_ranks(first[group]), _centred_ranks(second[group]))
            for group in members.values()
            if len(group) > 1
        ]
        ranks = [np.concatenate(side) for side in zip(*pairs, strict=True)] if pairs else [np.empty(0)] * 2
        result["within"] = {"n": len(ranks[0]), "spearman": _pearson(*ranks)}
    return result


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    return rankdata(values) - (len(values) + 1) / 2


def _pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    if len(x) < LEAST:
        return None
    x, y = x - x.mean(), y - y.mean()
    lengths = [np.linalg.norm(side) for side in (x, y)]
    if min(lengths) <= 1e-12 * np.sqrt(len(x)):
        return None
    return float(np.clip(x @ y / (lengths[0] * lengths[1]), -1, 1))
