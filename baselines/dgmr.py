"""DGMR: keep the FFN neurons whose weights differ most from those kept (Shen et al. 2025, arXiv 2506.08591).

rank(vlm, calibration, seed=0)

Gram-Schmidt on the rows of the first Linear: the row with the largest norm is picked, its direction is removed from all
others, and so on. After as many picks as a row has entries nothing remains, and a new round starts from the original
values of the rows not yet picked. Every layer loses the same share. Departures: a gated FFN's neuron is its gate and up
rows side by side; a round also ends when only rounding errors are left; no distillation afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.statistics import Calibration
from harness.types import VLM, Ordinal, Ranking

UNITS = "ffn"


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Order: the earlier a neuron is picked, the longer it stays."""
    scores = {}
    for block in vlm.blocks:
        parts = [
            vlm.model.get_parameter(f"{rows.module}.weight").detach()[rows.offset : rows.offset + block.ffn.count]
            for rows in block.ffn.producers
        ]
        order = _picks(torch.cat(parts, 1))
        places = torch.empty(len(order))
        places[torch.tensor(order)] = torch.arange(len(order), 0, -1.0)
        scores[block.name, "ffn"] = Ordinal(tuple(places.tolist()))
    return Ranking(scores)


def _picks(weight: Tensor) -> list[int]:
    """The row numbers of a weight (n, d), in the order of picking."""
    weight = weight.double()
    floor = float(weight.norm(dim=1).max()) * max(weight.shape) * torch.finfo(torch.float64).eps
    unpicked = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    order: list[int] = []
    while unpicked.any():
        residual = weight.clone()
        for number in range(min(weight.shape[1], int(unpicked.sum()))):
            norms = torch.where(unpicked, residual.norm(dim=1), -1)
            pick = int(norms.argmax())
            if norms[pick] <= floor and number:
                break
            order.append(pick)
            unpicked[pick] = False
            if norms[pick] > floor:
                direction = residual[pick] / norms[pick]
                residual -= torch.outer(residual @ direction, direction)
    return order
