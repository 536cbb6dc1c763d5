"""Verdicts that hold: paired differences, their tests, equivalence, and how many questions would settle them.

    pairs = pair(baseline, candidate)          # two tables of answers to the same questions
    change = difference(pairs)                 # candidate - baseline, with interval and p
    equivalence(change, margin=0.01).loss_bound

Scores are fractions in [0, 1]. A mean is over tasks of the task's mean; questions about one image move together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from harness.bootstrap import CELLS, codes, p_above_zero, quantile, resample

MADE_UP = 2  # flips that are allowed for unseen, each way: "plus four"


def clustered_interval(
    scores: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    strata: Sequence[Hashable] | np.ndarray | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over strata of their mean score, resampling whole clusters.

    `scores`, `clusters` and `strata`: one entry per question, (n,). Clusters are drawn with replacement within each
    stratum. The same inputs and seed give the same interval; raises ValueError without scores.
    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), section 3.8 (cluster bootstrap).
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values):
        raise ValueError("an interval needs at least one score")
    groups = codes(strata if strata is not None else np.zeros(len(values)))
    images = codes(clusters)
    if not len(values) == len(groups) == len(images):
        raise ValueError(f"{len(values)} scores, {len(images)} clusters and {len(groups)} strata: lengths differ")
    random = np.random.default_rng(seed)
    count = groups.max() + 1
    means = np.zeros(resamples)
    for group in range(count):
        inside = groups == group
        _, own = np.unique(images[inside], return_inverse=True)
        sums, sizes = np.bincount(own, values[inside]), np.bincount(own).astype(np.float64)
        draws = random.integers(len(sums), size=(resamples, len(sums)))
        means += sums[draws].sum(axis=1) / sizes[draws].sum(axis=1) / count
    tail = 50 * (1 - confidence)
    lo, hi = np.percentile(means, [tail, 100 - tail])
    return float(lo), float(hi)


# --- pairs of answers -------------------------------------------------------------------------------------


class Answers(Protocol):
    """Columns task, question_id, image_id and score, a row per question: a pyarrow table, a frame, a dictionary."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclass(frozen=True)
class Pairs:
    """The scores of two models on the same questions, (n,) each; a row per question, in one order for all."""

    tasks: Sequence[Hashable]
    questions: Sequence[Hashable]
    images: Sequence[Hashable]
    first: np.ndarray
    second: np.ndarray

    @property
    def differences(self) -> np.ndarray:
        return self.second - self.first


def pair(first: Answers, second: Answers) -> Pairs:
    """Join two sets of answers by task and question.

    Raises ValueError if a question is there twice, in one set only, or about another image, if a score is not a
    number, or if there are no questions: nothing is left out in silence.
    """
    left, right = _by_question(first), _by_question(second)
    alone = left.keys() ^ right.keys()
    if alone:
        raise ValueError(f"{len(alone)} of {len(left.keys() | right.keys())} questions are in one set of answers only")
    # An order of its own, so that neither the sets' order nor which comes first has a say in the resampling.
    keys = sorted(left, key=lambda key: (str(key[0]), str(key[1])))
    for key in keys:
        if left[key][0] != right[key][0]:
            raise ValueError(f"task {key[0]}, question {key[1]}: the images differ")
    return Pairs(
        [task for task, _ in keys],
        [question for _, question in keys],
        [left[key][0] for key in keys],
        np.array([left[key][1] for key in keys]),
        np.array([right[key][1] for key in keys]),
    )


def average(several: Sequence[Pairs]) -> Pairs:
    """Mean scores over comparisons on the same questions (budgets, seeds), to judge them as one.

    Raises ValueError if there are none or if their questions differ.
    """
    if not several:
        raise ValueError("no comparisons to average")
    one = several[0]
    for other in several[1:]:
        if (other.tasks, other.questions, other.images) != (one.tasks, one.questions, one.images):
            raise ValueError("comparisons on different questions cannot be averaged")
    first, second = (np.mean([getattr(p, side) for p in several], axis=0) for side in ("first", "second"))
    return Pairs(one.tasks, one.questions, one.images, first, second)


def _by_question(answers: Answers) -> dict[tuple[Hashable, Hashable], tuple[Hashable, float]]:
    columns = [_values(answers[name]) for name in ("task", "question_id", "image_id", "score")]
    found: dict[tuple[Hashable, Hashable], tuple[Hashable, float]] = {}
    for task, question, image, score in zip(*columns, strict=True):
        if (task, question) in found:
            raise ValueError(f"task {task}, question {question}: answered twice")
        if score is None or not math.isfinite(score):
            raise ValueError(f"task {task}, question {question}: the score is {score}")
        found[task, question] = (image, float(score))
    if not found:
        raise ValueError("no answers")
    return found


