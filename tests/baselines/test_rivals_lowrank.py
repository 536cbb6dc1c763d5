"""Low-rank rivals: factors equal the papers' formulas in attention and FFNs, and points cost what they say."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines import asvd, d_rank, laser, svd, svd_llm
from baselines.low_rank import Factorable, equal_shares, factorables, low_rank
from harness import families, registry
from harness.families._pruned import LowRankLinear
from harness.metrics import flops
from harness.pruning import surgery
from harness.pruning.solver import TOLERANCE, aligned, solve
from harness.statistics.calibration import Calibration, linears
from harness.trials.context import Context
from harness.types import (
    VLM,
    Budget,
    Choice,
    Component,
    Extent,
    InputError,
    Kind,
    LowRank,
    Option,
    Options,
    Ranking,
    ReferenceInput,
    Rows,
    Units,
)
from tests.support.calibrations import calibration_on_several_questions
from tests.support.linears import inputs_of, weight_of
from tests.support.trials import plain_trial

METHODS: dict[str, Any] = {"svd": svd, "svd_llm": svd_llm, "asvd": asvd, "d_rank": d_rank, "laser": laser}
EVEN: dict[Component, Extent] = {"vision": Extent(64, 0), "language": Extent(64, 0)}


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


def ranked(name: str, vlm: VLM, calibration: Calibration, budget: Budget | None = None, **options: Any) -> Ranking:
    if name == "d_rank":
        options["budget"] = budget or Budget("all", 0.5, extents=calibration.extents)
    if name == "asvd" and options.get("allocation") != "uniform":
        options["samples"] = 2
    return METHODS[name].rank(vlm, calibration, seed=0, **options)


def points_of(ranking: Ranking, block: str, kind: Kind = "ffn") -> tuple[Option, ...]:
    return cast(Options, ranking.scores[block, kind]).points


def ranks_of(point: Option, linears: int) -> list[int | None]:
    if point.label == "dense":
        return [None] * linears
    return [None if word == "dense" else int(word) for word in point.label.removeprefix("rank ").split("/")]


def scaling(name: str, inputs: Tensor) -> Tensor:
    """S of the paper, with W S what is decomposed: nothing, a Cholesky factor, or a diagonal."""
    if name == "svd":
        return torch.eye(inputs.shape[1], dtype=torch.float64)
    if name == "asvd":
        return inputs.abs().mean(0).sqrt().diag()
    second = inputs.T @ inputs / len(inputs)
    return torch.linalg.cholesky(second + 1e-9 * second.diagonal().mean() * torch.eye(len(second)))


@pytest.mark.parametrize("name", METHODS)
def test_points_cost_what_they_say_and_the_pairs_are_the_papers(tiny: VLM, calibration: Calibration, name: str) -> None:
    ranking = ranked(name, tiny, calibration)
    assert set(ranking.scores) == {(block.name, kind) for block, kind in tiny.select("all")}
    for block, kind in (*tiny.select("all")[:2], *tiny.select("all")[-2:]):
        units = block.units(kind)
        points, paths = points_of(ranking, block.name, kind), linears(units)
        assert (points[0].label, points[0].loss, points[0].make) == ("dense", 0, None)
        assert points[0].token_macs == sum(weight_of(tiny, path).numel() for path in paths)
        assert points[-1].label == "rank " + "/".join("1" for _ in paths)
        assert [p.token_macs for p in points] == sorted({p.token_macs for p in points}, reverse=True)
        assert [p.loss for p in points] == sorted(p.loss for p in points)
        for point in (points[len(points) // 3], points[-1]):
            assert point.make is not None
            made, macs = point.make(), 0
            for path, rank in zip(paths, ranks_of(point, len(paths)), strict=True):
                weight = weight_of(tiny, path)
                if rank is None:
                    assert path not in made
                    macs += weight.numel()
                    continue
                pair = cast(LowRank, made[path])
                assert pair.down.shape == (rank, weight.shape[1]) and pair.up.shape == (weight.shape[0], rank)
                macs += pair.down.numel() + pair.up.numel()
                bias = tiny.model.get_submodule(path)._parameters["bias"]
                assert (pair.bias is None) == (bias is None)
                assert bias is None or (pair.bias is not bias and torch.equal(cast(Tensor, pair.bias), bias))
                if name != "laser":  # it has tests of its own
                    s = scaling(name, inputs_of(tiny, calibration, path))
                    u, values, vt = torch.linalg.svd(weight @ s, full_matrices=False)
                    literal = u[:, :rank] * values[:rank] @ vt[:rank] @ torch.linalg.inv(s)
                    found = pair.up.double() @ pair.down.double()
                    torch.testing.assert_close(found, literal, atol=1e-3 * float(literal.abs().max()), rtol=1e-3)
            assert macs == point.token_macs


@pytest.mark.parametrize("name, options", [("svd", {}), ("svd_llm", {}), ("asvd", {"allocation": "uniform"})])
@pytest.mark.parametrize("tokens", [1, 3])
def test_every_linear_of_both_kinds_keeps_the_same_share(
    tiny: VLM, calibration: Calibration, name: str, options: dict[str, Any], tokens: int
) -> None:
    """Whatever the components' numbers of tokens are. Attention products keep their cost, so the share is smaller."""
    extents = dict(calibration.extents)
    extents["vision"] = replace(extents["vision"], tokens=extents["vision"].tokens * tokens)
    ranking = ranked(name, tiny, calibration, **options)
    for keep in (0.7, 0.45):
        budget = Budget("all", keep, extents=extents)
        plan = solve(tiny, ranking, budget)
        common = d_rank.common_share(tiny, budget)
        assert 0 < common < keep
        for block, kind in tiny.select("all"):
            point = points_of(ranking, block.name, kind)[cast(Choice, plan.parts[block.name, kind]).position]
            paths = linears(block.units(kind))
            for path, rank in zip(paths, ranks_of(point, len(paths)), strict=True):
                one = sum(weight_of(tiny, path).shape) / weight_of(tiny, path).numel()
                assert rank is not None and abs(rank * one - common) <= 2 * one


