"""Intervals: known answers, invariances, and that they cover the truth as often as they say."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import norm

from harness.stats import (
    Ratio,
    average,
    clustered_interval,
    difference,
    gap,
    mean_ratio,
    noninferiority,
    pair,
    questions_needed,
    quotient,
)
from tests.support.pairs import drawn_pairs, pairs_of, pairs_with_flips, scores_of_pairs


def bounds(*given: Any, **how: Any) -> tuple[float, float]:
    interval = clustered_interval(*given, **how)
    assert interval is not None
    return interval


def test_one_cluster_has_no_interval():
    assert clustered_interval([0.0, 1.0, 1.0, 0.0], ["a"] * 4) is None
    assert clustered_interval([1.0], ["a"]) is None
    assert clustered_interval([0.5, 0.2, 0.9], [1, 2, 3], strata=list("aab")) is None, "one task of several"
    assert clustered_interval([0.5, 0.2], [1, 1], strata=list("ab")) is None, "an image of each of two tasks"


def test_equal_scores_have_no_spread():
    assert clustered_interval([0.25] * 6, [1, 2, 3, 4, 5, 6], strata=list("aabbcc")) == (0.25, 0.25)


def test_independent_scores_agree_with_the_normal_interval():
    scores = np.random.default_rng(1).random(400)
    lo, hi = bounds(scores, range(400), resamples=5000)
    half = 1.96 * scores.std() / 20
    assert lo == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert hi == pytest.approx(scores.mean() + half, abs=0.1 * half)


def test_copies_within_an_image_do_not_narrow_it():
    """Asking each image's question four times over tells nothing new."""
    scores = np.random.default_rng(2).integers(0, 2, 100).astype(float)
    once = clustered_interval(scores, range(100))
    assert clustered_interval(np.repeat(scores, 4), np.repeat(np.arange(100), 4)) == pytest.approx(once)


def test_strata_count_equally_whatever_their_size():
    lo, hi = bounds([1.0] * 90 + [0.0] * 10, range(100), strata=["big"] * 90 + ["small"] * 10)
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
    interval = clustered_interval(scores, clusters, strata=strata, resamples=50, seed=seed)
    sizes = [len({cluster for _, cluster, other in rows if other == stratum}) for stratum in set(strata)]
    assert (interval is None) == (min(sizes) == 1)
    if interval is not None:
        assert min(scores) - 1e-12 <= interval[0] <= interval[1] <= max(scores) + 1e-12
    assert interval == clustered_interval(scores, clusters, strata=strata, resamples=50, seed=seed)


def test_covers_the_truth_as_often_as_it_says():
    """Clustered scores (an image is easy or hard): 95 % intervals hold 0.5 in 90 to 99 % of 300 draws."""
    random, held = np.random.default_rng(3), 0
    for seed in range(300):
        ease = random.random(80).repeat(5)
        scores = (random.random(400) < ease).astype(float)
        lo, hi = bounds(scores, np.arange(80).repeat(5), resamples=300, seed=seed)
        held += lo <= 0.5 <= hi
    assert 0.90 <= held / 300 <= 0.99


def test_bad_lengths_and_no_scores():
    with pytest.raises(ValueError, match="at least one"):
        clustered_interval([], [])
    with pytest.raises(ValueError, match="lengths differ"):
        clustered_interval([1.0, 0.0], ["a"])


