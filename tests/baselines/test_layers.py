"""Methods of layers against slow, literal versions of what their papers say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from baselines import drop_last, leave_one_out, random_layers, shortgpt
from harness import families, registry
from harness.pruning import surgery
from harness.pruning.solver import TOLERANCE, solve
from harness.statistics import Calibration, output_energy
from harness.types import VLM, Additive, Budget, Global, Keep, Kind, Ordinal, Plan, Ranking, Sample
from tests.support.deep_configs import deep
from tests.support.family_configs import build
from tests.support.pictures import noise_picture

NAMES = ["random_layers", "drop_last", "shortgpt", "leave_one_out"]


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl", "llava"])
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    return families.load(build(request.param, tmp_path_factory.mktemp(request.param) / "checkpoint", change=deep))


@pytest.fixture(scope="module")
def calibration(vlm: VLM) -> Calibration:
    questions = ["How many?", "What colour is the large star?", "Is it?", "How many stars are there?", "What is it?"]
    return Calibration(
        vlm, [Sample(noise_picture(i, 64, 64), q, "two stars"[: 3 + i]) for i, q in enumerate(questions)], batch_size=2
    )


def order_of(ranking: Ranking) -> dict[str, float]:
    return {name: cast(Any, score).order[0] for (name, kind), score in ranking.scores.items() if kind == "layers"}


def literal_influence(vlm: VLM, calibration: Calibration) -> dict[str, float]:
    """Sample by sample, without padding, and token by token."""
    cosines: dict[str, list[float]] = {block.name: [] for block in vlm.blocks}
    for batch in calibration.singly.batches():
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        hooks = []
        for block in vlm.blocks:

            def hook(_: Any, args: Any, output: Any, name: str = block.name, seen: Any = seen) -> None:
                seen[name] = args[0], output[0] if isinstance(output, tuple) else output

            hooks.append(vlm.model.get_submodule(block.path).register_forward_hook(hook))
        with torch.no_grad():
            vlm.model(**batch, use_cache=False)
        for handle in hooks:
            handle.remove()
        for name, (before, after) in seen.items():
            width = before.shape[-1]
            for x, y in zip(before.double().reshape(-1, width), after.double().reshape(-1, width), strict=True):
                cosines[name].append(float(x @ y / (x @ x).sqrt() / (y @ y).sqrt()))
    return {name: 1 - sum(values) / len(values) for name, values in cosines.items()}


def test_shortgpt_is_one_minus_the_cosine_of_input_and_output(vlm: VLM, calibration: Calibration) -> None:
    literal = literal_influence(vlm, calibration)
    ranking = shortgpt.rank(vlm, calibration, seed=0)
    assert order_of(ranking) == pytest.approx(literal, rel=1e-4, abs=1e-6)
    assert all(0 <= value <= 2 for value in literal.values()) and len(set(literal.values())) == len(vlm.blocks)
    uniform = shortgpt.rank(vlm, calibration, seed=0, allocation="uniform")
    shapes = [{type(r.scores[b.name, "layers"]) for b in vlm.blocks} for r in (ranking, uniform)]
    assert shapes == [{Global}, {Ordinal}] and order_of(uniform) == order_of(ranking)


def literal_removals(vlm: VLM, calibration: Calibration, scope: str, number: int) -> list[str]:
    """Blocks physically removed one after the other: each time the one without which the loss is the lowest."""
    gone: list[str] = []
    for _ in range(number):
        losses: dict[str, float] = {}
        for block in vlm.blocks:
            rest = [b for b in vlm.blocks if b.component == block.component and b.name not in (*gone, block.name)]
            if scope not in ("all", block.component) or block.name in gone or block.fixed or not rest:
                continue
            parts: dict[tuple[str, Kind], Any] = {(name, "layers"): Keep(()) for name in (*gone, block.name)}
            pruned = surgery.apply(vlm, Plan(parts, 1.0, 1.0), Ranking({}))
            losses[block.name] = Calibration(pruned, calibration.samples, calibration.batch_size).answer_loss()
        gone.append(min(losses, key=losses.__getitem__))
    return gone


@pytest.mark.parametrize("scope", ["vision", "language", "all"])
def test_leave_one_out_removes_what_the_answers_need_least(vlm: VLM, calibration: Calibration, scope: Any) -> None:
    budget = Budget(scope, 0.5, "layers", calibration.extents)
    ranking = leave_one_out.rank(vlm, calibration, seed=0, budget=budget)
    removed = cast(list[str], ranking.log["removed"])
    assert removed and removed == literal_removals(vlm, calibration, scope, len(removed))
    assert solve(vlm, ranking, budget).gone == set(removed)
    values = order_of(ranking)
    assert sorted(values, key=values.__getitem__)[: len(removed)] == removed
    fewer = leave_one_out.rank(vlm, calibration, seed=0, budget=replace(budget, keep=0.8))
    assert removed[: len(fewer.log["removed"])] == fewer.log["removed"]


def test_leave_one_out_measures_each_state_once(tmp_path: Path) -> None:
    vlm = families.load(build("qwen2_vl", tmp_path / "checkpoint", change=deep))
    calibration = Calibration(vlm, [Sample(noise_picture(0, 64, 64), "How many?", "two")])
    calls: list[Any] = []
    measured = calibration.answer_loss
    calibration.answer_loss = lambda gates=None, samples=None: calls.append(gates) or measured(gates, samples)  # type: ignore[method-assign]
    for keep in (0.9, 0.5, 0.6, 0.5):
        leave_one_out.rank(vlm, calibration, seed=0, budget=Budget("all", keep, "layers", calibration.extents))
    states = [frozenset(gates) for gates in calls]
    assert len(states) == len(set(states)) <= 1 + sum(range(9))


def test_leave_one_out_may_weigh_the_cost(vlm: VLM, calibration: Calibration) -> None:
    budget = Budget("all", 0.9, "layers", calibration.extents)
    ranking = leave_one_out.rank(vlm, calibration, seed=0, budget=budget, per="flops")
    dense = calibration.answer_loss()
    rises = {
        b.name: (calibration.answer_loss({(b.name, "layers"): torch.zeros(1)}) - dense)
        / b.layer.macs(calibration.extents[b.component])
        for b in vlm.blocks
        if not b.fixed
    }
    assert ranking.log["removed"][0] == min(rises, key=rises.__getitem__)


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_drop_last_drops_the_last(vlm: VLM, calibration: Calibration, spare: int) -> None:
    order = order_of(drop_last.rank(vlm, calibration, seed=0, spare=spare))
    for component in ("vision", "language"):
        names = [block.name for block in vlm.blocks if block.component == component]
        expected = names[: len(names) - spare][::-1] + names[len(names) - spare :][::-1]
        assert sorted(names, key=order.__getitem__) == expected


def test_random_layers_come_from_the_seed_alone(vlm: VLM, calibration: Calibration) -> None:
    orders = [order_of(random_layers.rank(vlm, calibration, seed=seed)) for seed in range(20)]
    assert orders[3] == order_of(random_layers.rank(vlm, cast(Any, None), seed=3))
    first = [min((n for n in order if n.startswith("language")), key=order.__getitem__) for order in orders]
    assert len(set(first)) > 2


def test_what_is_sent_is_the_mean_squared_output(vlm: VLM, calibration: Calibration) -> None:
    """Of a channel: its activation times its column, token by token."""
    energies = output_energy(calibration)
    block = vlm.blocks[-1]
    rows = calibration.rows([block.ffn.consumer], limit=1 << 20)[block.ffn.consumer].double()
    weight = vlm.model.get_parameter(f"{block.ffn.consumer}.weight").double()
    for channel in (0, 5):
        outputs = torch.stack([row[channel] * weight[:, channel] for row in rows])
        assert energies[block.name, "ffn"][channel] == pytest.approx(float(outputs.square().sum(1).mean()), rel=1e-5)
    assert {key: len(values) for key, values in energies.items()} == {
        (b.name, kind): b.units(kind).count for b, kind in vlm.select("all")
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("units", ["layers", "ffn+layers", "heads+ffn+layers"])
def test_every_method_of_layers_meets_budgets(vlm: VLM, calibration: Calibration, name: str, units: str) -> None:
    method = registry.method(name)
    for keep in (0.8, 0.55):
        budget = Budget("all", keep, units, calibration.extents)
        ranking = method.rank(vlm, calibration, seed=0, budget=budget)
        plan = solve(vlm, ranking, budget)
        assert plan.gone or units != "layers"  # the first layer may save more than is asked
        assert plan.achieved < keep if plan.coarse else abs(plan.achieved / keep - 1) <= TOLERANCE
        assert not plan.coarse or units == "layers"
        assert not any(isinstance(score, Additive) for score in ranking.scores.values())
