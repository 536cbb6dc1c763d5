"""The difference to the best of several rivals, which is not known beforehand but found in the same answers.

    best = against_best(differences([pair(rival, own) for rival in rivals], spreads))
    best.hi < 0                                # behind one of them at least

Of many rivals that are all as good, the one that looks best does so by luck. So what is behind the best of them must be
behind one rival by more than luck gives any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from harness.stats.bootstrap import quantile
from harness.stats.paired import Difference


class AgainstBest(NamedTuple):
    """The lowest of several differences (fractions), as the difference to the best: its place, interval and p."""

    place: int
    estimate: float
    lo: float
    hi: float
    p: float


def against_best(changes: Sequence[Difference], *, confidence: float = 0.95) -> AgainstBest:
    """The difference (own - rival) to the best of these rivals, with an interval that holds for whichever is the best.

    It lies above 0 if every single interval does, which needs no correction. It lies below 0 if that of one rival does
    after Bonferroni's correction. p, two-sided, follows the same rule. Raises ValueError without rivals.
    Source: Edwards and Hsu, JASA 78 (1983) (multiple comparisons with the best); Berger, Technometrics 24 (1982)
    (intersection-union tests).
    """
    if not changes:
        raise ValueError("no rivals to compare with")
    place = min(range(len(changes)), key=lambda at: changes[at].estimate)
    estimate, many = changes[place].estimate, len(changes)
    tail = (1 - confidence) / 2
    if estimate > 0:
        p = max(change.p for change in changes)
    else:
        p = min(1.0, many * min(change.p for change in changes if change.estimate <= 0))
    lo = min(quantile(change.draws, tail, change.freedom) for change in changes)
    hi = min(quantile(change.draws, 1 - tail / many, change.freedom) for change in changes)
    return AgainstBest(place, estimate, lo, hi, p)
