"""The SVD routes that `bench` times agree with the exact SVD."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.infoprune.svd_routes import Svd, randomized_svd, truncated_svd

sizes, seeds = st.integers(1, 9), st.integers(0, 2**16)


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(rows: int, columns: int, singular: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these singular values and random singular vectors."""
    left, right = (torch.linalg.qr(matrix(n, len(singular), seed=seed + i)).Q for i, n in enumerate((rows, columns)))
    return left * singular.double() @ right.T


def rebuilt(svd: Svd) -> Tensor:
    return svd.left * svd.singular.unsqueeze(-2) @ svd.right


def assert_orthonormal(svd: Svd, tolerance: float) -> None:
    for columns in (svd.left, svd.right.mT):
        eye = torch.eye(columns.shape[-1], dtype=columns.dtype).expand(*columns.shape[:-2], -1, -1)
        torch.testing.assert_close(columns.mT @ columns, eye, atol=tolerance, rtol=0)


@given(sizes, sizes, st.integers(0, 9), st.integers(0, 9), seeds)
def test_truncation_loses_the_dropped_energy(rows: int, columns: int, inner: int, rank: int, seed: int) -> None:
    whole = matrix(rows, inner, seed=seed) @ matrix(inner, columns, seed=seed + 1)
    rank = min(rank, rows, columns)
    energy = torch.linalg.svdvals(whole).square()
    for svd in (truncated_svd(whole, rank), randomized_svd(whole, rank, seed=seed)):
        assert svd.left.shape == (rows, rank) and svd.singular.shape == (rank,) and svd.right.shape == (rank, columns)
        lost = (whole - rebuilt(svd)).square().sum()
        torch.testing.assert_close(lost, energy[rank:].sum(), atol=1e-9 * float(energy.sum()), rtol=1e-6)
        assert_orthonormal(svd, 1e-9)
        assert svd.singular.tolist() == sorted(svd.singular.tolist(), reverse=True)


@pytest.mark.parametrize("shape", [(40, 70), (70, 40)])
@pytest.mark.parametrize("route", [truncated_svd, randomized_svd])
def test_routes_are_near_optimal_in_single_precision(route: Callable[..., Svd], shape: tuple[int, int]) -> None:
    whole = torch.stack([with_values(*shape, 0.8 ** torch.arange(40), seed=seed) for seed in (0, 5)]).float()
    exact = torch.linalg.svdvals(whole.double())
    svd = route(whole, 8)
    assert svd.singular.dtype == torch.float32
    torch.testing.assert_close(svd.singular.double(), exact[:, :8], atol=0, rtol=1e-4)
    lost = (whole - rebuilt(svd)).double().square().sum((-2, -1))
    energy = exact.square().sum(-1)
    assert ((lost - exact[:, 8:].square().sum(-1)).abs() / energy).max() < 1e-5
    assert_orthonormal(svd, 1e-5)
    one = route(whole[1], 8)
    torch.testing.assert_close(rebuilt(one), rebuilt(svd)[1], atol=1e-4, rtol=0)


def test_power_iterations_sharpen_a_slowly_decaying_spectrum() -> None:
    whole = with_values(60, 80, 1 / torch.arange(1, 61).sqrt())
    energy = torch.linalg.svdvals(whole).square()

    def excess(iterations: int) -> float:
        lost = (whole - rebuilt(randomized_svd(whole, 10, iterations=iterations, oversample=5))).square().sum()
        return float(lost / energy[10:].sum() - 1)

    assert excess(0) > excess(1) > excess(4) > 0
    assert excess(4) < 0.01


def test_sketches_follow_the_seed_alone() -> None:
    whole = matrix(30, 40)
    torch.manual_seed(1)
    first = randomized_svd(whole, 4, seed=7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = randomized_svd(whole, 4, seed=7)
    assert torch.equal(first.singular, second.singular) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first.singular, randomized_svd(whole, 4, seed=8).singular)


@pytest.mark.parametrize("route", [truncated_svd, randomized_svd])
def test_routes_cope_with_any_type_scale_and_zeros(route: Callable[..., Svd]) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        narrow = (matrix(12, 9) * 1000).to(dtype)
        svd = route(narrow, 9)
        assert svd.left.dtype == torch.float32
        torch.testing.assert_close(rebuilt(svd), narrow.float(), atol=0.05, rtol=0)
    for scale in (1e-30, 1e30):  # squares vanish or overflow in float32
        svd = route(matrix(5, 7).float() * scale, 5)
        torch.testing.assert_close(rebuilt(svd) / scale, matrix(5, 7).float(), atol=1e-4, rtol=0)
    svd = route(torch.zeros(5, 7), 3)
    assert not svd.singular.any() and not rebuilt(svd).any()
    assert_orthonormal(svd, 1e-6)


@pytest.mark.parametrize("route", [truncated_svd, randomized_svd])
def test_vectors_carry_no_gradient(route: Callable[..., Svd]) -> None:
    assert not any(part.requires_grad for part in route(matrix(4, 5).requires_grad_(), 2))


@pytest.mark.parametrize("route", [truncated_svd, randomized_svd])
@pytest.mark.parametrize("rank", [-1, 5])
def test_ranks_that_do_not_exist_are_refused(route: Callable[..., Svd], rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank: {rank} should be from 0 to 4"):
        route(matrix(4, 6), rank)
