"""Random tokens: a random part of the visual tokens goes on, the floor every choice has to beat.

rank(vlm, calibration, seed=0).tokens.keep(states, count, seed=0)
"""

from __future__ import annotations

from typing import Annotated, Any

import torch

from harness.statistics import Calibration
from harness.types import VLM, Ranking, TokenRule

UNITS = "tokens"
ROLE = "floor"

Layer = Annotated[
    int, "of the language model that first reads fewer tokens; 0 is before it. Ours: as most methods here"
]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, layer: Layer = 0) -> Ranking:
    """A rule that draws tokens before this layer of the language model; no units are ranked."""
    return Ranking({}, tokens=TokenRule(keep_tokens, layer, options={"seed": seed}))


def keep_tokens(states: Any, count: int, seed: int) -> Any:
    """Positions drawn uniformly, without replacement; the same for all rows with as many tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(states), generator=generator)[:count]
