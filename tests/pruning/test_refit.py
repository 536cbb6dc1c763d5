"""The refit: weighted least squares behind every cut, kept only where it brings held-out answers back."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.infoprune_free import rank as infoprune_free
from harness import registry
from harness.pruning import bias, held_out, recovery, refit, surgery
from harness.pruning.solver import solve
from harness.statistics import sensitivity
from harness.statistics.calibration import Calibration, linears
from harness.types import VLM, Budget, Keep, Plan, Ranking, Tuning
from tests.support.plans import divergence, half, low_rank, same, state

REFIT = Tuning("refit")


def centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(0)


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 4))
def test_least_squares_is_lstsq(seed: int, width: int, out: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(50, size, generator=generator, dtype=torch.float64) for size in (width, out))
    x, y = centred(x), centred(y)
    start = torch.randn(out, width, generator=generator, dtype=torch.float64)
    found = refit.least_squares(x.T @ x / 50, y.T @ x / 50, start, damping=1e-12)
    assert torch.allclose(found.T, torch.linalg.lstsq(x, y).solution, atol=1e-6)


def test_least_squares_leaves_what_the_data_do_not_say() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    x[:, 2] = 0
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    moment = x.T @ x / 50
    found = refit.least_squares(moment, x[:, :3].T @ x / 50, weight)
    assert torch.allclose(found[:, 2], weight[:, 2])
    assert torch.allclose(refit.least_squares(moment, weight @ moment, weight), weight)


@pytest.mark.parametrize("lasting", [True, False])
def test_moments_are_those_of_weighted_rows(lively: VLM, calibration: Calibration, lasting: bool) -> None:
    """The same within any memory: kept, or one Linear at a time."""
    own = Calibration(lively, calibration.samples, 4, room=None if lasting else 1)
    paths = [lively.blocks[0].heads.consumer, lively.blocks[-1].ffn.consumer]
    weights = sensitivity.row_weights(own, paths)
    found = list(sensitivity.weighted_moments(own, paths))
    assert len(found) == len(paths)
    for path, (mean, covariance) in zip(paths, found, strict=True):
        rows = own.rows([path], 10**9)[path].double()
        weight = torch.cat(weights[path]).double()
        assert len(rows) == len(weight) and weight.min() >= 0 and weight.max() > 0
        wanted = weight @ rows / weight.sum()
        torch.testing.assert_close(mean, wanted, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(sensitivity.weighted_means(own, [path])[path], wanted, rtol=1e-4, atol=1e-6)
        spread = (rows - wanted).T @ ((rows - wanted) * weight[:, None]) / weight.sum()
        torch.testing.assert_close(covariance, spread, rtol=1e-3, atol=1e-5)
    assert ("weighted moments", paths[0]) in own._cache or not lasting


def test_rows_count_by_what_hangs_on_them(lively: VLM, calibration: Calibration) -> None:
    """In the last block only the positions before an answer token can change the answers."""
    path = lively.blocks[-1].ffn.consumer
    assert lively.blocks[-1].component == "language"
    weights = sensitivity.row_weights(calibration, [path])[path]
    for batch, own in zip(calibration.batches(), weights, strict=True):
        labels = batch["labels"]
        before_answer = torch.zeros_like(labels, dtype=torch.bool)
        before_answer[:, :-1] = labels[:, 1:] != -100
        assert torch.equal(own > 0, before_answer[batch["attention_mask"].bool()])


def test_one_cut_is_fitted_with_an_intercept_and_nothing_else_changes(lively: VLM, calibration: Calibration) -> None:
    block = lively.blocks[1]
    plan = Plan({(block.name, "ffn"): Keep(tuple(range(0, block.ffn.count, 3)))}, 0.5, 0.5)
    pruned = surgery.apply(lively, plan, Ranking({}))
    tuned = recovery.tune(pruned, calibration, REFIT, plan=plan, seed=0)
    path = block.ffn.consumer
    (step,) = tuned.curve
    assert step["module"] == path and step["kept"] and step["after"] < step["before"]
    fitted, _ = held_out.split(calibration)
    weight = torch.cat(sensitivity.row_weights(fitted, [path])[path]).double().sqrt()[:, None]
    rows = fitted.rows([path], 10**9)[path]
    with torch.no_grad():
        wanted = lively.model.get_submodule(path)(rows).double()
    inputs = rows.double()[:, list(range(0, block.ffn.count, 3))]
    design = torch.cat([inputs, torch.ones(len(rows), 1)], 1)
    best = torch.linalg.lstsq(design * weight, wanted * weight).solution
    outputs = tuned.vlm.model.get_submodule(path)(inputs.float())
    errors = [((weight * (given - wanted)) ** 2).sum() for given in (design @ best, outputs)]
    assert float(errors[0]) <= float(errors[1]) < 1.05 * float(errors[0])
    assert step["after"] == pytest.approx(float(errors[1] / ((weight * wanted) ** 2).sum()), rel=1e-3)
    after, before = state(tuned.vlm), state(pruned)
    assert {name for name in after if not torch.equal(after[name], before[name])} == {f"{path}.weight", f"{path}.bias"}


def test_every_cut_is_followed_and_the_model_comes_back(pruned: VLM, lively: VLM, calibration: Calibration) -> None:
    before = state(lively), state(pruned)
    tuned = recovery.tune(pruned, calibration, REFIT, plan=half(lively), seed=0)
    assert same(before[0], state(lively)) and same(before[1], state(pruned))
    consumers = [units.consumer for block in lively.blocks for units in (block.heads, block.ffn)]
    assert [step["module"] for step in tuned.curve] == consumers
    assert all(step["after"] <= step["before"] + 1e-6 for step in tuned.curve)
    assert divergence(tuned.vlm, calibration) < divergence(pruned, calibration)
    again = recovery.tune(pruned, calibration, REFIT, plan=half(lively), seed=1)
    assert same(state(tuned.vlm), state(again.vlm))
    json.dumps(tuned.curve, allow_nan=False)


def test_of_two_factors_the_second_is_fitted(lively: VLM, calibration: Calibration) -> None:
    plan, ranking = low_rank(lively, 4)
    vlm = surgery.apply(lively, plan, ranking)
    tuned = recovery.tune(vlm, calibration, REFIT, plan=plan, seed=0)
    after, before = state(tuned.vlm), state(vlm)
    moved = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    assert moved and all(".up." in name for name in moved)
    factored = [path for block, kind in lively.select("vision") for path in linears(block.units(kind))]
    assert [step["module"] for step in tuned.curve] == factored
    assert {name.partition(".up.")[0] for name in moved} == {step["module"] for step in tuned.curve if step["kept"]}


def test_behind_recomposed_channels_the_ffn_is_fitted(lively: VLM, calibration: Calibration) -> None:
    ranking = infoprune_free(lively, calibration, seed=0, arm="compose-act")
    plan = solve(lively, ranking, Budget("vision", 0.6, extents=calibration.extents), tolerance=0.1)
    pruned = surgery.apply(lively, plan, ranking)
    tuned = recovery.tune(pruned, calibration, REFIT, plan=plan, seed=0)
    recomposed = [step for step in tuned.curve if step["module"].endswith(lively.blocks[0].ffn.consumer.split(".")[-1])]
    assert recomposed and all(step["after"] < step["before"] for step in recomposed)


@pytest.mark.parametrize("how", ["bias", "refit"])
@pytest.mark.parametrize("name", ["random", "taylor", "svd_llm"])
@pytest.mark.parametrize("scope", ["vision", "language", "all"])
def test_held_out_answers_never_get_worse(
    lively: VLM, calibration: Calibration, monkeypatch: pytest.MonkeyPatch, name: str, scope: Any, how: Any
) -> None:
    """Even where every second change is made harmful, or broken."""
    ranking = registry.method(name).rank(lively, calibration, seed=0)
    plan = solve(lively, ranking, Budget(scope, 0.7, extents=calibration.extents))
    pruned = surgery.apply(lively, plan, ranking)
    made: list[int] = []

    def sometimes_harmful(linear: Any, weight: Tensor, bias: Tensor) -> held_out.Change:
        made.append(len(made))
        return held_out.Change(linear, weight, bias * {1: -30.0, 3: math.nan}.get(len(made) % 4, 1))

    for module in (bias, refit):
        monkeypatch.setattr(module, "Change", sometimes_harmful)
    tuned = recovery.tune(pruned, calibration, Tuning(how), plan=plan, seed=0)
    _, held = held_out.split(calibration)
    assert divergence(tuned.vlm, held) <= divergence(pruned, held)
    after, before = state(tuned.vlm), state(pruned)
    moved = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    kept = [step["module"] for step in tuned.curve if step["kept"]]
    assert not any(step["kept"] for step in tuned.curve[2::4]) and all(name.startswith(tuple(kept)) for name in moved)


def test_questions_are_held_out(calibration: Calibration) -> None:
    fitted, held = held_out.split(calibration)
    assert len(fitted.samples) + len(held.samples) == len(calibration.samples) == 12
    assert not {id(sample) for sample in fitted.samples} & {id(sample) for sample in held.samples}
    few = Calibration(calibration.vlm, calibration.samples[:2])
    assert held_out.split(few) == (few, few)


def test_weights_keep_their_type(pruned: VLM, lively: VLM, calibration: Calibration) -> None:
    dense, small = (replace(vlm, model=copy.deepcopy(vlm.model).bfloat16()) for vlm in (lively, pruned))
    tuned = recovery.tune(small, Calibration(dense, calibration.samples, 4), REFIT, plan=half(lively), seed=0)
    assert {weight.dtype for weight in tuned.vlm.model.parameters()} == {torch.bfloat16}
