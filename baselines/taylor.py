"""Taylor: the first-order change of the answer loss when a unit goes (Molchanov et al. 2019, arXiv 1906.10771).

rank(vlm, calibration, seed=0, allocation="global")

(sum of g_s w_s over a unit's parameters s)^2, averaged over mini-batches (eq. 8). Over the gate, as in the paper's own
gate layers, the sum runs over what the consumer reads of the unit: activations times gradients, which is also the sum
of weight * gradient over the consumer's columns. A mini-batch is the harness's, 16 questions, or fewer where memory is
short; `kwon` squares question by question. Departures: the paper removes a few units at a time while it
fine-tunes; here all are removed at once. By default the solver weighs each against its cost; the paper takes the lowest
of all layers, the allocation `global`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor

from harness.statistics import Calibration, linears, unit_sums
from harness.types import VLM, Additive, Global, Kind, Ranking

Form = Annotated[Literal["squared", "absolute"], "of the gate's derivative; squared is the paper's, eq. 8 (1906.10771)"]
Over = Annotated[
    Literal["gate", "weights"],
    "what the sum of value * gradient runs over: a gate at 1 behind the unit (1906.10771), or all weights "
    "that leave with it, in and out",
]
Allocation = Annotated[
    Literal["trade", "global"], "damage against cost, over all layers; or the lowest of all layers, as in 1906.10771"
]


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    form: Form = "squared",
    over: Over = "gate",
    allocation: Allocation = "trade",
) -> Ranking:
    """Damage: the sum of value * gradient over a unit, squared or absolute, averaged over mini-batches."""
    degree = {"squared": 2, "absolute": 1}[form]
    shape = {"trade": Additive, "global": Global}[allocation]
    derivatives = calibration.gate_gradients() if over == "gate" else _weight_sums(vlm, calibration)
    return Ranking({key: shape(tuple(rows.abs().pow(degree).mean(0).tolist())) for key, rows in derivatives.items()})


def _weight_sums(vlm: VLM, calibration: Calibration) -> dict[tuple[str, Kind], Tensor]:
    """Sums of weight * gradient over all weights of each unit, one row per mini-batch: (batches, count)."""
    rows: dict[tuple[str, Kind], list[Tensor]] = {(block.name, kind): [] for block, kind in vlm.select("all")}

    def see(gradients: Mapping[str, Tensor]) -> None:
        def totals(path: str, dim: int) -> Tensor:
            return (vlm.model.get_parameter(f"{path}.weight").detach().double() * gradients[path]).sum(dim)

        for (name, kind), sums in rows.items():
            sums.append(unit_sums(vlm.block(name).units(kind), totals).sum(0))

    calibration.visit_gradients([path for b, k in vlm.select("all") for path in linears(b.units(k))], see)
    return {key: torch.stack(sums) for key, sums in rows.items()}
