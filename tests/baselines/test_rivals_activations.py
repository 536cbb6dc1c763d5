"""Rivals that score units by activations equal slow, literal versions, and order units as the released code does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines import amp, flap, minitron, osscar, wanda
from harness.pruning.solver import solve
from harness.statistics.calibration import Calibration, linears
from harness.types import VLM, Budget, Global, InputError, Keep, Kind, Units
from tests.support.calibrations import calibration_on_several_questions, encoded_alone
from tests.support.linears import parts_of, weight_of
from tests.support.scores import close, scores_of

Inputs = dict[str, list[Tensor]]


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


@pytest.fixture(scope="module")
def inputs(tiny: VLM, calibration: Calibration) -> Inputs:
    """What every Linear of the blocks reads, (tokens, in) for each sample."""
    paths = {path for block, kind in tiny.select("all") for path in linears(block.units(kind))}
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def hook(rows: list[Tensor]) -> Callable[..., None]:
        return lambda _, args: rows.append(args[0].detach().flatten(0, -2).double())

    hooks = [tiny.model.get_submodule(path).register_forward_pre_hook(hook(seen[path])) for path in paths]
    with torch.no_grad():
        for batch in encoded_alone(tiny, calibration):
            tiny.model(**batch)
    for each in hooks:
        each.remove()
    return seen


@pytest.mark.parametrize("weights", ["consumer", "all"])
def test_wanda_sums_weight_times_input_norm(tiny: VLM, calibration: Calibration, weights: Any, inputs: Inputs) -> None:
    ranking = wanda.rank(tiny, calibration, seed=0, weights=weights)
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        norms = {path: torch.cat(inputs[path]).square().mean(0).sqrt() for path, *_ in parts_of(units, 0)}
        literal = []
        for i in range(units.count):
            total = 0.0
            for path, rows, columns in parts_of(units, i)[0 if weights == "all" else -1 :]:
                total += sum(float(row.abs() @ norms[path][columns]) for row in weight_of(tiny, path)[rows, columns])
            literal.append(total)
        close(scores_of(ranking, (block.name, kind)), literal)


def test_wanda_orders_as_wanda_sp(tiny: VLM, calibration: Calibration, inputs: Inputs) -> None:
    """Mean over the outputs of |W| * sqrt(running mean of ||X_j||^2 per sample), a head's columns added up."""
    ranking = wanda.rank(tiny, calibration, seed=0)
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        scaler = torch.stack([x.norm(p=2, dim=0) ** 2 for x in inputs[units.consumer]]).mean(0)
        metric = (weight_of(tiny, units.consumer).abs() * scaler.sqrt()).mean(0).reshape(units.count, -1).sum(1)
        scores = torch.tensor(scores_of(ranking, (block.name, kind)))
        assert torch.equal(scores.argsort(), metric.argsort())


def fluctuation(vlm: VLM, inputs: Inputs, units: Units, squared: bool) -> Tensor:
    """FLAP's z-scores of the units, (count,)."""
    rows = torch.cat(inputs[units.consumer])
    metric = rows.var(0) * weight_of(vlm, units.consumer).pow(2).sum(0)
    metric = metric.square() if squared else metric
    return ((metric - metric.mean()) / metric.std()).reshape(units.count, -1).mean(1)


@pytest.mark.parametrize("heads", ["squared", "plain"])
@pytest.mark.parametrize("structure, pool", [("AL-AM", "all"), ("AL-MM", "kind"), ("UL-UM", None)])
def test_flap_is_the_mean_z_score_of_a_units_columns(
    tiny: VLM, calibration: Calibration, heads: Any, structure: Any, pool: str | None, inputs: Inputs
) -> None:
    ranking = flap.rank(tiny, calibration, seed=0, structure=structure, heads=heads)
    for block, kind in tiny.select("all"):
        score = ranking.scores[block.name, kind]
        assert (score.pool if isinstance(score, Global) else None) == pool
        literal = fluctuation(tiny, inputs, block.units(kind), heads == "squared" and kind == "heads")
        close(scores_of(ranking, (block.name, kind)), literal)


@pytest.mark.parametrize("keep", [0.9, 0.75, 0.6])
def test_flap_keeps_what_is_above_one_threshold(
    tiny: VLM, calibration: Calibration, keep: float, inputs: Inputs
) -> None:
    """As released: the threshold is the z-score at which the cost of what is above it comes nearest to the budget.

    The costs are measured, not 512/3 neurons per head. The unit at the threshold itself goes in the released code. Here
    it stays, and so does the last unit of a layer.
    """
    ranking = flap.rank(tiny, calibration, seed=0, structure="AL-AM")
    plan = solve(tiny, ranking, Budget("language", keep, extents=calibration.extents), tolerance=0.1)
    units = [
        (float(z), block.units(kind).macs(calibration.extents["language"]), (block.name, kind, i))
        for block, kind in tiny.select("language")
        for i, z in enumerate(fluctuation(tiny, inputs, block.units(kind), kind == "heads"))
    ]
    units.sort(reverse=True)
    costs = torch.tensor([cost for _, cost, _ in units]).cumsum(0)
    threshold = int((costs - costs[-1] * keep).abs().argmin())
    kept = {(name, kind, i) for (name, kind), part in plan.parts.items() for i in cast(Keep, part).indices}
    assert kept == {key for _, _, key in units[: threshold + 1]}


