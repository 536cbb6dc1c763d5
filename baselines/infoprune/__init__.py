"""InfoPrune (reconstructed): head gates trained under information loss, adaptive ranks of FFNs (arXiv 2511.19518).

    rank(vlm, calibration, seed=0, budget=Budget("vision", 0.5, extents=extents), steps=200)

Xu et al. 2025. Algorithm 1: one gate per head (or KV group), frozen weights; task loss + information loss J + a
Lagrangian that holds the expected FLOPs at the budget (CoFi, arXiv 2204.00408). Gates only order the heads; the solver
then cuts exactly. Algorithm 2: FFNs of low rank, without training. We know neither the paper's full text nor its code,
so every open choice is an option (options.py).
"""

from __future__ import annotations

import itertools
import math

from baselines.hard_concrete import BATCH as BATCH
from baselines.infoprune import options
from baselines.infoprune.gates import Training, threshold
from baselines.infoprune.heads import Layer, Loss
from baselines.infoprune.moments import regularised_moments
from baselines.infoprune.untrained import rounded, untrained
from harness.statistics import Calibration
from harness.types import VLM, Additive, Budget, Options, Ranking, hull

ROLE, REGIME = "studied", "trained"


def rank(
    vlm: VLM,
    calibration: Calibration,
    *,
    seed: int,
    budget: Budget,
    steps: options.Steps = 240,
    rate: options.Rate = 0.1,
    gate: options.Gate = "hard-concrete",
    task: options.Task = "kl",
    information: options.Information = 0.1,
    alpha: options.Alpha = Loss.alpha,
    beta: options.Beta = Loss.beta,
    distribution: options.Distribution = Loss.distribution,
    ks_over: options.KsOver = Loss.ks_over,
    k: options.K = Loss.k,
    output: options.Output = "layer",
    arm: options.FfnArm = "factor",
    whiten: options.Whiten = True,
) -> Ranking:
    """Heads of the budget's scope by ln a of gates trained for it; everything else as in `infoprune_free`.

    The split of the budget between heads and FFNs comes from the ranking without training, at the point where a FLOP
    costs the same loss in both. Within the heads' share, the trained order decides. Raises InputError for a k out of
    range.
    """
    loss = Loss(alpha, beta, distribution, ks_over, k)
    start = untrained(vlm, calibration, loss, output=output, search="greedy", arm=arm, whiten=whiten)
    blocks = [block for block, kind in vlm.select(budget.scope, budget.units) if kind == "heads"]
    if not blocks:
        return start
    price, share = exchange(vlm, start, budget)
    moments, _ = regularised_moments(calibration, [block.heads.consumer for block in blocks])
    layers = {block.name: Layer.of(vlm, block, moments, output) for block in blocks}
    macs = {block.name: block.heads.macs(budget.extents[block.component]) for block in blocks}
    training = Training(vlm, calibration, loss, layers, macs, share, seed, gate, task, information)
    curve = training.run(steps, rate)
    logits = {name: value.tolist() for name, value in training.logits.items()}
    level = threshold([(logit, macs[name]) for name in logits for logit in logits[name]], share)
    scores = dict(start.scores)
    for name in logits:  # at the threshold, a head's damage per FLOP is the price at which FFNs stop to be cut
        scores[name, "heads"] = Additive(
            tuple(price * macs[name] * math.exp(max(-20, min(20, logit - level))) for logit in logits[name])
        )
    gates = {"share_of_heads": share, "curve": curve, "logits": logits}
    return Ranking(scores, {**start.log, "gates": rounded(gates)})


def exchange(vlm: VLM, ranking: Ranking, budget: Budget) -> tuple[float, float]:
    """The loss per multiply-add at which a joint cut meets the budget, and the share of the heads' FLOPs kept there."""
    steps: list[tuple[float, float, bool]] = []  # (loss per multiply-add, multiply-adds saved, whether of a head)
    total = heads = 0.0
    for block, kind in vlm.select(budget.scope, budget.units):
        extent, units = budget.extents[block.component], block.units(kind)
        total += units.count * units.macs(extent)
        score = ranking.scores[block.name, kind]
        if isinstance(score, Additive):
            heads += units.count * units.macs(extent)
            steps += [(damage / units.macs(extent), units.macs(extent), True) for damage in score.damage]
        elif isinstance(score, Options):
            steps += [(slope / extent.tokens, saved * extent.tokens, False) for slope, saved in descent(score)]
    excess, kept, last = (1 - budget.keep) * total, heads, 0.0
    for price, saved, of_head in sorted(steps):
        if excess <= 0:
            break
        excess, last = excess - saved, price
        kept -= saved * of_head
    return max(last, 1e-12), max(0.0, kept / heads)


def descent(score: Options) -> list[tuple[float, int]]:
    """(loss per multiply-add, multiply-adds saved) of each step down the lower convex hull of cost and loss."""
    ladder = [(point.token_macs, point.loss) for point in score.points]
    corners = [ladder[place] for place in hull(ladder)]
    return [
        ((lower[1] - higher[1]) / (higher[0] - lower[0]), higher[0] - lower[0])
        for higher, lower in itertools.pairwise(corners)
    ]
