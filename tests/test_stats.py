"""The clustered interval: known answers, invariances, and that it covers the truth as often as it says."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.stats import clustered_interval


def test_one_cluster_has_no_spread():
    assert clustered_interval([0.0, 1.0, 1.0, 0.0], ["a"] * 4) == (0.5, 0.5)


def test_equal_scores_have_no_spread():
    assert clustered_interval([0.25] * 6, [1, 1, 2, 2, 3, 3], strata=list("aabbcc")) == (0.25, 0.25)


def test_independent_scores_agree_with_the_normal_interval():
    scores = np.random.default_rng(1).random(400)
    lo, hi = clustered_interval(scores, range(400), resamples=5000)
    half = 1.96 * scores.std() / 20
    assert lo == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert hi == pytest.approx(scores.mean() + half, abs=0.1 * half)


def test_copies_within_an_image_do_not_narrow_it():
    """Asking each image's question four times over tells nothing new."""
    scores = np.random.default_rng(2).integers(0, 2, 100).astype(float)
    once = clustered_interval(scores, range(100))
    assert clustered_interval(np.repeat(scores, 4), np.repeat(np.arange(100), 4)) == pytest.approx(once)


def test_strata_count_equally_whatever_their_size():
    lo, hi = clustered_interval([1.0] * 90 + [0.0] * 10, range(100), strata=["big"] * 90 + ["small"] * 10)
    assert (lo, hi) == (0.5, 0.5)


def test_same_image_name_in_two_strata_is_two_images():
    scores, names = [1.0, 0.0, 0.0, 1.0], ["a", "b", "a", "b"]
    assert clustered_interval(scores, names, strata=[0, 0, 1, 1]) == clustered_interval(
        scores, ["a", "b", "c", "d"], strata=[0, 0, 1, 1]
    )


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5), st.booleans()), min_size=1, max_size=40), st.integers(0, 9)
)
def test_lies_between_the_extremes_and_repeats(rows: list[tuple[float, int, bool]], seed: int):
    scores, clusters, strata = zip(*rows, strict=True)
    lo, hi = clustered_interval(scores, clusters, strata=strata, resamples=50, seed=seed)
    assert min(scores) - 1e-12 <= lo <= hi <= max(scores) + 1e-12
    assert (lo, hi) == clustered_interval(scores, clusters, strata=strata, resamples=50, seed=seed)


def test_covers_the_truth_as_often_as_it_says():
    """Clustered scores (an image is easy or hard): 95 % intervals hold 0.5 in 90 to 99 % of 300 draws."""
    random, held = np.random.default_rng(3), 0
    for seed in range(300):
        ease = random.random(80).repeat(5)
        scores = (random.random(400) < ease).astype(float)
        lo, hi = clustered_interval(scores, np.arange(80).repeat(5), resamples=300, seed=seed)
        held += lo <= 0.5 <= hi
    assert 0.90 <= held / 300 <= 0.99


def test_bad_lengths_and_no_scores():
    with pytest.raises(ValueError, match="at least one"):
        clustered_interval([], [])
    with pytest.raises(ValueError, match="lengths differ"):
        clustered_interval([1.0, 0.0], ["a"])


def test_is_fast():
    scores = np.random.default_rng(4).random(1800)
    start = time.process_time()
    clustered_interval(scores, np.arange(1800) // 3, strata=np.arange(1800) // 600)
    assert time.process_time() - start < 0.3
