"""D-Rank: SVD-LLM's factors, ranks by the effective rank of the whitened weights (Mi et al. 2025, arXiv 2509.25622).

rank(vlm, calibration, seed=0)

R = exp(-sum p ln p) with p = s^2 / sum(s^2) over the singular values of W S, S S^T = X X^T. Ranks minimise the sum of
R / k at a given cost, whose Lagrange solution is k proportional to sqrt(R / cost of a rank). Departures: one budget
over all Linears where the paper has one for each type, in multiply-adds instead of parameters; a Linear stays dense
where its pair would cost more; no basis is shared between layers; shifting ranks from queries and keys to values has no
counterpart in FFNs; the released code's fallback to equal shares, where those lose less energy, is left out.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from baselines.low_rank import Factorable, decomposed, factorables, low_rank
from harness.calibration import Calibration, linears
from harness.types import VLM, Ranking

UNITS = "ffn"


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Loss of a Linear at rank k: its effective rank over k, less the same at the rank that costs as much as it."""
    moments = calibration.moments([path for block in vlm.blocks for path in linears(block.ffn)])
    scores, log = {}, {}
    for block in vlm.blocks:
        found = decomposed(factorables(vlm.model, block.ffn), lambda path: moments[path].second)
        effective = [effective_rank(linear.part.energy) for linear in found if linear.part]
        scores[block.name, "ffn"] = low_rank(block.ffn, found, map(_loss, found, effective))
        log[block.name] = {
            linear.path.rsplit(".", 1)[-1]: round(value, 2) for linear, value in zip(found, effective, strict=True)
        }
    return Ranking(scores, {"effective_rank": log})


def effective_rank(energy: Tensor) -> float:
    """exp of the entropy of the shares that non-negative energies (k,) have in their sum; 0 if all are 0."""
    share = energy / energy.sum() if energy.sum() > 0 else energy
    kept = share[share > 0]
    return float((-(kept * kept.log()).sum()).exp()) if len(kept) else 0.0


def _loss(linear: Factorable, effective: float) -> Callable[[float], float]:
    """R / k - R / K from the share k / K of the Linear's cost, K = in * out / (in + out)."""
    whole = linear.weight.numel() / linear.rank_macs
    return lambda share: effective / whole * (1 / share - 1)
