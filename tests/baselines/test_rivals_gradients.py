"""Rivals that score units by gradients equal slow, literal versions."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from baselines import hies, llm_pruner, michel, taylor, uniform
from harness.pruning.solver import solve
from harness.statistics.calibration import Calibration
from harness.types import VLM, Budget, Global, InputError, Keep, Ordinal
from tests.support.calibrations import calibration_on_several_questions, encoded_alone
from tests.support.layouts import layout
from tests.support.linears import parts_of, weight_of
from tests.support.scores import close, scores_of

Gradients = list[dict[str, Tensor]]
Products = dict[str, list[Tensor]]


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


@pytest.fixture(scope="module")
def gradients(tiny: VLM, calibration: Calibration) -> Gradients:
    """Gradients of every weight, for each mini-batch of the calibration, by backward on a copy of the model."""
    model = deepcopy(tiny.model).requires_grad_()
    found = []
    for batch in calibration.batches():
        model.zero_grad()
        model(**batch).loss.backward()
        found.append({name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None})
    return found


@pytest.fixture(scope="module")
def products(tiny: VLM, calibration: Calibration) -> Products:
    """Activation * gradient at the heads' consumers, (tokens, count) for each sample, summed over a head's columns."""
    model = deepcopy(tiny.model).requires_grad_()
    seen: dict[str, list[Tensor]] = {block.name: [] for block in tiny.blocks}

    def keep(rows: list[Tensor]) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            args[0].retain_grad()
            rows.append(args[0])

        return hook

    for block in tiny.blocks:
        model.get_submodule(block.heads.consumer).register_forward_pre_hook(keep(seen[block.name]))
    for batch in encoded_alone(tiny, calibration):
        model(**batch).loss.backward()
    return {
        block.name: [
            (x.detach() * cast(Tensor, x.grad)).double().flatten(0, -2).unflatten(1, (block.heads.count, -1)).sum(2)
            for x in seen[block.name]
        ]
        for block in tiny.blocks
    }


def test_uniform_is_taylors_order_without_its_allocation(tiny: VLM, calibration: Calibration) -> None:
    control, whole = uniform.rank(tiny, calibration, seed=0), taylor.rank(tiny, calibration, seed=0)
    for key in whole.scores:
        assert isinstance(control.scores[key], Ordinal)
        assert scores_of(control, key) == scores_of(whole, key)


@pytest.mark.parametrize("form", ["squared", "absolute"])
def test_taylor_over_weights_is_the_exact_group_sum(
    tiny: VLM, calibration: Calibration, form: Any, gradients: Gradients
) -> None:
    ranking = taylor.rank(tiny, calibration, seed=0, form=form, over="weights")
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        literal = []
        for i in range(units.count):
            sums = [
                sum(
                    float((weight_of(tiny, path) * batch[f"{path}.weight"])[rows, columns].sum())
                    for path, rows, columns in parts_of(units, i)
                )
                for batch in gradients
            ]
            literal.append(sum(s**2 if form == "squared" else abs(s) for s in sums) / len(sums))
        close(scores_of(ranking, (block.name, kind)), literal)


def test_the_gate_is_the_sum_over_the_consumers_weights(
    tiny: VLM, calibration: Calibration, gradients: Gradients
) -> None:
    gates = calibration.gate_gradients()
    for block, kind in tiny.select("all"):
        path = block.units(kind).consumer
        for row, batch in zip(gates[block.name, kind], gradients, strict=True):
            columns = (weight_of(tiny, path) * batch[f"{path}.weight"]).sum(0)
            close(row.tolist(), columns.reshape(block.units(kind).count, -1).sum(1))


@pytest.mark.parametrize("level", ["weight", "vector", "group"])
def test_llm_pruner_sums_weight_times_gradient(
    tiny: VLM, calibration: Calibration, level: Any, gradients: Gradients
) -> None:
    """`weight` and `vector` as the released `param_first` and `vectorize`: a row of what makes the unit, a column of
    what reads it, a head's channels and all Linears of the group added up."""
    ranking = llm_pruner.rank(tiny, calibration, seed=0, level=level, allocation="global", first=0, last=0)
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        literal = []
        for i in range(units.count):
            total = 0.0
            for path, rows, columns in parts_of(units, i):
                gradient = torch.stack([batch[f"{path}.weight"] for batch in gradients]).mean(0)
                salience = (weight_of(tiny, path) * gradient)[rows, columns]
                vectors = salience.T if path == units.consumer else salience
                if level == "group":
                    total += float(salience.sum())
                else:
                    total += float(salience.abs().sum() if level == "weight" else vectors.sum(1).abs().sum())
            literal.append(abs(total))
        close(scores_of(ranking, (block.name, kind)), literal)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_llm_pruner_spares_layers_while_others_have_units(tiny: VLM, calibration: Calibration, allocation: Any) -> None:
    """The spared layers' units are above all others, and in the order that they have in any case."""
    plain = llm_pruner.rank(tiny, calibration, seed=0, allocation="global", first=0, last=0)
    ranking = llm_pruner.rank(tiny, calibration, seed=0, allocation=allocation, first=0.5, last=0)
    orders: dict[bool, list[float]] = {True: [], False: []}
    for key in ranking.scores:
        scores = torch.tensor(scores_of(ranking, key))
        assert isinstance(ranking.scores[key], Global)
        assert torch.equal(scores.argsort(), torch.tensor(scores_of(plain, key)).argsort())
        orders[key[0].endswith(".0")] += scores.tolist()
    assert min(orders[True]) > max(orders[False])


