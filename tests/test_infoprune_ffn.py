"""The FFN arms of InfoPrune: what they make costs and loses what their points say."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_methods import calibration, inputs_of

from baselines import infoprune
from baselines.infoprune.channels import pursuit
from baselines.infoprune.ffn import Arm
from baselines.linalg import conditional, least_squares
from harness import surgery
from harness.budget import aligned
from harness.calibration import Calibration
from harness.types import VLM, Block, Choice, Options, Plan

__all__ = ["calibration"]  # a fixture

ARMS: tuple[Arm, ...] = ("compose-linear", "compose-act", "compose-refit", "select")


def outputs(vlm: VLM, block: Block, inputs: torch.Tensor) -> torch.Tensor:
    """What the block's FFN makes of rows of its input, module by module, in float64."""
    modules = {
        path: copy.deepcopy(vlm.model.get_submodule(path)).double()
        for path in (*(rows.module for rows in block.ffn.producers), block.ffn.activation, block.ffn.consumer)
    }
    first, *second = [modules[path](inputs) for path in dict.fromkeys(rows.module for rows in block.ffn.producers)]
    hidden = modules[block.ffn.activation](first)
    return modules[block.ffn.consumer](hidden * second[0] if second else hidden)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_costs_and_loses_what_it_says(tiny: VLM, calibration: Calibration, arm: Arm, whiten: bool) -> None:
    ranking = infoprune.rank(tiny, calibration, seed=0, arm=arm, whiten=whiten, weigh="one")
    for block in tiny.blocks:
        points = cast(Options, ranking.scores[block.name, "ffn"]).points
        costs = [point.token_macs for point in points]
        assert costs == sorted(set(costs), reverse=True) and points[0].make is None
        inputs = inputs_of(tiny, calibration, block.ffn.producers[0].module)
        if arm.startswith("compose") and block.ffn.gated:
            assert all(point.label.startswith("rank") for point in points[1:])  # no product to compose: `factor`
            continue
        dense = outputs(tiny, block, inputs)
        bias = tiny.model.get_submodule(block.ffn.consumer)._parameters["bias"]
        energy = (dense - (0 if bias is None else bias.double())).square().sum()
        for place in (1, len(points) // 2, len(points) - 1):
            plan = Plan({(block.name, "ffn"): Choice(place, points[place].label)}, 1.0, 1.0)
            cut = surgery.apply(tiny, plan, ranking)
            names = {rows.module for rows in block.ffn.producers} | {block.ffn.consumer}
            macs = sum(cut.model.get_parameter(f"{name}.weight").numel() for name in names)
            assert macs == points[place].token_macs
            error = (outputs(cut, cut.block(block.name), inputs) - dense).square().sum() / energy
            assert float(error) == pytest.approx(points[place].loss, rel=2e-2, abs=1e-5)


def test_least_squares_arms_are_repairs(tiny: VLM) -> None:
    given_ = {"arm": "select"}
    assert infoprune.regime(given_) == "repaired" == infoprune.regime({"arm": "compose-refit"})
    assert {infoprune.regime({"arm": arm}) for arm in ("factor", "compose-act", "compose-linear")} == {"training-free"}


@given(st.integers(2, 8), st.integers(1, 5), st.integers(0, 2**16))
def test_pursuit_takes_the_channel_that_leaves_the_least_error(channels: int, out: int, seed: int) -> None:
    """Against trying every next channel, each with its own least-squares refit."""
    random = torch.Generator().manual_seed(seed)
    data = torch.randn(40, channels, generator=random, dtype=torch.float64)
    covariance = data.T @ data / len(data)
    weight = torch.randn(out, channels, generator=random, dtype=torch.float64)

    def error(kept: list[int]) -> float:
        places = torch.tensor(kept)
        rest = weight.clone()
        rest[:, places] = 0
        made = torch.zeros_like(weight)
        made[:, places] = weight @ conditional(covariance, places)
        return float(((weight - made) @ covariance * (weight - made)).sum())

    order = pursuit(covariance, weight)[0].tolist()
    assert sorted(order) == list(range(channels))
    for n in range(channels - 1):
        best = min(error([*order[:n], other]) for other in order[n:])
        assert error(order[: n + 1]) <= best * (1 + 1e-6) + 1e-9


def test_channels_that_say_the_same_are_taken_once(tiny: VLM) -> None:
    covariance = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0.1]], dtype=torch.float64)
    assert pursuit(covariance, torch.ones(1, 3, dtype=torch.float64))[0].tolist()[:2] in ([0, 2], [1, 2])


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**16))
def test_least_squares_is_lstsq(inputs: int, out: int, rows: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=random, dtype=torch.float64)
    y = torch.randn(rows, out, generator=random, dtype=torch.float64)
    weight, bias = least_squares(x, y)
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(rows, 1)], 1).double(), y, driver="gelsd").solution
    fitted = torch.cat([x, torch.ones(rows, 1)], 1).double() @ best
    assert torch.allclose(x @ weight.T + bias, fitted, atol=1e-6)


