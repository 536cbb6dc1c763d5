"""Rivals that score units by their weights equal slow, literal versions."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from baselines import dgmr, magnitude
from harness.pruning.solver import solve
from harness.statistics.calibration import Calibration
from harness.types import VLM, Budget, Global, Keep
from tests.support.calibrations import calibration_on_several_questions
from tests.support.linears import parts_of, weight_of
from tests.support.scores import close, scores_of


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


@pytest.mark.parametrize("allocation", ["global", "normalised"])
def test_magnitudes_of_all_layers_compete(tiny: VLM, calibration: Calibration, allocation: Any) -> None:
    ranking = magnitude.rank(tiny, calibration, seed=0, norm="l1", allocation=allocation)
    for block, kind in tiny.select("all"):
        units = block.units(kind)
        literal = [
            sum(float(weight_of(tiny, path)[rows, columns].abs().sum()) for path, rows, columns in parts_of(units, i))
            for i in range(units.count)
        ]
        if allocation == "normalised":
            literal = [value / sum(other**2 for other in literal) ** 0.5 for value in literal]
        assert isinstance(ranking.scores[block.name, kind], Global)
        close(scores_of(ranking, (block.name, kind)), literal)


def test_dgmr_picks_by_gram_schmidt_in_rounds(tiny: VLM, calibration: Calibration) -> None:
    ranking = dgmr.rank(tiny, calibration, seed=0)
    for block in tiny.blocks:
        rows = torch.cat([weight_of(tiny, part.module) for part in block.ffn.producers], 1)
        left, order = list(range(block.ffn.count)), []
        while left:
            basis: list[Tensor] = []
            for _ in range(min(rows.shape[1], len(left))):
                rests = {}
                for i in left:
                    rest = rows[i]
                    for direction in basis:
                        rest = rest - (rest @ direction) * direction
                    rests[i] = rest
                pick = max(left, key=lambda i: float(rests[i].norm()))
                basis.append(rests[pick] / rests[pick].norm())
                order.append(pick)
                left.remove(pick)
        found = scores_of(ranking, (block.name, "ffn"))
        assert sorted(range(block.ffn.count), key=lambda i: -found[i]) == order


def test_dgmr_drops_copies_first() -> None:
    rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    order = dgmr._picks(torch.cat([rows, rows[:2] * 0.9, torch.zeros(1, 8)]))
    assert sorted(order[:6]) == [0, 1, 2, 3, 4, 5] and sorted(order[6:]) == [6, 7, 8]


def test_dgmr_takes_the_same_share_from_every_ffn(tiny: VLM, calibration: Calibration) -> None:
    plan = solve(tiny, dgmr.rank(tiny, calibration, seed=0), Budget("all", 0.25, "ffn", calibration.extents))
    for block in tiny.blocks:
        assert len(cast(Keep, plan.parts[block.name, "ffn"]).indices) == block.ffn.count // 4
