"""What a change costs, metric by metric: from records of the same trials, before and after, to findings.

    findings = accuracy({"taylor 0.5": (before, after)}, Limits())

Larger is worse: accuracy lost (a fraction), time and FLOPs as multiples of the baseline's. A cost passes if its upper
bound is below its limit; it fails if it does not pass and is seen at all (its lower bound is above none) after Holm
over the trials and their pool; else it is inconclusive. Bounds are one-sided at 1 - alpha.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from harness import stats
from harness.record import dig
from harness.results import Stored
from harness.text import plain
from harness.types import InputError

Outcome = Literal["pass", "fail", "inconclusive", "refused"]
# Facts of a record's `env` that must agree before times are compared.
MACHINE = ("machine", "platform", "device", "cpu", "gpu", "threads")
RECORDED = 0.95  # confidence of a record's own intervals
EXACT = 1e-9  # of a ratio of counts

Progress = Callable[[int, int], None]  # (comparisons made, of how many)


@dataclass(frozen=True)
class Limits:
    """What may be lost: accuracy (a fraction), time and FLOPs (multiples of the baseline's); and the error rate.

    Raises InputError for what is no such limit.
    """

    margin: float = 0.01
    latency: float = 1.05
    flops: float = 1.0
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise InputError(f"--margin {self.margin:g}: a share of accuracy between 0 and 1 is needed, as 0.01")
        if not 1 < self.latency < math.inf:
            raise InputError(f"--latency {self.latency:g}: a multiple above 1 is needed, as 1.05")
        if not 1 <= self.flops < math.inf:
            raise InputError(f"--flops {self.flops:g}: a multiple of 1 or more is needed, as 1.0")
        if not 0 < self.alpha < 0.5:
            raise InputError(f"--alpha {self.alpha:g}: a probability between 0 and 0.5 is needed, as 0.05")


@dataclass(frozen=True)
class Cost:
    """A cost with its bounds, before the other trials have a say."""

    estimate: float
    lo: float
    hi: float
    passes: bool
    p: float  # one-sided, against: no cost at all
    needed: int | None = None  # questions (accuracy) or timed rounds (latency) that would settle what is open


@dataclass(frozen=True)
class Finding:
    """What came out for one metric of one trial or of several pooled; `p` is adjusted, `why` a reason.

    `decides`: whether a pass of the metric rests on it; a trial that is in a pool leaves that to the pool.
    """

    outcome: Outcome
    cost: Cost | None = None
    p: float | None = None
    why: str = ""
    decides: bool = True


Compared = Mapping[str, tuple[Stored, Stored]]  # a trial's name -> its records, before and after


def accuracy(compared: Compared, limits: Limits, progress: Progress = lambda made, total: None) -> dict[str, Finding]:
    """Accuracy lost, from the stored answers, per trial and pooled over the trials that asked the same questions.

    Raises InputError for samples that are missing or do not pair.
    """
    found: dict[str, Finding] = {}
    pairs: dict[str, stats.Pairs] = {}
    for name, before, after, _ in _measured(compared, "accuracy", found, lambda stored: _metric(stored, "accuracy")):
        one, two = (stored.record["hashes"].get("data") for stored in (before, after))
        if one != two:
            found[name] = Finding("refused", why=plain(f"data differ (hash {one} and {two}): other questions"))
            continue
        try:
            pairs[name] = stats.pair(before.answers(), after.answers())
        except ValueError as error:
            raise InputError(plain(f"{before.name} and {after.name}: {error}")) from error
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, one in pairs.items():
        groups[tuple(one.tasks), tuple(one.questions), tuple(one.images)].append(name)
    pools = _pools(list(groups.values()))
    pairs |= {pool: stats.average([pairs[name] for name in names]) for pool, names in pools.items()}
    costs = {}
    for name, one in pairs.items():
        costs[name] = _loss(one, limits, len(pairs))
        progress(len(costs), len(pairs))
    return found | _settle(costs, pools, limits)


def latency(compared: Compared, limits: Limits) -> dict[str, Finding]:
    """Time as a multiple of the baseline's, per trial and pooled, where both were measured on one machine.

    Made from the speedups over dense, so that what slows the whole machine down is not held against the change.
    Raises InputError for speedups that are not positive.
    """
    found: dict[str, Finding] = {}
    ratios: dict[str, stats.Ratio] = {}
    rounds = 1
    for name, before, after, speedups in _measured(compared, "latency", found, _speedup):
        one, two = before.record["env"], after.record["env"]
        if differing := [f"{key} {one.get(key)} and {two.get(key)}" for key in MACHINE if one.get(key) != two.get(key)]:
            found[name] = Finding("refused", why=plain(f"machines differ: {', '.join(differing)}"))
            continue
        try:
            ratios[name] = stats.quotient(*speedups)
        except ValueError as error:
            raise InputError(plain(f"{before.name} and {after.name}: metrics.latency: {error}")) from error
        rounds = max(rounds, int(after.record["trial"]["latency"].get("repeats", 1)))
    pools = _pools([list(ratios)])
    sets = {name: [ratio] for name, ratio in ratios.items()}
    sets |= {pool: [ratios[name] for name in names] for pool, names in pools.items()}
    costs = {name: _slowdown(several, limits, len(sets), rounds) for name, several in sets.items()}
    return found | _settle(costs, pools, limits)


def flops(compared: Compared, limits: Limits) -> dict[str, Finding]:
    """FLOPs of the scope as a multiple of the baseline's; counts are exact, so every trial is judged by itself."""
    found: dict[str, Finding] = {}
    for name, _, _, (one, two) in _measured(compared, "flops", found, lambda stored: _metric(stored, "flops", "kept")):
        ratio = two / one if one else math.inf
        passes = ratio <= limits.flops * (1 + EXACT)
        found[name] = Finding("pass" if passes else "fail", Cost(ratio, ratio, ratio, passes, float(passes)))
    return found


def _measured(
    compared: Compared, metric: str, found: dict[str, Finding], read: Callable[[Stored], Any]
) -> Iterator[tuple[str, Stored, Stored, tuple[Any, Any]]]:
    """The trials whose two records have to be compared, with what is read of each; `found` gets the others."""
    for name, (before, after) in compared.items():
        values = (read(before), read(after))
        if values == (None, None):
            continue
        if None in values:
            side = "candidate" if values[0] is None else "baseline"
            found[name] = Finding("refused", why=f"{metric} was measured in the {side} only")
        elif before.content == after.content:
            none = 0.0 if metric == "accuracy" else 1.0
            found[name] = Finding("pass", Cost(none, none, none, True, 1.0), why="identical bytes")
        else:
            yield name, before, after, values


# --- one cost -----------------------------------------------------------------------------------------------


def _loss(pairs: stats.Pairs, limits: Limits, tests: int) -> Cost:
    alpha, margin = limits.alpha, limits.margin
    # Holm looks for p-values of alpha / tests, which the draws must be able to show.
    resamples = max(10_000, math.ceil(2 * tests / alpha))
    change = stats.difference(pairs, confidence=1 - 2 * alpha, resamples=resamples)
    verdict = stats.equivalence(change, margin, alpha=alpha)
    ways = []
    for gap, level in ((margin - verdict.loss, alpha), (verdict.loss, alpha / tests)):
        if gap > 0 and (needed := stats.questions_needed(change, gap, alpha=level, sides=1)):
            ways.append(needed)
    bounds = (verdict.loss, -change.hi, verdict.loss_bound)
    return Cost(*bounds, verdict.noninferior, verdict.p_loss, min(ways, default=None))


def _slowdown(ratios: Sequence[stats.Ratio], limits: Limits, tests: int, rounds: int) -> Cost:
    """The geometric mean of independent ratios, normal on the logarithm with a spread for either side."""
    from scipy import special

    alpha, limit = limits.alpha, math.log(limits.latency)
    middle, lo, hi = np.log(ratios).T
    mean, scale = float(middle.mean()), len(ratios) * float(special.ndtri((1 + RECORDED) / 2))
    down, up = (float(np.sqrt((side**2).sum())) / scale for side in (middle - lo, hi - middle))
    quantile = float(special.ndtri(1 - alpha))
    p = float(special.ndtr(-mean / down)) if down else float(mean <= 0)
    ways = []
    for gap, error, level in ((limit - mean, up, alpha), (mean, down, alpha / tests)):
        if gap > 0:
            ways.append(math.ceil(rounds * (stats.minimum_detectable_effect(error, alpha=2 * level) / gap) ** 2))
    upper = mean + quantile * up
    bounds = (math.exp(mean), math.exp(mean - quantile * down), math.exp(upper))
    return Cost(*bounds, upper < limit, p, min(ways, default=None))


def _settle(costs: Mapping[str, Cost], pools: Mapping[str, Sequence[str]], limits: Limits) -> dict[str, Finding]:
    adjusted = stats.holm([cost.p for cost in costs.values()])
    pooled = {name for names in pools.values() for name in names}
    found = {}
    for (name, cost), p in zip(costs.items(), adjusted, strict=True):
        outcome: Outcome = "pass" if cost.passes else "fail" if p <= limits.alpha else "inconclusive"
        settled = cost if outcome == "inconclusive" else replace(cost, needed=None)
        found[name] = Finding(outcome, settled, p, decides=name not in pooled)
    return found


def _pools(groups: Sequence[Sequence[str]]) -> dict[str, Sequence[str]]:
    """A name for every group of several trials."""
    large = [group for group in groups if len(group) > 1]
    return {
        f"{len(group)} trials pooled{f' (set {place} of questions)' if len(large) > 1 else ''}": group
        for place, group in enumerate(large, start=1)
    }


# --- what records hold --------------------------------------------------------------------------------------


def _metric(stored: Stored, *path: str) -> Any:
    return dig(stored.record, "metrics", *path)


def _speedup(stored: Stored) -> tuple[float, float, float] | None:
    found = [_metric(stored, "latency", key) for key in ("speedup", "speedup_lo", "speedup_hi")]
    return None if None in found else (found[0], found[1], found[2])