def test_conditional_leaves_directions_of_nothing_out() -> None:
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))
    expected = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(conditional(covariance, torch.arange(3)), expected)


def test_few_calibration_rows_are_said_and_regularised(
    tiny: VLM, calibration: Calibration, caplog: pytest.LogCaptureFixture
) -> None:
    few = Calibration(tiny, calibration.samples[:1])
    ranking = infoprune.rank(tiny, few, seed=0, arm="select", whiten=True, weigh="one")
    warned = [record.getMessage() for record in caplog.records if "covariance is regularised" in record.getMessage()]
    assert warned and all("calibration rows for" in line for line in warned)
    assert ranking.log["regularised"] and all(path in " ".join(warned) for path in ranking.log["regularised"])


@pytest.mark.parametrize("weigh", ["gradient", "ablation"])
def test_weights_scale_what_a_layer_loses(tiny: VLM, calibration: Calibration, weigh: Any) -> None:
    plain = infoprune.rank(tiny, calibration, seed=0, weigh="one")
    found = infoprune.rank(tiny, calibration, seed=0, weigh=weigh)
    for block in tiny.blocks:
        weight = found.log[block.name]["weight"]
        assert weight["heads"] > 0 < weight["ffn"]
        before, after = (r.scores[block.name, "heads"] for r in (plain, found))
        assert cast(Any, after).damage == pytest.approx(
            [weight["heads"] * x for x in cast(Any, before).damage], rel=5e-3
        )


@pytest.mark.parametrize("arm", [*ARMS, "factor"])
def test_aligned_points_have_widths_in_multiples_and_cost_and_lose_as_the_others(
    tiny: VLM, calibration: Calibration, arm: Arm
) -> None:
    ranking = infoprune.rank(tiny, calibration, seed=0, arm=arm, weigh="one")
    assert aligned(ranking, 1) is ranking
    fitting = aligned(ranking, 4)
    for block in tiny.blocks:
        fine, points = (cast(Options, own.scores[block.name, "ffn"]).points for own in (ranking, fitting))
        assert len(points) > 2 and points[0] == fine[0]
        known = {point.label: (point.token_macs, point.loss) for point in fine}
        both = [point for point in points if point.label in known]
        assert all(known[point.label] == (point.token_macs, pytest.approx(point.loss, abs=1e-12)) for point in both)
        for place in range(1, len(points)):
            plan = Plan({(block.name, "ffn"): Choice(place, points[place].label)}, 1.0, 1.0)
            cut = surgery.apply(tiny, plan, fitting)
            found, dense = (widths(vlm.model.get_submodule(block.path)) for vlm in (cut, tiny))
            assert all(width % 4 == 0 for width in found - dense)
            assert macs_of(cut, block) == points[place].token_macs


def widths(module: torch.nn.Module) -> set[int]:
    return {width for name, own in module.named_parameters() if own.ndim == 2 for width in own.shape}


def macs_of(cut: VLM, block: Block) -> int:
    paths = {rows.module for rows in block.ffn.producers} | {block.ffn.consumer}
    modules = [cut.model.get_submodule(path) for path in paths]
    return sum(own.numel() for module in modules for own in module.parameters() if own.ndim == 2)
