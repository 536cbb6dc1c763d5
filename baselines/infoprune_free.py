"""InfoPrune without training (reconstructed): heads by information loss, adaptive ranks of FFNs (arXiv 2511.19518).

    rank(vlm, calibration, seed=0, arm="compose-act", search="leave-one-out")

The heads' gates of the paper's Algorithm 1 (see `infoprune`) are replaced by greedy removal under the same J; FFNs are
those of its Algorithm 2. So one ranking serves every budget. No loss of the answers is computed; in the language model
they are part of what is read, as for every method.
"""

from __future__ import annotations

from baselines.infoprune import options
from baselines.infoprune.heads import Loss
from baselines.infoprune.untrained import untrained
from harness.statistics import Calibration
from harness.types import VLM, Ranking

ROLE = "studied"


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    alpha: options.Alpha = Loss.alpha,
    beta: options.Beta = Loss.beta,
    distribution: options.Distribution = Loss.distribution,
    ks_over: options.KsOver = Loss.ks_over,
    k: options.K = Loss.k,
    output: options.Output = "layer",
    search: options.Search = "greedy",
    arm: options.FfnArm = "factor",
    whiten: options.Whiten = True,
) -> Ranking:
    """Damage of a head: the change of J = alpha * eRank ratio + beta * KS distance; of an FFN: its lost energy.

    Both are shares of a layer's output, so they can be compared. An FFN with a gate has no product W2 W1; there, the
    compose arms become `factor`. Raises InputError for a k out of range.
    """
    loss = Loss(alpha, beta, distribution, ks_over, k)
    return untrained(vlm, calibration, loss, output=output, search=search, arm=arm, whiten=whiten)
