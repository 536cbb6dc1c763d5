"""Fisher information of masks on heads and channels (Kwon et al. 2022, arXiv 2204.09656).

rank(vlm, calibration, seed=0, within="block")

Half the mean square of dL/dm_i, m being masks at 1 and L the loss of one question's answer, says how many units of each
layer and kind go: the paper's search by the diagonal of the Fisher matrix. Its rearrangement, by the diagonal's blocks,
says which of them: units go one by one, each time the one that adds least to the square of the removed units' sum of
derivatives. `within="unit"` leaves the rearrangement out, and then a head has the damage that `fisher` gives it.

Departures: the released script squares mini-batches of questions, here as in the paper each question counts by itself.
It rearranges anew for each budget, going once over the kept units from the first search's choice; here one order, which
begins with no unit, serves all budgets. The paper then scales what stays by least squares; the harness's recoveries
take that place, the same for every method.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from harness.statistics import Calibration
from harness.types import VLM, Additive, Ranking

Within = Annotated[
    Literal["block", "unit"], "which units of one kind in a block go: chosen together, as rearranged, or each by itself"
]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, within: Within = "block") -> Ranking:
    """Damage: the estimated rise of the answer loss when a unit goes, in nats per answer token.

    With `block` these values are dealt out anew, the smallest to the unit that goes first.
    """
    tokens = torch.tensor([float((batch["labels"] != -100).sum()) for batch in calibration.singly.batches()])
    scores = {}
    for key, rows in calibration.singly.gate_gradients().items():
        summed = rows * tokens[:, None] / (2 * tokens.sum()).sqrt()  # over the answer tokens of a sample
        damage = summed.square().sum(0)
        if within == "block":
            damage[removals(summed)] = damage.sort().values
        scores[key] = Additive(tuple(damage.tolist()))
    return Ranking(scores)


def removals(rows: Tensor) -> Tensor:
    """The units (count,) in the order in which they go: next the one that adds least to the square of their sum.

    rows: (samples, count).
    """
    own, gone = rows.square().sum(0), rows.new_zeros(len(rows))
    taken, order = torch.zeros(len(own), dtype=torch.bool), []
    for _ in own:
        unit = int((own + 2 * (gone @ rows)).masked_fill(taken, torch.inf).argmin())
        taken[unit] = True
        gone = gone + rows[:, unit]
        order.append(unit)
    return torch.tensor(order)