def test_the_clustered_interval_stays_what_records_hold():
    scores = np.random.default_rng(5).integers(0, 2, 60)
    found = clustered_interval(scores, np.arange(60) // 3, strata=np.arange(60) // 30)
    assert found == (0.35, 0.5833333333333333)


# --- pairs ------------------------------------------------------------------------------------------------


def answers(*rows: tuple[str, int, str, float]) -> dict[str, list]:
    return dict(zip(("task", "question_id", "image_id", "score"), map(list, zip(*rows, strict=True)), strict=True))


ROWS = [("a", 1, "x", 1.0), ("a", 2, "x", 0.0), ("b", 1, "y", 0.3)]


def test_pairs_join_by_task_and_question_whatever_the_order():
    other = [("b", 1, "y", 1.0), ("a", 2, "x", 0.5), ("a", 1, "x", 0.0)]
    joined = pair(answers(*ROWS), answers(*other))
    assert joined.tasks == ["a", "a", "b"] and joined.questions == [1, 2, 1] and joined.images == ["x", "x", "y"]
    assert joined.differences == pytest.approx([-1.0, 0.5, 0.7])
    table = pair(pa.table(answers(*ROWS)), pa.table(answers(*other)))
    assert (table.tasks, table.images) == (joined.tasks, joined.images)
    assert table.differences.tolist() == joined.differences.tolist()
    assert difference(joined).estimate == pytest.approx((-0.25 + 0.7) / 2)  # mean over tasks of their means
    assert difference(joined).tasks == pytest.approx({"a": -0.25, "b": 0.7})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ROWS[:2], "1 of 3 questions"),
        ([*ROWS[:2], ("b", 2, "y", 1.0)], "2 of 4 questions"),
        ([*ROWS, ROWS[0]], "answered twice"),
        ([*ROWS[:2], ("b", 1, "z", 1.0)], "2 of 4 questions"),  # of another image
        ([*ROWS[:2], ("b", 1, "y", math.nan)], "the score is nan"),
    ],
)
def test_answers_that_do_not_match_are_refused(other: list[tuple[str, int, str, float]], message: str):
    for sides in ((ROWS, other), (other, ROWS)):
        with pytest.raises(ValueError, match=message):
            pair(*(answers(*side) for side in sides))


def test_question_ids_may_restart_with_every_image():
    """Image and question id together identify a question."""
    restarted = [("a", number, image, float(image == "x")) for image in "xy" for number in (1, 2)]
    joined = pair(answers(*restarted), answers(*restarted[::-1]))
    assert joined.images == ["x", "y", "x", "y"] and joined.questions == [1, 1, 2, 2] and not joined.differences.any()
    with pytest.raises(ValueError, match=r"question 1 of image x: answered twice"):
        pair(answers(*restarted, restarted[0]), answers(*restarted))


def test_no_answers_are_refused():
    with pytest.raises(ValueError, match="no answers"):
        pair(answers(*ROWS), {"task": [], "question_id": [], "image_id": [], "score": []})


def test_average_of_comparisons():
    one = pair(answers(*ROWS), answers(*ROWS))
    two = replace(one, second=one.first + 0.2)
    assert average([one, two]).differences == pytest.approx([0.1] * 3)
    with pytest.raises(ValueError, match="different questions"):
        average([one, replace(one, questions=[1, 2, 3])])
    with pytest.raises(ValueError, match="no comparisons"):
        average([])


# --- differences ------------------------------------------------------------------------------------------


def test_independent_differences_agree_with_the_normal_interval():
    pairs = pairs_of(np.random.default_rng(1).normal(0.01, 0.3, 3000))
    found, error = difference(pairs), math.hypot(pairs.differences.std(ddof=1) / 3000**0.5, 2 / 3000)
    assert found.estimate == pytest.approx(pairs.differences.mean())
    assert found.standard_error == pytest.approx(error, rel=0.02)
    assert (found.hi - found.estimate, found.estimate - found.lo) == pytest.approx([1.96 * error] * 2, rel=0.04)
    assert found.p == pytest.approx(2 * norm.sf(found.estimate / error), rel=0.1)
    assert found.questions == 3000


def test_a_difference_needs_questions():
    with pytest.raises(ValueError, match="at least one question"):
        difference(pairs_of([]))


def test_tasks_count_equally_and_images_are_counted_per_task():
    pairs = pairs_of([1.0] * 90 + [0.0] * 10, images=[*range(90), *range(10)], tasks=["big"] * 90 + ["small"] * 10)
    found = difference(pairs)
    assert found.estimate == 0.5 and found.tasks == {"big": 1.0, "small": 0.0}
    apart = [1.0 if place % 3 else 0.0 for place in range(100)]
    one, two = (
        difference(pairs_of(apart, images=[*range(90), *ids], tasks=["big"] * 90 + ["small"] * 10))
        for ids in (range(10), range(90, 100))
    )
    assert (one.lo, one.hi, one.freedom) == (two.lo, two.hi, two.freedom)


