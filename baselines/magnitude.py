"""Magnitude: the norm of a unit's weights, in and out (Li et al. 2017, arXiv 1608.08710).

rank(vlm, calibration, seed=0, norm="l1", allocation="normalised")

The literature allocates in three ways. Li et al. fix each layer's share by hand; FLAP's magnitude baseline (2312.11983)
takes the same share from every layer. In one order over all layers, the norms stand as they are, or divided by a norm
of their layer: its L2 norm (Molchanov et al. 2017, 1611.06440), or its mean (DepGraph, 2301.12900). A head has far more
weights than a channel, so that undivided norms remove channels first.

Departures: the paper takes a filter's own weights only; here all weights that leave with a unit count, biases do not.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from harness.statistics import Calibration, unit_sums
from harness.types import VLM, Global, Kind, Ordinal, Ranking, Score

Norm = Annotated[Literal["l2", "l1"], "of the weights; l1 is the paper's (1608.08710), l2 the common choice since"]
Allocation = Annotated[
    Literal["uniform", "global", "normalised"],
    "the same share from every layer; the lowest norms of all layers; or of these, each over the L2 norm of its "
    "layer's (1611.06440)",
]


def rank(
    vlm: VLM, calibration: Calibration, *, seed: int, norm: Norm = "l2", allocation: Allocation = "uniform"
) -> Ranking:
    """Order: the norm of all weights that leave with a unit."""
    degree = {"l2": 2, "l1": 1}[norm]

    def powers(path: str, dim: int) -> torch.Tensor:
        return vlm.model.get_parameter(f"{path}.weight").detach().double().abs().pow(degree).sum(dim)

    scores: dict[tuple[str, Kind], Score] = {}
    for block, kind in vlm.select("all"):
        norms = unit_sums(block.units(kind), powers).sum(0).pow(1 / degree)
        if allocation == "normalised":
            norms = norms / (float(norms.norm()) or 1.0)
        order = tuple(norms.tolist())
        scores[block.name, kind] = Ordinal(order) if allocation == "uniform" else Global(order)
    return Ranking(scores)
