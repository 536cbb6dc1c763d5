"""ASVD and D-Rank give every Linear the rank that slow, literal versions of the released rules give it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from baselines import asvd, d_rank
from baselines.low_rank import Factorable, Loss, decomposed, factorables, low_rank
from harness.pruning.solver import solve
from harness.statistics.calibration import Calibration, linears
from harness.types import VLM, Budget, Choice, Component, Extent, InputError, Options, Plan, Ranking, Units
from tests.support.calibrations import calibration_on_several_questions
from tests.support.linears import inputs_of, weight_of

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # of the released perplexity path
EVEN: dict[Component, Extent] = {"vision": Extent(64, 0), "language": Extent(64, 0)}


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


def every(vlm: VLM) -> list[Factorable]:
    return [linear for block, kind in vlm.select("all") for linear in factorables(vlm.model, block.units(kind))]


def ranking_of(vlm: VLM, losses: Mapping[str, Loss]) -> Ranking:
    scores = {}
    for block, kind in vlm.select("all"):
        found = factorables(vlm.model, block.units(kind))
        scores[block.name, kind] = low_rank(block.units(kind), found, [losses[linear.path] for linear in found])
    return Ranking(scores)


def ranks_in(vlm: VLM, ranking: Ranking, plan: Plan) -> dict[str, int | None]:
    """The rank of each Linear of a plan, by path; None where it stays dense."""
    ranks: dict[str, int | None] = {}
    for block, kind in vlm.select("all"):
        part = cast(Choice, plan.parts[block.name, kind])
        label = cast(Options, ranking.scores[block.name, kind]).points[part.position].label
        paths = linears(block.units(kind))
        words = ["dense"] * len(paths) if label == "dense" else label.removeprefix("rank ").split("/")
        ranks |= {path: None if w == "dense" else int(w) for path, w in zip(paths, words, strict=True)}
    return ranks


# --- ASVD -------------------------------------------------------------------------------------------------


def test_asvd_measures_each_linear_alone(tiny: VLM, calibration: Calibration) -> None:
    few = Calibration(tiny, calibration.samples[:2])
    ranking = asvd.rank(tiny, calibration, seed=0, least=0.4, samples=2)
    for units in (tiny.blocks[0].heads, tiny.blocks[-1].ffn):
        linear = factorables(tiny.model, units)[-1]
        scaled = inputs_of(tiny, calibration, linear.path).abs().mean(0).sqrt()
        u, s, vt = torch.linalg.svd(linear.weight.double() * scaled, full_matrices=False)
        literal = []
        for share in SHARES:
            rank = int(share * linear.weight.numel() / sum(linear.weight.shape))
            cut = (u[:, :rank] * s[:rank] @ vt[:rank] / scaled).float()
            parameter, before = tiny.model.get_parameter(f"{linear.path}.weight"), linear.weight.clone()
            parameter.data = cut
            literal.append(few.answer_loss())
            parameter.data = before
        found = ranking.log["rise"][linear.path]
        assert found == pytest.approx([value - few.answer_loss() for value in literal], abs=2e-5, rel=6e-3)
    with pytest.raises(InputError, match="samples: 0 should be"):
        asvd.rank(tiny, calibration, seed=0, samples=0)
    with pytest.raises(InputError, match=r"least: 0\.05 should be"):
        asvd.rank(tiny, calibration, seed=0, least=0.05)


@given(st.integers(0, 10**9), st.integers(1, 6 * 22 - 1))
@example(70, 1)  # slopes that rounding puts in the wrong order
def test_asvd_takes_the_least_share_under_a_common_threshold(tiny: VLM, seed: int, middle: int) -> None:
    """As the released search: of the (Linear, share) pairs with the lowest perplexity, each Linear's least share."""
    found = every(tiny)
    values = [n / 100 for n in random.Random(seed).sample(range(-20, 200), 6 * len(found))]
    rows = [values[6 * n : 6 * n + 6] for n in range(len(found))]
    rises = {
        linear.path: [(linear.share(linear.rank(share)), rise) for share, rise in zip(SHARES, row, strict=True)]
        for linear, row in zip(found, rows, strict=True)
    }
    pairs = [(path, share, math.exp(rise)) for path, points in rises.items() for share, rise in points]
    least = dict.fromkeys(rises, 1.0)
    for path, share, _ in sorted(pairs, key=lambda pair: -pair[2])[middle:]:
        least[path] = min(least[path], share)
    kept = sum(least[linear.path] * linear.weight.numel() for linear in found)
    keep = kept / sum(linear.weight.numel() for linear in found)
    ranking = ranking_of(tiny, asvd.thresholds(found, rises))
    ranks = ranks_in(tiny, ranking, solve(tiny, ranking, Budget("all", keep * (1 + 1e-12), extents=EVEN)))
    for linear in found:
        rank = ranks[linear.path]
        assert (1.0 if rank is None else linear.share(rank)) == pytest.approx(least[linear.path])


def test_below_its_least_share_asvd_cuts_all_linears_alike(tiny: VLM) -> None:
    found = every(tiny)
    rises = {linear.path: [(linear.share(linear.rank(s)), 1 - s) for s in SHARES] for linear in found}
    ranking = ranking_of(tiny, asvd.thresholds(found, rises))
    ranks = ranks_in(tiny, ranking, solve(tiny, ranking, Budget("all", 0.25, extents=EVEN)))
    for linear in found:
        assert linear.share(ranks[linear.path] or 0) == pytest.approx(0.25, abs=0.02 + 2 * linear.share(1))