def test_questions_about_one_image_do_not_narrow_it():
    scores = np.random.default_rng(2).choice([-1.0, 0.0, 1.0], 300)
    once = difference(pairs_of(scores))
    often = difference(pairs_of(np.repeat(scores, 4), images=np.repeat(np.arange(300), 4).tolist()))
    apart = difference(pairs_of(np.repeat(scores, 4)))
    assert often.standard_error == pytest.approx(once.standard_error, rel=0.03)
    assert apart.standard_error == pytest.approx(once.standard_error / 2, rel=0.03)


def test_few_kinds_of_image_and_many_have_the_same_spread():
    """Equal images are drawn as a kind, others one by one: two ways to the same distribution."""
    scores = np.random.default_rng(3).choice([-1.0, 0.0, 1.0], 600, p=[0.2, 0.7, 0.1])
    kinds, each = (difference(pairs_of(values)) for values in (scores, scores + np.linspace(-1e-9, 1e-9, 600)))
    assert kinds.standard_error == pytest.approx(each.standard_error, rel=0.03)
    assert (kinds.lo, kinds.hi) == pytest.approx((each.lo, each.hi), abs=0.1 * kinds.standard_error)


def test_no_flip_is_no_certainty():
    """Where nothing changed on n questions, up to 3 / n may still be lost at 95 % (rule of three)."""
    for n in (40, 400):
        found = difference(pairs_with_flips(n, 0))
        assert found.estimate == 0 and found.p > 0.9
        assert 3 / n < noninferiority(found, 0.01).loss_bound < 3.6 / n
    assert not noninferiority(difference(pairs_with_flips(40, 0)), 0.01).noninferior
    assert noninferiority(difference(pairs_with_flips(400, 0)), 0.01).noninferior


def test_one_image_leaves_everything_open():
    found = difference(pairs_of([1.0] * 9 + [0.5] * 3, images=[*range(9), 0, 0, 0], tasks=["a"] * 9 + ["b"] * 3))
    assert (found.lo, found.hi, found.p, found.standard_error) == (-math.inf, math.inf, 1.0, math.inf)
    verdict = noninferiority(found, 0.5)
    assert not verdict.noninferior and verdict.p_loss == 1.0
    assert questions_needed(found, 0.01) is None


@given(scores_of_pairs, st.randoms(use_true_random=False))
def test_swapping_the_sides_swaps_the_interval_and_order_does_not_matter(rows, random):
    first = [(str(task), i, str(image), one) for i, (one, _, image, task) in enumerate(rows)]
    second = [(str(task), i, str(image), two) for i, (_, two, image, task) in enumerate(rows)]
    there = difference(pair(answers(*first), answers(*second)), resamples=200)
    random.shuffle(second)
    back = difference(pair(answers(*second), answers(*first)), resamples=200)
    assert (back.estimate, back.lo, back.hi) == pytest.approx((-there.estimate, -there.hi, -there.lo))
    assert back.p == pytest.approx(there.p) and 0 < there.p <= 1
    assert there.lo <= there.hi and abs(there.estimate) <= 1


@given(scores_of_pairs)
def test_the_interval_and_the_p_value_say_the_same(rows):
    found = difference(pairs_of([two - one for one, two, *_ in rows]), resamples=500)
    assume(abs(found.p - 0.05) > 0.01)
    assert (found.p < 0.05) == (found.lo > 0 or found.hi < 0)


@pytest.mark.slow
@pytest.mark.parametrize("images", [25, 100])
def test_intervals_cover_the_truth_as_often_as_they_say(images: int):
    """95 % intervals hold the true difference in 93 to 97 % of 1,000 data sets."""
    random, held = np.random.default_rng(images), 0
    for seed in range(1000):
        found = difference(drawn_pairs(random, images, broken=0.4, mended=0.2), resamples=400, seed=seed)
        held += found.lo <= -0.1 <= found.hi
    assert 0.93 <= held / 1000 <= 0.97


