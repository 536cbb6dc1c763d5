"""Effective rank of a spectrum and the distance of two spectra, exact and smooth: pure functions over batches.

    ks_distance(original, pruned), effective_rank(pruned) / effective_rank(original)
    effective_rank(masked_spectrum(covariance, weight, gates)).backward()

Nothing here centres its input: pass spectra of centred outputs, or the covariance.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from baselines.linalg import roots, row_reduced

Distribution = Literal["amplitude", "energy"]
Over = Literal["cumulative", "values"]


def effective_rank(singular: Tensor, distribution: Distribution = "amplitude") -> Tensor:
    """exp of the entropy of p = s / sum(s) (Roy & Vetterli 2007), or of p = s^2 / sum(s^2) (energy, Diff-eRank).

    singular: (..., n), not negative, in any order. Returns (...), between 1 and the rank, or 0 for a zero matrix.
    Differentiable; at a singular value of 0, where the entropy's slope is infinite, only the slope of the sum counts.
    """
    singular = _wide(singular)
    mass = singular.square() if distribution == "energy" else singular
    total = mass.sum(-1, keepdim=True)
    share = mass / torch.where(total == 0, 1, total)
    rank = torch.special.entr(torch.where(share == 0, 1, share)).sum(-1).exp()
    return torch.where(total.squeeze(-1) == 0, 0, rank)


def ks_distance(original: Tensor, pruned: Tensor, over: Over = "cumulative") -> Tensor:
    """Kolmogorov-Smirnov distance max |F - G| of two spectra, (..., n) and (..., m), that broadcast; returns (...).

    cumulative: F and G run over the index of the descending singular values, both divided by the original's sum. So an
    output that only shrinks has a distance too, and a zero output has the distance 1 (0 from another zero output).
    values: F and G are the empirical distributions of the values (scipy's `ks_2samp` statistic).
    """
    original, pruned = _alike(original, pruned)
    if over == "values":
        return _two_sample(original, pruned)
    longest = max(original.shape[-1], pruned.shape[-1])
    total = original.sum(-1, keepdim=True)
    first, second = (_descending(spectrum, longest) for spectrum in (original, pruned))
    gap = (first - second).cumsum(-1).abs().amax(-1, keepdim=True)
    zero_original = torch.where(second.sum(-1, keepdim=True) > 0, torch.ones_like(gap), torch.zeros_like(gap))
    return torch.where(total == 0, zero_original, gap / torch.where(total == 0, 1, total)).squeeze(-1)


def smooth_ks_distance(
    original: Tensor,
    pruned: Tensor,
    over: Over = "cumulative",
    temperature: float = 0.01,
    counts: Tensor | int | None = None,
) -> Tensor:
    """A surrogate of `ks_distance` for training: it tends to it as the temperature T falls, and is 0 for equal spectra.

    The gaps F - G enter as softmax(h / T) . h with h = gap tanh(gap / T), at most T (ln n + 0.28) below the largest.
    values: F and G are sums of sigmoids of width w = T * mean value, evaluated w ln(1 / T) to the right of each value,
    where its own step is 1 / (1 + T) complete. This is smooth everywhere. cumulative: a sum of the k largest values is
    continuous but has a kink where the k-th and the next value are equal; the gradient there is a subgradient.

    counts: how many of the largest values of both are compared, a number or (...) (see `leading_counts`). Raises
    ValueError for a temperature outside (0, 1).
    """
    if not 0 < temperature < 1:
        raise ValueError(f"temperature: {temperature} should be in (0, 1)")
    original, pruned = _alike(original, pruned)
    if counts is not None:
        counts = torch.as_tensor(counts, device=original.device)
        most = int(counts.max())
        original, pruned = (spectrum.sort(-1, descending=True).values[..., :most] for spectrum in (original, pruned))
    gaps, compared = (_sigmoid_gaps if over == "values" else _cumulative_gaps)(original, pruned, temperature, counts)
    heights = gaps * torch.tanh(gaps / temperature)
    logits = (heights / temperature).masked_fill(~compared, -torch.inf)
    return (logits.softmax(-1) * heights).sum(-1)


def leading(singular: Tensor, k: float) -> int:
    """How many of the largest singular values (n,) are compared.

    The fewest that hold the share k of the energy if k is below 1; otherwise k itself, at most n.
    """
    return int(leading_counts(singular, k))


def leading_counts(singular: Tensor, k: float) -> Tensor:
    """`leading` of every spectrum of a batch (..., n): integers (...)."""
    singular = _wide(singular.detach())
    size = singular.shape[-1]
    if k >= 1:
        return torch.full(singular.shape[:-1], min(int(k), size), device=singular.device)
    energy = singular.sort(dim=-1, descending=True).values.square().cumsum(-1)
    return ((energy < k * energy[..., -1:]).sum(-1) + 1).clamp(max=size)


def masked_spectrum(covariance: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
    """Singular values (..., min(out, columns)) of Z = (A * m) W^T, over sqrt(N), largest first, float64.

    covariance: of A, (..., columns, columns). weight: of the Linear that reads A, (..., out, columns), a constant, or
    any matrix with the same W^T W; `row_reduced` saves time over many masks, see also `side_by_side`. mask: (...,
    heads), one factor for each run of columns / heads columns. All broadcast, so layers of one shape form a batch.
    Differentiable; directions that a factor of 0 removes have gradient 0. Raises ValueError if shapes do not fit.
    """
    columns, heads = covariance.shape[-1], mask.shape[-1]
    if columns % heads or weight.shape[-1] != columns:
        raise ValueError(f"{heads} heads and a weight {tuple(weight.shape)} do not fit {columns} columns")
    gates = mask.double().repeat_interleave(columns // heads, -1)
    gated = row_reduced(weight.detach().double()) * gates.unsqueeze(-2)
    return roots(torch.linalg.eigvalsh(gated @ covariance.double() @ gated.mT).flip(-1), columns)


def side_by_side(weight: Tensor, heads: int) -> Tensor:
    """A weight for `masked_spectrum` that makes Z the concatenation of the heads' contributions A_h W_h, not their sum.

    The blocks of the Linear's weight (..., out, columns), one per head, each `row_reduced`, on the diagonal of a matrix
    with at most `columns` rows.
    """
    blocks = row_reduced(weight.unflatten(-1, (heads, -1)).movedim(-2, -3))
    rows, width = blocks.shape[-2:]
    wide = blocks.new_zeros(*blocks.shape[:-3], heads, rows, heads, width)
    places = torch.arange(heads, device=weight.device)
    wide[..., places, :, places, :] = blocks.movedim(-3, 0)
    return wide.flatten(-4, -3).flatten(-2, -1)


def _wide(spectrum: Tensor) -> Tensor:
    """Half precision as float64, because its sums and squares would lose digits or overflow."""
    return spectrum.double() if spectrum.dtype in (torch.float16, torch.bfloat16) else spectrum


def _alike(original: Tensor, pruned: Tensor) -> tuple[Tensor, Tensor]:
    original, pruned = _wide(original), _wide(pruned)
    dtype = torch.promote_types(original.dtype, pruned.dtype)
    return original.to(dtype), pruned.to(dtype)


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


def _compared(spectrum: Tensor, counts: Tensor | None) -> Tensor:
    """Which positions of descending spectra (..., n) are compared, as booleans; all positions without counts."""
    places = torch.arange(spectrum.shape[-1], device=spectrum.device)
    return torch.ones_like(places, dtype=torch.bool) if counts is None else places < counts.unsqueeze(-1)


def _cumulative_gaps(
    original: Tensor, pruned: Tensor, temperature: float, counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    longest = max(original.shape[-1], pruned.shape[-1])
    first, second = (_descending(spectrum, longest) for spectrum in (original, pruned))
    compared = _compared(first, counts)
    first, second = first * compared, second * compared
    total, pruned_total = first.sum(-1, keepdim=True), second.sum(-1, keepdim=True)
    # A zero original has the distance 1 from every spectrum that is not zero.
    total = torch.where(total == 0, torch.where(pruned_total == 0, 1, pruned_total), total)
    return (first - second).cumsum(-1) / total, compared


def _sigmoid_gaps(original: Tensor, pruned: Tensor, temperature: float, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    shape = torch.broadcast_shapes(
        original.shape[:-1], pruned.shape[:-1], torch.Size() if counts is None else counts.shape
    )
    spectra = [spectrum.expand(*shape, -1) for spectrum in (original, pruned)]
    weights = [_compared(spectrum, counts).to(spectrum).expand_as(spectrum) for spectrum in spectra]
    points, weight = torch.cat(spectra, -1), torch.cat(weights, -1)
    mean = (points * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    width = temperature * torch.where(mean == 0, 1, mean)
    places = points - width * math.log(temperature)
    below = [
        (torch.sigmoid((places.unsqueeze(-1) - values.unsqueeze(-2)) / width.unsqueeze(-1)) * mass.unsqueeze(-2)).sum(
            -1
        )
        / mass.sum(-1, keepdim=True)
        for values, mass in zip(spectra, weights, strict=True)
    ]
    return below[0] - below[1], weight > 0
