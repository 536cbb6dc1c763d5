"""The difference to the best rival: one rival changes nothing, and of many equal ones luck makes no loser."""

from __future__ import annotations

import numpy as np
import pytest

from harness import stats
from harness.stats.draws import NONE


def pairs(own: np.ndarray, rival: np.ndarray) -> stats.Pairs:
    number = len(own)
    return stats.Pairs(["task"] * number, list(range(number)), list(range(number)), rival, own)


def answers(number: int, accuracy: float, random: np.random.Generator) -> np.ndarray:
    return (random.random(number) < accuracy).astype(float)


def test_one_rival_is_the_best() -> None:
    random = np.random.default_rng(0)
    change = stats.difference(pairs(answers(300, 0.7, random), answers(300, 0.6, random)))
    assert stats.against_best([change]) == (0, change.estimate, change.lo, change.hi, change.p)


def test_several_comparisons_share_their_draws_and_change_nothing() -> None:
    random = np.random.default_rng(1)
    several = [pairs(answers(300, 0.7, random), answers(300, at, random)) for at in (0.4, 0.6)]
    for together, those in zip(stats.differences(several, [NONE, NONE]), several, strict=True):
        alone = stats.difference(those)
        assert together.estimate == alone.estimate and together.p == pytest.approx(alone.p, abs=0.01)
        assert (together.lo, together.hi) == pytest.approx((alone.lo, alone.hi), abs=0.005)


def test_behind_one_rival_is_behind_the_best_and_ahead_means_of_all() -> None:
    random = np.random.default_rng(2)
    own = answers(600, 0.7, random)
    weak, strong = (pairs(own, answers(600, at, random)) for at in (0.4, 0.85))
    behind = stats.against_best(stats.differences([weak, strong], [NONE, NONE]))
    assert behind.place == 1 and behind.hi < 0 and behind.p < 0.05
    ahead = stats.against_best(stats.differences([weak, weak], [NONE, NONE]))
    assert ahead.lo > 0 and ahead.p < 0.05


def test_many_equal_rivals_make_no_loser() -> None:
    """The lowest of twelve differences, taken as if it had been the only one, is below zero far more often."""
    random = np.random.default_rng(3)
    runs, behind, naive = 200, 0, 0
    for _ in range(runs):
        own = answers(600, 0.7, random)
        several = [pairs(own, answers(600, 0.7, random)) for _ in range(12)]
        changes = stats.differences(several, [NONE] * 12, resamples=2000)
        best = stats.against_best(changes)
        behind += best.hi < 0
        naive += changes[best.place].hi < 0
    assert behind <= 0.05 * runs < naive


def test_no_rival_is_no_comparison() -> None:
    with pytest.raises(ValueError, match="no rivals"):
        stats.against_best([])
    random = np.random.default_rng(4)
    with pytest.raises(ValueError, match="different questions"):
        stats.differences([pairs(*random.random((2, n))) for n in (5, 6)], [NONE, NONE])
