"""Which heads and channels stay: the rules that turn scores of narrower blocks into parts of a plan at a cost.

    parts = cut(items, target)    # what stays, at about this cost

A part that a rule cannot meet exactly comes as near as its units allow. Every (block, kind) keeps at least one unit.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.types import (
    TOLERANCE,
    Additive,
    Choice,
    Global,
    InputError,
    Keep,
    Kind,
    Option,
    Options,
    Ordinal,
    Score,
    hull,
)

Ladder = list[tuple[float, float]]  # (cost, loss) of an item by falling cost, from dense to its smallest


@dataclass(frozen=True)
class Item:
    """One (block, kind) for the solver: the cost of a unit, its score, and the counts that may stay."""

    key: tuple[str, Kind]
    count: int
    unit: float  # multiply-adds per unit (a whole number), or seconds
    tokens: float  # factor from an option's multiply-adds per token to the cost of its Linears
    products: float  # cost of the attention products, which no option changes
    score: Score
    step: int  # the counts that may stay are multiples of this

    @property
    def full(self) -> float:
        return self.count * self.unit

    @cached_property
    def counts(self) -> list[int]:
        """The numbers of units that may stay, from all of them downwards."""
        return [self.count, *(n for n in range(self.count - 1, 0, -1) if n % self.step == 0)]

    @cached_property
    def ladder(self) -> Ladder:
        """See `_ladder`. It is cached, because a mixture cuts the same items at several costs."""
        return _ladder(self)

    @cached_property
    def steps(self) -> list[tuple[float, int]]:
        """The corners of the ladder's hull: damage per cost saved on the way to each, and its rung."""
        steps, slope = [], -math.inf
        for a, b in itertools.pairwise(hull(self.ladder)):
            # Rounding may let nearly equal slopes fall; a later corner must not come first.
            slope = max(slope, (self.ladder[b][1] - self.ladder[a][1]) / (self.ladder[a][0] - self.ladder[b][0]))
            steps.append((slope, b))
        return steps

    def option_cost(self, option: Option) -> float:
        return option.token_macs * self.tokens + self.products


Parts = dict[tuple[str, Kind], Keep | Choice]


def cut(items: Sequence[Item], target: float) -> Parts:
    """What stays of the items at about this cost, by the rule for their scores.

    Raises InputError if orders are mixed with other scores, or pools with other pools.
    """
    shapes = {type(item.score) for item in items}
    if len(shapes) > 1 and shapes & {Ordinal, Global}:
        raise InputError("budget: a ranking must be Ordinal or Global everywhere or nowhere")
    if len({item.score.pool for item in items if isinstance(item.score, Global)}) > 1:
        raise InputError("budget: the Global scores of a ranking must have the same pool")
    rule = _share if shapes == {Ordinal} else _lowest if shapes == {Global} else _trade
    return rule(list(items), target)


def cost(item: Item, part: Keep | Choice | None) -> float:
    """What it costs with this part of a plan, in the budget's currency; None: whole."""
    if part is None:
        return item.full
    if isinstance(part, Keep):
        return len(part.indices) * item.unit
    assert isinstance(item.score, Options)
    return item.option_cost(item.score.points[part.position])


def loss(item: Item, part: Keep | Choice | None) -> float:
    """The damage of the cut, in the currency of `Additive`."""
    if isinstance(part, Choice) and isinstance(item.score, Options):
        return item.score.points[part.position].loss
    if isinstance(part, Keep) and isinstance(item.score, Additive):
        return sum(item.score.damage) - sum(item.score.damage[i] for i in part.indices)
    return 0.0


def least(item: Item) -> float:
    """The smallest cost that a plan can leave it."""
    if isinstance(item.score, Options):
        return min(item.option_cost(point) for point in item.score.points)
    return item.counts[-1] * item.unit


