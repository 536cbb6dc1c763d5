"""Plans that cut every block alike, and what a model is before and after."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.statistics.calibration import Calibration, answer_logits, linears
from harness.types import VLM, Choice, Keep, Kind, LowRank, Option, Options, Plan, Ranking


def half(vlm: VLM) -> Plan:
    """Every other unit goes."""
    parts: dict[tuple[str, Kind], Keep | Choice] = {
        (block.name, kind): Keep(tuple(range(0, block.units(kind).count, 2))) for block, kind in vlm.select("all")
    }
    return Plan(parts, 0.5, 0.5)


def low_rank(vlm: VLM, rank: int) -> tuple[Plan, Ranking]:
    """The Linears of attention and FFN in every vision block, cut to their leading singular directions."""
    scores, parts = {}, {}
    for block, kind in vlm.select("vision"):
        made = {}
        for path in linears(block.units(kind)):
            linear: Any = vlm.model.get_submodule(path)
            u, s, v = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
            made[path] = LowRank(v[:rank], u[:, :rank] * s[:rank], linear.bias)
        points = (Option("dense", 9999, 0.0), Option(f"rank {rank}", 99, 1.0, lambda made=made: made))
        scores[block.name, kind] = Options(points)
        parts[block.name, kind] = Choice(1, f"rank {rank}")
    return Plan(parts, 0.5, 0.5), Ranking(scores)


def state(vlm: VLM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in vlm.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def divergence(vlm: VLM, calibration: Calibration) -> float:
    """KL from the dense model per answer token, over all samples."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in calibration.batches():
            dense, other = (answer_logits(v.model, batch)[0].log_softmax(-1) for v in (calibration.vlm, vlm))
            total += float((dense.exp() * (dense - other)).sum())
            count += len(dense)
    return total / count
