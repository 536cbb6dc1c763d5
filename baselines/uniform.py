"""Uniform: Taylor's order within a layer, the same share from every layer; a control for the allocation.

rank(vlm, calibration, seed=0)

Squared gate derivatives (Molchanov et al. 2019, arXiv 1906.10771, eq. 8) order the units of a block and kind; all
of these lose the same share. Taylor's gain over this method comes from its allocation; this method's gain over random
comes from the order.
"""

from __future__ import annotations

from harness.statistics import Calibration
from harness.types import VLM, Ordinal, Ranking


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Order: the squared derivative of the answer loss by a unit's gate, averaged over mini-batches."""
    return Ranking(
        {
            key: Ordinal(tuple(gradient.square().mean(0).tolist()))
            for key, gradient in calibration.gate_gradients().items()
        }
    )
