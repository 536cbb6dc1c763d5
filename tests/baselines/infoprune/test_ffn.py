"""The FFN arms of InfoPrune: what they make costs and loses what their points say."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch

from baselines import infoprune_free
from baselines.infoprune.ffn import Arm
from harness.pruning import surgery
from harness.pruning.solver import aligned
from harness.statistics.calibration import Calibration
from harness.types import VLM, Block, Choice, Options, Plan
from tests.support.linears import inputs_of

ARMS: tuple[Arm, ...] = ("compose-linear", "compose-act")


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
    ranking = infoprune_free.rank(tiny, calibration, seed=0, arm=arm, whiten=whiten)
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


def test_few_calibration_rows_are_said_and_regularised(
    tiny: VLM, calibration: Calibration, caplog: pytest.LogCaptureFixture
) -> None:
    few = Calibration(tiny, calibration.samples[:1])
    ranking = infoprune_free.rank(tiny, few, seed=0)
    warned = [record.getMessage() for record in caplog.records if "covariance is regularised" in record.getMessage()]
    assert warned and all("calibration rows for" in line for line in warned)
    assert ranking.log["regularised"] and all(path in " ".join(warned) for path in ranking.log["regularised"])


@pytest.mark.parametrize("arm", [*ARMS, "factor"])
def test_aligned_points_have_widths_in_multiples_and_cost_and_lose_as_the_others(
    tiny: VLM, calibration: Calibration, arm: Arm
) -> None:
    ranking = infoprune_free.rank(tiny, calibration, seed=0, arm=arm)
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
