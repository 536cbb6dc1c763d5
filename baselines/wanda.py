"""Wanda, structured: weights times the norm of what they read (Sun et al. 2023, arXiv 2306.11695).

rank(vlm, calibration, seed=0, weights="all")

A weight W_ij scores |W_ij| * ||X_j||, X_j being the feature that it reads; a unit scores the sum over its weights. The
paper prunes single weights; the structured form is Wanda-sp of the FLAP paper (An et al. 2023, arXiv 2312.11983): the
consumer's columns, the same share from every layer. The norm is a root mean square here, and Wanda-sp takes the mean
over the outputs; neither changes an order. Departure: both codes compute a layer's features after the earlier layers
were cut; here they are the dense model's.
"""

from __future__ import annotations

from typing import Annotated, Literal

from torch import Tensor

from harness.statistics import Calibration, linears, unit_sums
from harness.types import VLM, Ordinal, Ranking

Weights = Annotated[
    Literal["consumer", "all"], "summed over: the columns that read the unit (Wanda-sp, 2312.11983), or in and out"
]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, weights: Weights = "consumer") -> Ranking:
    """Order: the sum of |weight| * root mean square of its input feature over a unit's weights."""
    all_units = [block.units(kind) for block, kind in vlm.select("all")]
    features = calibration.features(
        path for units in all_units for path in (linears(units) if weights == "all" else [units.consumer])
    )

    def totals(path: str, dim: int) -> Tensor:
        weight = vlm.model.get_parameter(f"{path}.weight").detach().double().abs()
        if path not in features:  # a producer; "consumer" does not count its weights
            return weight.new_zeros(weight.shape[1 - dim])
        return (weight * features[path].square.sqrt()).sum(dim)

    return Ranking(
        {
            (block.name, kind): Ordinal(tuple(unit_sums(block.units(kind), totals).sum(0).tolist()))
            for block, kind in vlm.select("all")
        }
    )
