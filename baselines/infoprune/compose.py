"""FFN arms on the product M = W2 W1 (d x d), the paper's object: a bottleneck d -> k -> d instead of d -> h -> d.

    options, log = compose(ffn, "compose-act", rows, second)

M ignores W1's bias and the activation between W1 and W2. So a new bias of fc2 keeps the FFN's mean output, and the loss
of a point is not M's dropped energy but the error of the output, both on calibration rows. An FFN with a gate has no
such product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from baselines.infoprune.ffn import Ffn, points
from baselines.infoprune.spectrum import effective_rank
from baselines.linalg import Decomposition, decompose
from harness.types import Dense, Options, Replacement

Composition = Literal["compose-linear", "compose-act"]
RANKS = 48  # points per block


def compose(ffn: Ffn, arm: Composition, rows: Tensor, second: Tensor | None = None) -> tuple[Options, dict[str, Any]]:
    """Points at up to 48 ranks k of M = U S V^T, whitened by the second moment of the FFN's input if given.

    compose-linear: fc1' = S^1/2 V_k^T without bias, no activation, fc2' = U_k S^1/2.
    compose-act: the same factors with the activation between them.
    The bias of fc2' makes the mean output on `rows` (n, d) of the FFN's input that of the dense FFN. Loss: mean squared
    error of the output there, as a share of the output's mean square (the bias b2 left out).
    """
    (first,) = ffn.producers
    product = ffn.consumer.weight.double() @ first.weight.double()
    part = decompose(product, second)
    rows = rows.double()
    hidden = ffn.activation(rows @ first.weight.double().T + (0 if first.bias is None else first.bias.double()))
    target = hidden @ ffn.consumer.weight.double().T
    ranks = torch.linspace(len(part.energy), 1, min(RANKS, len(part.energy))).round().long().tolist()
    losses: dict[int, float] = {}

    def walk(step: int) -> Iterable[tuple[str, int, float, Callable[[], Mapping[str, Replacement]]]]:
        for rank in filter(None, dict.fromkeys(number - number % step for number in ranks)):
            down, up = _bottleneck(product, part, rank)
            small = rows @ down.T
            missing = target - (small if arm == "compose-linear" else ffn.activation(small)) @ up.T
            bias = missing.mean(0)
            losses[rank] = float((missing - bias).square().sum() / target.square().sum().clamp(min=1e-300))
            make = partial(_make, ffn, arm, product, part, rank, bias)
            yield f"compose {rank}", rank * sum(product.shape), losses[rank], make

    options = points(ffn, walk(1))
    log = {"product": {"erank": float(effective_rank(part.energy.sqrt())), "loss": list(losses.values())[::8]}}
    return replace(options, aligned=lambda step: points(ffn, walk(step))), log


def _bottleneck(product: Tensor, part: Decomposition, rank: int) -> tuple[Tensor, Tensor]:
    """fc1' (k, d) and fc2' (d, k)."""
    down, up = part.factors(product, rank)
    root = part.energy[:rank].sqrt().sqrt()
    split = torch.where(root > 0, root, 1).unsqueeze(-1)
    return down / split, up * split.T


def _make(
    ffn: Ffn, arm: Composition, product: Tensor, part: Decomposition, rank: int, bias: Tensor
) -> dict[str, Replacement]:
    down, up = _bottleneck(product, part, rank)
    old_bias = ffn.consumer.bias
    replacements: dict[str, Replacement] = {
        ffn.producers[0].path: Dense(down, None),
        ffn.consumer.path: Dense(up, bias if old_bias is None else bias + old_bias.double()),
    }
    if arm == "compose-linear":
        replacements[ffn.units.activation] = None
    return replacements