@pytest.mark.parametrize("name", METHODS)
def test_a_joint_budget_is_met_and_measured(name: str) -> None:
    """On the embedded model: the plan is within a percent of the budget, and what the counters count is the plan."""
    vlm = families.load(registry.model("mini-qwen2-vl"))
    calibration = calibration_on_several_questions(vlm)
    asked = plain_trial(method=name, budget=0.5, reference_input=ReferenceInput((96, 96), "What color is the circle?"))
    context = Context(asked.reference_input)
    budget = Budget("all", 0.5, extents=families.family(vlm.family).extents(vlm.model, context.inputs(vlm)))
    ranking = ranked(name, vlm, calibration, budget)
    plan = solve(vlm, ranking, budget)
    assert {kind for _, kind in plan.parts} == {"heads", "ffn"}
    assert plan.achieved == pytest.approx(0.5, rel=TOLERANCE)
    counted = flops.measure(surgery.apply(vlm, plan, ranking), vlm, asked, context)
    assert counted["kept"] == pytest.approx(plan.achieved, rel=1e-9) and counted["uncounted"] == []


def test_a_budget_below_the_attention_products_is_refused_with_the_least_there_is(tiny: VLM) -> None:
    ranking = svd.rank(tiny, cast(Any, None), seed=0)
    with pytest.raises(InputError, match=r"the smallest reachable is 0\.\d+") as error:
        solve(tiny, ranking, Budget("vision", 0.1, extents={"vision": Extent(64, 64 * 64), "language": Extent(64, 0)}))
    least = float(str(error.value).rpartition(" ")[2])
    products = 64 * 64 * 2 * 32  # scores and weighted sums
    linear, rank_one = (64 * sum(sizes) for sizes in ((96 * 32, 32 * 32, 64 * 32, 32 * 64), (128, 64, 96, 96)))
    assert least == pytest.approx((products + rank_one) / (products + linear), abs=1e-4)


def test_a_cut_model_computes_what_the_factors_say(tiny: VLM, calibration: Calibration) -> None:
    ranking = svd_llm.rank(tiny, calibration, seed=0)
    plan = solve(tiny, ranking, Budget("all", 0.5, extents=calibration.extents))
    pruned = surgery.apply(tiny, plan, ranking)
    for block, kind in tiny.select("all"):
        point = points_of(ranking, block.name, kind)[cast(Choice, plan.parts[block.name, kind]).position]
        assert point.make is not None
        for path, pair in point.make().items():
            x = torch.randn(3, weight_of(tiny, path).shape[1], generator=torch.Generator().manual_seed(0))
            assert isinstance(pair, LowRank)
            expected = x @ pair.down.T @ pair.up.T + (0 if pair.bias is None else pair.bias)
            torch.testing.assert_close(pruned.model.get_submodule(path)(x), expected, atol=1e-5, rtol=1e-4)


