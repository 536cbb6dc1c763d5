"""FFN arms on the composition M = W2 W1 (d x d), the paper's object: a bottleneck d -> k -> d instead of d -> h -> d.

    options, log = compose(ffn, "compose-refit", rows, second)

M ignores the activation between W1 and W2, so the loss of a point is not M's dropped energy but the error of the FFN's
output on calibration rows. An FFN with a gate has no such product.
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
from baselines.linalg import Decomposition, decompose, least_squares
from harness.types import Dense, Options, Replacement

Composition = Literal["compose-linear", "compose-act", "compose-refit"]
RANKS = 48  # points per block


def compose(ffn: Ffn, arm: Composition, rows: Tensor, second: Tensor | None = None) -> tuple[Options, dict[str, Any]]:
    """Points at up to 48 ranks k of M = U S V^T, whitened by the second moment of the FFN's input if given.

    compose-linear: fc1' = S^1/2 V_k^T, no activation, fc2' = U_k S^1/2 with bias W2 b1 + b2.
    compose-act: the same factors with the activation between them, and the bias b2.
    compose-refit: the same fc1' and activation, fc2' and its bias by least squares on `rows` (n, d) of the input.
    Loss: mean squared error of the output on these rows, as a share of its mean square (the bias b2 left out).
    """
    (first,) = ffn.producers
    product = ffn.consumer.weight.double() @ first.weight.double()
    part = decompose(product, second)
    rows = rows.double()
    hidden = _activate(ffn, rows @ first.weight.double().T + (0 if first.bias is None else first.bias.double()))
    target = hidden @ ffn.consumer.weight.double().T
    ranks = torch.linspace(len(part.energy), 1, min(RANKS, len(part.energy))).round().long().tolist()
    losses: dict[int, float] = {}

    def walk(step: int) -> Iterable[tuple[str, int, float, Callable[[], Mapping[str, Replacement]]]]:
        for rank in filter(None, dict.fromkeys(number - number % step for number in ranks)):
            down, up, bias = _bottleneck(ffn, arm, product, part, rank, rows, target)
            small = rows @ down.T
            made = (small if arm == "compose-linear" else _activate(ffn, small)) @ up.T + bias
            losses[rank] = float((made - target).square().sum() / target.square().sum().clamp(min=1e-300))
            make = partial(_make, ffn, arm, product, part, rank, rows, target)
            yield f"compose {rank}", rank * sum(product.shape), losses[rank], make

    options = points(ffn, walk(1))
    log = {"product": {"erank": float(effective_rank(part.energy.sqrt())), "loss": list(losses.values())[::8]}}
    return replace(options, aligned=lambda step: points(ffn, walk(step))), log


def _activate(ffn: Ffn, values: Tensor) -> Tensor:
    return ffn.activation(values)


def _bottleneck(
    ffn: Ffn, arm: Composition, product: Tensor, part: Decomposition, rank: int, rows: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """fc1' (k, d), fc2' (d, k), and the bias (d,) of fc2' without b2."""
    down, up = part.factors(product, rank)
    root = part.energy[:rank].sqrt().sqrt()
    split = torch.where(root > 0, root, 1).unsqueeze(-1)
    down, up = down / split, up * split.T
    if arm == "compose-refit":
        return down, *least_squares(_activate(ffn, rows @ down.T), target)
    bias = target.new_zeros(len(up))
    first = ffn.producers[0]
    if arm == "compose-linear" and first.bias is not None:
        bias = ffn.consumer.weight.double() @ first.bias.double()
    return down, up, bias


def _make(ffn: Ffn, arm: Composition, *how: Any) -> dict[str, Replacement]:
    down, up, bias = _bottleneck(ffn, arm, *how)
    own = ffn.consumer.bias
    made: dict[str, Replacement] = {
        ffn.producers[0].path: Dense(down, None),
        ffn.consumer.path: Dense(up, bias if own is None else bias + own.double()),
    }
    if arm == "compose-linear":
        made[ffn.units.activation] = None
    return made
