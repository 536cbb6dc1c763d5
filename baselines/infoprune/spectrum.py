"""Effective rank of a spectrum and distance between two: pure functions of singular values.

ks_distance(original, pruned), effective_rank(pruned) / effective_rank(original)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Distribution = Literal["amplitude", "energy"]
Over = Literal["cumulative", "values"]


def effective_rank(singular: Tensor, distribution: Distribution = "amplitude") -> Tensor:
    """exp of the entropy of p = s / sum(s) (Roy & Vetterli 2007), or of p = s^2 / sum(s^2) (energy, Diff-eRank).

    singular: (..., n), not negative, in any order; returns (...), between 1 and the rank; a zero matrix has 0.
    """
    mass = singular.square() if distribution == "energy" else singular
    total = mass.sum(-1, keepdim=True)
    share = mass / torch.where(total > 0, total, 1)
    rank = torch.special.entr(share).sum(-1).exp()
    return torch.where(total.squeeze(-1) > 0, rank, 0)


def ks_distance(original: Tensor, pruned: Tensor, over: Over = "cumulative") -> Tensor:
    """Kolmogorov-Smirnov distance max |F - G| of two spectra, (..., n) and (..., m), that broadcast; returns (...).

    cumulative: F and G run over the index of the descending singular values, both divided by the original's sum:
    an output that merely shrinks is seen, and a zero output has distance 1 (two zero outputs have 0).
    values: F and G are the empirical distributions of the values (scipy's `ks_2samp` statistic).
    """
    if over == "values":
        return _two_sample(original, pruned)
    longest = max(original.shape[-1], pruned.shape[-1])
    total = original.sum(-1, keepdim=True)
    first, second = (_descending(spectrum, longest) for spectrum in (original, pruned))
    gap = (first - second).cumsum(-1).abs().amax(-1, keepdim=True)
    either = torch.where(second.sum(-1, keepdim=True) > 0, torch.ones_like(gap), torch.zeros_like(gap))
    return torch.where(total > 0, gap / torch.where(total > 0, total, 1), either).squeeze(-1)


def leading(singular: Tensor, k: float) -> int:
    """How many of the largest singular values (n,) the distance looks at: the fewest that hold the share k < 1 of the
    energy, or k itself, at most n."""
    if k >= 1:
        return min(int(k), len(singular))
    energy = singular.sort(descending=True).values.square().cumsum(0)
    return min(int((energy < k * energy[-1]).sum()) + 1, len(singular))


def _descending(spectrum: Tensor, length: int) -> Tensor:
    ordered = spectrum.sort(-1, descending=True).values
    return torch.nn.functional.pad(ordered, (0, length - ordered.shape[-1]))


def _two_sample(original: Tensor, pruned: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(original.shape[:-1], pruned.shape[:-1])
    first = original.expand(*shape, -1).sort(-1).values
    second = pruned.expand(*shape, -1).sort(-1).values
    steps = torch.cat([first, second], -1)
    below = [torch.searchsorted(values, steps, right=True).to(steps) / values.shape[-1] for values in (first, second)]
    return (below[0] - below[1]).abs().amax(-1)