@pytest.mark.parametrize("keep", [0.8, 0.7, 0.6])
def test_llm_pruner_takes_the_same_share_from_every_layer_that_is_not_spared(
    tiny: VLM, calibration: Calibration, keep: float
) -> None:
    ranking = llm_pruner.rank(tiny, calibration, seed=0, first=0.5)
    plan = solve(tiny, ranking, Budget("all", keep, "ffn", calibration.extents))
    for block in tiny.blocks:
        share = len(cast(Keep, plan.parts[block.name, "ffn"]).indices) / block.ffn.count
        assert share == (1 if block.name.endswith(".0") else pytest.approx(2 * keep - 1, abs=0.03))


def test_llm_pruner_spares_whole_layers_only() -> None:
    def spared(layers: int, first: float, last: float) -> set[str]:
        return llm_pruner._spared(layout(*[("language", (2, 1, 0), (8, 1))] * layers), first, last)

    assert spared(32, 0.125, 0.0625) == {f"language.{i}" for i in (0, 1, 2, 3, 30, 31)}
    assert spared(12, 0.125, 0.0625) == {"language.0"}
    assert spared(4, 0.125, 0.0625) == set()
    assert spared(4, 0.25, 0.25) == {"language.0", "language.3"}


@pytest.mark.parametrize("first, last", [(-0.1, 0.0), (0.0, -1.0), (0.5, 0.5), (1.0, 0.0)])
def test_llm_pruner_refuses_to_spare_all_layers(tiny: VLM, calibration: Calibration, first: float, last: float) -> None:
    with pytest.raises(InputError, match=f"first, last: {first}, {last} should"):
        llm_pruner.rank(tiny, calibration, seed=0, first=first, last=last)


@pytest.mark.parametrize("absolute", ["sample", "token"])
@pytest.mark.parametrize("normalise", ["layer", "none"])
def test_michel_is_the_mean_absolute_product(
    tiny: VLM, calibration: Calibration, absolute: Any, normalise: Any, products: Products
) -> None:
    ranking = michel.rank(tiny, calibration, seed=0, absolute=absolute, normalise=normalise)
    assert set(ranking.scores) == {(block.name, "heads") for block in tiny.blocks}
    for block in tiny.blocks:
        sums = [p.sum(0).abs() if absolute == "sample" else p.abs().sum(0) for p in products[block.name]]
        literal = torch.stack(sums).mean(0)
        if normalise == "layer":
            literal = literal / literal.square().sum().sqrt()
        close(scores_of(ranking, (block.name, "heads")), literal)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_hies_joins_importance_and_entropy(
    tiny: VLM, calibration: Calibration, alpha: float, products: Products
) -> None:
    ranking = hies.rank(tiny, calibration, seed=0, alpha=alpha)
    for component in ("vision", "language"):
        blocks = [block for block in tiny.blocks if block.component == component]
        his = [
            float(value)
            for block in blocks
            for value in torch.stack([p.sum(0) for p in products[block.name]]).abs().mean(0)
        ]
        ae = [float(value) for block in blocks for value in calibration.attention_entropy()[block.name]]
        literal = [
            alpha * (h - min(his)) / (max(his) - min(his)) + (1 - alpha) * (1 - (e - min(ae)) / (max(ae) - min(ae)))
            for h, e in zip(his, ae, strict=True)
        ]
        close([s for block in blocks for s in scores_of(ranking, (block.name, "heads"))], literal)


@pytest.mark.parametrize("alpha", [-0.1, 1.0])
def test_hies_refuses_an_alpha_out_of_range(tiny: VLM, calibration: Calibration, alpha: float) -> None:
    with pytest.raises(InputError, match=f"alpha: {alpha} should be"):
        hies.rank(tiny, calibration, seed=0, alpha=alpha)
