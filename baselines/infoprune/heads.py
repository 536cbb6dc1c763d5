"""Head scores without training: the change of the information loss J when heads leave, from one covariance per layer.

    damage, log = score(Layer.of(vlm, vlm.blocks[0], moments), Loss())

Z_S = (A * m) W_o for the heads S that stay, so the covariance of A gives that of Z_S for any S, if the layers before
are taken as dense (an approximation). Heads of the vision tower and KV groups of the language model are treated alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from baselines.infoprune.spectrum import (
    Distribution,
    Over,
    effective_rank,
    ks_distance,
    leading,
    leading_counts,
    smooth_ks_distance,
)
from harness.statistics import Moment
from harness.types import VLM, Block, InputError

Output = Literal["layer", "head"]
Search = Literal["greedy", "leave-one-out"]


@dataclass(frozen=True)
class Layer:
    """The heads of one block: covariance (columns, columns) of the consumer's input, its weight (out, columns).

    output: Z_S is the sum of the heads' contributions A_h W_h ("layer"), or their concatenation ("head").
    """

    covariance: Tensor
    weight: Tensor
    count: int
    output: Output = "layer"

    @classmethod
    def of(cls, vlm: VLM, block: Block, moments: Mapping[str, Moment], output: Output = "layer") -> Layer:
        """The heads of a block of the model, with the moment of their consumer's input; in float64."""
        weight = vlm.model.get_parameter(f"{block.heads.consumer}.weight").detach().double()
        return cls(moments[block.heads.consumer].covariance, weight, block.heads.count, output)

    def spectra(self, subsets: Sequence[Sequence[int]]) -> Tensor:
        """Singular values of Z_S / sqrt(N) for subsets S of one size: (subsets, columns), largest first, zero-padded.

        With W_S = Q R the nonzero eigenvalues of W_S C_S W_S^T are those of R C_S R^T, the smaller side.
        """
        width = self.weight.shape[1] // self.count
        singular = self.covariance.new_zeros(len(subsets), self.weight.shape[1])
        if not subsets[0]:
            return singular
        heads = torch.tensor(subsets, device=singular.device)
        columns = (heads[..., None] * width + torch.arange(width, device=singular.device)).flatten(1)
        covariance = self.covariance[columns[:, :, None], columns[:, None, :]]
        if self.output == "layer":
            root = _triangle(self.weight.T[columns].mT)
        else:
            roots = _triangle(self.weight.unflatten(1, (self.count, width)).transpose(0, 1))
            root = torch.stack([torch.block_diag(*roots[subset]) for subset in heads])
        values = torch.linalg.eigvalsh(root @ covariance @ root.mT).clamp(min=0).sqrt().flip(-1)
        singular[:, : values.shape[1]] = values
        return singular


@dataclass(frozen=True)
class Loss:
    """J(S) = alpha * eRank(Z_S) / eRank(Z) + beta * KS_k(Z, Z_S).

    k: the first k singular values are compared, or the fewest that hold this share of the energy. By default alpha is
    below beta: J is alpha for the full layer and beta for the empty one, so otherwise a collapse would cost nothing.
    Raises InputError for a k out of range.
    """

    alpha: float = 0.5
    beta: float = 1.0
    distribution: Distribution = "amplitude"
    ks_over: Over = "cumulative"
    k: float | int = 0.99

    def __post_init__(self) -> None:
        if not (self.k >= 1 if isinstance(self.k, int) else 0 < self.k < 1):
            raise InputError(
                f"infoprune: k: {self.k} should be a share of the energy in (0, 1) or a whole number from 1 on"
            )

    def rank_ratio(self, original: Tensor, pruned: Tensor) -> Tensor:
        """The first term without its weight, for spectra (..., n) and (..., n) that broadcast: (...)."""
        full = effective_rank(original, self.distribution)
        return effective_rank(pruned, self.distribution) / torch.where(full > 0, full, 1)

    def distance(self, original: Tensor, pruned: Tensor) -> Tensor:
        """The second term without its weight, for spectra (n,) and (..., n): (...)."""
        k = leading(original, self.k)
        return ks_distance(original[:k], pruned[..., :k], self.ks_over)

    def __call__(self, original: Tensor, pruned: Tensor) -> Tensor:
        """J for spectra (n,) and (..., n): (...)."""
        return self.alpha * self.rank_ratio(original, pruned) + self.beta * self.distance(original, pruned)

    def smooth(self, original: Tensor, pruned: Tensor) -> Tensor:
        """J with the smooth KS distance, for training; spectra (..., n), one original for each pruned one: (...)."""
        distance = smooth_ks_distance(original, pruned, self.ks_over, counts=leading_counts(original, self.k))
        return self.alpha * self.rank_ratio(original, pruned) + self.beta * distance


def score(layer: Layer, loss: Loss, search: Search = "greedy") -> tuple[list[float], dict[str, Any]]:
    """The damage of each head, i.e. the change of J when it is removed, from the full set or greedily; and a log.

    Greedy damages rise along the order of removal (see `rising`), so cutting by damage follows that order.
    """
    all_heads = list(range(layer.count))
    original = layer.spectra([all_heads])[0]
    full = float(loss(original, original))
    log: dict[str, Any] = {
        "erank": float(effective_rank(original, loss.distribution)),
        "k": leading(original, loss.k),
    }
    if search == "leave-one-out":
        spectra = layer.spectra([all_heads[:head] + all_heads[head + 1 :] for head in all_heads])
        log |= {
            "erank_ratio": loss.rank_ratio(original, spectra).tolist(),
            "ks": loss.distance(original, spectra).tolist(),
        }
        return (loss(original, spectra) - full).tolist(), log
    kept, before, changes = all_heads, full, []
    log |= {"removed": [], "erank_ratio": [], "ks": []}
    while kept:
        smaller = [[head for head in kept if head != removed] for removed in kept]
        spectra = layer.spectra(smaller)
        values = loss(original, spectra)
        best = int(values.argmin())
        changes.append(float(values[best]) - before)
        log["removed"].append(kept[best])
        log["erank_ratio"].append(float(loss.rank_ratio(original, spectra[best])))
        log["ks"].append(float(loss.distance(original, spectra[best])))
        kept, before = smaller[best], float(values[best])
    damage = dict(zip(log["removed"], rising(changes), strict=True))
    return [damage[head] for head in all_heads], log


def rising(damages: Iterable[float]) -> list[float]:
    """The running maximum of damages along the order of removal, so that sorting by it gives this order again.

    Each is above the one before by a share of 1e-12 at least, because equal ones have no order; zeros stay equal.
    """
    highest = float("-inf")
    risen = []
    for damage in damages:
        highest = max(damage, highest + 1e-12 * abs(highest) if risen else damage)
        risen.append(highest)
    return risen


def _triangle(matrix: Tensor) -> Tensor:
    return torch.linalg.qr(matrix, mode="r").R
