"""InfoPrune (reconstructed): information loss of heads, adaptive ranks of FFNs (Xu et al. 2025, arXiv 2511.19518).

    rank(vlm, calibration, seed=0, arm="factor", search="leave-one-out")

The paper's text and code are not public to us: what it leaves open is an option (options.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from baselines.infoprune import options
from baselines.infoprune.channels import select
from baselines.infoprune.compose import compose
from baselines.infoprune.ffn import Arm, Ffn, factor
from baselines.infoprune.heads import Layer, Loss, score
from harness.calibration import Calibration, Lazy, Moment, linears
from harness.types import VLM, Additive, Block, InputError, Kind, Option, Options, Ranking, Score

ROLE = "studied"
WEIGHT_SAMPLES = 64


def regime(given: Mapping[str, Any]) -> str:
    """`repaired` for the arms that refit weights by least squares on calibration data, else `training-free`."""
    return "repaired" if given["arm"] in ("compose-refit", "select") else "training-free"


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    alpha: options.Alpha = 0.5,
    beta: options.Beta = 1.0,
    distribution: options.Distribution = "amplitude",
    ks_over: options.KsOver = "cumulative",
    k: options.K = 0.99,
    output: options.Output = "layer",
    search: options.Search = "greedy",
    arm: options.FfnArm = "select",
    whiten: options.Whiten = True,
    weigh: options.Weigh = "ablation",
) -> Ranking:
    """Damage of a head: the change of J = alpha * eRank ratio + beta * KS distance; of an FFN: the energy it loses.

    Both are shares of a layer's output, times the layer's weight, and so can be compared. By default alpha is below
    beta: J is alpha for the full layer and beta for the empty one, so that otherwise a collapse would cost nothing. An
    FFN with a gate has no product W2 W1: there the compose arms become `factor`. Raises InputError for a k that is out
    of range.
    """
    if not (k >= 1 if isinstance(k, int) else 0 < k < 1):
        raise InputError(f"infoprune: k: {k} should be a share of the energy in (0, 1) or a whole number from 1 on")
    loss = Loss(alpha, beta, distribution, ks_over, k)
    paths = [block.heads.consumer for block in vlm.blocks] + ffn_inputs(vlm, arm, whiten)
    moments, scarce = regularised_moments(calibration, paths)
    weights = layer_weights(vlm, calibration, weigh)
    scores: dict[tuple[str, Kind], Score] = {}
    log: dict[str, Any] = {}
    # In the order of the forward pass, in which moments are made: a large model's do not fit in memory together.
    for block in vlm.blocks:
        damage, head_log = score(head_layer(vlm, block, moments, output), loss, search)
        points, ffn_log = compress(vlm, block, calibration, moments, arm, whiten)
        worth = {kind: weights.get((block.name, kind), 1.0) for kind in ("heads", "ffn")}
        scores[block.name, "heads"] = Additive(tuple(worth["heads"] * value for value in damage))
        scores[block.name, "ffn"] = weighed(points, worth["ffn"])
        log[block.name] = {"heads": head_log, "ffn": ffn_log} | ({"weight": worth} if weights else {})
    return Ranking(scores, rounded(({"regularised": sorted(scarce, key=paths.index)} if scarce else {}) | log))


def head_layer(vlm: VLM, block: Block, moments: Mapping[str, Moment], output: options.Output) -> Layer:
    """What J needs of a block's heads: the covariance of what their Linear reads, and its weight, in float64."""
    weight = vlm.model.get_parameter(f"{block.heads.consumer}.weight").detach().double()
    return Layer(moments[block.heads.consumer].covariance, weight, block.heads.count, output)


def ffn_inputs(vlm: VLM, arm: Arm, whiten: bool) -> list[str]:
    """Paths of the Linears whose input moments an arm needs."""
    if arm == "select":
        return [block.ffn.consumer for block in vlm.blocks]
    if whiten:
        return [path for block in vlm.blocks for path in linears(block.ffn)]
    return []


