"""FLAP: how much what a unit sends fluctuates; what stays of it becomes a bias (An et al. 2023, arXiv 2312.11983).

rank(vlm, calibration, seed=0, compensate=False)

Column j of the consumer scores Var(X_j) * ||W_:j||^2 (the paper's WIFV), z-scored over the layer's columns; a unit
scores the mean over its columns. Units of all layers compete by this score alone. The paper's budget counts a head as
512/3 neurons, which holds for LLaMA; here a unit costs its multiply-adds on the calibration inputs, and its damage is
its score times its cost, so that the damage per multiply-add is the score. Repair: W_:j * mean(X_j) of the removed
columns is added to the consumer's bias.

FLAP collapses on the embedded model's language part, and the formula is the reason: like the released code, it applies
one threshold to the z-scores of all layers. In two of the four layers the variance of one channel is so extreme (z
about 16, the maximum for 256 channels) that all others have a z of about -0.07, which is more than seven of the 16 KV
groups have. So the cut to 0.9 of the FLOPs removes four KV groups, half of those of two layers, and hardly any channel:
the answer loss rises by 0.41 nats (dev questions). Cutting channels alone to 0.75 costs nothing, cutting KV groups
alone 0.44. The plan is the same without the squares; without the repair the loss rises by 0.39.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch

from harness.calibration import Calibration
from harness.types import VLM, Additive, Dense, Keep, Plan, Ranking

Heads = Annotated[
    Literal["squared", "plain"], "the metric of attention columns before the z-score; squared is the released code's"
]
Compensate = Annotated[bool, "add what the columns that went put out on average to the bias (2312.11983)"]


def regime(given: Mapping[str, Any]) -> str:
    """`repaired` if biases are compensated, `training-free` if not."""
    return "repaired" if given["compensate"] else "training-free"


def rank(
    vlm: VLM, calibration: Calibration, *, seed: int, heads: Heads = "squared", compensate: Compensate = True
) -> Ranking:
    """Damage: a unit's mean z-score times its multiply-adds; negative where the score is."""
    features = calibration.features(block.units(kind).consumer for block, kind in vlm.select("all"))
    scores = {}
    for block, kind in vlm.select("all"):
        units = block.units(kind)
        weight = vlm.model.get_parameter(f"{units.consumer}.weight").detach().double()
        metric = features[units.consumer].variance * weight.square().sum(0)
        if kind == "heads" and heads == "squared":
            metric = metric.square()
        spread = float(metric.std())
        z = (metric - metric.mean()) / (spread or 1.0)
        cost = units.macs(calibration.extents[block.component])
        scores[block.name, kind] = Additive(tuple((z.unflatten(0, (units.count, -1)).mean(1) * cost).tolist()))
    return Ranking(scores)


def repair(vlm: VLM, calibration: Calibration, plan: Plan, *, compensate: Compensate = True) -> Mapping[str, Dense]:
    """The consumers' cut weights, and biases to which the mean output of the removed columns is added."""
    cut = {
        key: part
        for key, part in plan.parts.items()
        if isinstance(part, Keep) and len(part.indices) < vlm.block(key[0]).units(key[1]).count
    }
    if not compensate:
        return {}
    features = calibration.features(vlm.block(name).units(kind).consumer for name, kind in cut)
    made = {}
    for (name, kind), part in cut.items():
        units = vlm.block(name).units(kind)
        linear = vlm.model.get_submodule(units.consumer)
        weight, bias = (linear._parameters[parameter] for parameter in ("weight", "bias"))
        assert weight is not None
        stays = torch.zeros(units.count, dtype=torch.bool, device=weight.device)
        stays[list(part.indices)] = True
        stays = stays.repeat_interleave(units.width)
        lost = weight.detach()[:, ~stays].double() @ features[units.consumer].mean[~stays]
        made[units.consumer] = Dense(weight.detach()[:, stays], lost if bias is None else bias.detach().double() + lost)
    return made
