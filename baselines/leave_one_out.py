"""Leave one out: layers by the answer loss without them (Song et al. 2024, arXiv 2402.09025).

rank(vlm, calibration, seed=0, budget=budget)

As SLEB with its third metric: each step measures the loss without every layer that is left, and removes the layer of
the lowest; the losses are measured anew after each. Departures: the loss is that of the answers, where the paper takes
the perplexity of texts; the tower's layers take part; `per: flops` divides the rise of the loss by what a layer costs,
because layers of tower and language model differ. For budgets between two layers, heads and channels of the blocks that
stay have an order too, which is ours: the mean squared output of each.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from harness.statistics import Calibration, output_energy
from harness.types import VLM, Block, Budget, Global, Kind, Ordinal, Ranking, Score

UNITS = ["layers", "heads", "ffn"]

Per = Annotated[Literal["layer", "flops"], "the lowest loss goes (2402.09025), or the least rise per FLOP (ours)"]
Samples = Annotated[int, Field(ge=0), "calibration questions that the loss is measured on; 0: all"]


def rank(
    vlm: VLM, calibration: Calibration, *, seed: int, budget: Budget, per: Per = "layer", samples: Samples = 0
) -> Ranking:
    """Order of layers: the step at which each goes; those that stay within the budget, by their losses in the end."""
    blocks = [block for block in vlm.blocks if budget.scope in ("all", block.component)]
    cost = {block.name: block.layer.macs(budget.extents[block.component]) for block in blocks}
    gone: list[str] = []
    losses: list[float] = []
    ahead: dict[str, float] = {}
    before = _losses(calibration, samples, (), [""])[""]
    while left := _removable(blocks, gone):
        after = _losses(calibration, samples, tuple(gone), left)
        ahead = {name: (after[name] - before) / (cost[name] if per == "flops" else 1) for name in left}
        if sum(cost[name] for name in gone) >= (1 - budget.keep) * sum(cost.values()):
            break
        first = min(reversed(left), key=ahead.__getitem__)
        gone.append(first)
        before = after[first]
        losses.append(before)
    order = gone + sorted(ahead.keys() - set(gone), key=lambda name: (ahead[name], name))
    places = {name: float(place) for place, name in enumerate(order)}
    scores: dict[tuple[str, Kind], Score] = {key: Ordinal(values) for key, values in output_energy(calibration).items()}
    for block in vlm.blocks:
        scores[block.name, "layers"] = Global((places.get(block.name, float(len(vlm.blocks))),))
    return Ranking(scores, {"removed": gone, "losses": losses})


def _removable(blocks: list[Block], gone: list[str]) -> list[str]:
    """The layers that may go next: not fixed, and not the last of a component."""
    left = [block for block in blocks if block.name not in gone]
    several = {block.component for block in left if sum(other.component == block.component for other in left) > 1}
    return [block.name for block in left if not block.fixed and block.component in several]


def _losses(calibration: Calibration, samples: int, gone: tuple[str, ...], names: list[str]) -> dict[str, float]:
    """The answer loss without the layers that went and each of these, by name; "" stands for no further layer."""

    def measure(missing: list[str]) -> dict[str, float]:
        losses = {}
        for name in missing:
            calibration.progress(f"leave one out: {len(gone) + 1}. layer, {name}")
            gates: dict[tuple[str, Kind], torch.Tensor] = {
                (each, "layers"): torch.zeros(1) for each in (*gone, name) if each
            }
            losses[name] = calibration.answer_loss(gates, samples or None)
        return losses

    return calibration.cached(("leave one out", samples, gone), names, measure)
