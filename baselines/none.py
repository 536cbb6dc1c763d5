"""Dense: the model as it is.

infoprune list methods
"""

from __future__ import annotations

from harness.statistics import Calibration
from harness.types import VLM, Ranking


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Rank nothing, so nothing can be removed."""
    return Ranking({})
