"""The cost of a code change per metric, from records of the same trials before and after it.

    findings = accuracy({"taylor 0.5": (before, after)}, Limits())

A larger cost is worse: accuracy lost (a fraction), time and FLOPs as multiples of the baseline's. A cost passes if its
upper bound is below its limit. Otherwise it fails if it is significant (its lower bound is a cost, after Holm's
correction over the trials and their pool), and else is inconclusive. Bounds are one-sided at 1 - alpha.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness import stats
from harness.progress import Progress, silent
from harness.records.comparison import differing
from harness.records.record import dig
from harness.records.store import Stored
from harness.text import plain
from harness.types import InputError

Outcome = Literal["pass", "fail", "inconclusive", "refused"]
RECORDED = 0.95  # confidence of the intervals in records
EXACT = 1e-9  # tolerance for a ratio of counts


@dataclass(frozen=True)
class Limits:
    """Limits of a cost: accuracy (a fraction), time and FLOPs (multiples of the baseline's); and the error rate.

    Raises InputError for a value out of range.
    """

    margin: float = 0.01
    latency: float = 1.05
    flops: float = 1.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise InputError(f"--margin {self.margin:g}: must be a share of accuracy between 0 and 1, such as 0.01")
        if not 1 < self.latency < math.inf:
            raise InputError(f"--latency {self.latency:g}: must be a multiple above 1, such as 1.05")
        if not 1 <= self.flops < math.inf:
            raise InputError(f"--flops {self.flops:g}: must be a multiple of at least 1, such as 1.0")
        if not 0 < self.alpha < 0.5:
            raise InputError(f"--alpha {self.alpha:g}: must be a probability between 0 and 0.5, such as 0.05")


@dataclass(frozen=True)
class Cost:
    """A cost with its bounds, before the correction over trials."""

    estimate: float
    lo: float
    hi: float
    passes: bool
    p: float  # one-sided; null hypothesis: no cost
    needed: int | None = None  # questions (accuracy) or timed rounds (latency) that would settle an open cost


@dataclass(frozen=True)
class Finding:
    """The result for one metric of one trial or pool. `p` is adjusted; `why` gives a reason.

    `decides`: whether a pass of the metric depends on it. For a trial in a pool, only the pool decides.
    """

    outcome: Outcome
    cost: Cost | None = None
    p: float | None = None
    why: str = ""
    decides: bool = True


Compared = Mapping[str, tuple[Stored, Stored]]  # a trial's name -> its records, before and after


def accuracy(compared: Compared, limits: Limits, progress: Progress = silent) -> dict[str, Finding]:
    """Accuracy lost, from the stored answers, per trial and pooled over trials with the same questions.

    Raises InputError if samples are missing or do not pair.
    """
    findings: dict[str, Finding] = {}
    pairs: dict[str, stats.Pairs] = {}
    for name, before, after, _ in _measured(compared, "accuracy", findings, lambda stored: _metric(stored, "accuracy")):
        if why := differing(before.record, after.record, "answers"):
            findings[name] = Finding("refused", why=plain(why))
            continue
        try:
            pairs[name] = stats.pair(before.answers(), after.answers())
        except ValueError as error:
            raise InputError(f"{before.name} and {after.name}: {error}") from error
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, pair in pairs.items():
        groups[tuple(pair.tasks), tuple(pair.questions), tuple(pair.images)].append(name)
    pools = _pools(list(groups.values()))
    pairs |= {pool: stats.average([pairs[name] for name in names]) for pool, names in pools.items()}
    costs = {}
    for name, pair in pairs.items():
        costs[name] = _loss(pair, limits, len(pairs))
        progress(done=len(costs), total=len(pairs))
    return findings | _settle(costs, pools, limits)


def latency(compared: Compared, limits: Limits) -> dict[str, Finding]:
    """Time as a multiple of the baseline's, per trial and pooled, if both were measured on one machine.

    Uses the speedups over dense, so that a slower machine does not count as a cost of the change.
    Raises InputError for speedups that are not positive.
    """
    findings: dict[str, Finding] = {}
    ratios: dict[str, stats.Ratio] = {}
    rounds = 1
    for name, before, after, speedups in _measured(compared, "latency", findings, _speedup):
        if why := differing(before.record, after.record, "times"):
            findings[name] = Finding("refused", why=plain(why))
            continue
        try:
            ratios[name] = stats.quotient(*speedups)
        except ValueError as error:
            raise InputError(f"{before.name} and {after.name}: metrics.latency: {error}") from error
        rounds = max(rounds, after.record.trial.latency.repeats)
    pools = _pools([list(ratios)])
    sets = {name: [ratio] for name, ratio in ratios.items()}
    sets |= {pool: [ratios[name] for name in names] for pool, names in pools.items()}
    costs = {name: _slowdown(several, limits, len(sets), rounds) for name, several in sets.items()}
    return findings | _settle(costs, pools, limits)


def flops(compared: Compared, limits: Limits) -> dict[str, Finding]:
    """FLOPs of the scope as a multiple of the baseline's; counts are exact, so every trial has its own finding."""
    findings: dict[str, Finding] = {}
    for name, _, _, (before, after) in _measured(
        compared, "flops", findings, lambda stored: _metric(stored, "flops", "kept")
    ):
        ratio = after / before if before else math.inf
        passes = ratio <= limits.flops * (1 + EXACT)
        findings[name] = Finding("pass" if passes else "fail", Cost(ratio, ratio, ratio, passes, float(passes)))
    return findings


def _measured(
    compared: Compared, metric: str, findings: dict[str, Finding], read: Callable[[Stored], Any]
) -> Iterator[tuple[str, Stored, Stored, tuple[Any, Any]]]:
    """The trials to compare, with the value that `read` gives for each record. `findings` gets all other trials."""
    for name, (before, after) in compared.items():
        values = (read(before), read(after))
        if values == (None, None):
            continue
        if None in values:
            lost = values[1] is None  # what was measured before was not shown to be as good
            why = f"{metric} was measured in the {'baseline' if lost else 'candidate'} only"
            findings[name] = Finding("inconclusive" if lost and metric != "accuracy" else "refused", why=why)
        elif before.content == after.content:
            no_cost = 0.0 if metric == "accuracy" else 1.0
            findings[name] = Finding("pass", Cost(no_cost, no_cost, no_cost, True, 1.0), why="identical bytes")
        else:
            yield name, before, after, values


# --- one cost -----------------------------------------------------------------------------------------------


def _loss(pairs: stats.Pairs, limits: Limits, tests: int) -> Cost:
    alpha, margin = limits.alpha, limits.margin
    # Holm needs p-values down to alpha / tests, so the bootstrap needs enough draws.
    resamples = max(10_000, math.ceil(2 * tests / alpha))
    change = stats.difference(pairs, confidence=1 - 2 * alpha, resamples=resamples)
    verdict = stats.noninferiority(change, margin, alpha=alpha)
    question_counts = []
    for gap, level in ((margin - verdict.loss, alpha), (verdict.loss, alpha / tests)):
        if gap > 0 and (needed := stats.questions_needed(change, gap, alpha=level, sides=1)):
            question_counts.append(needed)
    bounds = (verdict.loss, -change.hi, verdict.loss_bound)
    return Cost(*bounds, verdict.noninferior, verdict.p_loss, min(question_counts, default=None))


def _slowdown(ratios: Sequence[stats.Ratio], limits: Limits, tests: int, rounds: int) -> Cost:
    """The geometric mean of independent ratios. Their logarithms are normal, with one spread per side."""
    from scipy import special

    alpha, limit = limits.alpha, math.log(limits.latency)
    mean, lo, hi = map(math.log, stats.mean_ratio(ratios))
    scale = float(special.ndtri((1 + RECORDED) / 2))
    down, up = (mean - lo) / scale, (hi - mean) / scale
    quantile = float(special.ndtri(1 - alpha))
    p = float(special.ndtr(-mean / down)) if down else float(mean <= 0)
    round_counts = []
    for gap, error, level in ((limit - mean, up, alpha), (mean, down, alpha / tests)):
        if gap > 0:
            round_counts.append(
                math.ceil(rounds * (stats.minimum_detectable_effect(error, alpha=2 * level) / gap) ** 2)
            )
    upper = mean + quantile * up
    bounds = (math.exp(mean), math.exp(mean - quantile * down), math.exp(upper))
    return Cost(*bounds, upper < limit, p, min(round_counts, default=None))


def _settle(costs: Mapping[str, Cost], pools: Mapping[str, Sequence[str]], limits: Limits) -> dict[str, Finding]:
    adjusted = stats.holm([cost.p for cost in costs.values()])
    pooled = {name for names in pools.values() for name in names}
    findings = {}
    for (name, cost), p in zip(costs.items(), adjusted, strict=True):
        outcome: Outcome = "pass" if cost.passes else "fail" if p <= limits.alpha else "inconclusive"
        settled = cost if outcome == "inconclusive" else replace(cost, needed=None)
        findings[name] = Finding(outcome, settled, p, decides=name not in pooled)
    return findings


def _pools(groups: Sequence[Sequence[str]]) -> dict[str, Sequence[str]]:
    """The groups of at least two trials, by a name for each."""
    large = [group for group in groups if len(group) > 1]
    return {
        f"{len(group)} trials pooled{f' (set {place} of questions)' if len(large) > 1 else ''}": group
        for place, group in enumerate(large, start=1)
    }


# --- values in records --------------------------------------------------------------------------------------


def _metric(stored: Stored, *path: str) -> Any:
    return dig(stored.record.metrics, *path)


def _speedup(stored: Stored) -> tuple[float, float, float] | None:
    bounds = [_metric(stored, "latency", key) for key in ("speedup", "speedup_lo", "speedup_hi")]
    return None if None in bounds else (bounds[0], bounds[1], bounds[2])
