"""Two faster SVD routes, which `bench` times. No method uses them: methods need all energies, which `decompose` gives.

truncated_svd(weight, rank=64).singular    # (64,), largest first
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from baselines.linalg import eigh


class Svd(NamedTuple):
    """A matrix as left * singular.unsqueeze(-2) @ right: (..., m, k), (..., k) largest first, (..., k, n).

    Columns of left and rows of right are orthonormal.
    """

    left: Tensor
    singular: Tensor
    right: Tensor


def truncated_svd(matrix: Tensor, rank: int) -> Svd:
    """The first `rank` singular values and vectors of matrices (..., m, n), from the Gram matrix of the smaller side.

    In float32, or in float64 for float64 input: singular values below about 3e-4 (or 1e-8) of the largest are rounding
    errors. Raises ValueError for a rank outside 0 to min(m, n).
    """
    _check(matrix, rank)
    if matrix.shape[-2] > matrix.shape[-1]:
        return _transposed(truncated_svd(matrix.mT, rank))
    unit, scale = _unit(_working(matrix))
    values, vectors = eigh(unit @ unit.mT)
    left = vectors[..., :rank]
    # The rows of U^T M are the right vectors times the singular values; QR normalises them, even if a value is 0.
    q, r = torch.linalg.qr(unit.mT @ left)
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1, 1).to(q)
    return Svd(left, values[..., :rank].sqrt() * scale.squeeze(-1), (q * sign.unsqueeze(-2)).mT)


def randomized_svd(matrix: Tensor, rank: int, *, seed: int = 0, oversample: int = 10, iterations: int = 2) -> Svd:
    """An approximation of the first `rank` singular values and vectors of matrices (..., m, n), from a random sketch.

    A Gaussian sketch of rank + oversample columns, power iterations with a QR after each product, then the SVD of the
    matrix in that basis. Slowly decaying spectra need more iterations. In float32, or in float64 for float64
    input. Raises ValueError for a rank outside 0 to min(m, n).
    Source: Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1.
    """
    _check(matrix, rank)
    unit, scale = _unit(_working(matrix))
    width = min(rank + oversample, *matrix.shape[-2:])
    # Drawn on the CPU, so that a seed gives the same sketch on every device.
    sketch = torch.randn(matrix.shape[-1], width, generator=torch.Generator().manual_seed(seed), dtype=unit.dtype)
    basis = torch.linalg.qr(unit @ sketch.to(unit.device)).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(unit @ torch.linalg.qr(unit.mT @ basis).Q).Q
    q, r = torch.linalg.qr(unit.mT @ basis)
    u, s, vt = torch.linalg.svd(r.mT)
    return Svd(basis @ u[..., :rank], s[..., :rank] * scale.squeeze(-1), vt[..., :rank, :] @ q.mT)


def _transposed(svd: Svd) -> Svd:
    return Svd(svd.right.mT, svd.singular, svd.left.mT)


def _check(matrix: Tensor, rank: int) -> None:
    most = min(matrix.shape[-2:])
    if not 0 <= rank <= most:
        raise ValueError(f"rank: {rank} should be from 0 to {most} for a matrix {tuple(matrix.shape)}")


def _working(matrix: Tensor) -> Tensor:
    matrix = matrix.detach()
    return matrix if matrix.dtype == torch.float64 else matrix.float()


def _unit(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix (..., m, n) over its largest entry, so that no square overflows or underflows, and that entry."""
    largest = matrix.abs().amax((-2, -1), keepdim=True)
    scale = torch.where(largest == 0, 1, largest)
    return matrix / scale, scale
