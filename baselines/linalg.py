"""Linear algebra for the methods: low-rank approximation, plain or whitened.

down, up = decompose(linear.weight, moment.second).factors(linear.weight, rank=8)

Functions that return singular vectors detach their input: the gradients contain 1 / (s_i^2 - s_j^2), which is infinite
for repeated singular values. `roots` and `row_reduced` are differentiable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

STRIP = 256  # rows or columns per step: saves memory, and half the work of a symmetric product


@dataclass(frozen=True)
class Decomposition:
    """Half of the SVD of W S, in float64: W is a Linear's weight (out, in), S whitens its input.

    energy: squared singular values (k,), k = min(out, in), largest first. vectors: the left singular vectors (out, k)
    if out <= in, otherwise the right ones (in, k). root: S (in, in), kept for right vectors only; None: the identity.
    """

    energy: Tensor
    vectors: Tensor
    root: Tensor | None = None

    @property
    def dropped(self) -> Tensor:
        """Share of the energy lost at rank r = 0 .. k (Eckart-Young-Mirsky), (k + 1,); 0 for a zero matrix."""
        tail = torch.cat([self.energy.flip(0).cumsum(0).flip(0), self.energy.new_zeros(1)])
        return tail / tail[0] if tail[0] > 0 else tail

    def factors(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """`down` (rank, in) and `up` (out, rank), in the weight's dtype: the best pair for inputs that S whitens.

        up @ down approximates `weight`. U_r U_r^T W equals SVD-LLM's U_r Sigma_r V_r^T S^-1 (arXiv 2403.07378) without
        the inverse, which may not exist.
        """
        weight = weight.detach()
        left = self._left(weight, rank)
        strips = [left.T @ part.to(left.dtype) for part in weight.split(STRIP, 1)]
        return torch.cat([strip.to(weight.dtype) for strip in strips], 1), left.to(weight.dtype).contiguous()

    def _left(self, weight: Tensor, rank: int) -> Tensor:
        vectors = self.vectors[:, :rank].to(weight.device)
        if weight.shape[0] <= weight.shape[1]:
            return vectors
        root = None if self.root is None else self.root.to(weight.device)
        parts = [part.to(vectors.dtype) for part in weight.split(STRIP)]
        # The columns of W S V are those of U times the singular values; QR normalises them, even if a value is 0.
        return torch.linalg.qr(torch.cat([(part if root is None else part @ root) @ vectors for part in parts])).Q


def decompose(weight: Tensor, second: Tensor | None = None, root: Tensor | None = None) -> Decomposition:
    """Decompose a Linear's weight (out, in), whitened by the uncentred second moment (in, in) of its input if given.

    It uses the Gram matrix of the smaller side, in float64. With a moment, the energies sum to the outputs' mean
    squared norm. root: `whitener(second)`, if it is already computed.
    """
    matrix = weight.detach().double()
    rows, columns = matrix.shape
    if rows <= columns:
        moment = None if second is None else second.to(matrix)
        return Decomposition(*eigh(_symmetric(rows, lambda a: a if moment is None else a @ moment, matrix.T, matrix)))
    if second is not None:
        root = whitener(second) if root is None else root
        matrix = matrix @ root
    return Decomposition(*eigh(_symmetric(columns, lambda a: a, matrix, matrix.T)), root)


def _symmetric(size: int, left: Callable[[Tensor], Tensor], right: Tensor, rows: Tensor) -> Tensor:
    """The lower triangle of the symmetric left(rows) @ right (size, size), computed in strips.

    `eigh` reads only the lower triangle.
    """
    product = rows.new_zeros(size, size)
    for start in range(0, size, STRIP):
        strip = slice(start, start + STRIP)
        product[strip, : start + STRIP] = left(rows[strip]) @ right[:, : start + STRIP]
    return product


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., n), largest first and not below 0, and eigenvectors of positive semidefinite (..., n, n)."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.clamp(min=0).flip(-1), vectors.flip(-1)


def whitener(second: Tensor) -> Tensor:
    """The symmetric S with S S^T = X X^T / N, (..., n, n), float64, from this second moment, which may be singular."""
    values, vectors = eigh(second.double())
    return vectors * values.sqrt().unsqueeze(-2) @ vectors.mT


def inverse_whitener(second: Tensor) -> Tensor:
    """The pseudo-inverse S^+ of `whitener`, (..., n, n), float64.

    The second moment of S^+ X is the identity; if X does not span all directions, it is the projector on those it
    spans.
    """
    values, vectors = eigh(second.double())
    scales = roots(values, second.shape[-1])
    inverse = torch.where(scales > 0, 1 / torch.where(scales > 0, scales, 1), 0)
    return vectors * inverse.unsqueeze(-2) @ vectors.mT


def roots(eigenvalues: Tensor, terms: int) -> Tensor:
    """Square roots of the eigenvalues (..., n) of a Gram or covariance matrix whose entries are sums of `terms` terms.

    Eigenvalues that differ from 0 only by rounding get the root 0, and the gradient 0 instead of an infinite slope.
    """
    largest = eigenvalues.detach().amax(-1, keepdim=True).clamp(min=0)
    floor = max(terms, eigenvalues.shape[-1]) * torch.finfo(eigenvalues.dtype).eps * largest
    # NaN does not count as small, so it stays NaN.
    small = eigenvalues <= floor
    return torch.where(small, 0, torch.where(small, 1, eigenvalues).sqrt())


def row_reduced(matrix: Tensor) -> Tensor:
    """An R with R^T R = M^T M and at most n rows for M (..., m, n): M itself, or the R of its QR decomposition."""
    return torch.linalg.qr(matrix, mode="r").R if matrix.shape[-2] > matrix.shape[-1] else matrix
