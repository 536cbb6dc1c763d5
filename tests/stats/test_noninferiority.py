"""Tests of a loss: known answers, order, and that they err as often as they say; how many questions it takes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from harness.stats import (
    Difference,
    difference,
    holm,
    minimum_detectable_effect,
    noninferiority,
    questions_needed,
)
from tests.support.pairs import drawn_pairs, pairs_of, pairs_with_flips, scores_of_pairs


def test_a_loss_known_answer():
    values = np.random.default_rng(8).normal(0, 1, 2500)
    change = difference(pairs_of(0.25 * (values - values.mean()) / values.std()))  # standard error 0.005
    found = noninferiority(change, 0.01)
    assert found.loss_bound == pytest.approx(1.645 * 0.005, rel=0.06)
    assert found.noninferior and found.p_loss == pytest.approx(0.5, abs=0.03)
    lost = noninferiority(difference(pairs_of(0.25 * (values - values.mean()) / values.std() - 0.01)), 0.01)
    assert lost.loss == pytest.approx(0.01) and lost.p_loss == pytest.approx(norm.sf(2), abs=0.006)
    assert lost.loss_bound == pytest.approx(0.01 + 1.645 * 0.005, rel=0.06) and not lost.noninferior


def test_a_gain_is_not_inferior():
    found = noninferiority(difference(pairs_with_flips(1000, 0, 100)), 0.01)
    assert found.noninferior and found.p_loss > 0.99 and found.loss == pytest.approx(-0.1)


@given(scores_of_pairs, st.floats(0.01, 0.5))
def test_a_wider_margin_is_met_sooner_and_bounds_agree_with_tests(rows, margin: float):
    change = difference(pairs_of([two - one for one, two, *_ in rows]), confidence=0.9, resamples=500)
    near, far = noninferiority(change, margin), noninferiority(change, 2 * margin)
    strict = noninferiority(change, margin, alpha=0.01)
    assert far.noninferior >= near.noninferior >= strict.noninferior
    assert near.loss_bound == far.loss_bound == pytest.approx(-change.lo) and near.loss_bound <= strict.loss_bound
    assert near.noninferior == (near.loss_bound < margin)
    assume(abs(near.p_loss - 0.05) > 0.01)
    assert (near.p_loss < 0.05) == (change.hi < 0)


@pytest.mark.parametrize("n", [100, 330, 450, 600, 1000, 1858])
def test_a_loss_of_the_margin_seldom_passes_even_where_every_flip_is_a_loss(n: int):
    """The worst case for a bootstrap: questions are lost with probability 0.01, none is gained; at most 7.5 % pass."""
    most = -1
    while noninferiority(difference(pairs_with_flips(n, most + 1)), 0.01).noninferior:
        most += 1
    assert binom.cdf(most, n, 0.01) <= 0.075


@pytest.mark.slow
def test_a_loss_of_the_margin_passes_as_seldom_as_said():
    random, passed = np.random.default_rng(9), 0
    for seed in range(600):
        change = difference(drawn_pairs(random, 60, broken=0.25, mended=0.15), resamples=400, seed=seed)
        passed += noninferiority(change, 0.05).noninferior
    assert 0.025 <= passed / 600 <= 0.075


@pytest.mark.parametrize("margin", [0.0, -0.01, math.nan])
def test_a_margin_is_positive(margin: float):
    with pytest.raises(ValueError, match="margin"):
        noninferiority(difference(pairs_with_flips(10, 1)), margin)


def test_holm_known_answer():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == [] and holm([0.2]) == [0.2]


@given(st.lists(st.floats(0, 1), max_size=30), st.randoms(use_true_random=False))
def test_holm_keeps_the_order_and_never_lowers(ps: list[float], random):
    found = holm(ps)
    assert all(raw <= own <= min(1, raw * len(ps) * (1 + 1e-12)) for raw, own in zip(ps, found, strict=True))
    ranked = sorted(zip(ps, found, strict=True))
    assert [own for _, own in ranked] == sorted(found)
    shuffled = random.sample(range(len(ps)), len(ps))
    assert holm([ps[i] for i in shuffled]) == [found[i] for i in shuffled]


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_probability(bad: float):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, bad])


# --- power ------------------------------------------------------------------------------------------------


def test_minimum_detectable_effect_known_answer():
    assert minimum_detectable_effect(0.01) == pytest.approx(0.0280159, abs=1e-6)
    assert minimum_detectable_effect(0.01, alpha=0.1, power=0.9) == pytest.approx(0.0292641, abs=1e-6)
    for wrong in ({"alpha": 0.0}, {"power": 1.0}):
        with pytest.raises(ValueError, match="between 0 and 1"):
            minimum_detectable_effect(0.01, **wrong)


ANY = difference(pairs_with_flips(9, 1), resamples=10)


def known(error: float, n: int, estimate: float = 0.0, allowance: float = 0.0) -> Difference:
    return replace(ANY, estimate=estimate, standard_error=error, questions=n, allowance=allowance)


def test_questions_needed_known_answers():
    assert questions_needed(known(0.01, 1000), 0.01) == 7849  # 1000 * 2.80159^2
    assert questions_needed(known(0.01, 1000), -0.01, sides=1) == 6183  # 1000 * 2.48648^2
    assert questions_needed(known(0.05, 40, allowance=0.05), 0.01, sides=1) == 498  # 2 * 2.48648 / 0.01
    assert questions_needed(known(0.01, 1000), 0.0) is None


@given(st.floats(0.001, 0.1), st.floats(-0.1, 0.1), st.integers(10, 5000))
def test_what_is_inconclusive_needs_more_questions(error: float, estimate: float, n: int):
    """The bound is beyond the margin and the loss is not above zero: then more questions than there are."""
    loss, reach = -estimate, 1.645 * error
    assume(loss + reach >= 0.01 and loss - reach <= 0)
    found = questions_needed(known(error, n, estimate), max(0.01 - loss, loss), sides=1)
    assert found is not None and found > n


def test_the_number_of_questions_has_the_power_it_names():
    """Of data sets with as many questions as asked for, about 80 % find the difference."""
    random = np.random.default_rng(10)
    pilot = difference(drawn_pairs(random, 2000, broken=0.4, mended=0.2, tasks=1))
    images = round((questions_needed(pilot, 0.1) or 0) / 3)
    found = [difference(drawn_pairs(random, images, 0.4, 0.2, tasks=1), resamples=400).p <= 0.05 for _ in range(400)]
    assert 0.73 <= np.mean(found) <= 0.87