def _best(values: tuple[float, ...], number: int) -> Keep:
    """The `number` units with the largest values; among equal values the lower index stays."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return Keep(tuple(sorted(order[:number])))


# --- ordinal: the same share everywhere -------------------------------------------------------------------


def _share(items: list[Item], target: float) -> Parts:
    """Every item keeps the same share of its units; finer items make up for the rounding of coarser ones."""
    remaining, remaining_full = target, float(sum(item.full for item in items))
    items = sorted(items, key=lambda item: -item.unit)
    rungs, ladders = [], []
    for item in items:
        target_count = item.count * remaining / remaining_full
        rung, count_kept = min(enumerate(item.counts), key=lambda place: (abs(place[1] - target_count), place[1] % 2))
        remaining, remaining_full = remaining - count_kept * item.unit, remaining_full - item.full
        rungs.append(rung)
        # The loss grows with the square of the distance from the common share, so a few items change by one unit.
        ladders.append([(n * item.unit, item.full * ((n - count_kept) / item.count) ** 2) for n in item.counts])
    _fit(ladders, rungs, target)
    parts: Parts = {}
    for item, rung in zip(items, rungs, strict=True):
        assert isinstance(item.score, Ordinal)
        parts[item.key] = _best(item.score.order, item.counts[rung])
    return parts


# --- global: the lowest of all layers -----------------------------------------------------------------------


def _lowest(items: list[Item], target: float) -> Parts:
    """The lowest units of all layers go first, over kinds together or within each kind."""
    pools: dict[Kind | None, list[Item]] = {}
    for item in sorted(items, key=lambda item: -item.unit):  # finer kinds make up for the rounding of coarser ones
        pools.setdefault(item.key[1] if _pooled(item).pool == "kind" else None, []).append(item)
    remaining, remaining_full = target, float(sum(item.full for item in items))
    rungs: list[int] = []
    ladders: list[Ladder] = []
    for pool in pools.values():
        full = sum(item.full for item in pool)
        cut = _cut_lowest(pool, remaining * full / remaining_full)
        rungs += cut
        ladders += _places(pool)
        remaining -= sum(item.counts[rung] * item.unit for item, rung in zip(pool, cut, strict=True))
        remaining_full -= full
    _fit(ladders, rungs, target)
    ordered = [item for pool in pools.values() for item in pool]
    return {item.key: _best(_pooled(item).order, item.counts[rung]) for item, rung in zip(ordered, rungs, strict=True)}


def _pooled(item: Item) -> Global:
    assert isinstance(item.score, Global)
    return item.score


def _cut_lowest(pool: Sequence[Item], target: float) -> list[int]:
    """The rungs of a pool's items when its lowest units go until the total is nearest to the target."""
    removed, rungs = [0] * len(pool), [0] * len(pool)
    total = sum(item.full for item in pool)
    for _, place in sorted((value, place) for place, item in enumerate(pool) for value in _pooled(item).order):
        item, rung = pool[place], rungs[place]
        removed[place] += 1
        while rung + 1 < len(item.counts) and item.counts[rung + 1] >= item.count - removed[place]:
            rung += 1
        saved = (item.counts[rungs[place]] - item.counts[rung]) * item.unit
        if total - saved <= target:
            if total - target > target - (total - saved):
                rungs[place] = rung
            break
        total, rungs[place] = total - saved, rung
    return rungs


def _places(pool: Sequence[Item]) -> list[Ladder]:
    """The ladders of a pool's items. A unit's loss is its place in the order times its cost.

    So an exchange at equal cost loses if what goes is higher than what comes back.
    """
    units = sorted((value, place) for place, item in enumerate(pool) for value in _pooled(item).order)
    losses: list[list[float]] = [[0.0] for _ in pool]
    for number, (_, place) in enumerate(units):
        losses[place].append(losses[place][-1] + number * pool[place].unit)
    return [
        [(n * item.unit, loss[item.count - n]) for n in item.counts] for item, loss in zip(pool, losses, strict=True)
    ]


# --- additive and options: one currency -------------------------------------------------------------------


