"""Gates of heads and channels: what nobody reads goes first, the expected FLOPs meet the budget, seeds repeat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from baselines import cofi
from harness.pruning.solver import solve
from harness.statistics.calibration import Calibration
from harness.types import VLM, Budget, Global, Keep
from tests.support.layouts import extents_of

QUICK: dict[str, Any] = {"steps": 120, "rate": 0.2}


@pytest.fixture
def deaf(tiny: VLM) -> Iterator[VLM]:
    """The tiny model, in which half of the heads and channels of vision.0 are read by nobody, and the rest is loud."""
    before = {}
    for units in (tiny.blocks[0].heads, tiny.blocks[0].ffn):
        weight = cast(Any, tiny.model.get_parameter(f"{units.consumer}.weight"))
        before[units.consumer] = weight.data.clone()
        weight.data *= 8
        weight.data[:, : units.count * units.width // 2] = 0
    yield tiny
    for consumer, data in before.items():
        cast(Any, tiny.model.get_parameter(f"{consumer}.weight")).data.copy_(data)


def test_what_nobody_reads_goes_first(deaf: VLM, calibration: Calibration) -> None:
    """Heads and channels alike: closing their gates changes no answer, so it is the cheapest way to the budget."""
    budget = Budget("vision", 0.75, "both", extents_of(deaf))
    ranking = cofi.rank(deaf, Calibration(deaf, calibration.samples), seed=0, budget=budget, **QUICK)
    plan = solve(deaf, ranking, budget)
    for kind in ("heads", "ffn"):
        count = deaf.blocks[0].units(kind).count
        order = cast(Global, ranking.scores["vision.0", kind]).order
        assert sum(order[: count // 2]) / (count // 2) < sum(order[count // 2 :]) / (count - count // 2)
    assert {2, 3} <= set(cast(Keep, plan.parts["vision.0", "heads"]).indices)


def test_the_expected_flops_meet_the_budget(tiny: VLM, calibration: Calibration) -> None:
    budget = Budget("all", 0.5, "both", extents_of(tiny))
    curve = cofi.rank(tiny, calibration, seed=0, budget=budget, **QUICK).log["gates"]["curve"]
    assert curve[0]["target"] > 0.9 and curve[-1]["target"] == 0.5
    assert curve[0]["kept"] > 0.7 and curve[-1]["kept"] == pytest.approx(0.5, abs=0.15)


def test_seeds_repeat_and_the_scope_alone_has_gates(tiny: VLM, calibration: Calibration) -> None:
    budget = Budget("language", 0.6, "both", extents_of(tiny))
    first, second, other = (cofi.rank(tiny, calibration, seed=seed, budget=budget, steps=20) for seed in (1, 1, 2))
    assert first == second and first.scores != other.scores
    assert {name for name, _ in first.scores} == {block.name for block in tiny.blocks if block.component == "language"}
