"""The solver: turns a ranking and a budget into a plan that meets the budget. Pure; takes milliseconds.

    plan = solve(vlm, ranking, Budget("vision", keep=0.5, extents=extents))

Costs are the multiply-adds of the blocks' Linear layers and attention products for one reference input, or seconds at
the budget's rates.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.types import (
    TOLERANCE,
    VLM,
    Additive,
    Block,
    Budget,
    Choice,
    Global,
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

Ladder = list[tuple[float, float]]  # (cost, loss) of an item by falling cost, from dense to its smallest


@dataclass(frozen=True)
class _Item:
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

    @property
    def counts(self) -> list[int]:
        """The numbers of units that may stay, from all of them downwards."""
        return [self.count, *(n for n in range(self.count - 1, 0, -1) if n % self.step == 0)]

    def option_cost(self, option: Option) -> float:
        return option.token_macs * self.tokens + self.products


def solve(vlm: VLM, ranking: Ranking, budget: Budget, tolerance: float = TOLERANCE) -> Plan:
    """The plan that keeps `budget.keep` of the scope's cost, within `tolerance` (relative).

    Additive units and options are cut in order of damage per multiply-add saved, options along their lower convex hull.
    Ordinal scores cut the same share everywhere. Global scores cut the lowest units of all layers. Every (block, kind)
    keeps at least one unit. The numbers of kept heads
    and channels give widths in multiples of `budget.align`, unless all stay; options are used as they are (see
    `aligned`). Raises InputError if the budget is outside (0, 1], if it cannot be reached (the error names the smallest
    reachable or the nearest budget), or if the ranking does not score all units of the budget.
    """
    if not 0 < budget.keep <= 1:
        raise InputError(f"budget: {budget.keep} is not in (0, 1]")
    if budget.keep == 1:
        return Plan({}, 1.0, 1.0)
    items = []
    for block, kind in vlm.select(budget.scope, budget.units):
        score = ranking.scores.get((block.name, kind))
        if score is None:
            raise InputError(f"budget: the method does not rank the {kind} of {block.name}; choose other `units`")
        _check(block.name, kind, block.units(kind).count, score)
        items.append(_item(block, kind, score, budget))
    total = sum(item.full for item in items)
    dense_cost = total + budget.fixed
    target = budget.keep * dense_cost - budget.fixed
    parts = _solver(items)(items, target)
    achieved = (sum(_cost(item, parts.get(item.key)) for item in items) + budget.fixed) / dense_cost
    if abs(achieved / budget.keep - 1) > tolerance:
        smallest = (sum(_least(item) for item in items) + budget.fixed) / dense_cost
        raise _missed(budget, smallest, f"the nearest plan keeps {achieved:.4f}")
    return Plan(parts, budget.keep, achieved, budget.align, widths={item.key: item.count for item in items})


def check(vlm: VLM, budget: Budget, tolerance: float = TOLERANCE) -> None:
    """Raise InputError if the budget is too small for any ranking: each (block, kind) keeps at least one unit."""
    items = [_item(block, kind, Ordinal(()), budget) for block, kind in vlm.select(budget.scope, budget.units)]
    full = sum(item.full for item in items)
    smallest = (sum(_least(item) for item in items) + budget.fixed) / (full + budget.fixed)
    if smallest > budget.keep * (1 + tolerance):
        raise _missed(budget, smallest)


def _missed(budget: Budget, smallest: float, nearest: str = "") -> InputError:
    """The error for a budget that is below the smallest reachable one, or for which units are too coarse."""
    reason = f"the smallest reachable is {smallest:.4f}" if smallest > budget.keep else nearest
    unit = "seconds" if budget.rates else "FLOPs"
    widths = f" with widths in multiples of {budget.align}" if budget.align > 1 else ""
    return InputError(
        f"budget: {budget.keep:g} of the {unit} of {budget.units} in scope {budget.scope}{widths}: {reason}"
    )


def _item(block: Block, kind: Kind, score: Score, budget: Budget) -> _Item:
    units, extent = block.units(kind), budget.extents[block.component]
    rate = budget.rates[block.component, kind] if budget.rates else 1
    full, linears = units.count * units.macs(extent), units.count * units.token_macs * extent.tokens
    return _Item(
        key=(block.name, kind),
        count=units.count,
        unit=units.macs(extent) * rate,
        tokens=extent.tokens * rate,
        products=(full - linears) * rate,
        score=score,
        step=budget.align // math.gcd(budget.align, units.width),
    )


def _solver(items: Sequence[_Item]) -> Callable[[list[_Item], float], dict[tuple[str, Kind], Keep | Choice]]:
    """The rule for these scores. Raises InputError if orders are mixed with other scores, or pools with other pools."""
    shapes = {type(item.score) for item in items}
    if len(shapes) > 1 and shapes & {Ordinal, Global}:
        raise InputError("budget: a ranking must be Ordinal or Global everywhere or nowhere")
    if len({item.score.pool for item in items if isinstance(item.score, Global)}) > 1:
        raise InputError("budget: the Global scores of a ranking must have the same pool")
    return _share if shapes == {Ordinal} else _lowest if shapes == {Global} else _trade


def flops_kept(vlm: VLM, plan: Plan, ranking: Ranking, budget: Budget) -> float:
    """The share of the budget's FLOPs that remains by the costs of units and of the options' statements."""
    plain = replace(budget, rates={}, fixed=0.0)
    kept = full = 0.0
    for block, kind in vlm.select(budget.scope, budget.units):
        item = _item(block, kind, ranking.scores.get((block.name, kind), Ordinal(())), plain)
        kept += _cost(item, plan.parts.get(item.key))
        full += item.full
    return kept / full


def aligned(ranking: Ranking, step: int) -> Ranking:
    """The ranking with the ranks and widths of options in multiples of `step`, if the method offers that."""
    if step == 1:
        return ranking
    scores = {
        key: score.aligned(step) if isinstance(score, Options) and score.aligned else score
        for key, score in ranking.scores.items()
    }
    return replace(ranking, scores=scores)


def _check(block: str, kind: Kind, count: int, score: Score) -> None:
    if isinstance(score, Options):
        if not any(point.make is None for point in score.points):
            raise InputError(f"ranking: options must include the dense one; those of the {kind} of {block} do not")
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
    """The `number` units with the largest values; among equal values the lower index stays."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return Keep(tuple(sorted(order[:number])))


