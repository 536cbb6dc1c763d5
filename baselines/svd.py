"""SVD: each Linear becomes the two factors of its truncated singular value decomposition (Eckart & Young 1936).

rank(vlm, calibration, seed=0)

W = U S V^T becomes U_r and S_r V_r^T, which cost r (in + out) instead of in * out multiply-adds. Every Linear keeps the
same share of its cost, as in the SVD-LLM paper's baseline (arXiv 2403.07378); the points' losses have no other purpose.
"""

from __future__ import annotations

from baselines.low_rank import equal_shares, factorables, low_rank
from harness.statistics import Calibration
from harness.types import VLM, Ranking


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Points of equal shares; the weights decide the factors, but not the ranks."""
    scores = {}
    for block, kind in vlm.select("all"):
        units = block.units(kind)
        linears = factorables(vlm.model, units)
        scores[block.name, kind] = low_rank(units, linears, map(equal_shares, linears))
    return Ranking(scores)
