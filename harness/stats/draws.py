"""How far a difference of two means moves with the draws of calibration samples, of random units or of a training.

spread = between({0: 0.76, 1: 0.80, 2: 0.75}, {0: 0.70, 1: 0.71, 2: 0.73})   # accuracy by seed, each side
difference(pairs, spread=spread)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """The variance of a mean over draws, and the degrees of freedom of that variance."""

    variance: float
    freedom: float


NONE = Spread(0.0, np.inf)


def between(first: Mapping[int, float], second: Mapping[int, float], *, shared: bool = True) -> Spread:
    """The spread of mean(second) - mean(first) over draws, from the means of each seed.

    shared: equal seeds are the same draw, so where both sides have the same seeds, their differences by seed count.
    Otherwise the spreads of both add up. One draw has no known spread and adds nothing: whoever states the interval has
    to say so. Source: Welch, Biometrika 34 (1947).
    """
    if shared and first.keys() == second.keys():
        return _of_mean([second[seed] - first[seed] for seed in first])
    one, two = _of_mean(list(first.values())), _of_mean(list(second.values()))
    variance = one.variance + two.variance
    unsure = one.variance**2 / one.freedom + two.variance**2 / two.freedom
    return Spread(variance, variance**2 / unsure) if unsure else NONE


def _of_mean(values: list[float]) -> Spread:
    return Spread(float(np.var(values, ddof=1)) / len(values), len(values) - 1) if len(values) > 1 else NONE