def test_amp_is_the_mean_size_of_outputs_and_activations(tiny: VLM, calibration: Calibration, inputs: Inputs) -> None:
    """A group of heads that share a key has the sum of its heads' norms."""
    ranking = amp.rank(tiny, calibration, seed=0)
    assert any(block.heads.width > block.heads.producers[1].width for block in tiny.blocks)
    for block in tiny.blocks:
        rows, weight = torch.cat(inputs[block.heads.consumer]), weight_of(tiny, block.heads.consumer)
        width = block.heads.producers[1].width
        norms = [
            sum(float((weight[:, start : start + width] @ x[start : start + width]).norm(p=1)) for x in rows)
            / len(rows)
            for start in range(0, weight.shape[1], width)
        ]
        heads = len(norms) // block.heads.count
        literal = [sum(norms[heads * i : heads * (i + 1)]) for i in range(block.heads.count)]
        close(scores_of(ranking, (block.name, "heads")), literal)
        neurons = torch.cat(inputs[block.ffn.consumer])
        close(scores_of(ranking, (block.name, "ffn")), [float(n.abs().sum()) / len(neurons) for n in neurons.T])


def test_minitron_is_the_norm_over_samples_of_mean_activations(
    tiny: VLM, calibration: Calibration, inputs: Inputs
) -> None:
    ranking = minitron.rank(tiny, calibration, seed=0)
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        columns = []
        for j in range(units.count * units.width):
            means = [float(rows[:, j].abs().mean()) for rows in inputs[units.consumer]]
            columns.append(sum(mean**2 for mean in means) ** 0.5)
        literal = [
            sum(c**2 for c in columns[i * units.width : (i + 1) * units.width]) ** 0.5 for i in range(units.count)
        ]
        close(scores_of(ranking, (block.name, kind)), literal)


def reconstruction(second: Tensor, weight: Tensor, kept: list[int], width: int) -> float:
    """OSSCAR's objective: the least squared error of weights (out, in) that read these units alone, damped."""
    damped = second + 0.01 * second.diagonal().mean() * torch.eye(len(second))
    root = torch.linalg.cholesky(damped).T
    columns = [width * unit + j for unit in kept for j in range(width)]
    target = root @ weight.T
    best = root[:, columns] @ torch.linalg.lstsq(root[:, columns], target).solution if columns else 0 * target
    return float((target - best).square().sum())


@pytest.mark.parametrize("kind, step", [("heads", 1), ("ffn", 1), ("ffn", 10)])
def test_osscar_removes_what_adds_least_to_the_error(
    tiny: VLM, calibration: Calibration, kind: Kind, step: int, inputs: Inputs
) -> None:
    """Each removal, and of `step` removals the first, is checked against all others by solving for the weights anew."""
    ranking = osscar.rank(tiny, calibration, seed=0, step=step)
    for block in (tiny.blocks[0], tiny.blocks[-1]):
        units = block.units(kind)
        rows, weight = torch.cat(inputs[units.consumer]), weight_of(tiny, units.consumer)
        second, left = rows.T @ rows / len(rows), list(range(units.count))
        places = scores_of(ranking, (block.name, kind))
        order = sorted(left, key=lambda unit: places[unit])
        for number, gone in enumerate(order[:-1]):
            if number % step == 0:
                errors = {u: reconstruction(second, weight, [v for v in left if v != u], units.width) for u in left}
                cheapest = sorted(errors.values())[: len(order[number : number + step])]
                assert [errors[u] for u in order[number : number + step]] == pytest.approx(cheapest, rel=1e-4)
            left.remove(gone)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**16))
def test_osscar_removes_what_is_silent_or_unread_first(width: int, step: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(64, 6, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 6, width, generator=generator, dtype=torch.float64)
    rows[:, 4], weight[:, 1] = 0, 0
    rows, weight = rows.flatten(1), weight.flatten(1)
    order = osscar.removals(rows.T @ rows, weight, 6, step).tolist()
    assert sorted(order) == list(range(6)) and set(order[:2]) == {1, 4}


def test_osscar_ranks_a_layer_without_input() -> None:
    assert sorted(osscar.removals(torch.zeros(6, 6).double(), torch.ones(4, 6).double(), 3, 1).tolist()) == [0, 1, 2]


def test_osscar_refuses_a_step_below_one(tiny: VLM, calibration: Calibration) -> None:
    with pytest.raises(InputError, match="step: 0 should be at least 1"):
        osscar.rank(tiny, calibration, seed=0, step=0)
