"""ASVD: SVD of Linears scaled by what they read, ranks by measured sensitivity (Yuan et al. 2023, arXiv 2312.05821).

rank(vlm, calibration, seed=0, alpha=0.5, allocation="threshold", least=0.1, samples=32)

S = diag((mean |X_j|)^alpha), W S = U Sigma V^T; W becomes U_r and Sigma_r V_r^T S^-1. Ranks by STRS: each Linear alone
is cut to 0.9, 0.8 .. of its cost, and the answer loss is measured on a few samples. Then each Linear gets the least
share whose perplexity is under a common threshold, which the budget sets. Perplexity is exp(loss), so a threshold on
the loss is the same. Checked against the released code (hahnyuan/ASVD4LLM, sensitivity.py and binary_search.py).
Departures: the Linear that meets the budget stops between two shares; below the least share, where the released code
stops, all Linears fall together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from math import exp
from typing import Annotated, Literal

import numpy as np
from torch import Tensor, nn

from baselines.linalg import decompose
from baselines.low_rank import Factorable, Loss, decomposed, equal_shares, factorables, low_rank
from harness.statistics import Calibration, linears
from harness.types import VLM, InputError, Ranking

TAIL = 40  # steps from the least share to nothing

Alpha = Annotated[float, "power of the mean absolute input in the scale; 0.5 is the paper's choice (2312.05821)"]
Allocation = Annotated[
    Literal["threshold", "uniform"], "ranks by one threshold on the loss for all (STRS, 2312.05821), or equal shares"
]
Least = Annotated[float, "least share that is tried; 0.1 in the paper (2312.05821), 0.4 in its released code"]
Samples = Annotated[int, "calibration samples on which the loss is measured; 32 in the released code"]
Rises = Sequence[tuple[float, float]]  # (share kept, rise of the answer loss in nats), by falling share


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    alpha: Alpha = 0.5,
    allocation: Allocation = "threshold",
    least: Least = 0.1,
    samples: Samples = 32,
) -> Ranking:
    """Points by the rise of the answer loss, in nats, when only this Linear is cut to a share of its cost.

    Raises InputError if `least` is not from 0.1 to 0.9, or `samples` is below 1.
    """
    if not 0.1 <= least <= 0.9:
        raise InputError(f"asvd: least: {least} should be from 0.1 to 0.9")
    if samples < 1:
        raise InputError(f"asvd: samples: {samples} should be at least 1")
    parts = vlm.select("all")
    features = calibration.features([path for block, kind in parts for path in linears(block.units(kind))])
    scales = {path: feature.absolute.pow(2 * alpha) for path, feature in features.items()}
    decomposition = [decomposed(factorables(vlm.model, block.units(kind)), scales.__getitem__) for block, kind in parts]
    every = [linear for found in decomposition for linear in found]
    if allocation == "uniform":
        rises, losses = {}, {linear.path: equal_shares(linear) for linear in every}
    else:
        few = Calibration(vlm, calibration.samples[:samples], calibration.batch_size)
        shares = [step / 10 for step in range(9, 0, -1) if step / 10 >= least]
        rises = sensitivity(vlm, few, every, shares, calibration.progress)
        losses = thresholds(every, rises)
    scores = {}
    for (block, kind), found in zip(parts, decomposition, strict=True):
        scores[block.name, kind] = low_rank(block.units(kind), found, [losses[linear.path] for linear in found])
    shown = {path: [float(f"{rise:.3g}") for _, rise in found] for path, found in rises.items()}
    return Ranking(scores, {"rise": shown} if shown else {})


def sensitivity(
    vlm: VLM, few: Calibration, every: Sequence[Factorable], shares: Sequence[float], progress: Callable[[str], None]
) -> dict[str, Rises]:
    """By path, the rise of the answer loss with only this Linear cut to each share that its ranks allow."""
    dense, rises = few.answer_loss(), {}
    for number, linear in enumerate(every):
        progress(f"asvd: Linear {number + 1} of {len(every)}")
        ranks = dict.fromkeys(linear.rank(share) for share in shares)
        rises[linear.path] = [(linear.share(r), _answer_loss(vlm, few, linear, r) - dense) for r in ranks]
    return rises


def _answer_loss(vlm: VLM, few: Calibration, linear: Factorable, rank: int) -> float:
    down, up = (linear.part or decompose(linear.weight)).factors(linear.weight, rank)

    def pair(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(args[0], down), up, linear.bias)

    hook = vlm.model.get_submodule(linear.path).register_forward_hook(pair)
    try:
        return few.answer_loss()
    finally:
        hook.remove()


def thresholds(every: Sequence[Factorable], rises: Mapping[str, Rises]) -> dict[str, Loss]:
    """Losses with which the solver raises one threshold for all Linears, from the least rise upwards.

    The slope of a step between two shares grows exponentially with the place of its threshold among all thresholds, so
    that other token counts do not change the order of distant thresholds.
    """
    # The threshold at which a Linear falls to a share: the least rise of this share and the smaller ones.
    reached = {path: list(accumulate((rise for _, rise in found[::-1]), min))[::-1] for path, found in rises.items()}
    places = sorted({rise for found in reached.values() for rise in found})
    level = {rise: place / len(places) for place, rise in enumerate(places)}
    losses = {}
    for linear in every:
        shares = [share for share, _ in rises[linear.path]]
        steps = [(share, level[rise]) for share, rise in zip(shares, reached[linear.path], strict=True)]
        steps += [(shares[-1] * (1 - n / TAIL), 1 + n / (2 * TAIL)) for n in range(1, TAIL + 1)]
        corners = [(1.0, 0.0)]
        for share, height in steps:
            before, loss = corners[-1]
            corners.append((share, loss + (before - share) * linear.weight.numel() * exp(400 * height)))
        losses[linear.path] = partial(_interpolated, *zip(*corners[::-1], strict=True))
    return losses


def _interpolated(shares: Sequence[float], losses: Sequence[float], share: float) -> float:
    return float(np.interp(share, shares, losses))
