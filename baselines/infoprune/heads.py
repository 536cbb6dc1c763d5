"""Head scores without training: the change of the information loss J when heads leave, from one covariance per layer.

    damage, log = score(Layer(covariance, weight, count=4), Loss(0.5, 1.0, "amplitude", "cumulative", 0.99))

Z_S = (A * m) W_o for the heads S that stay, so its covariance follows from that of A for any S, with the layers before
taken as dense (an approximation). Heads of the vision tower and KV groups of the language model are treated alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from baselines.infoprune.spectrum import Distribution, Over, effective_rank, ks_distance, leading

Output = Literal["layer", "head"]
Search = Literal["greedy", "leave-one-out"]


@dataclass(frozen=True)
class Layer:
    """The heads of one block: covariance (columns, columns) of the consumer's input, its weight (out, columns).

    output: Z_S is the sum of the heads' contributions A_h W_h ("layer"), or has them side by side ("head").
    """

    covariance: Tensor
    weight: Tensor
    count: int
    output: Output = "layer"

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
            each = _triangle(self.weight.unflatten(1, (self.count, width)).transpose(0, 1))
            root = torch.stack([torch.block_diag(*each[subset]) for subset in heads])
        values = torch.linalg.eigvalsh(root @ covariance @ root.mT).clamp(min=0).sqrt().flip(-1)
        singular[:, : values.shape[1]] = values
        return singular


@dataclass(frozen=True)
class Loss:
    """J(S) = alpha * eRank(Z_S) / eRank(Z) + beta * KS_k(Z, Z_S).

    k: the first k singular values are compared, or the fewest that hold this share of the energy.
    """

    alpha: float
    beta: float
    distribution: Distribution
    over: Over
    k: float | int

    def terms(self, original: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms without their weights, for spectra (n,) and (..., n): eRank ratio and KS distance, (...)."""
        full = effective_rank(original, self.distribution)
        ratio = effective_rank(pruned, self.distribution) / torch.where(full > 0, full, 1)
        k = leading(original, self.k)
        return ratio, ks_distance(original[:k], pruned[..., :k], self.over)

    def __call__(self, original: Tensor, pruned: Tensor) -> Tensor:
        ratio, distance = self.terms(original, pruned)
        return self.alpha * ratio + self.beta * distance


def score(layer: Layer, loss: Loss, search: Search = "greedy") -> tuple[list[float], dict[str, Any]]:
    """The damage of each head, that is, the change of J when it goes, from the full set or greedily; and a log.

    Greedy damages are a running maximum along the order of removal, so that cutting by damage keeps to that order.
    """
    everyone = list(range(layer.count))
    original = layer.spectra([everyone])[0]
    full = float(loss(original, original))
    log: dict[str, Any] = {
        "erank": float(effective_rank(original, loss.distribution)),
        "k": leading(original, loss.k),
    }
    if search == "leave-one-out":
        spectra = layer.spectra([everyone[:head] + everyone[head + 1 :] for head in everyone])
        ratio, distance = loss.terms(original, spectra)
        log |= {"erank_ratio": ratio.tolist(), "ks": distance.tolist()}
        return (loss(original, spectra) - full).tolist(), log
    damage = [0.0] * layer.count
    kept, before, highest = everyone, full, float("-inf")
    log |= {"removed": [], "erank_ratio": [], "ks": []}
    while kept:
        smaller = [[head for head in kept if head != gone] for gone in kept]
        spectra = layer.spectra(smaller)
        values = loss(original, spectra)
        best = int(values.argmin())
        ratio, distance = loss.terms(original, spectra[best])
        highest = max(highest, float(values[best]) - before)
        damage[kept[best]] = highest
        log["removed"].append(kept[best])
        log["erank_ratio"].append(float(ratio))
        log["ks"].append(float(distance))
        kept, before = smaller[best], float(values[best])
    return damage, log


def _triangle(matrix: Tensor) -> Tensor:
    return torch.linalg.qr(matrix, mode="r").R
