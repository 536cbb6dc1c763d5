"""Paired comparisons of two models on the same questions: differences of means, and tests of them.

    pairs = pair(baseline, candidate)          # two tables of answers to the same questions
    change = difference(pairs)                 # candidate - baseline, with interval and p
    noninferiority(change, margin=0.01).loss_bound

Scores are fractions in [0, 1]. A mean is over tasks of each task's mean; questions about one image are resampled
together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from harness.stats.bootstrap import codes, p_above_zero, quantile, resample
from harness.stats.draws import NONE, Spread

MADE_UP = 2  # flips each way that are added for unseen questions: "plus four"


# --- pairs of answers -------------------------------------------------------------------------------------


class Answers(Protocol):
    """A table, frame or dictionary with columns task, question_id, image_id and score, one row per question."""

    def __getitem__(self, name: str, /) -> Any: ...


@dataclass(frozen=True)
class Pairs:
    """The scores of two models on the same questions, (n,) each; row i of every field is about the same question."""

    tasks: Sequence[Hashable]
    questions: Sequence[Hashable]
    images: Sequence[Hashable]
    first: np.ndarray
    second: np.ndarray

    @property
    def differences(self) -> np.ndarray:
        """second - first per question, (n,)."""
        return self.second - self.first


def pair(first: Answers, second: Answers) -> Pairs:
    """Join two sets of answers by task, image and question id, which together identify a question.

    Raises ValueError if a question occurs twice or is in only one set, if a score is not a finite number, or if there
    are no questions; no question is dropped silently.
    """
    left, right = _by_question(first), _by_question(second)
    unpaired = left.keys() ^ right.keys()
    if unpaired:
        raise ValueError(
            f"{len(unpaired)} of {len(left.keys() | right.keys())} questions are in one set of answers only"
        )
    # Sorted, so that the resampling depends neither on the order of the rows nor on which set comes first.
    keys = sorted(left, key=lambda key: tuple(map(str, key)))
    return Pairs(
        [task for task, _, _ in keys],
        [question for _, question, _ in keys],
        [image for _, _, image in keys],
        np.array([left[key] for key in keys]),
        np.array([right[key] for key in keys]),
    )


def average(several: Sequence[Pairs]) -> Pairs:
    """Mean scores over several comparisons on the same questions (budgets, seeds), to test them as one.

    Raises ValueError if there are no comparisons or if their questions differ.
    """
    if not several:
        raise ValueError("no comparisons to average")
    _check_same(several)
    base = several[0]
    first, second = (np.mean([getattr(p, side) for p in several], axis=0) for side in ("first", "second"))
    return Pairs(base.tasks, base.questions, base.images, first, second)


def _check_same(several: Sequence[Pairs]) -> None:
    """Raise ValueError unless these comparisons are on the same questions."""
    base = several[0]
    for other in several[1:]:
        if (other.tasks, other.questions, other.images) != (base.tasks, base.questions, base.images):
            raise ValueError("comparisons on different questions cannot be taken together")


def _by_question(answers: Answers) -> dict[tuple[Hashable, Hashable, Hashable], float]:
    columns = [_values(answers[name]) for name in ("task", "question_id", "image_id", "score")]
    scored: dict[tuple[Hashable, Hashable, Hashable], float] = {}
    for task, question, image, score in zip(*columns, strict=True):
        if (task, question, image) in scored:
            raise ValueError(f"task {task}, question {question} of image {image}: answered twice")
        if score is None or not math.isfinite(score):
            raise ValueError(f"task {task}, question {question} of image {image}: the score is {score}")
        scored[task, question, image] = float(score)
    if not scored:
        raise ValueError("no answers")
    return scored


def _values(column: Any) -> list[Any]:
    return column.to_pylist() if hasattr(column, "to_pylist") else list(column)


# --- differences and their tests --------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A mean difference second - first as a fraction, with its confidence interval and two-sided p."""

    estimate: float
    lo: float
    hi: float
    p: float
    standard_error: float
    questions: int
    tasks: dict[Hashable, float]
    allowance: float = field(repr=False)  # the part of the standard error that stands for unseen flips
    freedom: float = field(repr=False)
    draws: np.ndarray = field(repr=False, compare=False)


