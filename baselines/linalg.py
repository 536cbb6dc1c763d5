"""Low-rank approximation of a Linear, plain or whitened, shared by every low-rank method.

down, up = decompose(linear.weight, moment.second).factors(linear.weight, rank=8)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decomposition:
    """The left half of the SVD of W S: W is a Linear's weight (out, in), S whitens its input (none: the identity).

    energy: squared singular values, largest first, (k,), k = min(out, in). left: their vectors, (out, k). Float64.
    """

    energy: Tensor
    left: Tensor

    @property
    def dropped(self) -> Tensor:
        """Share of the energy that rank r = 0 .. k gives up (Eckart-Young-Mirsky), (k + 1,); 0 for a zero matrix."""
        tail = torch.cat([self.energy.flip(0).cumsum(0).flip(0), self.energy.new_zeros(1)])
        return tail / tail[0] if tail[0] > 0 else tail

    def factors(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """`down` (rank, in) and `up` (out, rank) with up @ down the best rank-r stand-in for `weight`, in its dtype.

        U_r U_r^T W is SVD-LLM's U_r S_r V_r^T S^-1 (arXiv 2403.07378) without the inverse, which need not exist.
        """
        left = self.left[:, :rank]
        down = left.T @ weight.detach().to(left.dtype)
        return down.to(weight.dtype).contiguous(), left.to(weight.dtype).contiguous()


def decompose(weight: Tensor, second: Tensor | None = None) -> Decomposition:
    """Decompose a Linear's weight (out, in), whitened by the uncentred second moment (in, in) of its input if given.

    By the Gram matrix of the smaller side, in float64. The energy then is that of the outputs: their mean squared norm.
    """
    matrix = weight.detach().double()
    rows, columns = matrix.shape
    if rows <= columns:
        return Decomposition(*eigh(matrix @ matrix.T if second is None else matrix @ second.to(matrix) @ matrix.T))
    if second is not None:
        matrix = matrix @ whitener(second)
    energy, right = eigh(matrix.T @ matrix)
    # The columns of W S V are U times the singular values; QR normalises them, also those of singular value 0.
    return Decomposition(energy, torch.linalg.qr(matrix @ right).Q)


def eigh(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a positive semidefinite matrix (n, n), largest first, none below 0, and their eigenvectors."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.clamp(min=0).flip(0), vectors.flip(1)


def whitener(second: Tensor) -> Tensor:
    """The symmetric S with S S^T = X X^T / N, float64; it exists for singular moments too."""
    values, vectors = eigh(second.double())
    return vectors * values.sqrt() @ vectors.T