# --- D-Rank -----------------------------------------------------------------------------------------------


def literal_ranks(vlm: VLM, calibration: Calibration, keep: float, shift: float) -> dict[str, float]:
    """Continuous ranks by the released rules, in a model whose attention products cost nothing."""
    ranks: dict[str, float] = {}
    for component in ("vision", "language"):
        blocks = [block for block in vlm.blocks if block.component == component]
        for kind in ("heads", "ffn"):
            given: dict[str, list[float]] = {}
            types = list(zip(*(linears(block.units(kind)) for block in blocks), strict=True))
            names = [paths[0].rpartition(".")[2] for paths in types]
            for name, paths in zip(names, types, strict=True):
                weights = [weight_of(vlm, path) for path in paths]
                scaled = [w @ inputs_of(vlm, calibration, p).T for w, p in zip(weights, paths, strict=True)]
                values = [torch.linalg.svdvals(matrix) for matrix in scaled]
                effective = [effective_rank(v.square()) for v in values]
                cost, budget = sum(weights[0].shape), keep * sum(w.numel() for w in weights)
                total = sum(math.sqrt(r * cost) for r in effective)
                proposed = [math.sqrt(r / cost) * budget / total for r in effective]
                equal = [keep * w.numel() / cost for w in weights]
                lost = [
                    sum(float(v[int(k) :].square().sum()) for v, k in zip(values, tried, strict=True))
                    for tried in (proposed, equal)
                ]
                free = name in ("q_proj", "k_proj", "v_proj", "qkv") or (name != "gate_proj" and lost[0] < lost[1])
                given[name] = proposed if free else equal
            if "q_proj" in given:
                cost = {name: sum(weight_of(vlm, paths[0]).shape) for name, paths in zip(names, types, strict=True)}
                pool = sum(shift * sum(given[name]) * cost[name] for name in ("q_proj", "k_proj"))
                given |= {name: [(1 - shift) * k for k in given[name]] for name in ("q_proj", "k_proj")}
                given["v_proj"] = [k + pool / len(blocks) / cost["v_proj"] for k in given["v_proj"]]
            for name, paths in zip(names, types, strict=True):
                ranks |= dict(zip(paths, given[name], strict=True))
    return ranks


def effective_rank(energy: Tensor) -> float:
    share = energy / energy.sum()
    return float(torch.special.entr(share).sum().exp())


@pytest.mark.parametrize(("keep", "shift"), [(0.4, 0.2), (0.25, 0.0)])
def test_d_rank_gives_the_ranks_of_the_released_rules(
    tiny: VLM, calibration: Calibration, keep: float, shift: float
) -> None:
    budget = Budget("all", keep, extents=EVEN)
    ranking = d_rank.rank(tiny, calibration, seed=0, budget=budget, shift=shift)
    found = ranks_in(tiny, ranking, solve(tiny, ranking, budget))
    for path, rank in literal_ranks(tiny, calibration, keep, shift).items():
        assert found[path] is not None and found[path] == pytest.approx(rank, abs=1.5), path


def test_d_rank_falls_back_by_the_energy_at_this_budget() -> None:
    """Two layers of an FFN: one that is nearly of rank 1, one with a flat spectrum; gate never differs."""
    generator = torch.Generator().manual_seed(0)
    steep, flat = (torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q for _ in range(2))
    steep = steep @ torch.diag(10 * 0.3 ** torch.arange(32.0))
    members = decomposed([Factorable(f"{n}", w, None) for n, w in enumerate((steep, flat, steep, flat, steep, flat))])
    units = Units("ffn", 32, 1, (), "", 0, 0, gated=True)
    types = [members[0:2], members[2:4], members[4:6]]
    factors = d_rank.factors_of(units, types, share=0.5, shift=0.2)
    assert factors["0"] == factors["1"] == 1
    assert factors["2"] < 1 < factors["3"] and factors["2"] + factors["3"] == pytest.approx(2)
    assert d_rank.proportions(types[1]) == pytest.approx([factors["2"], factors["3"]])


@pytest.mark.parametrize("scope", ["vision", "language", "all"])
def test_the_common_share_is_what_the_attention_products_leave(tiny: VLM, calibration: Calibration, scope: Any) -> None:
    budget = Budget(scope, 0.5, extents=calibration.extents)
    share = d_rank.common_share(tiny, budget)
    full = kept = 0
    for block, kind in tiny.select(scope):
        units, extent = block.units(kind), calibration.extents[block.component]
        full += units.count * units.macs(extent)
        kept += units.count * (units.pair_macs * extent.pairs + share * units.token_macs * extent.tokens)
    assert kept / full == pytest.approx(0.5)
    timed = {(block.component, kind): 2e-9 for block, kind in tiny.select("all")}
    assert d_rank.common_share(tiny, replace(budget, rates=timed)) == pytest.approx(share)
    assert d_rank.common_share(tiny, replace(budget, keep=0.01)) == 0


def test_d_rank_refuses_a_shift_out_of_range(tiny: VLM, calibration: Calibration) -> None:
    with pytest.raises(InputError, match=r"shift: 1.0 should be in \[0, 1\)"):
        d_rank.rank(tiny, calibration, seed=0, budget=Budget("all", 0.5, extents=EVEN), shift=1.0)
