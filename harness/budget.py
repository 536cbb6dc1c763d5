"""The solver: a ranking and a budget in, the plan that lands on the budget out. Pure, milliseconds.

    plan = solve(vlm, ranking, Budget("vision", keep=0.5, extents=extents))

Costs are multiply-adds of the blocks' Linear layers and attention products for one reference input, or seconds at the
budget's rates.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass, replace

from harness.types import (
    VLM,
    Additive,
    Budget,
    Choice,
    InputError,
    Keep,
    Kind,
    Option,
    Options,
    Ordinal,
    Plan,
    Ranking,
    Score,
    hull,
)

TOLERANCE = 0.01  # relative distance from the requested budget at which every plan lands
Ladder = list[tuple[float, float]]  # (cost, loss) of an item from whole to its least, the cost falling


@dataclass(frozen=True)
class _Item:
    """One (block, kind) as the solver sees it: what a unit costs, its score, and which counts may stay."""

    key: tuple[str, Kind]
    count: int
    unit: float  # multiply-adds per unit, a whole number, or seconds
    tokens: float  # what an option's multiply-adds per token are multiplied by
    score: Score
    step: int  # of the counts that may stay

    @property
    def full(self) -> float:
        return self.count * self.unit

    @property
    def counts(self) -> list[int]:
        """How many units may stay, falling from all of them."""
        return [self.count, *(n for n in range(self.count - 1, 0, -1) if n % self.step == 0)]

    def option_cost(self, option: Option) -> float:
        return option.token_macs * self.tokens


def solve(vlm: VLM, ranking: Ranking, budget: Budget, tolerance: float = TOLERANCE) -> Plan:
    """The plan that keeps `budget.keep` of the scope's FLOPs, within `tolerance` (relative).

    Additive units and options are cut in order of damage per multiply-add saved, options along their lower convex hull.
    Ordinal scores cut the same share everywhere. At least one unit of every (block, kind) stays. Widths of kept heads
    and channels are multiples of `budget.align`, or whole; options are taken as they are (see `aligned`).

    Raises InputError when the budget is outside (0, 1], cannot be reached (naming the smallest that can), or when the
    ranking does not score what the budget is about.
    """
    if not 0 < budget.keep <= 1:
        raise InputError(f"budget: {budget.keep} is not in (0, 1]")
    if budget.keep == 1:
        return Plan({}, 1.0, 1.0)
    items = []
    for block, kind in vlm.select(budget.scope, budget.units):
        units, extent = block.units(kind), budget.extents[block.component]
        score = ranking.scores.get((block.name, kind))
        if score is None:
            raise InputError(f"budget: the method does not rank the {kind} of {block.name}; choose another `units`")
        _check(block.name, kind, units.count, score)
        rate = budget.rates[block.component, kind] if budget.rates else 1
        step = budget.align // math.gcd(budget.align, units.width)
        items.append(
            _Item((block.name, kind), units.count, units.macs(extent) * rate, extent.tokens * rate, score, step)
        )
    total = sum(item.full for item in items)
    shapes = {isinstance(item.score, Ordinal) for item in items}
    if len(shapes) > 1:
        raise InputError("budget: a ranking is ordinal throughout or nowhere")
    whole = total + budget.fixed
    target = budget.keep * whole - budget.fixed
    parts = _share(items, target) if shapes == {True} else _trade(items, target)
    achieved = (sum(_cost(item, parts.get(item.key)) for item in items) + budget.fixed) / whole
    if abs(achieved / budget.keep - 1) > tolerance:
        least = (sum(_least(item) for item in items) + budget.fixed) / whole
        why = (
            f"the smallest reachable is {least:.4f}"
            if least > budget.keep
            else f"the nearest plan keeps {achieved:.4f}"
        )
        what = "seconds" if budget.rates else "FLOPs"
        aligned = f" with widths in multiples of {budget.align}" if budget.align > 1 else ""
        raise InputError(
            f"budget: {budget.keep:g} of the {what} of {budget.units} in scope {budget.scope}{aligned}: {why}"
        )
    return Plan(parts, budget.keep, achieved, budget.align)


def aligned(ranking: Ranking, step: int) -> Ranking:
    """The ranking with options whose ranks and widths are multiples of `step`, where the method has such."""
    if step == 1:
        return ranking
    scores = {
        key: score.aligned(step) if isinstance(score, Options) and score.aligned else score
        for key, score in ranking.scores.items()
    }
    return replace(ranking, scores=scores)


def _check(block: str, kind: Kind, count: int, score: Score) -> None:
    if isinstance(score, Options):
        if kind != "ffn" or not any(point.make is None for point in score.points):
            raise InputError(
                f"ranking: options are for FFNs and include the dense one, unlike those of {kind} of {block}"
            )
        values = tuple(point.loss for point in score.points)
    else:
        values = score.damage if isinstance(score, Additive) else score.order
        if len(values) != count:
            raise InputError(f"ranking: {len(values)} scores for {count} units ({kind} of {block})")
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"ranking: a score of the {kind} of {block} is not finite")


def _cost(item: _Item, part: Keep | Choice | None) -> float:
    if part is None:
        return item.full
    if isinstance(part, Keep):
        return len(part.indices) * item.unit
    assert isinstance(item.score, Options)
    return item.option_cost(item.score.points[part.position])


def _least(item: _Item) -> float:
    if isinstance(item.score, Options):
        return min(item.option_cost(point) for point in item.score.points)
    return item.counts[-1] * item.unit


def _best(values: tuple[float, ...], number: int) -> Keep:
    """The `number` largest, ties going to the lower index."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return Keep(tuple(sorted(order[:number])))


