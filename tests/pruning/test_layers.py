"""Whole layers meet budgets: alone as near as they can, with widths within the tolerance, in the method's order."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.pruning.random_units import redraw
from harness.pruning.solver import TOLERANCE, flops_kept, solve
from harness.types import (
    VLM,
    Additive,
    Budget,
    Choice,
    Extent,
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
    kinds,
)
from tests.support.layouts import EXTENTS, damage_of, layout, ranking_of

LAYOUTS = st.lists(
    st.tuples(
        st.sampled_from(["vision", "language"]),
        st.tuples(st.integers(2, 8), st.integers(50, 2000), st.integers(0, 40)),
        st.tuples(st.integers(150, 400), st.integers(40, 200)),
    ),
    min_size=2,
    max_size=8,
)
ORDERS: dict[str, Any] = {"ordinal": Ordinal, "global": Global, "additive": Additive}
ALIKE = [("vision", (4, 500, 10), (300, 60))] * 6 + [("language", (4, 700, 20), (400, 90))] * 6


def ranked(vlm: VLM, shape: str, seed: int, widths: str = "ordinal") -> Ranking:
    """Random scores of this shape for every layer, and of another for heads and channels."""
    rng = random.Random(seed)
    layers: dict[tuple[str, Kind], Score] = {
        (block.name, "layers"): ORDERS[shape]((rng.choice([rng.random(), 0.5]),)) for block in vlm.blocks
    }
    return Ranking({**ranking_of(vlm, widths, seed).scores, **layers})


def costs(vlm: VLM, scope: str) -> dict[str, int]:
    return {b.name: b.layer.macs(EXTENTS[b.component]) for b in vlm.blocks if scope in ("all", b.component)}


def literal_order(vlm: VLM, ranking: Ranking, scope: str) -> list[str]:
    """The order in which layers go, one at a time, as the contract says it."""
    cost, names = costs(vlm, scope), [b.name for b in vlm.blocks if scope in ("all", b.component)]
    value = {name: ranking.numbers(name)[name, "layers"][0] for name in names}
    shape = type(ranking.scores[names[0], "layers"])
    order: list[str] = []
    while left := [name for name in names if name not in order]:

        def key(name: str) -> Any:
            if shape is Additive:
                return value[name] / cost[name], -names.index(name)
            if shape is Global:
                return value[name], -names.index(name)
            own = [other for other in names if other.split(".")[0] == name.split(".")[0]]
            lost = sum(cost[other] for other in own if other in order)
            return (lost + cost[name] / 2) / sum(cost[other] for other in own), -names.index(name)

        if shape is Ordinal:  # the next of each component
            left = [
                min((n for n in left if n.split(".")[0] == c), key=lambda n: (value[n], -names.index(n)))
                for c in dict.fromkeys(name.split(".")[0] for name in left)
            ]
        order.append(min(left, key=key))
    stays = {name.split(".")[0]: name for name in order}  # the last of each component
    return [name for name in order if name not in stays.values()]


@settings(max_examples=200)
@given(LAYOUTS, st.sampled_from(sorted(ORDERS)), st.floats(0.1, 0.99), st.integers(0, 2**16), st.data())
def test_layers_alone_land_or_stay_just_below(blocks: Any, shape: str, keep: float, seed: int, data: Any) -> None:
    vlm = layout(*blocks)
    scope = data.draw(st.sampled_from([s for s in ("vision", "language", "all") if vlm.select(s)]))
    ranking, cost = ranked(vlm, shape, seed), costs(vlm, scope)
    order = literal_order(vlm, ranking, scope)
    budget, full = Budget(scope, keep, "layers", EXTENTS), sum(cost.values())
    try:
        plan = solve(vlm, ranking, budget)
    except InputError as error:
        assert "the smallest reachable is" in str(error)
        assert full - sum(cost[name] for name in order) > keep * full * (1 + TOLERANCE) * 0.999999
        return
    assert plan.achieved == pytest.approx(sum(c for n, c in cost.items() if n not in plan.gone) / full, rel=1e-12)
    assert plan.achieved == pytest.approx(flops_kept(vlm, plan, ranking, budget), rel=1e-12)
    assert {kind for _, kind in plan.parts} == {"layers"} and len(plan.gone) == len(plan.parts)
    for component in {name.split(".")[0] for name in cost}:
        assert any(name.startswith(component) for name in cost if name not in plan.gone)
    assert plan.coarse == (abs(plan.achieved / keep - 1) > TOLERANCE)
    if plan.coarse:
        number = len(plan.gone)
        assert plan.gone == set(order[:number]) and plan.achieved < keep
        assert full - sum(cost[name] for name in order[: number - 1]) > keep * full * (1 + TOLERANCE)
    for component in ("vision", "language"):  # within a component, always the method's order
        own = [name for name in order if name.startswith(component)]
        assert plan.gone & set(own) == set(own[: len(plan.gone & set(own))])


@settings(max_examples=150)
@given(LAYOUTS, st.sampled_from(sorted(ORDERS)), st.floats(0.2, 0.95), st.integers(0, 2**16), st.data())
def test_widths_make_up_for_what_layers_leave(blocks: Any, shape: str, keep: float, seed: int, data: Any) -> None:
    vlm = layout(*blocks)
    units = data.draw(st.sampled_from(["ffn+layers", "heads+ffn+layers", "heads+layers"]))
    widths = data.draw(st.sampled_from(["ordinal", "additive", "global", "options"]))
    ranking, budget = ranked(vlm, shape, seed, widths), Budget("all", keep, units, EXTENTS)
    try:
        plan = solve(vlm, ranking, budget)
    except InputError as error:
        assert "smallest reachable" in str(error) or "nearest plan" in str(error)
        return
    assert abs(plan.achieved / keep - 1) <= TOLERANCE and not plan.coarse
    assert plan.achieved == pytest.approx(flops_kept(vlm, plan, ranking, budget), rel=1e-12)
    order, cost = literal_order(vlm, ranking, "all"), costs(vlm, "all")
    assert plan.gone == set(order[: len(plan.gone)])
    assert not {name for name, kind in plan.parts if kind != "layers"} & plan.gone
    assert {kind for _, kind in plan.parts} <= set(kinds(units))
    full = sum(cost.values())
    assert full - sum(cost[name] for name in plan.gone) >= keep * full * (1 - TOLERANCE)


def test_as_many_layers_go_as_fit_where_scores_are_orders() -> None:
    vlm = layout(*ALIKE)
    for shape in ("ordinal", "global"):
        ranking, cost = ranked(vlm, shape, 1), costs(vlm, "all")
        order, full = literal_order(vlm, ranking, "all"), sum(costs(vlm, "all").values())
        for keep in (0.9, 0.6, 0.4):
            plan = solve(vlm, ranking, Budget("all", keep, "ffn+layers", EXTENTS))
            number = max(n for n in range(len(order)) if full - sum(cost[m] for m in order[:n]) >= keep * full * 0.99)
            assert plan.gone == set(order[:number])


@pytest.mark.parametrize("widths", ["additive", "options"])
def test_a_currency_decides_how_many_layers_go(widths: str) -> None:
    """The damage is the least of all numbers of layers; each number is tried by its share of the saving."""
    vlm = layout(*ALIKE)
    counts = set()
    for seed in range(8):
        ranking = ranked(vlm, "additive", seed, widths)
        factor = [0.01, 10, 100][seed % 3]  # layers are cheap or dear against channels
        ranking = Ranking(
            {
                key: Additive((score.damage[0] * factor,))
                if key[1] == "layers" and isinstance(score, Additive)
                else score
                for key, score in ranking.scores.items()
            }
        )
        asked = Budget("all", 0.6, "heads+ffn+layers", EXTENTS)
        best = solve(vlm, ranking, asked)
        counts.add(len(best.gone))
        for share in range(10):
            shares: dict[Kind, float] = {"layers": share / 10, "heads": 0.0, "ffn": 0.0}
            other = solve(vlm, ranking, replace(asked, shares=shares))
            assert damage(ranking, best) <= damage(ranking, other) + 1e-9
    assert len(counts) > 1


def damage(ranking: Ranking, plan: Plan) -> float:
    return damage_of(ranking, plan)


@settings(max_examples=100)
@given(st.floats(0.3, 0.95), st.floats(0, 1), st.floats(0, 1), st.sampled_from(sorted(ORDERS)), st.integers(0, 99))
def test_each_kind_gives_its_share(keep: float, layers: float, heads: float, shape: str, seed: int) -> None:
    """Up to a layer, and half a head; FFNs, whose steps are fine, make up for both."""
    vlm = layout(*ALIKE)
    rest = 1 - layers
    shares: dict[Kind, float] = {"layers": layers, "heads": rest * heads, "ffn": rest * (1 - heads)}
    ranking = ranked(vlm, shape, seed)
    try:
        plan = solve(vlm, ranking, Budget("all", keep, "heads+ffn+layers", EXTENTS, shares=shares))
    except InputError as error:
        assert "shares: " in str(error) or "reachable" in str(error) or "nearest" in str(error)
        return
    assert abs(plan.achieved / keep - 1) <= TOLERANCE
    cost, saved = costs(vlm, "all"), {"layers": 0.0, "heads": 0.0, "ffn": 0.0}
    saved["layers"] = sum(cost[name] for name in plan.gone)
    for (name, kind), part in plan.parts.items():
        if kind != "layers":
            units, extent = vlm.block(name).units(kind), EXTENTS[vlm.block(name).component]
            saved[kind] += (units.count - len(cast(Keep, part).indices)) * units.macs(extent)
    full = sum(cost.values())
    saving, dearest = (1 - keep) * full, max(cost.values())
    assert abs(saved["layers"] - layers * saving) <= dearest
    left = saving - saved["layers"]
    if rest > 0.05:
        head = max(b.heads.macs(EXTENTS[b.component]) for b in vlm.blocks)
        assert abs(saved["heads"] - heads * left) <= head + TOLERANCE * full


def test_shares_between_heads_and_channels_need_no_layers() -> None:
    vlm = layout(*ALIKE)
    for heads in (0.1, 0.3):
        budget = Budget("all", 0.7, "both", EXTENTS, shares={"heads": heads, "ffn": 1 - heads})
        plan = solve(vlm, ranking_of(vlm, "additive"), budget)
        gone: dict[Kind, int] = {"heads": 0, "ffn": 0}
        for (name, kind), part in plan.parts.items():
            units, extent = vlm.block(name).units(kind), EXTENTS[vlm.block(name).component]
            gone[kind] += (units.count - len(cast(Keep, part).indices)) * units.macs(extent)
        assert gone["heads"] / sum(gone.values()) == pytest.approx(heads, abs=0.03)


@pytest.mark.parametrize(
    ("units", "shares", "words"),
    [
        ("heads+ffn+layers", {"layers": 0.0, "heads": 1.0, "ffn": 0.0}, "shares: heads can give at most 0.[0-9]+ of"),
        (
            "ffn+layers",
            {"layers": 0.0, "ffn": 1.0},
            "0.1 of the FLOPs of ffn.layers in scope all: the nearest plan keeps",
        ),
    ],
)
def test_shares_that_cannot_be_met_are_refused(units: str, shares: Any, words: str) -> None:
    vlm = layout(*ALIKE)
    with pytest.raises(InputError, match=words):
        solve(vlm, ranked(vlm, "ordinal", 0), Budget("all", 0.1, units, EXTENTS, shares=shares))


def test_layers_can_give_only_what_they_have() -> None:
    vlm = layout(*ALIKE)
    held = replace(vlm, blocks=tuple(replace(b, fixed="reads") if b.index % 2 else b for b in vlm.blocks))
    with pytest.raises(InputError, match="shares: layers can give at most"):
        solve(
            held, ranked(vlm, "global", 0), Budget("all", 0.3, "ffn+layers", EXTENTS, shares={"layers": 1.0, "ffn": 0})
        )


def test_a_fixed_layer_never_goes_and_counts_as_the_one_that_stays() -> None:
    vlm = layout(*ALIKE)
    held = replace(vlm, blocks=tuple(replace(b, fixed="reads") if b.index in (0, 3, 6) else b for b in vlm.blocks))
    smallest = sum(costs(vlm, "all")[b.name] for b in held.blocks if b.fixed) / sum(costs(vlm, "all").values())
    for shape in ORDERS:
        plan = solve(held, ranked(vlm, shape, 3), Budget("all", smallest * 1.001, "layers", EXTENTS))
        assert plan.gone == {b.name for b in held.blocks if not b.fixed}


def test_options_of_no_cost_are_damage() -> None:
    vlm = layout(*ALIKE)
    priced = ranked(vlm, "additive", 5)
    options: dict[tuple[str, Kind], Options] = {
        (b.name, "layers"): Options(
            (
                Option("dense", b.layer.token_macs, 0.0),
                Option("none", 0, cast(Additive, priced.scores[b.name, "layers"]).damage[0], dict),
            )
        )
        for b in vlm.blocks
    }
    budget = Budget("all", 0.5, "ffn+layers", EXTENTS)
    assert solve(vlm, Ranking({**priced.scores, **options}), budget) == solve(vlm, priced, budget)
    name = vlm.blocks[0].name
    half = Options((options[name, "layers"].points[0], Option("half", 9, 1.0, dict)))
    with pytest.raises(InputError, match=f"two options, dense and one of cost 0; those of {name} are others"):
        solve(vlm, Ranking({**priced.scores, **options, (name, "layers"): half}), budget)


def test_layers_need_scores_of_one_shape() -> None:
    vlm = layout(*ALIKE)
    mixed = {**ranked(vlm, "global", 0).scores, (vlm.blocks[0].name, "layers"): Additive((1.0,))}
    with pytest.raises(InputError, match="scores of the layers must all be"):
        solve(vlm, Ranking(mixed), Budget("all", 0.5, "layers", EXTENTS))
    with pytest.raises(InputError, match="does not rank the layers of vision"):
        solve(vlm, ranking_of(vlm, "ordinal"), Budget("all", 0.5, "ffn+layers", EXTENTS))


@settings(max_examples=50)
@given(st.integers(3, 30), st.floats(0.2, 0.7), st.sampled_from(["both", "ffn", "ffn+layers"]), st.integers(0, 99))
def test_fewer_tokens_save_a_part_of_the_budget(tokens: int, keep: float, units: str, seed: int) -> None:
    """Blocks that see fewer tokens cost less; the budget stays a share of the dense cost, and is met."""
    vlm = layout(*ALIKE)
    fewer = {f"language.{i}": Extent(tokens, tokens * tokens) for i in range(8, 12)}
    budget = Budget("all", keep, units, EXTENTS, fewer=fewer)
    ranking = ranked(vlm, "global", seed)

    def cost(name: str, kind: Kind, count: int) -> int:
        return count * vlm.block(name).units(kind).macs(budget.extent(vlm.block(name)))

    pairs: list[tuple[str, Kind]] = [(b.name, k) for b, k in vlm.counted("all", units)]
    dense = sum(
        vlm.block(n).units(k).count * vlm.block(n).units(k).macs(EXTENTS[vlm.block(n).component]) for n, k in pairs
    )
    before = sum(cost(n, k, vlm.block(n).units(k).count) for n, k in pairs)
    assume(before > keep * dense)
    plan = solve(vlm, ranking, budget)
    kept = sum(
        cost(n, k, len(cast(Keep, plan.parts[n, k]).indices) if (n, k) in plan.parts else vlm.block(n).units(k).count)
        for n, k in pairs
        if n not in plan.gone
    )
    assert kept / dense == pytest.approx(plan.achieved, rel=1e-12) == pytest.approx(keep, rel=TOLERANCE)
    assert flops_kept(vlm, plan, ranking, budget) == pytest.approx(plan.achieved, rel=1e-12)


def test_the_control_removes_other_layers_of_the_same_cost() -> None:
    """And the widths of those that stay go along, so that the cost is the plan's."""
    vlm = layout(*ALIKE)
    held = replace(vlm, blocks=tuple(replace(b, fixed="reads") if b.index == 2 else b for b in vlm.blocks))
    budget, ranking = Budget("all", 0.55, "ffn+layers", EXTENTS), ranked(vlm, "global", 4)
    plan = solve(held, ranking, budget)
    drawn = [redraw(held, plan, ranking, seed)[0] for seed in range(6)]
    assert len({frozenset(other.gone) for other in drawn}) > 1
    for other in drawn:
        assert flops_kept(held, other, ranking, budget) == pytest.approx(plan.achieved, rel=1e-12)
        assert "vision.2" not in other.gone and len(other.gone) == len(plan.gone)
        assert not {name for name, kind in other.parts if kind != "layers"} & other.gone
    choice = replace(plan, parts={**plan.parts, ("vision.2", "heads"): Choice(0, "dense")})
    with pytest.raises(InputError, match="random-units cannot redraw"):
        redraw(held, choice, ranking, 0)


def test_a_plan_with_layers_is_read_from_its_json() -> None:
    vlm = layout(*ALIKE)
    for units, keep in (("layers", 0.45), ("ffn+layers", 0.5)):
        plan = solve(vlm, ranked(vlm, "global", 2), Budget("all", keep, units, EXTENTS))
        assert Plan.of(plan.to_json()) == plan and plan.gone
        assert plan.to_json()["blocks"][min(plan.gone)] == {"layers": []}
        assert plan.to_json().get("coarse", False) == plan.coarse == (units == "layers")
