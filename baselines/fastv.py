"""FastV: visual tokens by the attention of the last token (Chen et al. 2024, arXiv 2403.06764).

    score_i = mean over heads of softmax(q_last K^T)_i in the layer before the cut; the largest stay

The paper cuts after the second layer (K = 2) and gives the share that goes; here the budget gives it. The last token
is that of the whole prompt, as in the released code, and the choice is made once, in the prefill.
"""

from __future__ import annotations

from typing import Annotated, Any

from harness.statistics import Calibration
from harness.types import VLM, Ranking, TokenRule

UNITS = "tokens"

Layer = Annotated[int, "of the language model that first reads fewer tokens, at least 1; the paper's K is 2"]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, layer: Layer = 2) -> Ranking:
    """A rule that keeps the tokens with the most attention of the last token, from `layer` on."""
    return Ranking({}, tokens=TokenRule(keep_tokens, layer, "text"))


def keep_tokens(states: Any, count: int, attention: Any) -> Any:
    """Positions of the `count` tokens that receive the most attention; among equal ones the earlier stays."""
    return attention.argsort(descending=True, stable=True)[:count]
