"""The hypervolume of a front: areas known by hand, monotone, and an interval that covers the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.stats.hypervolume import Hypervolume, hypervolume, hypervolume_intervals

REFERENCE = (1.0, 0.2)


def interval(flops: list[float], *table: Any, **how: Any) -> Hypervolume:
    """The hypervolume of one front alone."""
    return hypervolume_intervals([np.array(flops)], *table, **how)[0]


def test_known_areas():
    assert hypervolume([0.5], [0.6], REFERENCE) == pytest.approx(0.5 * 0.4)
    staircase = hypervolume([0.25, 0.5, 0.75], [0.4, 0.6, 0.7], REFERENCE)
    assert staircase == pytest.approx(0.25 * 0.2 + 0.25 * 0.4 + 0.25 * 0.5)
    assert hypervolume([], [], REFERENCE) == 0
    assert hypervolume([1.0, 1.2, 0.5], [0.9, 0.9, 0.2], REFERENCE) == 0  # none is better than the reference in both
    assert hypervolume([0.5], [[0.6], [0.1]], REFERENCE).tolist() == pytest.approx([0.2, 0.0])


points = st.lists(st.tuples(st.floats(0, 1.2), st.floats(0, 1)), max_size=8)


def area(front: list[tuple[float, float]]) -> float:
    return float(hypervolume([x for x, _ in front], [y for _, y in front], REFERENCE))


@given(points, st.tuples(st.floats(0, 1.2), st.floats(0, 1)), st.randoms(use_true_random=False))
def test_a_point_more_never_lowers_it_and_order_does_not_matter(front, point, random):
    before, after = area(front), area([*front, point])
    assert 0 <= before <= after + 1e-12 and after <= 0.8 + 1e-12
    shuffled = random.sample([*front, point], len(front) + 1)
    assert area(shuffled) == pytest.approx(after)
    dominated = any(x <= point[0] and y >= point[1] for x, y in front)
    assert not dominated or after == pytest.approx(before)


@given(points)
def test_it_is_the_share_of_the_box_that_is_dominated(front):
    x, y = np.meshgrid(np.linspace(0, 1, 81), np.linspace(0.2, 1, 81))
    covered = np.zeros(x.shape, dtype=bool)
    for flops, accuracy in front:
        covered |= (flops <= x) & (y <= accuracy)
    assert area(front) == pytest.approx(0.8 * covered.mean(), abs=0.04)


def test_equal_scores_have_no_spread():
    found = interval([0.5], np.full((6, 1), 0.6), list("xxyyzz"), ["t"] * 6, REFERENCE)
    assert found == pytest.approx((0.2, 0.2, 0.2))


def test_one_image_leaves_everything_open():
    found = interval([0.5], np.full((6, 1), 0.6), ["x"] * 6, ["t"] * 6, REFERENCE)
    assert found == (pytest.approx(0.2), -math.inf, math.inf)


def test_tasks_count_equally():
    scores = np.array([[1.0]] * 9 + [[0.0]] * 3)
    found = interval([0.5], scores, list(range(12)), ["a"] * 9 + ["b"] * 3, REFERENCE)
    assert found == pytest.approx((0.15, 0.15, 0.15))


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say():
    """95 % intervals hold the true area in 93 to 97 % of 1,000 data sets of two tasks, 40 images of 3 questions."""
    accuracy, flops = np.array([0.4, 0.6, 0.7]), [0.3, 0.5, 0.8]
    truth, image = float(hypervolume(flops, accuracy, REFERENCE)), np.arange(80).repeat(3)
    task = (image // 40).tolist()
    random, held = np.random.default_rng(1), 0
    for seed in range(1000):
        ease = random.normal(0, 0.12, 80)[image, None]
        scores = (random.random((240, 3)) < accuracy + ease).astype(float)
        found = interval(flops, scores, image.tolist(), task, REFERENCE, resamples=400, seed=seed)
        held += found.lo <= truth <= found.hi
    assert 0.93 <= held / 1000 <= 0.97


def test_what_does_not_fit_is_refused():
    for flops, accuracy in (([0.5], [0.5, 0.6]), ([[0.5]], [[0.5]])):
        with pytest.raises(ValueError, match="do not fit"):
            hypervolume(flops, accuracy, REFERENCE)
    with pytest.raises(ValueError, match="finite"):
        hypervolume([0.5], [math.nan], REFERENCE)
    with pytest.raises(ValueError, match="questions, points"):
        interval([0.5], np.zeros((0, 1)), [], [], REFERENCE)
    with pytest.raises(ValueError, match="lengths differ"):
        interval([0.5], np.zeros((2, 1)), ["x"], ["t", "t"], REFERENCE)