def difference(
    pairs: Pairs, *, spread: Spread = NONE, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """The difference of one comparison; see `differences`."""
    return differences([pairs], [spread], confidence=confidence, resamples=resamples, seed=seed)[0]


def differences(
    several: Sequence[Pairs],
    spreads: Sequence[Spread],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[Difference]:
    """Means over tasks of mean paired differences, with a bootstrap clustered by image and stratified by task.

    several: comparisons on the same questions, which share the draws. spreads: how far each mean moves with the draws
    of samples or units that it is over (see `between`), as Student's t.

    The bootstrap is smoothed by two flipped questions each way (of the smallest task), so that answers that agree on
    few questions do not look certain; without any flip, the upper bound is about that of the exact binomial. A task
    with only one image has no known spread: the interval is infinite and p is 1. The smallest possible p is about 1 /
    `resamples`, so a table of hundreds of comparisons needs more resamples. Swapping the two sides swaps the interval.
    Raises ValueError if there are no questions, or others in one comparison.
    Source: Davison and Hinkley (1997), sections 3.4 (smoothed bootstrap) and 3.8 (clusters); Agresti and Caffo, The
    American Statistician 54 (2000) (plus four).
    """
    base = several[0]
    if not base.questions:
        raise ValueError("a difference needs at least one question")
    _check_same(several)
    random = np.random.default_rng(seed)
    groups = codes(base.tasks)
    sampled = resample(np.column_stack([p.differences for p in several]), base.images, base.tasks, resamples, random)
    sizes = np.bincount(groups)
    allowance = math.sqrt(2 * MADE_UP) / (len(sizes) * int(sizes.min()))
    noise = allowance * random.standard_normal(resamples)
    tail = (1 - confidence) / 2
    changes = []
    for pairs, spread, drawn in zip(several, spreads, sampled.draws.T, strict=True):
        draws = np.concatenate([drawn + noise, drawn - noise])
        error = math.hypot(
            float(draws.std()), math.sqrt(spread.variance)
        )  # Student's t may have no variance of its own
        if spread.variance:
            moved = math.sqrt(spread.variance) * random.standard_t(spread.freedom, resamples)
            draws += np.concatenate([moved, -moved])
        means = np.bincount(groups, pairs.differences) / sizes
        change = Difference(
            estimate=float(means.mean()),
            lo=quantile(draws, tail, sampled.freedom),
            hi=quantile(draws, 1 - tail, sampled.freedom),
            p=min(1.0, 2 * min(p_above_zero(draws, sampled.freedom), p_above_zero(-draws, sampled.freedom))),
            standard_error=error if sampled.freedom else math.inf,
            questions=len(base.questions),
            tasks=dict(zip(dict.fromkeys(base.tasks), means.tolist(), strict=True)),
            allowance=allowance,
            freedom=sampled.freedom,
            draws=draws,
        )
        changes.append(change)
    return changes


@dataclass(frozen=True)
class NonInferiority:
    """The one-sided test of a loss (first - second) against a margin."""

    loss: float
    loss_bound: float  # upper bound of the loss, at level 1 - alpha
    noninferior: bool  # a loss of the margin or more is ruled out
    p_loss: float  # null hypothesis: there is no loss


def noninferiority(change: Difference, margin: float, *, alpha: float = 0.05) -> NonInferiority:
    """The test of a difference against a margin (a positive fraction).

    If every flip is a loss, the false-positive rate at a true loss of exactly the margin is up to 7 % for alpha 5 %;
    the more gains are among the flips, the closer it is to 5 %. Raises ValueError for a margin that is not positive.
    Source: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15 (1987), one of its two tests.
    """
    if not margin > 0:
        raise ValueError(f"the margin must be positive, not {margin}")
    bound = -quantile(change.draws, alpha, change.freedom)
    return NonInferiority(-change.estimate, bound, bound < margin, p_above_zero(-change.draws, change.freedom))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order; reject those up to alpha for a family-wise error of alpha.

    Raises ValueError for values outside [0, 1]. Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    values = np.asarray(ps, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values must lie between 0 and 1")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return adjusted.tolist()
