"""How far a difference of two means moves with the draws of calibration samples, of random units or of a training.

spread = between({0: 0.76, 1: 0.80, 2: 0.75}, {0: 0.70, 1: 0.71, 2: 0.73})   # accuracy by seed, each side
difference(pairs, spread=spread)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """The variance of a mean over draws, and the degrees of freedom of that variance."""

    variance: float
    freedom: float


NONE = Spread(0.0, np.inf)


def between(first: Mapping[int, float], second: Mapping[int, float]) -> Spread:
    """The spread of mean(second) - mean(first) over draws, from the means of each seed.

    Sides with the same seeds have the same draws, so their differences by seed count; otherwise the spreads of both
    add up. One draw has no known spread and adds nothing: whoever states the interval has to say so.
    """
    if first.keys() == second.keys():
        return _of_mean([second[seed] - first[seed] for seed in first])
    return total([_of_mean(list(first.values())), _of_mean(list(second.values()))])


def total(spreads: Iterable[Spread]) -> Spread:
    """The spread of a sum of independent parts. Source: Satterthwaite, Biometrics Bulletin 2 (1946)."""
    parts = [part for part in spreads if part.variance]
    variance = sum(part.variance for part in parts)
    if not variance:
        return NONE
    unsure = sum(part.variance**2 / part.freedom for part in parts)
    return Spread(variance, float(variance**2 / unsure) if unsure else np.inf)


def _of_mean(values: list[float]) -> Spread:
    return Spread(float(np.var(values, ddof=1)) / len(values), len(values) - 1) if len(values) > 1 else NONE
