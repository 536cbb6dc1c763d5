"""Magnitude: the norm of a unit's weights, in and out (Li et al. 2017, arXiv 1608.08710).

rank(vlm, calibration, seed=0, norm="l1", allocation="normalised")

Departures: the paper takes a filter's own weights only; here all weights that leave with a unit count, biases do not.
The paper fixes each layer's share by hand; here it is the same everywhere, or the norms of all layers compete, each
weighed against its unit's cost.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from harness.calibration import Calibration, unit_sums
from harness.types import VLM, Additive, Kind, Ordinal, Ranking, Score

Norm = Annotated[Literal["l2", "l1"], "of the weights; l1 is the paper's (1608.08710), l2 the common choice since"]
Allocation = Annotated[
    Literal["uniform", "global", "normalised"],
    "the same share from every layer; norms of all layers compete; or each over the L2 norm of its layer's "
    "(Molchanov et al. 2017, 1611.06440)",
]


def rank(
    vlm: VLM, calibration: Calibration, *, seed: int, norm: Norm = "l2", allocation: Allocation = "uniform"
) -> Ranking:
    """Order, or damage, of a unit: the norm of all weights that leave with it."""
    degree = {"l2": 2, "l1": 1}[norm]

    def powers(path: str, dim: int) -> torch.Tensor:
        return vlm.model.get_parameter(f"{path}.weight").detach().double().abs().pow(degree).sum(dim)

    scores: dict[tuple[str, Kind], Score] = {}
    for block, kind in vlm.select("all"):
        norms = unit_sums(block.units(kind), powers).sum(0).pow(1 / degree)
        if allocation == "uniform":
            scores[block.name, kind] = Ordinal(tuple(norms.tolist()))
        else:
            whole = float(norms.norm()) if allocation == "normalised" else 1.0
            scores[block.name, kind] = Additive(tuple((norms / (whole or 1.0)).tolist()))
    return Ranking(scores)