# --- ordinal: the same share everywhere -------------------------------------------------------------------


def _share(items: list[_Item], target: float) -> dict[tuple[str, Kind], Keep | Choice]:
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
    parts: dict[tuple[str, Kind], Keep | Choice] = {}
    for item, rung in zip(items, rungs, strict=True):
        assert isinstance(item.score, Ordinal)
        parts[item.key] = _best(item.score.order, item.counts[rung])
    return parts


# --- global: the lowest of all layers -----------------------------------------------------------------------


def _lowest(items: list[_Item], target: float) -> dict[tuple[str, Kind], Keep | Choice]:
    """The lowest units of all layers go first, over kinds together or within each kind."""
    pools: dict[Kind | None, list[_Item]] = {}
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


def _pooled(item: _Item) -> Global:
    assert isinstance(item.score, Global)
    return item.score


def _cut_lowest(pool: Sequence[_Item], target: float) -> list[int]:
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


def _places(pool: Sequence[_Item]) -> list[Ladder]:
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


def _trade(items: list[_Item], target: float) -> dict[tuple[str, Kind], Keep | Choice]:
    """Cut the least damage per multiply-add first until the target is met, then give back what best fills the gap."""
    ladders = [_ladder(item) for item in items]
    rungs = [0] * len(items)
    total = sum(ladder[0][0] for ladder in ladders)
    steps = []
    for place, ladder in enumerate(ladders):
        slope = -math.inf
        for a, b in itertools.pairwise(hull(ladder)):
            # Rounding may let nearly equal slopes fall; a later corner must not come first.
            slope = max(slope, (ladder[b][1] - ladder[a][1]) / (ladder[a][0] - ladder[b][0]))
            steps.append((slope, place, b))
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


def _order(item: _Item) -> list[int]:
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


def _ladder(item: _Item) -> Ladder:
    """(cost, loss) of an item from dense to its smallest, one rung per unit or option; its last unit stays."""
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