def compress(
    vlm: VLM, block: Block, calibration: Calibration, moments: Mapping[str, Moment], arm: Arm, whiten: bool
) -> tuple[Options, dict[str, Any]]:
    """The points that an arm offers for a block's FFN, and a log."""
    ffn = Ffn.found(vlm.model, block.ffn)
    if arm == "select":
        # A ranking that is pickled takes all values of this mapping along: this one path, not those of all blocks.
        return select(ffn, Lazy([block.ffn.consumer], moments.__getitem__), whiten)
    if arm == "factor" or block.ffn.gated:
        return factor(ffn, (lambda path: moments[path].second) if whiten else None)
    (first,) = ffn.producers
    reads = [b.ffn.producers[0].module for b in vlm.blocks if not b.ffn.gated]  # rows of all blocks in one pass
    return compose(ffn, arm, calibration.rows(reads)[first.path], moments[first.path].second if whiten else None)


def weighed(points: Options, weight: float) -> Options:
    """The options with their losses multiplied by `weight`."""
    aligned = points.aligned
    return Options(
        tuple(Option(p.label, p.token_macs, weight * p.loss, p.make) for p in points.points),
        None if aligned is None else lambda step: weighed(aligned(step), weight),
    )


def layer_weights(vlm: VLM, calibration: Calibration, weigh: options.Weigh) -> dict[tuple[str, Kind], float]:
    """The weight of each (block, kind) in the solver's trade between layers; empty for `one`.

    ablation: how far the answer loss, in nats, on 64 samples rises when all units of one kind of a block are removed: a
    measure of the I(Y; Z) that the layer carries. gradient: the same to first order, the sum of
    the squared gate derivatives, from one pass.
    """
    if weigh == "one":
        return {}
    if weigh == "gradient":
        return {key: float(grad.square().sum(1).mean()) for key, grad in calibration.gate_gradients().items()}
    dense = calibration.answer_loss(samples=WEIGHT_SAMPLES)
    found: dict[tuple[str, Kind], float] = {}
    for block, kind in vlm.select("all"):
        calibration.progress(f"infoprune: weight of {block.name} {kind}")
        gone = torch.zeros(block.units(kind).count, device=next(vlm.model.parameters()).device)
        found[block.name, kind] = calibration.answer_loss({(block.name, kind): gone}, WEIGHT_SAMPLES) - dense
    # Removing a layer without which answers get no worse must still cost something, or its units would be cut blindly.
    floor = 1e-3 * max(found.values(), default=1.0)
    return {key: max(value, floor, 1e-12) for key, value in found.items()}


def regularised_moments(calibration: Calibration, paths: list[str]) -> tuple[Mapping[str, Moment], list[str]]:
    """Moments by path that can be inverted, and a list of the Linears with too little data, which grows with look-ups.

    A moment of n rows and d > n columns is shrunk towards its diagonal by the share 1 - n / d, with a warning.
    """
    found = calibration.moments(paths)
    scarce: list[str] = []

    def fit(path: str) -> Moment:
        moment = found[path]
        width = len(moment.mean)
        if moment.count >= width:
            return moment
        if path not in scarce:
            logging.getLogger(__name__).warning(
                "infoprune: %s: %d calibration rows for %d columns; its covariance is regularised",
                path, moment.count, width,
            )  # fmt: skip
            scarce.append(path)
        share = 1 - moment.count / width
        return Moment(moment.count, moment.mean, _towards_diagonal(moment.second, share))

    return Lazy(paths, fit), scarce


def _towards_diagonal(second: Tensor, share: float) -> Tensor:
    return (1 - share) * second + share * torch.diag(second.diagonal())


def rounded(value: Any) -> Any:
    """The log with three significant digits, as it is copied into every record."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.3g}") if isinstance(value, float) else value
