"""SVD-LLM: truncated SVD of Linears whose input is whitened first (Wang et al. 2024, arXiv 2403.07378).

rank(vlm, calibration, seed=0)

X X^T = S S^T, W S = U Sigma V^T; W becomes U_r and Sigma_r V_r^T S^-1, which is the pair of rank r with the nearest
output on the calibration set. Every Linear keeps the same share of its cost; the points' losses have no other purpose.
Checked against the released code (AIoT-MLSys-Lab/SVD-LLM, SVDLLM.py). Its closed-form update of U is the recovery
`refit`, but for the target: the dense Linear's output for what the compressed model feeds it; `refit` takes the dense
model's output. Its LoRA step is the recovery `lora`. Departure: the pair is U_r and U_r^T W, the same product without
an inverse that may not exist.
"""

from __future__ import annotations

from baselines.low_rank import equal_shares, low_rank, whitened
from harness.statistics import Calibration
from harness.types import VLM, Ranking


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Points of equal shares; weights and input moments decide the factors, but not the ranks."""
    scores = {}
    for block, kind, linears in whitened(vlm, calibration):
        scores[block.name, kind] = low_rank(block.units(kind), linears, map(equal_shares, linears))
    return Ranking(scores)
