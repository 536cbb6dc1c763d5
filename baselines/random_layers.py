"""Random layers: whole layers in a random order; a control, to be run with several seeds.

rank(vlm, calibration, seed=0)

Tower and language model lose the same share. For budgets between two layers, heads and channels of the blocks that stay
go in a random order too.
"""

from __future__ import annotations

import torch

from harness.statistics import Calibration
from harness.types import VLM, Ordinal, Ranking

UNITS = ["layers", "heads", "ffn"]
ROLE = "floor"


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Order: drawn uniformly, from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    pairs = vlm.select("all", "heads+ffn+layers")
    return Ranking(
        {
            (block.name, kind): Ordinal(tuple(torch.rand(block.units(kind).count, generator=generator).tolist()))
            for block, kind in pairs
        }
    )
