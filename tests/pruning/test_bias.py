"""After a bias recovery a Linear behind a cut has the dense one's mean output, at dense inputs weighted alike."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from baselines.infoprune_free import rank as infoprune_free
from harness import families, registry
from harness.pruning import bias, held_out, recovery, surgery
from harness.pruning.solver import solve
from harness.statistics import sensitivity
from harness.statistics.calibration import Calibration
from harness.types import VLM, Budget, Choice, Keep, Plan, Ranking, Tuning
from tests.support.calibrations import calibration_on_several_questions


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


@pytest.fixture(autouse=True)
def all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a change helps is another test's matter; here all are made."""

    def keep(vlm: VLM, changes: dict[Any, list[held_out.Change]], *rest: Any) -> set[Any]:
        for change in (change for part in changes.values() for change in part):
            held_out._put(change.linear, change.weight, change.bias)
        return set(changes)

    monkeypatch.setattr(bias, "keep_what_helps", keep)


def recovered(calibration: Calibration, ranking: Ranking, plan: Plan) -> tuple[VLM, VLM, tuple[Any, ...]]:
    """The pruned model before and after, and the steps."""
    before = surgery.apply(calibration.vlm, plan, ranking)
    tuned = recovery.tune(before, calibration, Tuning("bias"), plan=plan, seed=0)
    return before, tuned.vlm, tuned.curve


def mean_of(vlm: VLM, path: str, inputs: Tensor, weights: Tensor | None = None) -> Tensor:
    weights = torch.ones(len(inputs)) if weights is None else weights
    with torch.no_grad():
        return weights.double() @ vlm.model.get_submodule(path)(inputs).double() / weights.double().sum()


@pytest.mark.parametrize("name", ["magnitude", "svd_llm"])
def test_the_mean_output_of_every_linear_behind_a_cut_is_the_dense_one(
    tiny: VLM, calibration: Calibration, name: str
) -> None:
    budget = Budget("all", 0.7, extents=calibration.extents)
    ranking = registry.method(name).rank(tiny, calibration, seed=0, budget=budget)
    plan = solve(tiny, ranking, budget)
    before, after, steps = recovered(calibration, ranking, plan)
    assert steps and all(step["lost"] > 0 for step in steps)
    kept = {tiny.block(block).units(kind).consumer: part for (block, kind), part in plan.parts.items()}
    for path in [step["module"] for step in steps]:
        fitting, _ = held_out.split(calibration)
        rows = fitting.rows([path], 10**9)[path]
        weights = torch.cat(sensitivity.row_weights(fitting, [path])[path])
        part = kept.get(path)
        own = rows
        if isinstance(part, Keep):
            width = rows.shape[1] // next(u.count for b in tiny.blocks for u in (b.heads, b.ffn) if u.consumer == path)
            own = rows[:, (torch.tensor(part.indices)[:, None] * width + torch.arange(width)).flatten()]
        wanted = mean_of(tiny, path, rows, weights)
        torch.testing.assert_close(mean_of(after, path, own, weights), wanted, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(mean_of(before, path, own, weights), wanted, atol=1e-6)


def test_a_recomposed_ffn_gets_its_mean_output_back(tiny: VLM, calibration: Calibration) -> None:
    """Its hidden units are not the dense ones, so the whole FFN's mean counts, here after its own bias is gone."""
    ranking = infoprune_free(tiny, calibration, seed=0, arm="compose-act")
    plan = solve(tiny, ranking, Budget("vision", 0.6, extents=calibration.extents), tolerance=0.1)
    before = surgery.apply(tiny, plan, ranking)
    recomposed = [
        b for b in tiny.blocks if isinstance(part := plan.parts.get((b.name, "ffn")), Choice) and part.position
    ]
    assert recomposed
    for block in recomposed:
        before.model.get_parameter(f"{block.ffn.consumer}.bias").data.zero_()
    after = recovery.tune(before, calibration, Tuning("bias"), plan=plan, seed=0).vlm
    for block in recomposed:
        first, whole = block.ffn.producers[0].module, block.ffn.consumer.rpartition(".")[0]
        rows = held_out.split(calibration)[0].rows([first])[first]
        wanted = mean_of(tiny, whole, rows)
        torch.testing.assert_close(mean_of(after, whole, rows), wanted, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(mean_of(before, whole, rows), wanted, atol=1e-4)


def test_only_biases_behind_cuts_change_and_what_was_given_does_not(tiny: VLM, calibration: Calibration) -> None:
    ranking = registry.method("random").rank(tiny, calibration, seed=0)
    plan = solve(tiny, ranking, Budget("language", 0.6, extents=calibration.extents))
    dense = copy.deepcopy(tiny.model.state_dict())
    before, after, steps = recovered(calibration, ranking, plan)
    changed = {f"{step['module']}.bias" for step in steps}
    states = [vlm.model.state_dict() for vlm in (before, after)]
    assert states[1].keys() - states[0].keys() == changed - states[0].keys(), "a Linear without a bias gets one"
    assert {key for key in states[0] if not torch.equal(states[0][key], states[1][key])} <= changed
    assert all(torch.equal(value, dense[key]) for key, value in tiny.model.state_dict().items())


@pytest.mark.parametrize("name", ["random", "svd_llm"])
def test_a_new_bias_is_saved_and_read_again(tiny: VLM, calibration: Calibration, tmp_path: Path, name: str) -> None:
    ranking = registry.method(name).rank(tiny, calibration, seed=0)
    plan = solve(tiny, ranking, Budget("language", 0.7, extents=calibration.extents))
    _, after, _ = recovered(calibration, ranking, plan)
    families.save(after, tmp_path / "saved")
    again = families.load(tmp_path / "saved")
    batch = next(calibration.batches())
    with torch.no_grad():
        first, second = (vlm.model(**batch).logits for vlm in (after, again))
    assert torch.equal(first, second)


def test_half_precision_keeps_its_type(tiny: VLM, calibration: Calibration) -> None:
    small = replace(tiny, model=copy.deepcopy(tiny.model).bfloat16())
    ranking = registry.method("random").rank(small, calibration, seed=0)
    plan = solve(small, ranking, Budget("all", 0.6, extents=calibration.extents))
    _, after, _ = recovered(Calibration(small, calibration.samples, 3), ranking, plan)
    assert {weight.dtype for weight in after.model.parameters()} == {torch.bfloat16}