# --- points -----------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(0, 1), min_size=40, max_size=40), min_size=2, max_size=2), st.floats(1e-4, 0.1))
def test_points_hold_the_best_trade_at_every_price(falls: list[list[float]], price: float) -> None:
    """Whatever the shape of the losses: no ranks have less loss + price * multiply-adds than one of the points."""
    model = torch.nn.ModuleDict({"up": torch.nn.Linear(16, 24), "down": torch.nn.Linear(24, 16)})
    units = Units("ffn", 24, 1, (Rows("up", 0, 1),), "down", 2 * 16, 0)
    found = factorables(model, units)

    def loss(fall: list[float], share: float) -> float:
        return sum(fall[round(39 * share) :])

    losses = [lambda share, fall=fall: loss(fall, share) for fall in falls]
    best = 0.0
    for linear, of in zip(found, losses, strict=True):
        ranks = range(1, linear.limit + 1)
        choices = [(linear.weight.numel(), 0.0), *((r * linear.rank_macs, of(linear.share(r))) for r in ranks)]
        best += min(lost + price * macs for macs, lost in choices)
    points = low_rank(units, found, losses).points
    assert min(p.loss + price * p.token_macs for p in points) == pytest.approx(best, rel=1e-9)
    assert all(a.token_macs > b.token_macs and a.loss <= b.loss + 1e-9 for a, b in itertools.pairwise(points))


@given(st.floats(0.2, 0.9), st.lists(st.floats(0.3, 3), min_size=3, max_size=3), st.integers(1, 40))
def test_shares_keep_their_proportions_up_to_dense(keep: float, factors: list[float], tokens: int) -> None:
    """The slope of a Linear's loss is that of any other one where both have `factor` times the same common share."""
    sizes = [(64, 64), (96, 32), (40, 120)]
    found = [Factorable("x", torch.empty(size), None) for size in sizes]

    def slope(linear: Factorable, factor: float, share: float) -> float:
        of = equal_shares(linear, factor)
        return (of(share - 1e-6) - of(share + 1e-6)) / (2e-6 * linear.weight.numel())

    common = keep / max(factors)
    slopes = [slope(linear, factor, factor * common) for linear, factor in zip(found, factors, strict=True)]
    assert slopes == pytest.approx([slopes[0]] * 3, rel=1e-3)
    # More tokens in one component move its share by ln(tokens) / 500 only.
    other = slope(found[0], factors[0], factors[0] * (common - torch.tensor(float(tokens)).log().item() / 500))
    assert other == pytest.approx(slopes[0] * tokens, rel=1e-2)


def test_a_large_ffn_offers_fewer_points_but_both_ends() -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(60, 90) for name in ("gate", "up")})
    model["down"] = torch.nn.Linear(90, 60, bias=False)
    units = Units("ffn", 90, 1, (Rows("gate", 0, 1), Rows("up", 0, 1)), "down", 3 * 60, 0, gated=True)
    found = factorables(model, units)
    whole = low_rank(units, found, map(equal_shares, found)).points
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("baselines.low_rank.POINTS", 20)
        fewer = low_rank(units, found, map(equal_shares, found)).points
    assert 10 <= len(fewer) <= 21 < len(whole)
    assert (fewer[0].label, fewer[-1].label) == ("dense", "rank 1/1/1")
    assert {p.label for p in fewer} <= {p.label for p in whole}


def test_factors_are_made_of_the_weights_as_they_were(tiny: VLM) -> None:
    block = tiny.blocks[0]
    point = points_of(svd.rank(tiny, cast(Any, None), seed=0), block.name)[-1]
    assert point.make is not None
    consumer = tiny.model.get_submodule(block.ffn.consumer)
    weight, before = consumer.weight, cast(LowRank, point.make()[block.ffn.consumer])
    consumer.weight = torch.nn.Parameter(torch.zeros(2, 2))
    try:
        after = cast(LowRank, point.make()[block.ffn.consumer])
    finally:
        consumer.weight = weight
    assert torch.equal(before.down, after.down) and torch.equal(before.up, after.up)


@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 1))
def test_a_pair_never_costs_as_much_as_its_linear(out: int, inner: int, share: float) -> None:
    linear = Factorable("x", torch.ones(out, inner), None, None)
    assert linear.limit * (out + inner) < out * inner <= (linear.limit + 1) * (out + inner)
    rank = linear.rank(share)
    assert rank == 1 or linear.share(rank) <= share + 1e-9
    assert linear.share(rank + 1) > share - 1e-9


@pytest.mark.parametrize("name", METHODS)
def test_aligned_ranks_are_multiples_and_land(tiny: VLM, calibration: Calibration, name: str) -> None:
    ranking = ranked(name, tiny, calibration)
    fitting = aligned(ranking, 2)
    for block, kind in tiny.select("all"):
        found = len(linears(block.units(kind)))
        points = points_of(fitting, block.name, kind)
        ranks = [rank for point in points for rank in ranks_of(point, found)]
        assert all(rank is None or rank % 2 == 0 for rank in ranks) and set(ranks) > {None}
        costs = [point.token_macs for point in points]
        assert costs == sorted(set(costs), reverse=True)
    plan = solve(tiny, fitting, Budget("all", 0.5, extents=EVEN, align=2))
    cut = surgery.apply(tiny, plan, fitting)
    made = [module for module in cut.model.modules() if isinstance(module, LowRankLinear)]
    assert made and all(cast(Any, module.down).out_features % 2 == 0 for module in made)
