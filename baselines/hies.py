"""HIES (reconstructed): head importance joined with how focused attention is (Choi et al. 2025, arXiv 2510.13832).

rank(vlm, calibration, seed=0, alpha=0.8)

HIES_h = alpha * HIS_h + (1 - alpha) * (1 - AE_h) (eq. 1). HIS: mean over samples of |A_h . dL/dA_h| (eq. 2). AE: the
attention's entropy over the log of the sequence's length, averaged over queries and samples (eq. 5). Both are min-max
normalised to [0, 1]; the heads with the lowest scores go, in whichever layer they are (eq. 8). Departures: the vision
tower and the language model, whose gradients differ in size, are normalised apart; alpha is an option, not tuned for
every ratio; if heads share keys and values, a group has the mean entropy of its heads; the solver weighs a head's
damage against its cost.

Unverified: the authors have announced code, but released none, so that this follows the paper's equations alone.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from harness.statistics import Calibration
from harness.types import VLM, Additive, InputError, Ranking

UNITS = "heads"

Alpha = Annotated[float, "weight of the importance against the entropy, in [0, 1); tuned per task in the paper"]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, alpha: Alpha = 0.5) -> Ranking:
    """Damage of a head: alpha * importance + (1 - alpha) * (1 - attention entropy), each in [0, 1].

    Raises InputError for an alpha out of range.
    """
    if not 0 <= alpha < 1:
        raise InputError(f"hies: alpha: {alpha} should be in [0, 1)")
    gradients, entropies = calibration.singly.gate_gradients(), calibration.attention_entropy()
    scores = {}
    for component in ("vision", "language"):
        names = [block.name for block in vlm.blocks if block.component == component]
        counts = [vlm.block(name).heads.count for name in names]
        importance = torch.cat([gradients[name, "heads"].abs().mean(0) for name in names])
        entropy = torch.cat([entropies[name] for name in names])
        score = alpha * _rescaled(importance) + (1 - alpha) * (1 - _rescaled(entropy))
        for name, part in zip(names, score.split(counts), strict=True):
            scores[name, "heads"] = Additive(tuple(part.tolist()))
    return Ranking(scores)


def _rescaled(values: Tensor) -> Tensor:
    """Min-max normalised to [0, 1]; 0 if all values are equal."""
    span = values.max() - values.min()
    return (values - values.min()) / torch.where(span > 0, span, 1)
