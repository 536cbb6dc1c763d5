"""ASVD: SVD of FFN Linears scaled by what they read, ranks by sensitivity (Yuan et al. 2023, arXiv 2312.05821).

rank(vlm, calibration, seed=0, alpha=1.0, allocation="uniform")

S = diag((mean |X_j|)^alpha), W S = U Sigma V^T; W becomes U_r and Sigma_r V_r^T S^-1. Ranks by STRS: each Linear alone
is cut to 0.1, 0.2 .. 0.9 of its cost, and the rise of the answer loss on a few samples is measured. Departures: the
paper gives each Linear the least share whose perplexity is under a common threshold, found by bisection; here the
solver trades the rises, interpolated on their lower convex hull, against multiply-adds. Attention stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from torch import Tensor, nn

from baselines.linalg import decompose
from baselines.low_rank import Factorable, decomposed, equal_shares, factorables, low_rank
from harness.calibration import Calibration, linears
from harness.types import VLM, InputError, Ranking, hull

UNITS = "ffn"
FREE = 1e-6  # nats per share given up where the loss does not rise, so that the solver cuts no more than it has to
SHARES = tuple(step / 10 for step in range(1, 10))  # the paper's candidates

Alpha = Annotated[float, "power of the mean absolute input in the scale; 0.5 is the paper's choice (2312.05821)"]
Allocation = Annotated[
    Literal["sensitivity", "uniform"], "ranks by the measured rise of the loss (STRS, 2312.05821), or equal shares"
]
Samples = Annotated[int, "calibration samples on which the rise is measured; 32 in the released code"]


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    alpha: Alpha = 0.5,
    allocation: Allocation = "sensitivity",
    samples: Samples = 32,
) -> Ranking:
    """Loss of a Linear: the rise of the answer loss when it alone is cut to a share of its cost, in nats.

    Raises InputError for a number of samples below 1.
    """
    if samples < 1:
        raise InputError(f"asvd: samples: {samples} should be at least 1")
    features = calibration.features([path for block in vlm.blocks for path in linears(block.ffn)])
    second = {path: feature.absolute.pow(2 * alpha) for path, feature in features.items()}
    few = Calibration(vlm, calibration.samples[:samples], calibration.batch_size)
    dense = few.answer_loss() if allocation == "sensitivity" else 0.0
    scores, log = {}, {}
    for block in vlm.blocks:
        found = decomposed(factorables(vlm.model, block.ffn), second.__getitem__)
        losses = [equal_shares(linear) for linear in found]
        if allocation == "sensitivity":
            calibration.progress(f"asvd: sensitivity of {block.name}")
            rises = [[(share, loss - dense) for share, loss in sensitivity(vlm, few, linear)] for linear in found]
            losses = [interpolated(rise) for rise in rises]
            log[block.name] = {
                linear.path.rsplit(".", 1)[-1]: [float(f"{value:.3g}") for _, value in rise]
                for linear, rise in zip(found, rises, strict=True)
            }
        scores[block.name, "ffn"] = low_rank(block.ffn, found, losses)
    return Ranking(scores, {"rise": log} if log else {})


def sensitivity(vlm: VLM, few: Calibration, linear: Factorable) -> list[tuple[float, float]]:
    """(share of its cost, answer loss in nats) with this Linear alone cut to each of SHARES, as far as ranks allow."""
    module, part = vlm.model.get_submodule(linear.path), linear.part or decompose(linear.weight)
    found = []
    for kept in dict.fromkeys(max(1, int(share / linear.share(1))) for share in SHARES):
        down, up = part.factors(linear.weight, kept)

        def pair(
            _: nn.Module, args: tuple[Tensor, ...], output: Tensor, down: Tensor = down, up: Tensor = up
        ) -> Tensor:
            return nn.functional.linear(nn.functional.linear(args[0], down), up, linear.bias)

        hook = module.register_forward_hook(pair)
        try:
            found.append((linear.share(kept), few.answer_loss()))
        finally:
            hook.remove()
    return found


def interpolated(rises: list[tuple[float, float]]) -> Callable[[float], float]:
    """The rise of the loss, in nats, as a function of the share kept: the lower convex hull of measured points.

    rises: (share, rise), to which (1, 0) is added; a rise below that of a larger share is raised to it first. Below the
    least share the hull's last slope goes on, and FREE per share given up is added everywhere.
    """
    points, highest = [], 0.0
    for share, rise in sorted([*rises, (1.0, 0.0)], reverse=True):
        highest = max(highest, rise)
        points.append((share, highest))
    corners = [points[place] for place in hull(points)]

    def loss(share: float) -> float:
        place = next((i for i, (x, _) in enumerate(corners) if i > 0 and x <= share), len(corners) - 1)
        (x, y), slope = corners[place - 1], _slope(corners[place - 1], corners[place])
        return y + slope * (x - share) + FREE * (1 - share)

    return loss


def _slope(higher: tuple[float, float], lower: tuple[float, float]) -> float:
    """Rise of the loss per share given up, between two points."""
    return (lower[1] - higher[1]) / (higher[0] - lower[0])