def _trade(items: list[Item], target: float) -> Parts:
    """Cut the least damage per multiply-add first until the target is met, then give back what best fills the gap."""
    ladders = [item.ladder for item in items]
    rungs = [0] * len(items)
    total = sum(ladder[0][0] for ladder in ladders)
    steps = ((slope, place, rung) for place, item in enumerate(items) for slope, rung in item.steps)
    for _, place, rung in sorted(steps):
        if total <= target:
            break
        total += ladders[place][rung][0] - ladders[place][rungs[place]][0]
        rungs[place] = rung
    while True:
        moves = []
        for place, ladder in enumerate(ladders):
            cost, loss = ladder[rungs[place]]
            if (rung := _reach(ladder, cost + target - total)) < rungs[place]:
                moves.append(((loss - ladder[rung][1]) / (ladder[rung][0] - cost), place, rung))
        if not moves:
            break
        _, place, rung = max(moves)
        total += ladders[place][rung][0] - ladders[place][rungs[place]][0]
        rungs[place] = rung
    _fit(ladders, rungs, target)
    return {item.key: _part(item, rung) for item, rung in zip(items, rungs, strict=True)}


def _reach(ladder: Ladder, cost: float) -> int:
    """The highest rung that costs at most `cost`."""
    return bisect.bisect_left(ladder, -cost, key=lambda rung: -rung[0])


def _fit(ladders: list[Ladder], rungs: list[int], target: float) -> None:
    """If coarse steps miss the target, exchange units between pairs of items until the gap is closed.

    Each exchange takes the pair with the least loss among those that close the gap best.
    """
    slack = 0.999 * TOLERANCE * target
    while True:
        gap = target - sum(ladder[rung][0] for ladder, rung in zip(ladders, rungs, strict=True))
        off = abs(gap) - slack
        if off <= 0:
            return
        best = (off, 0.0, 0, 0, 0, 0)
        for giver, lower in enumerate(ladders):
            for rung in range(rungs[giver], len(lower)):
                freed = gap + lower[rungs[giver]][0] - lower[rung][0]
                for taker, ladder in enumerate(ladders):
                    cost, loss = ladder[rungs[taker]]
                    up = min(rungs[taker], _reach(ladder, cost + freed + slack))
                    if taker != giver:
                        change = lower[rung][1] - lower[rungs[giver]][1] + ladder[up][1] - loss
                        miss = max(0.0, abs(freed - (ladder[up][0] - cost)) - slack)
                        best = min(best, (miss, change, giver, rung, taker, up))
        if best[0] >= off:
            return
        _, _, giver, rung, taker, up = best
        rungs[giver], rungs[taker] = rung, up


def _order(item: Item) -> list[int]:
    """Units by rising damage (among equal ones the lower index first), or options by falling cost."""
    score = item.score
    if isinstance(score, Options):
        points = score.points
        best: list[int] = []  # options that no cheaper option beats or equals in loss
        for i in sorted(range(len(points)), key=lambda i: (points[i].token_macs, points[i].loss)):
            if not best or points[i].loss < points[best[-1]].loss:
                best.append(i)
        return best[::-1]
    assert isinstance(score, Additive)
    return sorted(range(item.count), key=lambda i: (score.damage[i], i))


def _ladder(item: Item) -> Ladder:
    """(cost, loss) of an item from dense to its smallest, one rung per unit or option; its last unit stays."""
    order = _order(item)
    if isinstance(item.score, Options):
        return [(item.option_cost(item.score.points[i]), item.score.points[i].loss) for i in order]
    assert isinstance(item.score, Additive)
    losses = list(itertools.accumulate((item.score.damage[i] for i in order[:-1]), initial=0.0))
    return [(n * item.unit, losses[item.count - n]) for n in item.counts]


def _part(item: Item, rung: int) -> Keep | Choice:
    order = _order(item)
    if isinstance(item.score, Options):
        return Choice(order[rung], item.score.points[order[rung]].label)
    return Keep(tuple(sorted(order[item.count - item.counts[rung] :])))
