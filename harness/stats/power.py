"""Statistical power: detectable differences, and the number of questions that a verdict needs.

questions_needed(difference(pairs), 0.02)
"""

from __future__ import annotations

import math

from harness.stats.paired import Difference


def minimum_detectable_effect(standard_error: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference that a two-sided test at alpha detects with this power, in the unit of the standard error.

    Source: Bloom, Evaluation Review 19 (1995).
    """
    return standard_error * _reach(alpha / 2, power)


def questions_needed(
    change: Difference, gap: float, *, alpha: float = 0.05, power: float = 0.8, sides: int = 2
) -> int | None:
    """How many questions are needed to tell a true gap from 0 with this power, from the same tasks, as many per image.

    `gap`: a fraction; against a margin, use margin - loss and `sides=1`. None if the gap is 0 or the spread is unknown.
    """
    if not gap or not math.isfinite(change.standard_error):
        return None
    # With x times the questions, the variance is v / x (spread) + a / x^2 (allowance). Solve gap = reach * se for x.
    square = (gap / _reach(alpha / sides, power)) ** 2
    a = change.allowance**2
    v = max(change.standard_error**2 - a, 0.0)
    return math.ceil(change.questions * (v + math.sqrt(v * v + 4 * square * a)) / (2 * square))


def _reach(tail: float, power: float) -> float:
    """The standard errors between no effect and an effect that is detected with this power."""
    from scipy import special

    if not (0 < tail < 1 and 0 < power < 1):
        raise ValueError("alpha and power must lie between 0 and 1")
    return float(special.ndtri(1 - tail) + special.ndtri(power))
