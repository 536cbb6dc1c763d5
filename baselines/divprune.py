"""DivPrune: the most diverse visual tokens (Alvar et al. 2025, arXiv 2503.02175).

    d(i, j) = 1 - cos(x_i, x_j); first the token whose nearest other is farthest, then always the one that is farthest
    from its nearest chosen token (the max-min diversity problem, solved greedily)

As in the paper, the tokens are what the language model reads (after the projector), before its first layer. A row with
several images is one set of tokens.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch

from harness.statistics import Calibration
from harness.types import VLM, Ranking, TokenRule

UNITS = "tokens"

Layer = Annotated[int, "of the language model that first reads fewer tokens; the paper's is 0, before it"]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, layer: Layer = 0) -> Ranking:
    """A rule that keeps tokens far from each other, from `layer` on."""
    return Ranking({}, tokens=TokenRule(keep_tokens, layer))


def keep_tokens(states: Any, count: int) -> Any:
    """Positions of `count` tokens, greedily far from each other; among equal ones the earlier is taken."""
    units = torch.nn.functional.normalize(states.float(), dim=1)
    distance = 1 - units @ units.T
    itself = torch.eye(len(states), dtype=torch.bool, device=states.device)
    nearest = distance.masked_fill(itself, torch.inf).min(1).values
    taken = torch.zeros(len(states), dtype=torch.bool, device=states.device)
    chosen = []
    for number in range(count):
        best = nearest.masked_fill(taken, -torch.inf).argmax()
        chosen.append(best)
        taken = taken | itself[best]
        nearest = distance[best] if number == 0 else torch.minimum(nearest, distance[best])
    return torch.stack(chosen)
