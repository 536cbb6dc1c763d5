"""The solver's plans against the best of all plans, on cases small enough to try them all."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import pytest

from harness.pruning.solver import TOLERANCE, solve
from harness.types import SCOPES, VLM, Additive, Budget, InputError, Options, Ranking
from tests.support.layouts import EXTENTS, damage_of, layout, rank_options, ranking_of


def optimum(vlm: VLM, ranking: Ranking, keep: float) -> float | None:
    """The least damage of all plans within tolerance of the budget, by trying them all; None if there is none."""
    costs, losses = np.zeros(1), np.zeros(1)
    for block, kind in vlm.select("vision"):
        score, own = ranking.scores[block.name, kind], block.units(kind)
        if isinstance(score, Options):
            ladder = [(p.token_macs * EXTENTS["vision"].tokens, p.loss) for p in score.points]
        else:
            damage = sorted(cast(Additive, score).damage)  # of one kind in one block the least damaging go first
            ladder = [((own.count - n) * own.macs(EXTENTS["vision"]), sum(damage[:n])) for n in range(own.count)]
        cost, loss = np.array(ladder).T
        costs, losses = np.add.outer(costs, cost).ravel(), np.add.outer(losses, loss).ravel()
    within = abs(costs / costs.max() / keep - 1) <= TOLERANCE
    return float(losses[within].min()) if within.any() else None


def small(seed: int, channels: int) -> tuple[VLM, Ranking, float]:
    """Two blocks with few coarse heads and some channels, or a block's ranks; a budget."""
    rng = random.Random(seed)
    sizes = [(rng.randint(2, 6), rng.randint(20, 200), rng.randint(0, 4)) for _ in range(2)]
    vlm = layout(*(("vision", heads, (rng.randint(channels // 2, channels), 40)) for heads in sizes))
    scores = dict(ranking_of(vlm, "additive", seed).scores)
    if seed % 2:
        scores["vision.0", "ffn"] = rank_options(vlm.blocks[0].ffn, 8)
    return vlm, Ranking(scores), rng.uniform(0.4, 0.9)


@pytest.mark.parametrize(("channels", "missed", "mean", "most"), [(10, 0.04, 0.2, 4.0), (30, 0.01, 0.05, 1.0)])
def test_greedy_is_near_the_exact_optimum(channels: int, missed: float, mean: float, most: float) -> None:
    """All plans tried: what coarse steps cost is small against a unit's damage (0.5), the less the finer they are."""
    gaps, lacking = [], 0
    for seed in range(100):
        vlm, ranking, keep = small(seed, channels)
        best = optimum(vlm, ranking, keep)
        if best is None:
            with pytest.raises(InputError):
                solve(vlm, ranking, Budget("vision", keep, extents=EXTENTS))
            continue
        try:
            plan = solve(vlm, ranking, Budget("vision", keep, extents=EXTENTS))
        except InputError:
            lacking += 1
            continue
        gaps.append(damage_of(ranking, plan) - best)
    assert min(gaps) >= -1e-9  # nothing is better than the optimum
    assert lacking <= missed * 100 and sum(gaps) / len(gaps) < mean and max(gaps) < most


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("shape", ["ordinal", "additive"])
def test_heads_alone_land_wherever_a_plan_can(shape: str, scope: Any) -> None:
    """Eight heads or four groups in each of four blocks: every budget is met; of scope all, nearly."""
    wide, narrow = ("vision", (8, 2048, 16), (192, 128)), ("language", (4, 6912, 48), (256, 288))
    vlm = layout(*[wide] * 4, *[narrow] * 4)
    ranking = ranking_of(vlm, shape)
    sizes = {p: next(b.heads for b in vlm.blocks if b.component == p).macs(e) for p, e in EXTENTS.items()}
    most = {
        part: sum(b.heads.count for b in vlm.blocks if b.component == part and scope in ("all", part)) for part in sizes
    }
    reachable = {
        (v * sizes["vision"] + n * sizes["language"]) / sum(most[p] * sizes[p] for p in sizes)
        for v in range(4 * bool(most["vision"]), most["vision"] + 1)
        for n in range(4 * bool(most["language"]), most["language"] + 1)
    }
    shares, there, found = np.array(sorted(reachable)), 0, 0
    for keep in np.linspace(shares[0], 0.99, 40):
        if abs(shares / keep - 1).min() < 0.99 * TOLERANCE:
            there += 1
            try:
                solve(vlm, ranking, Budget(scope, float(keep), "heads", extents=EXTENTS))
                found += 1
            except InputError:
                continue
    assert there > 5 and found >= there * (0.9 if scope == "all" else 1)
