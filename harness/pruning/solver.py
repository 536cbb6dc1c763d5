"""The solver: turns a ranking and a budget into a plan that meets the budget. Pure; takes milliseconds.

    plan = solve(vlm, ranking, Budget("vision", keep=0.5, extents=extents))

Costs are the multiply-adds of the blocks' Linear layers and attention products for one reference input, or seconds at
the budget's rates. Whole layers go first, by the order of the method; widths of the blocks that stay make up the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.pruning.layers import Layer, layers_for_budget, removal_order
from harness.pruning.widths import Item, Parts, cost, cut, least, loss
from harness.types import (
    TOLERANCE,
    VLM,
    Additive,
    Block,
    Budget,
    Component,
    Extent,
    InputError,
    Keep,
    Kind,
    Options,
    Ordinal,
    Plan,
    Ranking,
    Score,
    kinds,
)


def solve(vlm: VLM, ranking: Ranking, budget: Budget, tolerance: float = TOLERANCE) -> Plan:
    """The plan that keeps `budget.keep` of the scope's cost, within `tolerance` (relative).

    Additive units and options are cut in order of damage per multiply-add saved, options along their lower convex hull.
    Ordinal scores cut the same share everywhere. Global scores cut the lowest units of all layers. Every (block, kind)
    keeps at least one unit, and every component a block. The numbers of kept heads and channels give widths in
    multiples of `budget.align`, unless all stay; options are used as they are (see `aligned`).

    With layers and other kinds, as many layers go as `budget.shares` says; without it, as many as cost least damage in
    the method's currency; where the scores are orders, as many as fit. Layers alone may be too coarse: then the plan is
    the nearest below the budget, and is marked as coarse.

    Raises InputError if the budget is outside (0, 1], if it or its shares cannot be reached (the error names the
    smallest reachable or the nearest budget), or if the ranking does not score all units of the budget.
    """
    if not 0 < budget.keep <= 1:
        raise InputError(f"budget: {budget.keep} is not in (0, 1]")
    if budget.keep == 1:
        return Plan({}, 1.0, 1.0)
    for block, kind in vlm.select(budget.scope, budget.units):
        score = ranking.scores.get((block.name, kind))
        if score is None:
            raise InputError(f"budget: the method does not rank the {kind} of {block.name}; choose other `units`")
        _check(block.name, kind, block.units(kind).count, score)
    task = _Task.of(vlm, ranking, budget)
    if task.order and not task.items:
        gone = layers_for_budget(task.order, task.full, task.target, tolerance * budget.keep * task.dense)
        plan = task.plan(gone)
        if plan.achieved > budget.keep * (1 + tolerance):
            raise _unmet(task, plan.achieved)
        return replace(plan, coarse=abs(plan.achieved / budget.keep - 1) > tolerance)
    nearest, best, least_loss = None, None, math.inf
    for gone in task.prefixes(tolerance):
        plan = task.plan(gone)
        off = abs(plan.achieved / budget.keep - 1)
        if nearest is None or off < abs(nearest / budget.keep - 1):
            nearest = plan.achieved
        if off <= tolerance and (best is None or task.loss(plan) < least_loss):
            best, least_loss = plan, task.loss(plan)
        if best is not None and not task.compares:
            break
    if best is None:
        raise _unmet(task, nearest)
    return best


def check(vlm: VLM, budget: Budget, tolerance: float = TOLERANCE) -> None:
    """Raise InputError if the budget is too small for any ranking: units stay as in `solve`."""
    if "tokens" in kinds(budget.units):  # what these can save depends on the input
        return
    pairs = vlm.select(budget.scope, budget.units)
    task = _Task.of(vlm, Ranking({(b.name, kind): Ordinal((0.0,) * b.units(kind).count) for b, kind in pairs}), budget)
    if task.smallest > budget.keep * (1 + tolerance):
        raise _unmet(task, None)


@dataclass(frozen=True)
class _Task:
    """A budget over a ranking: what may be cut, and what it costs."""

    budget: Budget
    items: Sequence[Item]  # heads and channels that may go
    whole: Mapping[str, float]  # the cost of what stays whole in a block while the block stays, by its name
    order: Sequence[Layer]  # layers that may go, in the order in which they go
    dense: float  # the cost of the dense model that the budget is a share of, with what no cut can save
    widths: Mapping[tuple[str, Kind], int]  # how many units may be cut, as the plan has it

    @classmethod
    def of(cls, vlm: VLM, ranking: Ranking, budget: Budget) -> _Task:
        items, whole, dense, layers = [], {}, budget.fixed, []
        asked = kinds(budget.units)
        for block, kind in vlm.counted(budget.scope, budget.units):
            score = ranking.scores[block.name, kind] if kind in asked else Ordinal(())
            item = _item(block, kind, score, budget, budget.extent(block))
            dense += _item(block, kind, score, budget, budget.extents[block.component]).full
            whole.setdefault(block.name, 0.0)
            if kind in asked:
                items.append(item)
            else:
                whole[block.name] += item.full
        free = [block for block, kind in vlm.select(budget.scope, budget.units) if kind == "layers" and not block.fixed]
        for block in free:
            full = whole[block.name] + sum(item.full for item in items if item.key[0] == block.name)
            layers.append(Layer(block.name, block.component, full, ranking.scores[block.name, "layers"]))
        held: set[Component] = {block.component for block in vlm.blocks if block.fixed}
        may_go = vlm.select(budget.scope, budget.units)
        widths: dict[tuple[str, Kind], int] = {(block.name, kind): block.units(kind).count for block, kind in may_go}
        return cls(budget, items, whole, removal_order(layers, held) if layers else [], dense, widths)

    @property
    def full(self) -> float:
        """The cost of all blocks before a cut."""
        return sum(self.whole.values()) + sum(item.full for item in self.items)

    @property
    def target(self) -> float:
        """What the blocks may cost after the cut."""
        return self.budget.keep * self.dense - self.budget.fixed

    @property
    def compares(self) -> bool:
        """Whether plans with different numbers of layers are compared: there is a currency, and no shares are set."""
        priced = all(isinstance(item.score, Additive | Options) for item in self.items)
        return bool(self.order) and priced and self.order[0].damage is not None and not self.budget.shares

    def prefixes(self, tolerance: float) -> Iterator[Sequence[Layer]]:
        """Sets of layers that may go beside widths: each a beginning of the order, the most promising number first."""
        saved = [0.0, *itertools.accumulate(layer.cost for layer in self.order)]
        saving, slack = self.full - self.target, tolerance * self.budget.keep * self.dense
        numbers = [number for number, cost in enumerate(saved) if cost <= saving + slack]
        if self.order and self.budget.shares:
            share = self.budget.shares["layers"] * saving
            if share - saved[-1] > self.order[-1].cost:
                raise InputError(f"shares: layers can give at most {saved[-1] / saving:.2f} of what the budget saves")
            most = max(number for number in numbers if saved[number] <= share * (1 + 1e-9))
            near = numbers[most : most + 1 + (saved[most] < share * (1 - 1e-9))]  # just below and just above the share
            numbers = sorted(near, key=lambda number: abs(saved[number] - share))
        else:
            numbers.reverse()
        return (self.order[:number] for number in numbers)

    def plan(self, gone: Sequence[Layer]) -> Plan:
        """The plan that removes these layers, and cuts widths of the blocks that stay until the budget is met."""
        names = {layer.name for layer in gone}
        parts: Parts = {(layer.name, "layers"): Keep(()) for layer in gone}
        items = [item for item in self.items if item.key[0] not in names]
        whole = sum(whole for name, whole in self.whole.items() if name not in names)
        if items and (not gone or self.target - whole < sum(item.full for item in items)):
            parts |= self._narrowed(items, self.target - whole)
        kept = whole + sum(cost(item, parts.get(item.key)) for item in items) + self.budget.fixed
        return Plan(parts, self.budget.keep, kept / self.dense, self.budget.align, widths=self.widths)

    def _narrowed(self, items: Sequence[Item], target: float) -> Parts:
        """What stays of heads and channels at this cost; with shares, of each kind at its share of the saving."""
        by_kind: dict[Kind, list[Item]] = {}
        for item in sorted(items, key=lambda item: -item.unit):  # finer kinds make up for the rounding of coarser ones
            by_kind.setdefault(item.key[1], []).append(item)
        shares = {kind: self.budget.shares.get(kind, 0.0) for kind in by_kind}
        if len(by_kind) == 1 or not sum(shares.values()):
            return cut(items, target)
        saving, parts, left = sum(item.full for item in items) - target, Parts(), target
        *coarser, finest = by_kind
        for kind in coarser:
            full = sum(item.full for item in by_kind[kind])
            goal = full - saving * shares[kind] / sum(shares.values())
            _check_reach(kind, by_kind[kind], full, goal, saving)
            parts |= cut(by_kind[kind], goal)
            left -= sum(cost(item, parts[item.key]) for item in by_kind[kind])
        _check_reach(finest, by_kind[finest], sum(item.full for item in by_kind[finest]), left, saving)
        return parts | cut(by_kind[finest], left)

    def loss(self, plan: Plan) -> float:
        """The damage of a plan in the method's currency; 0 for orders."""
        layers = sum(layer.damage or 0.0 for layer in self.order if layer.name in plan.gone)
        return layers + sum(loss(item, plan.parts.get(item.key)) for item in self.items)

    @property
    def smallest(self) -> float:
        """The smallest share of the cost that a plan can keep."""
        names = {layer.name for layer in self.order}
        whole = sum(whole for name, whole in self.whole.items() if name not in names)
        return (
            whole + sum(least(item) for item in self.items if item.key[0] not in names) + self.budget.fixed
        ) / self.dense