def test_no_loss_is_called_one_as_seldom_as_said():
    random, ps = np.random.default_rng(7), []
    for seed in range(600):
        ps.append(difference(drawn_pairs(random, 80, broken=0.2, mended=0.2, tasks=1), resamples=400, seed=seed).p)
    assert 0.03 <= np.mean(np.array(ps) <= 0.05) <= 0.07
    assert 0.45 <= np.mean(np.array(ps) <= 0.5) <= 0.55


# --- latency ----------------------------------------------------------------------------------------------


def test_quotient_known_answers():
    one, two = (2.0, 2.0 / 1.1, 2.0 * 1.1), (1.0, 1 / 1.1, 1.1)
    wider = 1.1 ** math.sqrt(2)
    assert quotient(one, two) == pytest.approx((2.0, 2.0 / wider, 2.0 * wider))
    assert quotient(two, one) == pytest.approx((0.5, 0.5 / wider, 0.5 * wider))
    with pytest.raises(ValueError, match="positive"):
        quotient(one, (1.0, 0.0, 2.0))


ratios = st.builds(
    lambda middle, down, up: Ratio(middle, middle / down, middle * up),
    st.floats(0.1, 10),
    st.floats(1.0, 3),
    st.floats(1.0, 3),
)


@given(st.lists(ratios, min_size=1, max_size=8), st.floats(0.5, 2))
def test_the_mean_of_ratios(several: list[Ratio], factor: float):
    """One is its own mean, copies narrow it as their number says, and a common factor goes through it."""
    assert mean_ratio(several[:1]) == pytest.approx(several[0])
    first = several[0]
    many = mean_ratio([first] * len(several))
    assert math.log(many.estimate / many.lo) == pytest.approx(
        math.log(first.estimate / first.lo) / math.sqrt(len(several)), abs=1e-9
    )
    found = mean_ratio(several)
    assert mean_ratio([Ratio(*(factor * value for value in ratio)) for ratio in several]) == pytest.approx(
        tuple(factor * value for value in found)
    )
    assert min(several).estimate * (1 - 1e-9) <= found.estimate <= max(several).estimate * (1 + 1e-9)
    with pytest.raises(ValueError, match="no ratios"):
        mean_ratio([])


def test_gap_known_answers():
    one, two = (0.8, 0.75, 0.83), (0.9, 0.88, 0.94)
    assert gap(one, two) == pytest.approx((0.1, 0.1 - math.hypot(0.02, 0.03), 0.1 + math.hypot(0.04, 0.05)))
    assert gap(one, (0.5, 0.5, 0.5)) == pytest.approx((-0.3, -0.33, -0.25)), "a known value only shifts"


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_a_gap_is_the_opposite_from_the_other_side_and_holds_its_estimate(ends: list[float]):
    lo, middle, hi = sorted(ends[:3])
    low, centre, high = sorted(ends[3:])
    one, two = (middle, lo, hi), (centre, low, high)
    there, back = gap(one, two), gap(two, one)
    assert there == pytest.approx((-back[0], -back[2], -back[1]))
    assert there[1] <= there[0] <= there[2]
    assert there[2] - there[1] >= max(hi - lo, high - low) / 2 - 1e-9, "no narrower than half of either"


def test_a_gap_covers_the_truth_as_often_as_it_says():
    """1,000 pairs of 90 and 150 answers, a third to a half of them right; the true gap is 0.2."""
    random, held = np.random.default_rng(8), 0
    for seed in range(1000):
        sides = [(random.random(number) < share).astype(float) for number, share in ((90, 0.35), (150, 0.55))]
        known = [(s.mean(), *bounds(s, range(len(s)), resamples=300, seed=seed)) for s in sides]
        _, lo, hi = gap(*known)
        held += lo <= 0.2 <= hi
    assert 0.93 <= held / 1000 <= 0.97


# --- size -------------------------------------------------------------------------------------------------


def test_memory_is_bounded():
    """2,000 resamples of 10,000 images would be 160 MB at once; a board's worth of them fits beside a model."""
    pairs = pairs_of(np.random.default_rng(13).normal(size=10_000))
    tracemalloc.start()
    difference(pairs, resamples=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
