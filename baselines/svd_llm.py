"""SVD-LLM: truncated SVD of FFN Linears whose input is whitened first (Wang et al. 2024, arXiv 2403.07378).

rank(vlm, calibration, seed=0)

X X^T = S S^T, W S = U Sigma V^T; W becomes U_r and Sigma_r V_r^T S^-1, of all pairs of rank r the one whose output is
nearest on the calibration set. Every Linear keeps the same share of its cost; the points' losses have no other purpose.
Departures: the pair is U_r and U_r^T W, the same product without an inverse that need not exist; attention stays as it
is; the paper's second step, LoRA, is left out.
"""

from __future__ import annotations

from baselines.low_rank import decomposed, equal_shares, factorables, low_rank
from harness.calibration import Calibration, linears
from harness.types import VLM, Ranking

UNITS = "ffn"


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Points of equal shares; weights and input moments decide the factors, but not the ranks."""
    moments = calibration.moments([path for block in vlm.blocks for path in linears(block.ffn)])
    scores = {}
    for block in vlm.blocks:
        found = decomposed(factorables(vlm.model, block.ffn), lambda path: moments[path].second)
        scores[block.name, "ffn"] = low_rank(block.ffn, found, map(equal_shares, found))
    return Ranking(scores)