# --- ordinal: the same share everywhere -------------------------------------------------------------------


def _share(items: list[_Item], target: float) -> dict[tuple[str, Kind], Keep | Choice]:
    """Every item keeps the same share of its units; what one rounds off is spread over the finer ones."""
    left, rest = target, float(sum(item.full for item in items))
    items = sorted(items, key=lambda item: -item.unit)
    at, ladders = [], []
    for item in items:
        wanted = item.count * left / rest
        rung, kept = min(enumerate(item.counts), key=lambda place: (abs(place[1] - wanted), place[1] % 2))
        left, rest = left - kept * item.unit, rest - item.full
        at.append(rung)
        # Away from the common share costs more the further: where all is coarse, a few items give or take a unit.
        ladders.append([(n * item.unit, item.full * ((n - kept) / item.count) ** 2) for n in item.counts])
    _fit(ladders, at, target)
    parts: dict[tuple[str, Kind], Keep | Choice] = {}
    for item, rung in zip(items, at, strict=True):
        assert isinstance(item.score, Ordinal)
        parts[item.key] = _best(item.score.order, item.counts[rung])
    return parts


# --- additive and options: one currency -------------------------------------------------------------------


def _trade(items: list[_Item], target: float) -> dict[tuple[str, Kind], Keep | Choice]:
    """Cut least damage per multiply-add first until the target is met, then give back what best fills the gap."""
    ladders = [_ladder(item) for item in items]
    at = [0] * len(items)
    total = sum(ladder[0][0] for ladder in ladders)
    steps = []
    for place, ladder in enumerate(ladders):
        corners = hull(ladder)
        for n, (a, b) in enumerate(itertools.pairwise(corners)):
            slope = (ladder[b][1] - ladder[a][1]) / (ladder[a][0] - ladder[b][0])
            steps.append((slope, place, n, b))
    for _, place, _, rung in sorted(steps):
        if total <= target:
            break
        total += ladders[place][rung][0] - ladders[place][at[place]][0]
        at[place] = rung
    while True:
        moves = []
        for place, ladder in enumerate(ladders):
            cost, loss = ladder[at[place]]
            if (rung := _reach(ladder, cost + target - total)) < at[place]:
                moves.append(((loss - ladder[rung][1]) / (ladder[rung][0] - cost), place, rung))
        if not moves:
            break
        _, place, rung = max(moves)
        total += ladders[place][rung][0] - ladders[place][at[place]][0]
        at[place] = rung
    _fit(ladders, at, target)
    return {item.key: _part(item, rung) for item, rung in zip(items, at, strict=True)}


def _reach(ladder: Ladder, cost: float) -> int:
    """The highest rung that costs at most `cost`."""
    return bisect.bisect_left(ladder, -cost, key=lambda rung: -rung[0])


def _fit(ladders: list[Ladder], at: list[int], target: float) -> None:
    """Where coarse steps miss the target: exchanges between two items that close the gap, each at the least loss."""
    slack = 0.999 * TOLERANCE * target
    while True:
        gap = target - sum(ladder[rung][0] for ladder, rung in zip(ladders, at, strict=True))
        off = abs(gap) - slack
        if off <= 0:
            return
        best = (off, 0.0, 0, 0, 0, 0)
        for giver, lower in enumerate(ladders):
            for rung in range(at[giver], len(lower)):
                freed = gap + lower[at[giver]][0] - lower[rung][0]
                for taker, ladder in enumerate(ladders):
                    cost, loss = ladder[at[taker]]
                    up = min(at[taker], _reach(ladder, cost + freed + slack))
                    if taker != giver:
                        change = lower[rung][1] - lower[at[giver]][1] + ladder[up][1] - loss
                        left = max(0.0, abs(freed - (ladder[up][0] - cost)) - slack)
                        best = min(best, (left, change, giver, rung, taker, up))
        if best[0] >= off:
            return
        _, _, giver, rung, taker, up = best
        at[giver], at[taker] = rung, up


def _order(item: _Item) -> list[int]:
    """Units or options in the order they are taken: units by damage (ties: lower index), options by falling cost."""
    score = item.score
    if isinstance(score, Options):
        points = score.points
        best: list[int] = []  # options that cost less than every one that loses less or as much
        for i in sorted(range(len(points)), key=lambda i: (points[i].token_macs, points[i].loss)):
            if not best or points[i].loss < points[best[-1]].loss:
                best.append(i)
        return best[::-1]
    assert isinstance(score, Additive)
    return sorted(range(item.count), key=lambda i: (score.damage[i], i))


def _ladder(item: _Item) -> Ladder:
    """(cost, loss) of an item from whole to its least, one rung a unit or option; its last unit stays."""
    order = _order(item)
    if isinstance(item.score, Options):
        return [(item.option_cost(item.score.points[i]), item.score.points[i].loss) for i in order]
    assert isinstance(item.score, Additive)
    losses = list(itertools.accumulate((item.score.damage[i] for i in order[:-1]), initial=0.0))
    return [(n * item.unit, losses[item.count - n]) for n in item.counts]


def _part(item: _Item, rung: int) -> Keep | Choice:
    order = _order(item)
    if isinstance(item.score, Options):
        return Choice(order[rung], item.score.points[order[rung]].label)
    return Keep(tuple(sorted(order[item.count - item.counts[rung] :])))
