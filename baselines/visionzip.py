"""VisionZip: tokens that the tower attends to, the rest merged into a few (Yang et al. 2024, arXiv 2412.04467).

    dominant: the most attention in the tower, of the class token where there is one, else of all patches
    contextual: every k-th of the others; each further one joins the most similar of these, and their mean is added

The paper splits 64 tokens into 54 dominant and 10 contextual ones, which the option `contextual` keeps as a share.
Departures: the paper works on the tower's output and compares keys; here the tokens are those after the projector,
compared by the cosine of themselves, so that one mechanism serves all families. The attention is that of the last block
of the tower whose output is read; a token made from several patches has their mean.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch

from harness.statistics import Calibration
from harness.types import VLM, InputError, Ranking, TokenRule

UNITS = "tokens"

Layer = Annotated[int, "of the language model that first reads fewer tokens; the paper's is 0, before it"]
Share = Annotated[float, "of the tokens that stay, those that others merge into; the paper's is 10/64"]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, layer: Layer = 0, contextual: Share = 0.15625) -> Ranking:
    """A rule that keeps attended tokens and merges the others into a share `contextual` of them, from `layer` on.

    Raises InputError for a share outside [0, 1).
    """
    if not 0 <= contextual < 1:
        raise InputError(f"visionzip: contextual: {contextual} should be at least 0 and below 1")
    return Ranking({}, tokens=TokenRule(keep_tokens, layer, "vision", {"contextual": contextual}))


def keep_tokens(states: Any, count: int, attention: Any, contextual: float) -> Any:
    """Positions of dominant and contextual tokens, (count,), and how all tokens sum to these, (count, n)."""
    size = len(states)
    others = min(round(contextual * count), size - count, count)
    order = attention.argsort(descending=True, stable=True)
    dominant, rest = order[: count - others], order[count - others :].sort().values
    weights = torch.eye(size, device=states.device)
    if others == 0:
        return dominant, weights[dominant]
    step = max(1, len(rest) // others)
    targets = rest[::step][:others]
    merged = rest[~torch.isin(rest, targets)]
    units = torch.nn.functional.normalize(states.float(), dim=1)
    nearest = (units[merged] @ units[targets].T).argmax(1)
    joined = torch.nn.functional.one_hot(nearest, others).T.float()
    means = joined / joined.sum(1, keepdim=True).clamp(min=1)
    sums = weights[targets] + means @ weights[merged]
    return torch.cat([dominant, targets]), torch.cat([weights[dominant], sums])
