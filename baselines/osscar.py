"""OSSCAR: how much a unit's absence adds to a least-squares reconstruction (Meng et al. 2024, arXiv 2403.12983).

rank(vlm, calibration, seed=0, step=1)

With the consumer's weight W and its input X, a set of kept units costs min ||X W^T - X V^T||^2 over the weights V that
read them alone. H = X^T X plus 0.01 of its mean diagonal. Of the units left, g adds w_g^T ([H^-1]_gg)^-1 w_g; the
lowest go, W and H^-1 are updated exactly, and so on. Units stay in the reverse of this order; every layer loses the
same share.

Departures: this method only chooses units. OSSCAR also replaces W by the best V, which is the harness's recovery
`refit` for every method, with rows weighted by their effect on the answers. Heads go one by one, not two. One order
serves all budgets, so that the released code's local search by exchanges, which is off by default, is left out. The
released code reads a layer's X after the earlier layers were cut; here X is the dense model's.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from harness.statistics import Calibration
from harness.types import VLM, InputError, Ordinal, Ranking

DAMPING = 0.01  # the released `lambda2`

Step = Annotated[int, "channels that go between two updates; the released `update_iter`"]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, step: Step = 10) -> Ranking:
    """Order: the later a unit is removed, the longer it stays. Raises InputError for a step below 1."""
    if step < 1:
        raise InputError(f"osscar: step: {step} should be at least 1")
    moments = calibration.moments(block.units(kind).consumer for block, kind in vlm.select("all"))
    scores = {}
    for block, kind in vlm.select("all"):
        units = block.units(kind)
        weight = vlm.model.get_parameter(f"{units.consumer}.weight").detach().double()
        order = removals(moments[units.consumer].second, weight, units.count, step if kind == "ffn" else 1)
        scores[block.name, kind] = Ordinal(tuple(order.argsort().tolist()))
    return Ranking(scores)


def removals(second: Tensor, weight: Tensor, count: int, step: int) -> Tensor:
    """The units (count,) in the order in which they go, `step` at a time.

    second: the second moment of the units' columns (count * width, count * width). weight: what reads them, (out,
    count * width). Both in float64.
    """
    weight = weight * (second.diagonal() > 0)  # what is always 0 is not missed
    damped = second.clone()
    damped.diagonal().add_(DAMPING * second.diagonal().mean().clamp(min=torch.finfo(second.dtype).tiny))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    columns = torch.arange(len(second), device=second.device).unflatten(0, (count, -1))  # of each unit
    left, order = torch.arange(count, device=second.device), []
    while len(left):
        places = columns[: len(left)]
        own = inverse[places.unsqueeze(2), places.unsqueeze(1)]
        parts = weight.T[places]
        ascending = (parts * torch.linalg.solve(own, parts)).sum((1, 2)).argsort(stable=True)
        gone, kept = ascending[:step], ascending[step:].sort().values
        order.append(left[gone])
        out, stay = places[gone].flatten(), places[kept].flatten()
        effect = torch.linalg.solve(inverse[out][:, out], inverse[out][:, stay])
        weight = weight[:, stay] - weight[:, out] @ effect
        inverse = inverse[stay][:, stay] - inverse[stay][:, out] @ effect
        left = left[kept]
    return torch.cat(order)
