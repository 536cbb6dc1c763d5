"""Plans land on their budget, cut the cheapest damage first, and stay near the exact optimum."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.pruning.solver import TOLERANCE, solve
from harness.types import (
    SCOPES,
    VLM,
    WIDTHS,
    Additive,
    Budget,
    Choice,
    Component,
    Extent,
    InputError,
    Keep,
    Kind,
    Option,
    Options,
    Ordinal,
    Plan,
    Ranking,
    Scope,
    Score,
    hull,
    kinds,
)
from tests.support.layouts import EXTENTS, FACTORS, SHAPES, extents_of, layout, ranking_of


def spent(vlm: VLM, ranking: Ranking, plan: Plan, budget: Budget, extents: Mapping[Component, Extent]) -> float:
    """The share of the FLOPs that a plan keeps, counted anew."""
    kept = total = 0
    for block, kind in vlm.select(budget.scope, budget.units):
        own, extent = block.units(kind), extents[block.component]
        part = plan.parts.get((block.name, kind))
        total += own.count * own.macs(extent)
        if isinstance(part, Choice):
            linears = cast(Options, ranking.scores[block.name, kind]).points[part.position].token_macs
            kept += linears * extent.tokens + own.count * own.pair_macs * extent.pairs
        else:
            kept += (own.count if part is None else len(part.indices)) * own.macs(extent)
    return kept / total


# --- landing on the budget --------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep", [0.9, 0.75, 0.5, 0.3125])
def test_lands_on_a_real_model(tiny: VLM, shape: str, scope: Any, keep: float) -> None:
    extents = extents_of(tiny)
    budget = Budget(scope, keep, extents=extents)
    for seed in range(5):
        ranking = ranking_of(tiny, shape, seed)
        plan = solve(tiny, ranking, budget)
        assert abs(plan.achieved / keep - 1) <= TOLERANCE
        assert plan.achieved == pytest.approx(spent(tiny, ranking, plan, budget, extents), rel=1e-12)
        assert plan.requested == keep
        assert {tiny.block(name).component for name, _ in plan.parts} <= {*SCOPES[:2]} if scope == "all" else {scope}


LAYOUTS = st.lists(
    st.tuples(
        st.sampled_from(["vision", "language"]),
        st.tuples(st.integers(2, 16), st.integers(50, 2000), st.integers(0, 40)),
        st.tuples(st.integers(150, 400), st.integers(40, 200)),
    ),
    min_size=1,
    max_size=5,
)


def roomy(vlm: VLM, budget: Budget, shape: str) -> bool:
    """Whether the FFNs, whose steps are fine, can make up for whatever the heads round off."""
    costs = {
        kind: [
            (b.units(kind).macs(EXTENTS[b.component]), b.units(kind).count) for b, _ in vlm.select(budget.scope, kind)
        ]
        for kind in kinds(budget.units)
    }
    if "ffn" not in costs:
        return False
    heads, ffn = ([unit for unit, _ in costs.get(kind, [])] for kind in ("heads", "ffn"))
    whole = sum(unit * count for unit, count in costs["ffn"])
    target = budget.keep * sum(unit * count for own in costs.values() for unit, count in own)
    if max(ffn) > TOLERANCE / 4 * target or sum(heads) + sum(ffn) > target:
        return False
    if shape == FACTORS:
        return False  # the attention products stay whole
    if shape in ("ordinal", "global by kind"):
        return sum(heads) <= min(budget.keep * whole - sum(ffn), (1 - budget.keep) * whole)
    return 2 * max(heads, default=0) <= min(unit * count for unit, count in costs["ffn"])


@settings(max_examples=200)
@given(
    LAYOUTS,
    st.sampled_from([*SHAPES, FACTORS]),
    st.floats(0.05, 0.99),
    st.integers(0, 2**16),
    st.data(),
)
def test_lands_or_says_why_not(blocks: Any, shape: str, keep: float, seed: int, data: st.DataObject) -> None:
    vlm = layout(*blocks)
    ranking = ranking_of(vlm, shape, seed)
    scopes: list[Scope] = [scope for scope in SCOPES if vlm.select(scope)]
    budget = Budget(data.draw(st.sampled_from(scopes)), keep, data.draw(st.sampled_from(("both", *WIDTHS))), EXTENTS)
    try:
        plan = solve(vlm, ranking, budget)
    except InputError:
        assert not roomy(vlm, budget, shape)
        return
    assert abs(plan.achieved / keep - 1) <= TOLERANCE
    assert plan.achieved == pytest.approx(spent(vlm, ranking, plan, budget, EXTENTS), rel=1e-12)
    assert set(plan.parts) == {(block.name, kind) for block, kind in vlm.select(budget.scope, budget.units)}
    for (name, kind), part in plan.parts.items():
        if isinstance(part, Keep):
            count = vlm.block(name).units(kind).count
            assert 1 <= len(part.indices) <= count
            assert list(part.indices) == sorted(set(part.indices)) and set(part.indices) <= set(range(count))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_smaller_budget_never_keeps_more(tiny: VLM, shape: str) -> None:
    extents = extents_of(tiny)
    for scope in SCOPES:
        kept = [
            solve(tiny, ranking_of(tiny, shape), Budget(scope, keep, extents=extents)).achieved
            for keep in (0.3125, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
        ]
        assert kept == sorted(kept) and kept[-1] == 1.0


@given(st.lists(st.floats(0.2, 0.99), min_size=2, max_size=6, unique=True), st.integers(0, 2**16))
def test_kept_flops_follow_the_budget_on_equal_units(keeps: list[float], seed: int) -> None:
    vlm = layout(*[("vision", (4, 1, 0), (500, 10))] * 3)
    for shape in ("ordinal", "additive"):
        ranking = ranking_of(vlm, shape, seed)
        plans = [solve(vlm, ranking, Budget("vision", keep, "ffn", extents=EXTENTS)) for keep in sorted(keeps)]
        assert [p.achieved for p in plans] == sorted(p.achieved for p in plans)
        for small, large in itertools.pairwise(plans):
            if shape == "ordinal":
                continue  # a layer's share may be rounded the other way
            for key, part in small.parts.items():
                assert set(cast(Keep, part).indices) <= set(cast(Keep, large.parts[key]).indices)


def test_the_whole_budget_keeps_everything(tiny: VLM) -> None:
    assert solve(tiny, Ranking({}), Budget("all", 1.0, extents=extents_of(tiny))) == Plan({}, 1.0, 1.0)


# --- what is cut ------------------------------------------------------------------------------------------


def test_ordinal_cuts_the_same_share_everywhere() -> None:
    vlm = layout(("vision", (8, 30, 2), (400, 20)), ("vision", (16, 10, 1), (200, 60)))
    ranking = ranking_of(vlm, "ordinal")
    plan = solve(vlm, ranking, Budget("vision", 0.5, extents=EXTENTS))
    for (name, kind), part in plan.parts.items():
        order = cast(Ordinal, ranking.scores[name, kind]).order
        kept = set(cast(Keep, part).indices)
        assert len(kept) == len(order) / 2
        assert min(order[i] for i in kept) > max(order[i] for i in range(len(order)) if i not in kept)


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.35])
def test_ordinal_shares_differ_by_rounding_only(keep: float) -> None:
    vlm = layout(("vision", (6, 300, 2), (300, 30)), ("vision", (3, 500, 2), (500, 20)))
    plan = solve(vlm, ranking_of(vlm, "ordinal"), Budget("vision", keep, extents=EXTENTS))
    for (name, kind), part in plan.parts.items():
        count = vlm.block(name).units(kind).count
        assert abs(len(cast(Keep, part).indices) - keep * count) <= (1 if kind == "heads" else 0.08 * count)


def test_ties_keep_the_lower_index() -> None:
    vlm = layout(("vision", (4, 10, 0), (100, 10)))
    same = Ranking({("vision.0", "ffn"): Ordinal((1.0,) * 100)})
    part = solve(vlm, same, Budget("vision", 0.3, "ffn", extents=EXTENTS)).parts["vision.0", "ffn"]
    assert cast(Keep, part).indices == tuple(range(30))


def test_additive_cuts_the_cheapest_damage_per_flop_by_hand() -> None:
    """Two heads of 100 a token and ten channels of 20: what a unit costs decides as much as its damage."""
    vlm = layout(("vision", (2, 100, 0), (10, 20)))
    damage = (1.0, 1.0, 1.0, 1.0, 1.0, 30.0, 30.0, 30.0, 30.0, 30.0)
    # A head's damage per FLOP (4 / 100) is below a cheap channel's (1 / 20): the head goes before any channel.
    dear = Ranking({("vision.0", "heads"): Additive((4.0, 90.0)), ("vision.0", "ffn"): Additive(damage)})
    plan = solve(vlm, dear, Budget("vision", 0.75, extents=EXTENTS))
    assert plan.parts == {("vision.0", "heads"): Keep((1,)), ("vision.0", "ffn"): Keep(tuple(range(10)))}
    # Now it is above (6 / 100): the five cheap channels go, the head stays.
    dear = Ranking({("vision.0", "heads"): Additive((6.0, 90.0)), ("vision.0", "ffn"): Additive(damage)})
    plan = solve(vlm, dear, Budget("vision", 0.75, extents=EXTENTS))
    assert plan.parts == {("vision.0", "heads"): Keep((0, 1)), ("vision.0", "ffn"): Keep(tuple(range(5, 10)))}


def test_additive_layers_are_compared_with_each_other() -> None:
    vlm = layout(*[("vision", (2, 10, 0), (100, 10))] * 2)
    scores: dict[tuple[str, Kind], Score] = {
        ("vision.0", "ffn"): Additive(tuple(range(100))),
        ("vision.1", "ffn"): Additive(tuple(range(1000, 1100))),
    }
    parts = solve(vlm, Ranking(scores), Budget("vision", 0.6, "ffn", extents=EXTENTS)).parts
    assert cast(Keep, parts["vision.0", "ffn"]).indices == tuple(range(80, 100))
    assert cast(Keep, parts["vision.1", "ffn"]).indices == tuple(range(100))


def test_the_last_unit_stays() -> None:
    vlm = layout(("vision", (4, 10, 0), (1000, 10)), ("vision", (4, 10, 0), (1000, 10)))
    free = Additive((0.0,) * 1000)
    scores: dict[tuple[str, Kind], Score] = {("vision.0", "ffn"): free, ("vision.1", "ffn"): Additive((5.0,) * 1000)}
    parts = solve(vlm, Ranking(scores), Budget("vision", 0.3, "ffn", extents=EXTENTS)).parts
    assert len(cast(Keep, parts["vision.0", "ffn"]).indices) == 1


def test_options_include_dense_and_follow_their_hull() -> None:
    vlm = layout(*[("vision", (2, 100, 0), (100, 10))] * 2)
    good = Options(
        (
            Option("dense", 1000, 0.0),
            Option("bad", 900, 50.0, dict),  # above the line from dense to half: never the better deal
            Option("half", 500, 1.0, dict),
            Option("worse half", 500, 2.0, dict),
            Option("little", 100, 9.0, dict),
        )
    )
    dear = Options(tuple(Option(p.label, p.token_macs, p.loss * 100, p.make) for p in good.points))
    ranking = Ranking({("vision.0", "ffn"): good, ("vision.1", "ffn"): dear})
    for keep, first, second in ((0.75, "half", "dense"), (0.55, "little", "dense"), (0.3, "little", "half")):
        parts = solve(vlm, ranking, Budget("vision", keep, "ffn", extents=EXTENTS)).parts
        assert [cast(Choice, part).label for part in parts.values()] == [first, second]
        for part in parts.values():
            assert good.points[cast(Choice, part).position].label == cast(Choice, part).label


def test_an_option_off_the_hull_is_passed_over() -> None:
    """From dense straight to little: what leads on from a bad middle is no bargain of its own."""
    vlm = layout(*[("vision", (2, 100, 0), (100, 10))] * 2)
    bent = Options((Option("dense", 1000, 0.0), Option("middle", 500, 10.0, dict), Option("little", 100, 10.5, dict)))
    plain = Options((Option("dense", 1000, 0.0), Option("middle", 500, 15.0, dict), Option("little", 100, 100.0, dict)))
    ranking = Ranking({("vision.0", "ffn"): bent, ("vision.1", "ffn"): plain})
    parts = solve(vlm, ranking, Budget("vision", 0.3, "ffn", extents=EXTENTS)).parts
    assert [cast(Choice, part).label for part in parts.values()] == ["little", "middle"]


def test_what_the_last_step_takes_too_much_is_given_back() -> None:
    """The head goes after a hundred cheap channels and takes four channels' worth too much."""
    vlm = layout(("vision", (2, 8, 0), (1000, 1)))
    damage = tuple(i * 1e-5 for i in range(100)) + (1.0,) * 900
    ranking = Ranking({("vision.0", "heads"): Additive((0.16, 9.0)), ("vision.0", "ffn"): Additive(damage)})
    plan = solve(vlm, ranking, Budget("vision", 912 / 1016, extents=EXTENTS))
    assert plan.parts == {("vision.0", "heads"): Keep((1,)), ("vision.0", "ffn"): Keep(tuple(range(96, 1000)))}


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0, 100)), min_size=1, max_size=12))
def test_hull_is_convex_and_below_every_point(points: list[tuple[int, float]]) -> None:
    points = sorted(dict(points).items(), reverse=True)
    chain = [points[i] for i in hull([(float(x), y) for x, y in points])]
    assert chain[0] == points[0] and chain[-1] == points[-1]
    slopes = [(b[1] - a[1]) / (a[0] - b[0]) for a, b in itertools.pairwise(chain)]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(slopes))
    for (x0, y0), (x1, y1) in itertools.pairwise(chain):
        for x, y in points:
            if x1 <= x <= x0:
                assert y >= y0 + (y1 - y0) * (x0 - x) / (x0 - x1) - 1e-6
