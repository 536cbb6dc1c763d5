"""Learned gates: they find a head that nothing reads, land on the budget's share, and leave the model as found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines import infoprune, infoprune_free
from baselines.infoprune.gates import threshold
from harness.pruning.solver import solve
from harness.statistics.calibration import Calibration
from harness.types import VLM, Additive, Budget, Keep, Options
from tests.support.layouts import extents_of

QUICK: dict[str, Any] = {"steps": 60, "rate": 0.3, "whiten": False}


@pytest.fixture
def deaf(tiny: VLM) -> Iterator[VLM]:
    """The tiny model, in which head 2 of vision.0 is read by nobody."""
    units = tiny.blocks[0].heads
    weight = cast(Any, tiny.model.get_parameter(f"{units.consumer}.weight"))
    before = weight.data.clone()
    weight.data[:, 2 * units.width : 3 * units.width] = 0
    yield tiny
    weight.data.copy_(before)


@pytest.mark.parametrize("gate", ["hard-concrete", "sigmoid"])
@pytest.mark.parametrize("task", ["kl", "answers"])
def test_a_head_that_nobody_reads_goes_first(deaf: VLM, calibration: Calibration, gate: Any, task: Any) -> None:
    """It changes no spectrum and no answer, so that closing its gate is the cheapest way to the budget."""
    fresh = Calibration(deaf, calibration.samples)
    budget = Budget("vision", 0.875, "heads", extents_of(deaf))
    ranking = infoprune.rank(deaf, fresh, seed=0, budget=budget, gate=gate, task=task, information=5.0, **QUICK)
    damage = cast(Additive, ranking.scores["vision.0", "heads"]).damage
    assert min(range(4), key=damage.__getitem__) == 2
    part = cast(Keep, solve(deaf, ranking, budget).parts["vision.0", "heads"])
    assert 2 not in part.indices
    curve = ranking.log["gates"]["curve"]
    assert curve[-1]["step"] <= 60 and {"task", "information", "kept", "target"} < set(curve[0])


def test_seeds_repeat_and_the_scope_alone_is_trained(tiny: VLM, calibration: Calibration) -> None:
    budget = Budget("language", 0.6, "both", extents_of(tiny))
    first, second = (infoprune.rank(tiny, calibration, seed=1, budget=budget, **QUICK) for _ in range(2))
    assert first.log == second.log and set(first.log["gates"]["logits"]) == {"language.0", "language.1"}
    untrained = infoprune_free.rank(tiny, calibration, seed=1, whiten=False)
    for block in tiny.blocks:
        same = first.scores[block.name, "heads"] == untrained.scores[block.name, "heads"]
        assert same == (block.component == "vision")
    whole = dataclasses.replace(budget, units="ffn")
    assert "gates" not in infoprune.rank(tiny, calibration, seed=1, budget=whole, **QUICK).log


@pytest.mark.parametrize("keep", [0.8, 0.5, 0.35])
def test_heads_get_the_share_that_the_solver_would_give_them(tiny: VLM, calibration: Calibration, keep: float) -> None:
    budget = Budget("vision", keep, "both", extents_of(tiny))
    untrained = infoprune_free.rank(tiny, calibration, seed=0)
    _, share = infoprune.exchange(tiny, untrained, budget)
    kept = [len(part.indices) for part in solve(tiny, untrained, budget).parts.values() if isinstance(part, Keep)]
    assert share == pytest.approx(sum(kept) / 8, abs=0.26)  # two of eight heads: a share has to be rounded


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12, unique=True), st.floats(0.05, 0.95))
def test_the_threshold_leaves_the_share(logits: list[int], share: float) -> None:
    level = threshold([(logit, 10) for logit in logits], share)
    kept = sum(logit > level for logit in logits)
    assert abs(kept - share * len(logits)) <= 0.5 + 1e-9


def test_the_hull_is_convex_and_falls(tiny: VLM, calibration: Calibration) -> None:
    ranking = infoprune_free.rank(tiny, calibration, seed=0)
    for block in tiny.blocks:
        points = cast(Options, ranking.scores[block.name, "ffn"])
        steps = infoprune.descent(points)
        assert [slope for slope, _ in steps] == sorted(slope for slope, _ in steps)
        assert sum(saved for _, saved in steps) == points.points[0].token_macs - points.points[-1].token_macs
