"""Drop last: the last layers of tower and language model go; a control without scores.

rank(vlm, calibration, seed=0, spare=1)

Late layers are often said to matter least (Gromov et al. 2024, arXiv 2403.17887). Their simple strategy drops the
deepest layers but the last one, which is `spare=1`; the default spares none. Departure: the same share goes from the
tower and from the language model; the paper has no tower. For budgets between two layers, heads and channels of the
blocks that stay have an order too, which is ours: the mean squared output of each.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harness.statistics import Calibration, output_energy
from harness.types import VLM, Kind, Ordinal, Ranking, Score

UNITS = ["layers", "heads", "ffn"]

Spare = Annotated[int, Field(ge=0), "the last layers that go only after all others; 1 in 2403.17887"]


def rank(vlm: VLM, calibration: Calibration, *, seed: int, spare: Spare = 0) -> Ranking:
    """Order of layers: from the last to the first of each component."""
    scores: dict[tuple[str, Kind], Score] = {key: Ordinal(values) for key, values in output_energy(calibration).items()}
    for component in ("vision", "language"):
        blocks = [block for block in vlm.blocks if block.component == component]
        for place, block in enumerate(reversed(blocks)):
            scores[block.name, "layers"] = Ordinal((float(place if place >= spare else len(blocks) + place),))
    return Ranking(scores)
