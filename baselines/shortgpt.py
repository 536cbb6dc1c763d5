"""ShortGPT: layers by block influence (Men et al. 2024, arXiv 2403.03853).

rank(vlm, calibration, seed=0)

BI = 1 - E[x . f(x) / (|x| |f(x)|)], x and f(x) being a block's input and output, over all tokens; the blocks of least
influence go. Departures: the paper removes blocks of a language model and reads texts (PG19); here the tower's blocks
compete with them, or each component loses the same share, and the calibration questions are read. For budgets between
two layers, heads and channels of the blocks that stay have an order too, which is ours: each one's mean squared output.
"""

from __future__ import annotations

from typing import Annotated, Literal

from harness.statistics import Calibration, output_energy
from harness.types import VLM, Global, Kind, Ordinal, Ranking, Score

UNITS = ["layers", "heads", "ffn"]

Allocation = Annotated[
    Literal["global", "uniform"], "the least of all blocks go, or the same share of tower and language model (ours)"
]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, allocation: Allocation = "global") -> Ranking:
    """Order of layers: the block influence."""
    influence = calibration.block_influence()
    scores: dict[tuple[str, Kind], Score] = {key: Ordinal(values) for key, values in output_energy(calibration).items()}
    for block in vlm.blocks:
        value = (influence[block.name],)
        scores[block.name, "layers"] = Global(value) if allocation == "global" else Ordinal(value)
    return Ranking(scores, {"influence": dict(influence)})
