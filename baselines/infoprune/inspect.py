"""The numbers behind the paper's figures 1, 2 and 5: rows for `infoprune inspect heads`, `ffn` and `survivors`.

rows = heads(vlm, calibration)  # {"block": "vision.0", "head": 3, "entropy": 2.1, "importance": 0.8, ...}
agreement(rows, "vision")["j", "damage"]["spearman"]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from baselines.infoprune.correlation import correlation
from baselines.infoprune.ffn import Ffn
from baselines.infoprune.heads import Layer, Loss, score
from baselines.infoprune.moments import regularised_moments
from baselines.infoprune.spectrum import effective_rank, masked_spectrum
from baselines.linalg import decompose
from harness.progress import Track, untracked
from harness.statistics import Calibration
from harness.types import VLM, Additive, Choice, Keep, Kind, Options, Plan, Ranking

Rows = list[dict[str, Any]]

SPARSE = 0.05  # a row is sparse if its L1 norm is below this share of its length
SPECTRUM = 64  # singular values stored per matrix, evenly spaced
SCORES = {
    "importance": "negative entropy",
    "j": "J, leave-one-out",
    "score": "J, greedy",
    "taylor": "Taylor",
    "damage": "true damage",
}


def heads(vlm: VLM, calibration: Calibration, track: Track = untracked) -> Rows:
    """One row per head (or KV group); the larger a score, the more important the head.

    entropy: of s / sum s over the singular values s of the head's contribution A_h W_h, in nats; 0 for a head without
    output. importance: the negative entropy, min-max normalised over the component (figure 1; which matrix the paper
    takes is not public). j: the change of J if only this head is removed. score: that of `infoprune_free` with its
    defaults. taylor: the mean squared derivative of the answer loss by a gate on the head. damage: the rise of the
    answer loss with that gate at 0, in nats.
    """
    loss = Loss()
    moments, _ = regularised_moments(calibration, [block.heads.consumer for block in vlm.blocks])
    gradients = calibration.gate_gradients()
    dense = calibration.answer_loss()
    rows: Rows = []
    scores: dict[str, list[dict[str, float]]] = {}
    for block in track(vlm.blocks, "spectra of the layers"):
        layer = Layer.of(vlm, block, moments)
        single_masks = torch.eye(layer.count, device=layer.weight.device)
        ranks = effective_rank(masked_spectrum(layer.covariance, layer.weight, single_masks), loss.distribution)
        columns = {
            "entropy": ranks.clamp(min=1).log().tolist(),
            "j": score(layer, loss, "leave-one-out")[0],
            "score": score(layer, loss)[0],
            "taylor": gradients[block.name, "heads"].square().mean(0).tolist(),
        }
        scores[block.name] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    all_heads = [(block, head) for block in vlm.blocks for head in range(block.heads.count)]
    for block, head in track(all_heads, "heads left out one by one"):
        gates = torch.ones(block.heads.count)
        gates[head] = 0
        gates = gates.to(moments[block.heads.consumer].mean.device)
        damage = calibration.answer_loss({(block.name, "heads"): gates}) - dense
        row = {"component": block.component, "block": block.name, "layer": block.index, "head": head}
        rows.append(row | scores[block.name][head] | {"damage": damage})
    for component in dict.fromkeys(row["component"] for row in rows):
        component_rows = [row for row in rows if row["component"] == component]
        least, most = min(row["entropy"] for row in component_rows), max(row["entropy"] for row in component_rows)
        for row in component_rows:
            row["importance"] = (most - row["entropy"]) / (most - least) if most > least else 0.0
    return rows


def agreement(rows: Rows, component: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Correlations of every pair of scores over the heads of a component."""
    component_rows = [row for row in rows if row["component"] == component]
    return {
        (first, second): correlation([row[first] for row in component_rows], [row[second] for row in component_rows])
        for first in SCORES
        for second in SCORES
    }


