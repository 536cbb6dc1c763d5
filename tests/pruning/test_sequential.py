"""Sequential ranking: the scores of a block are those behind the blocks that are already cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness import registry
from harness.pruning import surgery
from harness.pruning.sequential import ranked_in_forward_order
from harness.pruning.solver import solve
from harness.statistics.calibration import Calibration
from harness.types import VLM, Budget, InputError, Plan, Ranking, Scope
from tests.support.calibrations import calibration_on_several_questions


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


@pytest.mark.parametrize("name", ["wanda", "taylor", "random", "magnitude"])
@pytest.mark.parametrize("scope", ["vision", "all"])
def test_each_block_is_scored_behind_the_cut_ones(tiny: VLM, calibration: Calibration, name: str, scope: Scope) -> None:
    method = registry.method(name)
    budget = Budget(scope, 0.5, extents=calibration.extents)

    def rank(cut: VLM, part: VLM) -> Ranking:
        return method.rank(part, Calibration(cut, calibration.samples, calibration.batch_size), seed=0)

    dense = method.rank(tiny, calibration, seed=0)
    made = ranked_in_forward_order(tiny, dense, scope, lambda ranking: (solve(tiny, ranking, budget), ranking), rank)
    names = [block.name for block in tiny.blocks if scope in ("all", block.component)]
    plan = solve(tiny, made, budget)
    for place, block in enumerate(names):
        before: Any = {key: part for key, part in plan.parts.items() if key[0] in names[:place]}
        cut = surgery.apply(tiny, Plan(before, 0.5, 0.5), made)
        again = method.rank(cut, Calibration(cut, calibration.samples, calibration.batch_size), seed=0)
        if name == "wanda" or place == 0:  # of equal shares everywhere: later scores do not change earlier cuts
            assert made.scores[block, "ffn"] == again.scores[block, "ffn"]
    outside = [key for key in dense.scores if key[0] not in names]
    assert all(made.scores[key] == dense.scores[key] for key in outside)
    looks_at_data = name in ("wanda", "taylor")
    assert (made.scores[names[1], "ffn"] != dense.scores[names[1], "ffn"]) == (looks_at_data or name == "random")


def test_a_method_that_ranks_blocks_together_is_refused(tiny: VLM, calibration: Calibration) -> None:
    """D-Rank shares ranks among all blocks: alone, a block would get equal shares."""
    method = registry.method("d_rank")
    budget = Budget("vision", 0.6, extents=calibration.extents)

    def rank(cut: VLM, part: VLM) -> Ranking:
        return method.rank(part, Calibration(cut, calibration.samples, calibration.batch_size), seed=0, budget=budget)

    dense = method.rank(tiny, calibration, seed=0, budget=budget)
    with pytest.raises(InputError, match="ranks several blocks together"):
        ranked_in_forward_order(tiny, dense, "vision", lambda ranking: (solve(tiny, ranking, budget), ranking), rank)


def test_options_are_cut_too(tiny: VLM, calibration: Calibration) -> None:
    method = registry.method("svd_llm")
    budget = Budget("vision", 0.5, "ffn", calibration.extents)

    def rank(cut: VLM, part: VLM) -> Ranking:
        return method.rank(part, Calibration(cut, calibration.samples, calibration.batch_size), seed=0)

    dense = method.rank(tiny, calibration, seed=0)
    made = ranked_in_forward_order(tiny, dense, "vision", lambda ranking: (solve(tiny, ranking, budget), ranking), rank)
    pruned = [surgery.apply(tiny, solve(tiny, ranking, budget), ranking) for ranking in (dense, made)]
    path = tiny.blocks[1].ffn.consumer
    first, second = (vlm.model.get_submodule(path).down.weight for vlm in pruned)  # type: ignore[union-attr]
    assert first.shape == second.shape and not first.equal(second)  # type: ignore[operator]
    assert replace(made, scores={}) == replace(dense, scores={})
