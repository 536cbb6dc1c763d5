"""Taylor: the first-order change of the answer loss when a unit goes (Molchanov et al. 2019, arXiv 1906.10771).

rank(vlm, calibration, seed=0, form="absolute")
"""

from __future__ import annotations

from typing import Literal

from harness.calibration import Calibration
from harness.types import VLM, Additive, Ranking


def rank(vlm: VLM, calibration: Calibration, *, seed: int, form: Literal["squared", "absolute"] = "squared") -> Ranking:
    """Damage: the gate's derivative, squared (a gate per unit) or absolute, averaged over mini-batches."""
    degree = {"squared": 2, "absolute": 1}[form]
    return Ranking(
        {
            key: Additive(tuple(gradient.abs().pow(degree).mean(0).tolist()))
            for key, gradient in calibration.gate_gradients().items()
        }
    )
