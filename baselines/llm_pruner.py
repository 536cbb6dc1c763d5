"""LLM-Pruner: weight times gradient, summed over a unit's coupled weights (Ma et al. 2023, arXiv 2305.11627).

rank(vlm, calibration, seed=0, level="vector")

First order: the sum of |w * dL/dw| over the group's weights w, the group being all weights that leave with a unit, in
and out, and L the answer loss, its gradient averaged over mini-batches. Units compete within their layer and kind, or
over all layers. The first and last layers of a tower are spared: their units go when no others are left, or to close a
gap to the budget. With the defaults a tower of fewer than eight layers spares none.

Departures: the paper takes its gradient on text. Its second-order terms are left out. Its `global_pruning` fills the
budget with units, here their costs do. The released script spares 4 and 2 of 32 layers; here these are shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from torch import Tensor

from harness.statistics import Calibration, linears, unit_sums
from harness.types import VLM, Global, InputError, Kind, Ordinal, Ranking

Level = Annotated[
    Literal["weight", "vector", "group"],
    "where the absolute value is taken: of each weight, the released code's default `param_first`; of each row or "
    "column's sum, its `vectorize`; or of the whole group's sum",
]
Allocation = Annotated[
    Literal["uniform", "global"],
    "the same share from every layer and kind; or the lowest of all, the released `global_pruning`",
]
First = Annotated[
    float, "share of a tower's layers that is spared at its start, in whole layers, rounded down: 4 of 32 as released"
]
Last = Annotated[float, "the same at its end: 2 of 32 in the released script, which knows language models only"]


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    level: Level = "weight",
    allocation: Allocation = "uniform",
    first: First = 0.125,
    last: Last = 0.0625,
) -> Ranking:
    """Order: the absolute first-order change of the loss, at the level of the weights, their vectors or the group.

    Raises InputError if `first` and `last` are no shares, or leave no layer to cut.
    """
    if not (first >= 0 and last >= 0 and first + last < 1):
        raise InputError(f"llm_pruner: first, last: {first}, {last} should not be negative, their sum below 1")
    salience = _salience(vlm, calibration)

    def totals(path: str, dim: int) -> Tensor:
        if level == "weight":
            return salience[path].abs().sum(dim).double()
        vectors = salience[path].double().sum(dim)
        return vectors.abs() if level == "vector" else vectors

    importance: dict[tuple[str, Kind], Tensor] = {
        (block.name, kind): unit_sums(block.units(kind), totals).sum(0).abs() for block, kind in vlm.select("all")
    }
    spared = _spared(vlm, first, last)
    if allocation == "uniform" and not spared:
        return Ranking({key: Ordinal(tuple(values.tolist())) for key, values in importance.items()})
    orders = importance if allocation == "global" else {key: _places(values) for key, values in importance.items()}
    above = 2 * max(float(order.max()) for order in orders.values())  # more than any order
    return Ranking({key: Global(tuple((order + above * (key[0] in spared)).tolist())) for key, order in orders.items()})


def _salience(vlm: VLM, calibration: Calibration) -> dict[str, Tensor]:
    """Weight * gradient of every Linear, (out, in), the gradient averaged over mini-batches."""
    sums: dict[str, Tensor] = {}
    batches = 0

    def see(gradients: Mapping[str, Tensor]) -> None:
        nonlocal batches
        batches += 1
        for path, gradient in gradients.items():
            gradient = gradient.float()  # half precision would lose small values in the sum
            sums[path] = sums[path] + gradient if path in sums else gradient

    calibration.visit_gradients([path for b, k in vlm.select("all") for path in linears(b.units(k))], see)
    return {path: vlm.model.get_parameter(f"{path}.weight").detach() * sum_ / batches for path, sum_ in sums.items()}


def _places(values: Tensor) -> Tensor:
    """The places of values in their order, as shares: in one order over layers, each layer loses the same share."""
    return (values.argsort(stable=True).argsort().double() + 0.5) / len(values)


def _spared(vlm: VLM, first: float, last: float) -> set[str]:
    """Names of the first and last blocks of each tower."""
    towers = [[b.name for b in vlm.blocks if b.component == component] for component in ("vision", "language")]
    return {name for t in towers for name in [*t[: int(first * len(t))], *t[len(t) - int(last * len(t)) :]]}
