"""D-Rank: SVD-LLM's factors, ranks by the effective rank of the whitened weights (Mi et al. 2025, arXiv 2509.25622).

rank(vlm, calibration, seed=0, budget=budget, shift=0.2)

R = exp(-sum p ln p) with p = s^2 / sum(s^2) over the singular values of W S, S S^T = X X^T. Each type of Linear (q of
all layers, fc1 of all layers ...) keeps the same share of its cost. Within a type, ranks minimise the sum of R / k,
whose Lagrange solution is k proportional to sqrt(R / cost of a rank). Then q and k give `shift` of their ranks to v.
Checked against the released code (Rainbow0427/D_rank, model_factory.py), whose further rules hold here: gate has equal
ranks; o and the other FFN Linears have them too unless the proposed ranks drop less energy at this budget; what q and k
give goes to all layers alike. Departures: multiply-adds instead of parameters; a Linear stays dense where its pair
would cost more, and what v cannot take goes to all Linears; a fused qkv is one type, treated as q, and shifts nothing;
no basis is shared between layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from torch import Tensor

from baselines.low_rank import Factorable, equal_shares, low_rank, whitened
from harness.statistics import Calibration
from harness.types import VLM, Budget, InputError, Kind, Ranking, Units

Shift = Annotated[float, "share of their ranks that q and k give to v; 0.2 in the released code of 2509.25622"]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, budget: Budget, shift: Shift = 0.2) -> Ranking:
    """Points whose shares have fixed proportions; the budget decides which types have equal shares.

    Raises InputError if `shift` is not in [0, 1).
    """
    if not 0 <= shift < 1:
        raise InputError(f"d_rank: shift: {shift} should be in [0, 1)")
    layers = list(whitened(vlm, calibration))
    stacks: dict[tuple[str, Kind], list[tuple[Factorable, ...]]] = {}
    for block, kind, linears in layers:
        stacks.setdefault((block.component, kind), []).append(linears)
    factors: dict[str, float] = {}
    share = common_share(vlm, budget)
    for (component, kind), stack in stacks.items():
        units = next(block.units(kind) for block in vlm.blocks if block.component == component)
        factors |= factors_of(units, list(zip(*stack, strict=True)), share, shift)
    scores, log = {}, {}
    for block, kind, linears in layers:
        losses = [equal_shares(linear, factors[linear.path]) for linear in linears]
        scores[block.name, kind] = low_rank(block.units(kind), linears, losses)
        for linear in linears:
            name = linear.path.rsplit(".", 1)[-1]
            log.setdefault(block.name, {})[name] = [round(effective(linear), 2), round(factors[linear.path], 4)]
    return Ranking(scores, {"effective_rank_and_factor": log})


def common_share(vlm: VLM, budget: Budget) -> float:
    """The share of the Linears' cost that this budget leaves: attention products and fixed time keep theirs."""
    stays, linears = budget.fixed, 0.0
    for block, kind in vlm.select(budget.scope, budget.units):
        units, extent = block.units(kind), budget.extents[block.component]
        rate = budget.rates[block.component, kind] if budget.rates else 1
        own = units.count * units.token_macs * extent.tokens * rate
        stays, linears = stays + units.count * units.macs(extent) * rate - own, linears + own
    return max(0.0, (budget.keep * (stays + linears) - stays) / linears)


def factors_of(units: Units, types: Sequence[Sequence[Factorable]], share: float, shift: float) -> dict[str, float]:
    """By path, each Linear's share over the common share, for the types of one kind in one component.

    types: the Linears of each type, one per layer, in the order of `linears(units)`; `units` are any layer's.
    """
    factors = []
    for place, members in enumerate(types):
        proposed, equal = proportions(members), [1.0] * len(members)
        compared = units.kind == "ffn" or place == len(types) - 1
        is_gate = units.gated and place == 0
        if is_gate or (compared and dropped(members, proposed, share) >= dropped(members, equal, share)):
            proposed = equal
        factors.append(proposed)
    if units.kind == "heads" and len(types) == 4:
        q, k, v, _ = (sum(linear.weight.numel() for linear in members) for members in types)
        gift = shift * (q + k) / v
        factors[:2] = [[(1 - shift) * factor for factor in row] for row in factors[:2]]
        factors[2] = [factor + gift for factor in factors[2]]
    return {
        linear.path: factor
        for members, row in zip(types, factors, strict=True)
        for linear, factor in zip(members, row, strict=True)
    }


def proportions(members: Sequence[Factorable]) -> list[float]:
    """Each Linear's share over their common share, with ranks proportional to sqrt(R / cost of a rank)."""
    roots = [math.sqrt(max(1.0, effective(linear)) * linear.rank_macs) for linear in members]
    total = sum(linear.weight.numel() for linear in members)
    return [total * root / sum(roots) / linear.weight.numel() for linear, root in zip(members, roots, strict=True)]


def dropped(members: Sequence[Factorable], factors: Sequence[float], share: float) -> float:
    """The energy that these Linears drop at these factors times the common share."""
    return sum(
        float(linear.part.energy[linear.rank(share * factor) :].sum())
        for linear, factor in zip(members, factors, strict=True)
        if linear.part
    )


def effective(linear: Factorable) -> float:
    """Effective rank of a Linear's decomposition; 0 without one."""
    return effective_rank(linear.part.energy) if linear.part else 0.0


def effective_rank(energy: Tensor) -> float:
    """exp of the entropy of the shares of non-negative energies (k,) in their sum; 0 if all are 0."""
    share = energy / energy.sum() if energy.sum() > 0 else energy
    positive = share[share > 0]
    return float((-(positive * positive.log()).sum()).exp()) if len(positive) else 0.0
