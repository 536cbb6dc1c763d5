"""Global scores: the lowest units of all layers go first, whatever they cost."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.pruning.solver import solve
from harness.types import Budget, Global, Keep, Kind, Plan, Ranking, Score
from tests.support.layouts import EXTENTS, layout, ranking_of


def removed(ranking: Ranking, plan: Plan, kind: Kind | None = None) -> tuple[list[float], list[float]]:
    """The order values of the units that went and of those that stay; of each item the last unit is left out."""
    gone, stay = [], []
    for key, part in plan.parts.items():
        if kind in (None, key[1]):
            order = cast(Global, ranking.scores[key]).order
            kept = set(cast(Keep, part).indices)
            gone += [value for place, value in enumerate(order) if place not in kept]
            stay += [order[place] for place in kept] if len(kept) > 1 else []
    return gone, stay


@given(st.floats(0.3, 0.95), st.integers(0, 2**16))
def test_what_goes_is_below_what_stays(keep: float, seed: int) -> None:
    """Units are so small that no exchange is needed to meet the budget."""
    vlm = layout(("vision", (40, 11, 0), (400, 2)), ("language", (20, 17, 0), (300, 3)))
    ranking = ranking_of(vlm, "global", seed)
    gone, stay = removed(ranking, solve(vlm, ranking, Budget("all", keep, extents=EXTENTS)))
    assert max(gone) < min(stay)


@given(st.floats(0.3, 0.95), st.integers(0, 2**16))
def test_each_kind_has_its_own_order_and_the_same_share(keep: float, seed: int) -> None:
    vlm = layout(("vision", (400, 2, 0), (800, 2)), ("vision", (400, 2, 0), (800, 2)))
    ranking = ranking_of(vlm, "global by kind", seed)
    plan = solve(vlm, ranking, Budget("vision", keep, extents=EXTENTS))
    for kind in ("heads", "ffn"):
        gone, stay = removed(ranking, plan, kind)
        assert max(gone) < min(stay)
        assert len(stay) / (len(stay) + len(gone)) == pytest.approx(keep, abs=0.005)


def test_cost_decides_when_to_stop_but_not_what_goes() -> None:
    """A head costs a hundred channels. As the lowest unit it goes first, and then no channel has to go."""
    vlm = layout(("vision", (2, 100, 0), (300, 1)))
    scores: dict[tuple[str, Kind], Score] = {
        ("vision.0", "heads"): Global((-1.0, 9.0)),
        ("vision.0", "ffn"): Global(tuple(float(n) for n in range(300))),
    }
    plan = solve(vlm, Ranking(scores), Budget("vision", 0.8, extents=EXTENTS))
    assert plan.parts["vision.0", "heads"] == Keep((1,))
    assert plan.parts["vision.0", "ffn"] == Keep(tuple(range(300)))
    plan = solve(vlm, Ranking(scores), Budget("vision", 0.7, extents=EXTENTS))
    assert plan.parts["vision.0", "ffn"] == Keep(tuple(range(50, 300)))


def test_a_gap_is_closed_by_the_lowest_units() -> None:
    """The head at the threshold is worth 100 channels and goes; some channels come back, and no higher head goes."""
    vlm = layout(("vision", (2, 100, 0), (10, 1)), ("vision", (2, 100, 0), (300, 1)))
    scores: dict[tuple[str, Kind], Score] = {
        ("vision.0", "heads"): Global((1000.0, 1001.0)),
        ("vision.0", "ffn"): Global((2000.0,) * 10),
        ("vision.1", "heads"): Global((199.5, 500.0)),
        ("vision.1", "ffn"): Global(tuple(float(n) for n in range(300))),
    }
    parts = solve(vlm, Ranking(scores), Budget("vision", 450 / 710, extents=EXTENTS)).parts
    kept = {key: cast(Keep, part).indices for key, part in parts.items()}
    assert (kept["vision.0", "heads"], kept["vision.1", "heads"]) == ((0, 1), (1,))
    first, *_ = kept["vision.1", "ffn"]
    assert kept["vision.1", "ffn"] == tuple(range(first, 300)) and 155 <= first <= 165


def test_the_last_unit_of_a_layer_stays() -> None:
    vlm = layout(*[("vision", (2, 1, 0), (100, 10))] * 2)
    scores: dict[tuple[str, Kind], Score] = {
        ("vision.0", "ffn"): Global((0.0,) * 100),
        ("vision.1", "ffn"): Global((5.0,) * 100),
    }
    plan = solve(vlm, Ranking(scores), Budget("vision", 0.3, "ffn", extents=EXTENTS))
    assert [len(cast(Keep, part).indices) for part in plan.parts.values()] == [1, 59]


def test_widths_can_be_multiples_of_a_step() -> None:
    vlm = layout(*[("vision", (2, 1, 0), (128, 10))] * 3)
    ranking = ranking_of(vlm, "global")
    plan = solve(vlm, ranking, Budget("vision", 0.5, "ffn", extents=EXTENTS, align=16))
    counts = [len(cast(Keep, part).indices) for part in plan.parts.values()]
    assert sum(counts) == 192 and all(count % 16 == 0 for count in counts)
