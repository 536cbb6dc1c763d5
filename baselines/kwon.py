"""Fisher information of masks on heads and channels (Kwon et al. 2022, arXiv 2204.09656).

rank(vlm, calibration, seed=0, within="block")

Half the mean over samples of (the sum of dL/dm_i over the removed units i)^2, m being masks at 1 and L the loss of one
sample's answer. All masks together would be too many, so blocks do not interact, and units of a block do as in the
paper's rearrangement of masks: units go one by one, each time the one that adds least. With the paper's first search
alone, no two units interact.

Departures: the paper finds the masks of one budget without interactions and then exchanges units within each layer;
here one order serves all budgets, and the solver takes the steps of its lower convex hull. The paper then scales what
stays by least squares; the harness's recoveries take that place, the same for every method.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from harness.statistics import Calibration
from harness.types import VLM, Additive, Ranking, hull

Within = Annotated[
    Literal["block", "unit"], "what interacts: the units of a block, the paper's block diagonal; or none, its diagonal"
]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, within: Within = "block") -> Ranking:
    """Damage: the estimated rise of the answer loss when a unit goes, in nats per answer token."""
    tokens = torch.tensor([float((batch["labels"] != -100).sum()) for batch in calibration.singly.batches()])
    scores = {}
    for key, rows in calibration.singly.gate_gradients().items():
        summed = rows * tokens[:, None] / (2 * tokens.sum()).sqrt()  # over the answer tokens of a sample
        damage = summed.square().sum(0) if within == "unit" else interacting(summed)
        scores[key] = Additive(tuple(damage.tolist()))
    return Ranking(scores)


def interacting(rows: Tensor) -> Tensor:
    """What each unit adds to the square of the removed units' sum, (count,), when the one that adds least goes next.

    rows: (samples, count). The steps are those of the lower convex hull, so that they rise in the order of removal.
    """
    count = rows.shape[1]
    own, gone, totals, order = rows.square().sum(0), rows.new_zeros(len(rows)), [0.0], []
    taken = torch.zeros(count, dtype=torch.bool)
    for _ in range(count):
        rises = (own + 2 * (gone @ rows)).masked_fill(taken, torch.inf)
        unit = int(rises.argmin())
        taken[unit] = True
        gone = gone + rows[:, unit]
        order.append(unit)
        totals.append(float(gone.square().sum()))
    damage = rows.new_zeros(count)
    for start, end in pairwise(hull([(count - number, total) for number, total in enumerate(totals)])):
        damage[order[start:end]] = (totals[end] - totals[start]) / (end - start)
    # Within one step of the hull the order decides, by less than what could change another choice.
    damage[order] += torch.arange(count, dtype=rows.dtype) * 1e-12 * damage.max()
    return damage
