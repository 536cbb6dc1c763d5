"""Intervals hold the draws: they cover the mean over all draws as often as they claim, and one draw adds nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from harness import stats
from harness.stats.draws import NONE, Spread

fractions = some.floats(0, 1)


def pairs(first: np.ndarray, second: np.ndarray) -> stats.Pairs:
    number = len(first)
    return stats.Pairs(["task"] * number, list(range(number)), list(range(number)), first, second)


@given(some.lists(some.tuples(fractions, fractions), min_size=2, max_size=6))
def test_shared_draws_count_by_their_differences(scores: list[tuple[float, float]]) -> None:
    first, second = (dict(enumerate(side)) for side in zip(*scores, strict=True))
    spread = stats.between(first, second)
    differences = [b - a for a, b in scores]
    assert spread.variance == pytest.approx(np.var(differences, ddof=1) / len(scores))
    assert not spread.variance or spread.freedom == len(scores) - 1
    assert stats.between(second, first) == pytest.approx(spread)


@given(some.lists(fractions, min_size=2, max_size=6), some.lists(fractions, min_size=2, max_size=6))
def test_other_draws_add_up(first: list[float], second: list[float]) -> None:
    spread = stats.between(dict(enumerate(first)), dict(enumerate(second)), shared=False)
    assert spread == stats.between(dict(enumerate(first)), dict(enumerate(second, 100)))
    own = [np.var(side, ddof=1) / len(side) for side in (first, second)]
    assert spread.variance == pytest.approx(sum(own))
    if spread.variance > 0:  # between the smaller side's and the sum of both, as Welch's
        assert min(len(first), len(second)) - 1 <= spread.freedom * 1.0001
        assert spread.freedom <= (len(first) + len(second) - 2) * 1.0001


@given(fractions, fractions)
def test_one_draw_adds_nothing(first: float, second: float) -> None:
    assert stats.between({0: first}, {0: second}) == stats.between({0: first}, {1: second}) == NONE
    assert stats.between({}, {}) == NONE


def test_without_a_spread_nothing_changes() -> None:
    random = np.random.default_rng(0)
    these = pairs(*random.integers(0, 2, (2, 200)).astype(float))
    assert stats.difference(these) == stats.difference(these, spread=NONE)
    wider = stats.difference(these, spread=Spread(0.01, 2))
    assert wider.estimate == stats.difference(these).estimate
    assert wider.lo < stats.difference(these).lo and wider.hi > stats.difference(these).hi


@pytest.mark.parametrize("draws, move", [(2, 0.02), (2, 0.1), (3, 0.05), (3, 0.1), (5, 0.05)])
def test_intervals_cover_as_often_as_they_claim(draws: int, move: float) -> None:
    """Two methods that are equal over all draws; each draw moves one of them by some points."""
    random = np.random.default_rng(1)
    covered = certain = 0
    for _ in range(200):
        moves = random.normal(0, move, draws)
        scores = [(random.random(400) < 0.6 + move).astype(float) for move in moves]
        other = (random.random(400) < 0.6).astype(float)
        these = stats.average([pairs(other, score) for score in scores])
        spread = stats.between({0: other.mean()}, {seed: score.mean() for seed, score in enumerate(scores)})
        change = stats.difference(these, spread=spread, resamples=1000)
        covered += change.lo <= 0 <= change.hi
        alone = stats.difference(these, resamples=1000)
        certain += not alone.lo <= 0 <= alone.hi
    assert covered >= 181, "95 % of 200, less three standard errors"
    assert certain >= 20 or move < 0.05, "without the spread, more than twice 5 % would be called different"


def test_a_large_lead_over_few_draws_is_sure() -> None:
    random = np.random.default_rng(2)
    these = pairs(*((random.random(400) < share).astype(float) for share in (0.3, 0.8)))
    three, five = ({seed: 0.8 + 0.01 * (seed - n // 2) for seed in range(n)} for n in (3, 5))
    assert stats.difference(these, spread=stats.between({7: 0.3}, three)).p < 0.001
    assert stats.difference(these, spread=stats.between({7: 0.3}, five)).p < 0.0005
