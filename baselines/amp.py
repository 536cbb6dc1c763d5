"""AMP: how large a head's output or a neuron's activation is (Mugnaini et al. 2025, arXiv 2504.21174).

rank(vlm, calibration, seed=0)

Head: the L1 norm of its contribution to the layer's output, I_n = ||h_n W_n||_1. Neuron: the absolute value that the
consumer reads, |act(x W_gate) (x W_up)|. Both are averaged over tokens; every layer loses the same share. Departures:
if heads share keys and values, a group has the sum of its heads' norms, because the released code, which knows no
groups, takes the norm of each head; tokens count alike, while the released code averages each prompt first; an FFN
without a gate uses the activation alone; no LoRA afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.statistics import Calibration
from harness.types import VLM, Ordinal, Ranking


def rank(vlm: VLM, calibration: Calibration, *, seed: int) -> Ranking:
    """Order: mean L1 norm of a head's contribution, mean absolute activation of a channel."""
    heads = {block.heads.consumer: block.heads for block in vlm.blocks}
    weights = {path: vlm.model.get_parameter(f"{path}.weight").detach() for path in heads}
    sums: dict[str, Tensor] = {}  # (query heads,)
    counts = dict.fromkeys(heads, 0)

    def add(path: str, rows: Tensor) -> None:
        width = min(made.width for made in heads[path].producers)  # of a single key, and so of a query head
        parts = zip(rows.split(width, 1), weights[path].split(width, 1), strict=True)
        norms = torch.stack([(part @ weight.T).abs().sum(dtype=torch.float64) for part, weight in parts])
        sums[path] = sums[path] + norms if path in sums else norms
        counts[path] += len(rows)

    calibration.visit(heads, add)
    neurons = calibration.features(block.ffn.consumer for block in vlm.blocks)
    scores = {}
    for block in vlm.blocks:
        path = block.heads.consumer
        means = (sums[path] / counts[path]).unflatten(0, (block.heads.count, -1)).sum(1)
        scores[block.name, "heads"] = Ordinal(tuple(means.tolist()))
        scores[block.name, "ffn"] = Ordinal(tuple(neurons[block.ffn.consumer].absolute.tolist()))
    return Ranking(scores)
