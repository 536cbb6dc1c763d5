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
BLOCK = 64  # picks between two looks at whether a round has ended; each look is a wait for the device


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
    while len(order) < len(weight):
        picks = _round(weight, unpicked, floor)
        order += picks
        unpicked[torch.tensor(picks, device=weight.device)] = False
    return order


def _round(weight: Tensor, unpicked: Tensor, floor: float) -> list[int]:
    """The picks of one round among the unpicked rows (n,)."""
    residual, left = weight.clone(), unpicked.clone()
    most = min(weight.shape[1], int(left.sum()))
    picks: list[int] = []
    while len(picks) < most:
        block, norms = [], []
        for _ in range(min(BLOCK, most - len(picks))):
            lengths = torch.where(left, residual.norm(dim=1), -1)
            pick = lengths.argmax(0, keepdim=True)
            length = lengths[pick]
            block.append(pick)
            norms.append(length)
            left.index_fill_(0, pick, False)
            direction = torch.where(length > floor, residual[pick].squeeze(0) / length, 0)
            residual -= torch.outer(residual @ direction, direction)
        ended = [norm <= floor for norm in torch.cat(norms).tolist()]
        numbers = torch.cat(block).tolist()
        for number, end in zip(numbers, ended, strict=True):
            if end and picks:
                return picks
            picks.append(number)
    return picks
