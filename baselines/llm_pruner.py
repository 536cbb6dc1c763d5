"""LLM-Pruner: weight times gradient, summed over a unit's coupled weights (Ma et al. 2023, arXiv 2305.11627).

rank(vlm, calibration, seed=0, level="weight")

First order: |sum over the group's w of w * dL/dw|, the group being all weights that leave with a unit, in and out, and
L the answer loss, its gradient averaged over mini-batches. Every layer loses the same share. Departures: the paper
spares the first and last layers and takes its gradient on text; its scripts prune channels of the group in the forms
`vector` and `weight`, its second-order terms are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from torch import Tensor

from harness.calibration import Calibration, linears, unit_sums
from harness.types import VLM, Ordinal, Ranking

Level = Annotated[
    Literal["group", "vector", "weight"],
    "where the absolute value is taken: of the whole group's sum; of each row or column, as the released code's "
    "`vectorize`; or of each weight, its `param_first`",
]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, level: Level = "group") -> Ranking:
    """Order: the absolute first-order change of the loss, at the level of the group, its vectors or its weights."""
    salience: dict[str, Tensor] = {}
    batches = 0

    def see(gradients: Mapping[str, Tensor]) -> None:
        nonlocal batches
        batches += 1
        for path, gradient in gradients.items():
            gradient = gradient.float()  # half precision would lose the small ones in the sum
            salience[path] = salience[path] + gradient if path in salience else gradient

    paths = [path for block, kind in vlm.select("all") for path in linears(block.units(kind))]
    calibration.visit_gradients(paths, see)
    for path in salience:
        salience[path] = vlm.model.get_parameter(f"{path}.weight").detach() * salience[path] / batches

    def totals(path: str, dim: int) -> Tensor:
        if level == "weight":
            return salience[path].abs().sum(dim).double()
        vectors = salience[path].double().sum(dim)
        return vectors.abs() if level == "vector" else vectors

    return Ranking(
        {
            (block.name, kind): Ordinal(tuple(unit_sums(block.units(kind), totals).sum(0).abs().tolist()))
            for block, kind in vlm.select("all")
        }
    )
