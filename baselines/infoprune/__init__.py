"""InfoPrune (reconstructed): information loss of heads, adaptive ranks of FFNs (Xu et al. 2025, arXiv 2511.19518).

    rank(vlm, calibration, seed=0, search="leave-one-out", whiten=True)

The paper's text and code are not public to us: what it leaves open is an option.
"""

from __future__ import annotations

from typing import Any

from baselines.infoprune.ffn import factor
from baselines.infoprune.heads import Layer, Loss, Output, Search, score
from baselines.infoprune.spectrum import Distribution, Over
from harness.calibration import Calibration
from harness.types import VLM, Additive, InputError, Kind, Ranking, Score

ROLE = "studied"


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    alpha: float = 0.5,
    beta: float = 1.0,
    distribution: Distribution = "amplitude",
    ks_over: Over = "cumulative",
    k: float | int = 0.99,
    output: Output = "layer",
    search: Search = "greedy",
    whiten: bool = False,
) -> Ranking:
    """Damage of a head: the change of J = alpha * eRank ratio + beta * KS distance; of an FFN's rank: dropped energy.

    Both are shares of what a layer puts out, and so one currency. alpha is below beta by default: J is alpha for the
    full layer and beta for the empty one, so otherwise collapse would cost nothing. k: the KS distance looks at so many
    singular values (a whole number), or at the fewest that hold this share of the energy. whiten: FFN directions by the
    energy of their outputs on the calibration set, not of the weights. Raises InputError for a k out of range.
    """
    if not (k >= 1 if isinstance(k, int) else 0 < k < 1):
        raise InputError(f"infoprune: k: {k} should be a share of the energy in (0, 1) or a whole number from 1 on")
    loss = Loss(alpha, beta, distribution, ks_over, k)
    read = [block.heads.consumer for block in vlm.blocks]
    if whiten:
        read += [path for b in vlm.blocks for path in (*(rows.module for rows in b.ffn.producers), b.ffn.consumer)]
    moments = calibration.moments(read)
    scores: dict[tuple[str, Kind], Score] = {}
    log: dict[str, Any] = {}
    for block in vlm.blocks:
        heads, ffn = block.heads, block.ffn
        weight = vlm.model.get_parameter(f"{heads.consumer}.weight").detach().double()
        layer = Layer(moments[heads.consumer].covariance, weight, heads.count, output)
        damage, head_log = score(layer, loss, search)
        options, ffn_log = factor(vlm.model, ffn, moments if whiten else None)
        scores[block.name, "heads"] = Additive(tuple(damage))
        scores[block.name, "ffn"] = options
        log[block.name] = {"heads": head_log, "ffn": ffn_log}
    return Ranking(scores, _rounded(log))


def _rounded(value: Any) -> Any:
    """The log with three significant digits: it is copied into every record."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value
