"""Random: units in a random order, the floor every score has to beat.

rank(vlm, calibration, seed=0)
"""

from __future__ import annotations

import torch

from harness.statistics import Calibration
from harness.types import VLM, Ordinal, Ranking

ROLE = "floor"


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Order: drawn uniformly, from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    return Ranking(
        {
            (block.name, kind): Ordinal(tuple(torch.rand(block.units(kind).count, generator=generator).tolist()))
            for block, kind in vlm.select("all")
        }
    )