def _values(column: Any) -> list[Any]:
    return column.to_pylist() if hasattr(column, "to_pylist") else list(column)


# --- differences and their tests --------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A mean difference second - first as a fraction, its confidence interval and two-sided p."""

    estimate: float
    lo: float
    hi: float
    p: float
    standard_error: float
    questions: int
    clusters: int  # images, counted per task
    tasks: dict[Hashable, float]
    allowance: float = field(repr=False)  # the part of the standard error that stands for flips unseen
    freedom: float = field(repr=False)
    draws: np.ndarray = field(repr=False, compare=False)


def difference(pairs: Pairs, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Mean over tasks of the mean paired difference, with a bootstrap clustered by image and stratified by task.

    The draws are smoothed by two flipped questions each way (of the smallest task), so that answers that agree on
    few questions are not taken for certainty: without any flip the upper bound is about that of the exact binomial.
    A task with one image leaves everything open: the interval is infinite and p is 1. The smallest p that can be
    seen is about 1 / `resamples`: a table of hundreds of comparisons needs more of them. Swapping the two sides swaps
    the interval. Raises ValueError without questions.
    Source: Davison and Hinkley (1997), sections 3.4 (smoothed bootstrap) and 3.8 (clusters); Agresti and Caffo,
    The American Statistician 54 (2000) (plus four).
    """
    if not pairs.questions:
        raise ValueError("a difference needs at least one question")
    random = np.random.default_rng(seed)
    differences, groups = pairs.differences, codes(pairs.tasks)
    sampled = resample(differences[:, None], pairs.images, pairs.tasks, resamples, random)
    sizes = np.bincount(groups)
    allowance = math.sqrt(2 * MADE_UP) / (len(sizes) * int(sizes.min()))
    noise = allowance * random.standard_normal(resamples)
    draws = np.concatenate([sampled.draws[:, 0] + noise, sampled.draws[:, 0] - noise])
    means = np.bincount(groups, differences) / sizes
    tail = (1 - confidence) / 2
    return Difference(
        estimate=float(means.mean()),
        lo=quantile(draws, tail, sampled.freedom),
        hi=quantile(draws, 1 - tail, sampled.freedom),
        p=min(1.0, 2 * min(p_above_zero(draws, sampled.freedom), p_above_zero(-draws, sampled.freedom))),
        standard_error=float(draws.std()) if sampled.freedom else math.inf,
        questions=len(differences),
        clusters=len(set(zip(pairs.tasks, pairs.images, strict=True))),
        tasks=dict(zip(dict.fromkeys(pairs.tasks), means.tolist(), strict=True)),
        allowance=allowance,
        freedom=sampled.freedom,
        draws=draws,
    )


class McNemar(NamedTuple):
    """Questions that only the first (`lost`) or only the second (`gained`) got right, and the exact two-sided p."""

    lost: int
    gained: int
    p: float


def mcnemar(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> McNemar:
    """Exact McNemar test of paired 0/1 scores, (n,) each; it takes questions for independent, whatever their image.

    Raises ValueError for other scores or lengths that differ. Source: McNemar, Psychometrika 12 (1947); binomial form.
    """
    from scipy import special

    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape:
        raise ValueError(f"{len(one)} and {len(two)} scores: lengths differ")
    if not np.isin([one, two], (0, 1)).all():
        raise ValueError("McNemar's test needs scores of 0 or 1")
    lost, gained = int((one > two).sum()), int((two > one).sum())
    p = min(1.0, 2 * float(special.bdtr(min(lost, gained), lost + gained, 0.5)))
    return McNemar(lost, gained, p)


@dataclass(frozen=True)
class Equivalence:
    """Verdicts on a loss (first - second) against a margin, from one-sided bounds at level 1 - alpha."""

    margin: float
    loss: float
    loss_bound: float  # upper bound of the loss
    gain_bound: float  # upper bound of the gain
    p_noninferior: float  # against: the loss is the margin or more
    p: float  # TOST: against a loss or a gain of the margin or more
    p_loss: float  # against: there is no loss

    @property
    def noninferior(self) -> bool:
        return self.loss_bound < self.margin

    @property
    def equivalent(self) -> bool:
        return self.loss_bound < self.margin and self.gain_bound < self.margin


def equivalence(change: Difference, margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Two one-sided tests of a difference against a margin (a fraction, positive), non-inferiority among them.

    Where every flip is a loss, a true loss of the margin meets it in up to 7 % of cases at alpha 5 %; the more gains
    there are among the flips, the closer to 5 %. Raises ValueError for a margin that is not positive.
    Source: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987).
    """
    if not margin > 0:
        raise ValueError(f"the margin must be positive, not {margin}")
    draws, freedom = change.draws, change.freedom
    below, above = p_above_zero(draws + margin, freedom), p_above_zero(margin - draws, freedom)
    return Equivalence(
        margin=margin,
        loss=-change.estimate,
        loss_bound=-quantile(draws, alpha, freedom),
        gain_bound=quantile(draws, 1 - alpha, freedom),
        p_noninferior=below,
        p=max(below, above),
        p_loss=p_above_zero(-draws, freedom),
    )


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values in the order given; those at alpha or less are rejected at family-wise error alpha.

    Raises ValueError for what is not a probability. Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    values = np.asarray(ps, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values must lie between 0 and 1")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return adjusted.tolist()


# --- power ------------------------------------------------------------------------------------------------


def minimum_detectable_effect(standard_error: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference that a two-sided test at alpha finds with this power, in the standard error's unit.

    Source: Bloom, Evaluation Review 19 (1995).
    """
    return standard_error * _reach(alpha / 2, power)


def questions_needed(
    change: Difference, gap: float, *, alpha: float = 0.05, power: float = 0.8, sides: int = 2
) -> int | None:
    """How many questions, of the same tasks and as many per image, would tell a true gap from 0 with this power.

    `gap`: a fraction; for a margin it is margin - loss, with `sides=1`. None where the gap is 0 or the spread unknown.
    """
    if not gap or not math.isfinite(change.standard_error):
        return None
    # Variance at x times the questions: v / x from the spread, a / x^2 from the allowance; solved for gap = reach x se.
    square = (gap / _reach(alpha / sides, power)) ** 2
    a = change.allowance**2
    v = max(change.standard_error**2 - a, 0.0)
    return math.ceil(change.questions * (v + math.sqrt(v * v + 4 * square * a)) / (2 * square))


def questions_to_settle(change: Difference, margin: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """How many questions would bring the loss's bounds below the margin or above zero, if the loss is as estimated.

    The easier of the two, each one-sided at alpha and with this power; None if it cannot be told.
    """
    loss = -change.estimate
    return questions_needed(change, max(margin - loss, loss), alpha=alpha, power=power, sides=1)


def _reach(tail: float, power: float) -> float:
    """Standard errors between no effect and one that is found with this power."""
    from scipy import special

    if not (0 < tail < 1 and 0 < power < 1):
        raise ValueError("alpha and power must lie between 0 and 1")
    return float(special.ndtri(1 - tail) + special.ndtri(power))


# --- latency ----------------------------------------------------------------------------------------------


class Ratio(NamedTuple):
    """A ratio first / second with its confidence interval."""

    estimate: float
    lo: float
    hi: float


def ratio_of_medians(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    paired: bool = False,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Ratio:
    """Ratio of the median times of two samples, (n,) and (m,), with a percentile bootstrap over repeats.

    `paired`: repeat i of both was timed in the same round, and rounds are drawn. Any unit of time. Raises ValueError
    without times, for times that are not positive, and for pairs of different lengths.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not (len(one) and len(two) and (one > 0).all() and (two > 0).all()):
        raise ValueError("a ratio needs times, all of them positive")
    if paired and len(one) != len(two):
        raise ValueError(f"{len(one)} and {len(two)} times: pairs need as many of both")
    random = np.random.default_rng(seed)
    each = np.empty(resamples)
    rows = max(1, CELLS // max(len(one), len(two)))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        picked = random.integers(len(one), size=(size, len(one)))
        other = picked if paired else random.integers(len(two), size=(size, len(two)))
        each[start : start + size] = np.median(one[picked], axis=1) / np.median(two[other], axis=1)
    lo, hi = np.quantile(each, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Ratio(float(np.median(one) / np.median(two)), float(lo), float(hi))


def quotient(first: tuple[float, float, float], second: tuple[float, float, float]) -> Ratio:
    """Quotient of two independent positive estimates, each given with its interval (estimate, lo, hi).

    For two records' speedups, whose times are not kept; the confidence is that of the two intervals. Raises
    ValueError for what is not positive.
    Source: Zou and Donner, Statistics in Medicine 27 (2008) (variance estimates recovered from limits), on logarithms.
    """
    if not min(*first, *second) > 0:
        raise ValueError("a quotient needs positive estimates and bounds")
    (one, one_lo, one_hi), (two, two_lo, two_hi) = np.log(first), np.log(second)
    down, up = math.hypot(one - one_lo, two_hi - two), math.hypot(one_hi - one, two - two_lo)
    return Ratio(*(float(np.exp(x)) for x in (one - two, one - two - down, one - two + up)))
