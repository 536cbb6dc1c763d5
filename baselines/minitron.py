"""Minitron: how large the activations of a head or a neuron are (Muralidharan et al. 2024, arXiv 2407.14679).

rank(vlm, calibration, seed=0)

Column j of the consumer's input scores its mean absolute value over the tokens of a sample, and of that the L2 norm
over samples: the paper's best of its aggregations (its table 11), and that of NVIDIA's Model Optimizer. A unit scores
the L2 norm over its columns, as in Model Optimizer; the paper takes this norm per token. Every layer loses the same
share.

Departures: if heads share keys and values, a whole group is one unit, while Model Optimizer removes query heads within
each group. The hidden size and the layers are not cut, a removed head's output is not added to the others, and no
distillation follows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.statistics import Calibration
from harness.types import VLM, Ordinal, Ranking


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Order: the L2 norm, over a unit's columns and the samples, of the mean absolute activation in a sample."""
    sums: dict[str, Tensor] = {}

    def add(path: str, rows: Tensor) -> None:
        square = rows.abs().mean(0, dtype=torch.float64).square()
        sums[path] = sums[path] + square if path in sums else square

    consumers = [block.units(kind).consumer for block, kind in vlm.select("all")]
    calibration.singly.visit(consumers, add)  # one sample per call
    return Ranking(
        {
            (block.name, kind): Ordinal(
                tuple(sums[units.consumer].unflatten(0, (units.count, -1)).sum(1).sqrt().tolist())
            )
            for block, kind in vlm.select("all")
            for units in [block.units(kind)]
        }
    )
