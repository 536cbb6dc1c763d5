"""The Linears whose weights leave with a unit, and sums over those weights.

linears(vlm.blocks[0].ffn)  # paths: the producers, then the consumer
unit_sums(vlm.blocks[0].ffn, lambda path, dim: weight_of(path).abs().sum(dim))  # (rows, count)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.types import Block, Units


def linears(units: Units) -> list[str]:
    """Paths of the Linears that lose weights with a unit: the producers and the consumer."""
    return list(dict.fromkeys([*(rows.module for rows in units.producers), units.consumer]))


def block_linears(block: Block) -> list[str]:
    """Paths of all Linears of a block, in the order in which they run."""
    return [*linears(block.heads), *linears(block.ffn)]


def unit_sums(units: Units, totals: Callable[[str, int], Tensor]) -> Tensor:
    """Sums over the weights that leave with each unit: one row per producers' Rows, and the last row for the consumer.

    totals: gets a Linear's path and a dimension of its weight (out, in), and returns the sum over that dimension of one
    value per weight: (out,) for 1, (in,) for 0. Returns (rows, count), float64, CPU.
    """
    sums = [totals(rows.module, 1)[rows.offset : rows.offset + units.count * rows.width] for rows in units.producers]
    sums.append(totals(units.consumer, 0))
    return torch.stack([values.reshape(units.count, -1).sum(1).double().cpu() for values in sums])