def _check_reach(kind: Kind, items: Sequence[Item], full: float, goal: float, saving: float) -> None:
    if goal < sum(map(least, items)) * (1 - TOLERANCE):
        most = (full - sum(map(least, items))) / saving
        raise InputError(f"shares: {kind} can give at most {most:.2f} of what heads and FFN must save together")


def _unmet(task: _Task, nearest: float | None) -> InputError:
    """The error for a budget that no plan meets."""
    budget = task.budget
    reason = (
        f"the smallest reachable is {task.smallest:.4f}"
        if nearest is None or task.smallest > budget.keep
        else f"the nearest plan keeps {nearest:.4f}"
    )
    unit = "seconds" if budget.rates else "FLOPs"
    widths = f" with widths in multiples of {budget.align}" if budget.align > 1 else ""
    return InputError(
        f"budget: {budget.keep:g} of the {unit} of {budget.units} in scope {budget.scope}{widths}: {reason}"
    )


def _item(block: Block, kind: Kind, score: Score, budget: Budget, extent: Extent) -> Item:
    units = block.units(kind)
    rate = budget.rates[block.component, kind] if budget.rates else 1
    full, linears = units.count * units.macs(extent), units.count * units.token_macs * extent.tokens
    return Item(
        key=(block.name, kind),
        count=units.count,
        unit=units.macs(extent) * rate,
        tokens=extent.tokens * rate,
        products=(full - linears) * rate,
        score=score,
        step=budget.align // math.gcd(budget.align, units.width),
    )


def flops_kept(vlm: VLM, plan: Plan, ranking: Ranking, budget: Budget) -> float:
    """The share of the budget's FLOPs that remains by the costs of units and of the options' statements."""
    plain = replace(budget, rates={}, fixed=0.0)
    kept = full = 0.0
    for block, kind in vlm.counted(budget.scope, budget.units):
        score = ranking.scores.get((block.name, kind), Ordinal(()))
        full += _item(block, kind, score, plain, plain.extents[block.component]).full
        if block.name not in plan.gone:
            kept += cost(_item(block, kind, score, plain, plain.extent(block)), plan.parts.get((block.name, kind)))
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
        if kind == "layers" and [point.token_macs > 0 for point in score.points] != [True, False]:
            raise InputError(f"ranking: a layer has two options, dense and one of cost 0; those of {block} are others")
        values = tuple(point.loss for point in score.points)
    else:
        values = score.damage if isinstance(score, Additive) else score.order
        if len(values) != count:
            raise InputError(f"ranking: {len(values)} scores for {count} units ({kind} of {block})")
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"ranking: a score of the {kind} of {block} is not finite")
