"""Ratios of times with their intervals.

quotient(Ratio(1.5, 1.4, 1.6), Ratio(1.2, 1.1, 1.3))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness.stats.intervals import Estimate, gap


class Ratio(NamedTuple):
    """A ratio first / second with its confidence interval."""

    estimate: float
    lo: float
    hi: float


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