def ffn(vlm: VLM, ranking: Ranking, plans: Mapping[str, Plan], track: Track = untracked) -> Rows:
    """One row per matrix of an FFN: its Linears and, without a gate, the product W2 W1.

    density: see `row_density` (figure 2); it depends on the scale of the weights. l1: the mean absolute weight, i.e. a
    row's L1 norm over its length. erank, spectrum: of the singular values, the largest scaled to 1. chosen, kept: the
    option that the plan of the block's component gives the FFN, and the share of its multiply-adds that stays.
    """
    rows: Rows = []
    for block in track(vlm.blocks, "FFNs"):
        dense_ffn = Ffn.found(vlm.model, block.ffn)
        matrices = {linear.path.rsplit(".", 1)[-1]: linear.weight.double() for linear in dense_ffn.linears}
        if not block.ffn.gated:
            matrices["product"] = dense_ffn.consumer.weight.double() @ dense_ffn.producers[0].weight.double()
        label, kept = _chosen(ranking, plans[block.component], block.name, block.ffn.count)
        for name, matrix in matrices.items():
            values = decompose(matrix).energy.sqrt()
            places = torch.linspace(0, len(values) - 1, min(SPECTRUM, len(values))).round().long()
            row = {"component": block.component, "block": block.name, "layer": block.index, "matrix": name}
            numbers = {
                "density": row_density(matrix),
                "l1": float(matrix.abs().mean()),
                "erank": float(effective_rank(values)),
            }
            chosen = {"chosen": label, "kept": kept}
            spectrum = (values / values[0].clamp(min=1e-300))[places.to(values.device)].tolist()
            rows.append(row | numbers | chosen | {"spectrum": spectrum})
    return rows


def row_density(matrix: Tensor) -> float:
    """The share of a matrix's rows (out, in) whose L1 norm is at least 5 % of their length `in`."""
    return float((matrix.abs().sum(1) >= SPARSE * matrix.shape[1]).double().mean())


def _chosen(ranking: Ranking, plan: Plan, block: str, count: int) -> tuple[str, float]:
    part, score_ = plan.parts.get((block, "ffn")), ranking.scores[block, "ffn"]
    if isinstance(part, Choice) and isinstance(score_, Options):
        macs = [point.token_macs for point in score_.points]
        return part.label, macs[part.position] / macs[0]
    if isinstance(part, Keep):
        return f"channels {len(part.indices)}", len(part.indices) / count
    return "dense", 1.0


def survivors(vlm: VLM, rankings: Mapping[str, Ranking], plans: Mapping[tuple[str, str], Plan]) -> Rows:
    """One row per head and data set: its damage, and whether the plan of (data set, component) keeps it."""
    kind: Kind = "heads"
    rows: Rows = []
    for task, ranking in rankings.items():
        for block in vlm.blocks:
            part, damage = plans[task, block.component].parts.get((block.name, kind)), ranking.scores[block.name, kind]
            kept = set(part.indices) if isinstance(part, Keep) else set(range(block.heads.count))
            assert isinstance(damage, Additive)
            for head, value in enumerate(damage.damage):
                where = {"component": block.component, "block": block.name, "layer": block.index, "head": head}
                rows.append({"task": task} | where | {"damage": value, "kept": int(head in kept)})
    return rows


def overlap(rows: Rows, component: str) -> dict[tuple[str, str], float]:
    """For every pair of data sets, the heads that both keep as a share of those that at least one keeps (Jaccard)."""
    kept: dict[str, set[tuple[str, int]]] = {}
    for row in rows:
        if row["component"] == component:
            kept.setdefault(row["task"], set())
            if row["kept"]:
                kept[row["task"]].add((row["block"], row["head"]))
    tasks = list(kept)
    return {
        (a, b): len(kept[a] & kept[b]) / max(1, len(kept[a] | kept[b])) for i, a in enumerate(tasks) for b in tasks[:i]
    }
