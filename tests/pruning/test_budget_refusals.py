"""Budgets that cannot be met and rankings that cannot be used are refused with what would be right."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest

from harness.pruning.solver import TOLERANCE, solve
from harness.types import VLM, Additive, Budget, Global, InputError, Kind, Option, Options, Ordinal, Ranking, Score
from tests.support.layouts import EXTENTS, FACTORS, SHAPES, extents_of, ranking_of


@pytest.mark.parametrize("shape", [*SHAPES, FACTORS])
def test_an_impossible_budget_names_the_smallest_reachable(tiny: VLM, shape: str) -> None:
    extents = extents_of(tiny)
    ranking = ranking_of(tiny, shape)
    with pytest.raises(InputError, match=r"0\.01 of the FLOPs of both in scope vision: the smallest reachable is") as e:
        solve(tiny, ranking, Budget("vision", 0.01, extents=extents))
    least = float(str(e.value).rsplit(" ", 1)[-1])
    kept = total = 0
    for block, kind in tiny.select("vision"):
        own, extent = block.units(kind), extents["vision"]
        score = ranking.scores[block.name, kind]
        total += own.count * own.macs(extent)
        if isinstance(score, Options):
            kept += min(point.token_macs for point in score.points) * extent.tokens
            kept += own.count * own.pair_macs * extent.pairs
        else:
            kept += own.macs(extent)
    assert least == pytest.approx(kept / total, abs=1e-4)
    with pytest.raises(InputError, match="smallest reachable"):
        solve(tiny, ranking, Budget("vision", 0.95 * least, extents=extents))
    assert solve(
        tiny, ranking, Budget("vision", math.ceil(least * 1e4) / 1e4, extents=extents)
    ).achieved == pytest.approx(least, rel=TOLERANCE)


def test_units_too_coarse_for_a_budget_name_the_nearest_plan(tiny: VLM) -> None:
    with pytest.raises(InputError, match=r"0\.6 of the FLOPs of heads in scope vision: the nearest plan keeps 0\.[56]"):
        solve(tiny, ranking_of(tiny, "ordinal"), Budget("vision", 0.6, "heads", extents=extents_of(tiny)))


@pytest.mark.parametrize("keep", [0.0, -0.5, 1.0001, 2.0, math.nan, math.inf])
def test_a_ratio_out_of_range_is_refused(tiny: VLM, keep: float) -> None:
    with pytest.raises(InputError, match=r"not in \(0, 1\]"):
        solve(tiny, ranking_of(tiny, "ordinal"), Budget("vision", keep, extents=EXTENTS))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", SHAPES)
def test_scores_that_are_no_numbers_are_refused(tiny: VLM, shape: str, value: float) -> None:
    scores = dict(ranking_of(tiny, shape).scores)
    score = scores["vision.1", "ffn"]
    if isinstance(score, Options):
        scores["vision.1", "ffn"] = Options((*score.points, Option("odd", 5, value, dict)))
    else:
        values = score.damage if isinstance(score, Additive) else score.order
        scores["vision.1", "ffn"] = type(score)((value, *values[1:]))
    with pytest.raises(InputError, match=r"ffn of vision\.1 is not finite"):
        solve(tiny, Ranking(scores), Budget("vision", 0.5, extents=EXTENTS))


@pytest.mark.parametrize("shape", [Additive, Ordinal, Global])
def test_a_wrong_number_of_scores_is_refused(tiny: VLM, shape: Any) -> None:
    scores: dict[tuple[str, Kind], Score] = {
        (block.name, kind): shape((0.0,) * block.units(kind).count) for block, kind in tiny.select("all")
    }
    scores["language.0", "heads"] = shape((1.0, 2.0, 3.0))
    with pytest.raises(InputError, match=r"3 scores for 2 units \(heads of language\.0\)"):
        solve(tiny, Ranking(scores), Budget("all", 0.5, extents=EXTENTS))


def test_a_kind_without_scores_is_refused(tiny: VLM) -> None:
    only = Ranking({key: score for key, score in ranking_of(tiny, "additive").scores.items() if key[1] == "ffn"})
    with pytest.raises(InputError, match=r"does not rank the heads of vision\.0; choose other `units`"):
        solve(tiny, only, Budget("vision", 0.5, extents=EXTENTS))
    assert solve(tiny, only, Budget("vision", 0.5, "ffn", extents=EXTENTS)).achieved == pytest.approx(
        0.5, rel=TOLERANCE
    )


@pytest.mark.parametrize("order", [Ordinal, Global])
def test_a_mix_with_an_order_is_refused(tiny: VLM, order: Any) -> None:
    mixed = {**ranking_of(tiny, "additive").scores, ("vision.0", "ffn"): order((1.0,) * 64)}
    with pytest.raises(InputError, match="Ordinal or Global everywhere or nowhere"):
        solve(tiny, Ranking(mixed), Budget("vision", 0.5, extents=EXTENTS))


def test_orders_of_two_pools_are_refused(tiny: VLM) -> None:
    mixed = {**ranking_of(tiny, "global").scores, ("vision.0", "ffn"): Global((1.0,) * 64, "kind")}
    with pytest.raises(InputError, match="the same pool"):
        solve(tiny, Ranking(mixed), Budget("vision", 0.5, extents=EXTENTS))


def test_options_without_dense_are_refused(tiny: VLM) -> None:
    scores = ranking_of(tiny, "options").scores
    headless = Options(cast(Options, scores["vision.0", "ffn"]).points[1:])
    for change in (headless, Options(())):
        with pytest.raises(InputError, match="options must include the dense one"):
            solve(tiny, Ranking({**scores, ("vision.0", "ffn"): change}), Budget("vision", 0.5, extents=EXTENTS))
