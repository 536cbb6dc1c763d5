"""Fisher: a head's damage equals its literal form, its FFNs are LASER's, and both are one currency."""

from __future__ import annotations

import pytest
import torch

from baselines import fisher, laser
from harness.pruning.solver import solve
from harness.statistics.calibration import Calibration
from harness.types import VLM, Additive, Budget, Choice, Keep, Options
from tests.support.calibrations import calibration_on_several_questions
from tests.support.linears import inputs_of, output_gradients_of, weight_of


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


def test_damage_of_a_head_is_half_the_fisher_information_of_its_gate(tiny: VLM, calibration: Calibration) -> None:
    """The derivative by a gate: what the head adds to the layer's output, times that output's gradient."""
    ranking = fisher.rank(tiny, calibration, seed=0)
    one_by_one = [Calibration(tiny, [sample], batch_size=1) for sample in calibration.samples]
    tokens = [int((batch["labels"] != -100).sum()) for single in one_by_one for batch in single.batches()]
    for block in (tiny.blocks[0], tiny.blocks[-1]):
        path, width = block.heads.consumer, block.heads.width
        expected = torch.zeros(block.heads.count, dtype=torch.float64)
        for single in one_by_one:
            share = inputs_of(tiny, single, path) * (output_gradients_of(tiny, single, path) @ weight_of(tiny, path))
            expected += share.sum(0).unflatten(0, (-1, width)).sum(1).square() / 2
        score = ranking.scores[block.name, "heads"]
        assert isinstance(score, Additive)
        torch.testing.assert_close(torch.tensor(score.damage).double(), expected / sum(tokens), rtol=1e-3, atol=1e-12)


def test_ffns_are_those_of_laser(tiny: VLM, calibration: Calibration) -> None:
    ours, theirs = (method.rank(tiny, calibration, seed=0, damping=0.1).scores for method in (fisher, laser))
    for block in tiny.blocks:
        mine, points = ours[block.name, "ffn"], theirs[block.name, "ffn"]
        assert isinstance(mine, Options) and isinstance(points, Options)
        for one, other in zip(mine.points, points.points, strict=True):
            assert (one.label, one.token_macs, one.loss) == (other.label, other.token_macs, other.loss)


def test_a_joint_cut_removes_heads_and_factors_ffns(tiny: VLM, calibration: Calibration) -> None:
    plan = solve(tiny, fisher.rank(tiny, calibration, seed=0), Budget("all", 0.3, "both", calibration.extents))
    kinds = {kind: {type(part) for (_, of), part in plan.parts.items() if of == kind} for kind in ("heads", "ffn")}
    assert kinds == {"heads": {Keep}, "ffn": {Choice}}
