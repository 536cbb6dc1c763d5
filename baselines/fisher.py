"""Heads removed and FFNs factored, both priced by the loss's curvature: ours, of two published parts.

    rank(vlm, calibration, seed=0, damping=1.0)

The rival that InfoPrune needs: it also removes heads and factors FFNs, but reads the answers. A head's damage is the
second-order rise of the answer loss when a gate on it goes from 1 to 0: half the mean square of the gate's derivative
(the Fisher information, as in Theis et al. 2018, arXiv 1801.05787), a sample at a time. FFNs have LASER's factors and
its rise (arXiv 2606.00573; see `laser`). Both are nats per answer token, so the solver trades one against the other;
but the damping raises the prices of FFNs only, and LASER takes gradients at different places as uncorrelated, where a
gate's derivative sums them.
"""

from __future__ import annotations

import torch

from baselines import laser
from harness.statistics import Calibration
from harness.types import VLM, Additive, Ranking


def rank(vlm: VLM, calibration: Calibration, *, seed: int, damping: laser.Damping = 1.0) -> Ranking:
    """Damage of a head, loss of a rank: the estimated rise of the answer loss, in nats per answer token.

    Raises InputError if `damping` is not above 0.
    """
    factored = laser.rank(vlm, calibration, seed=seed, damping=damping)
    tokens = torch.tensor([float((batch["labels"] != -100).sum()) for batch in calibration.singly.batches()])
    scores = dict(factored.scores)
    for key, rows in calibration.singly.gate_gradients().items():
        if key[1] == "heads":
            summed = rows * tokens[:, None]  # the derivative of a sample's loss, summed over its answer tokens
            scores[key] = Additive(tuple((summed.square().sum(0) / (2 * tokens.sum())).tolist()))
    return Ranking(scores, factored.log)
