"""L0 gates: head gates trained under the task loss alone, adaptive ranks of FFNs (Louizos et al. 2018, 1712.01312).

    rank(vlm, calibration, seed=0, budget=Budget("vision", 0.5, extents=extents))

Hard-concrete gates and a Lagrangian that holds the expected FLOPs at the budget, as CoFi's holds parameters (Xia et al.
2022, arXiv 2204.00408). This is `infoprune` without the information loss, so it shows what that adds to plain gates;
the FFNs and the split of the budget between heads and FFNs are the same. Departures: Louizos et al. train weights and
gates together; here, as in `infoprune`, weights are frozen and gates only order the heads.
"""

from __future__ import annotations

from baselines import infoprune
from baselines.hard_concrete import BATCH as BATCH
from baselines.infoprune import options
from harness.statistics import Calibration
from harness.types import VLM, Budget, Ranking

REGIME = "trained"


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    budget: Budget,
    steps: options.Steps = 240,
    rate: options.Rate = 0.1,
    task: options.Task = "kl",
) -> Ranking:
    """Heads of the budget's scope by ln a of gates trained for it; FFNs by their dropped energy."""
    how = {"steps": steps, "rate": rate, "task": task}
    return infoprune.rank(vlm, calibration, seed=seed, budget=budget, information=0.0, **how)  # type: ignore[arg-type]
