"""Recovery after pruning, the same for every method: a bias, a refit, or training of all weights or of some.

    calibration = Calibration(dense, samples, batch_size=16)
    tuned = tune(pruned, calibration, Tuning("full", steps=300), plan=plan, seed=0)  # tuned.vlm, tuned.curve

The dense model is the teacher and is never changed.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.progress import Progress, silent
from harness.pruning.bias import compensate
from harness.pruning.refit import refit
from harness.pruning.training import train
from harness.statistics.calibration import Calibration
from harness.types import VLM, Plan, Tuning


@dataclass(frozen=True)
class Tuned:
    """A recovered model and its cost."""

    vlm: VLM
    curve: tuple[Mapping[str, Any], ...]  # the learning curve of `train`; for bias and refit, a step per Linear
    steps: int
    samples: int  # questions seen, with repetitions


def tune(
    pruned: VLM,
    calibration: Calibration,
    tuning: Tuning,
    *,
    seed: int,
    plan: Plan,
    turn: int = 1,
    progress: Progress = silent,
) -> Tuned:
    """A copy of `pruned`, recovered on the questions of `calibration`, which holds the dense model.

    plan: what was cut from the dense model. With several rounds, `turn` (from 1) gets its share of the steps. The same
    seed gives the same weights on the same machine. Raises FloatingPointError if a training's loss is not finite.
    """
    vlm = dataclasses.replace(pruned, model=copy.deepcopy(pruned.model).eval())
    if tuning.method == "bias":
        return Tuned(vlm, tuple(compensate(vlm, calibration, plan, progress)), 0, len(calibration.samples))
    if tuning.method == "refit":
        return Tuned(vlm, tuple(refit(vlm, calibration, plan, progress)), 0, len(calibration.samples))
    steps = tuning.steps * turn // tuning.rounds - tuning.steps * (turn - 1) // tuning.rounds
    curve, samples = train(vlm, calibration, tuning, steps, seed, progress)
    return Tuned(vlm, tuple(curve), steps, samples)
