"""Magnitude: the norm of a unit's weights, in and out (Li et al. 2017, arXiv 1608.08710).

rank(vlm, calibration, seed=0, norm="l1")
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from harness.calibration import Calibration
from harness.types import VLM, Ordinal, Ranking, Units


def rank(vlm: VLM, calibration: Calibration, *, seed: int, norm: Literal["l2", "l1"] = "l2") -> Ranking:
    """Order the units of a block by the norm of all weights that leave with them; biases do not count."""
    degree = {"l2": 2, "l1": 1}[norm]
    return Ranking(
        {
            (block.name, kind): Ordinal(tuple(_norms(vlm.model, block.units(kind), degree).tolist()))
            for block, kind in vlm.select("all")
        }
    )


def _norms(model: nn.Module, units: Units, degree: int) -> Tensor:
    total = torch.zeros(units.count, dtype=torch.float64)
    for rows in units.producers:
        weight = _weight(model, rows.module)[rows.offset : rows.offset + units.count * rows.width]
        total += weight.abs().pow(degree).reshape(units.count, -1).sum(1)
    columns = _weight(model, units.consumer).T
    total += columns.abs().pow(degree).reshape(units.count, -1).sum(1)
    return total.pow(1 / degree)


def _weight(model: nn.Module, path: str) -> Tensor:
    return model.get_parameter(f"{path}.weight").detach().double().cpu()
