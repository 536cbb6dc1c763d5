"""Low-rank factors are optimal, plain and whitened (Eckart-Young-Mirsky); SVD routes agree with the exact SVD."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.linalg import (
    Svd,
    decompose,
    inverse_whitener,
    randomized_svd,
    roots,
    row_reduced,
    truncated_svd,
    whitener,
)

SHAPES = [(12, 20), (20, 12), (16, 16)]


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


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_factors_are_the_truncated_svd(shape: tuple[int, int]) -> None:
    weight = matrix(*shape)
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    found = decompose(weight)
    torch.testing.assert_close(found.energy, s.square())
    for rank in range(1, len(s) + 1):
        down, up = found.factors(weight, rank)
        assert down.shape == (rank, shape[1]) and up.shape == (shape[0], rank)
        torch.testing.assert_close(up @ down, u[:, :rank] * s[:rank] @ vt[:rank])
        error = (weight - up @ down).square().sum() / weight.square().sum()
        torch.testing.assert_close(found.dropped[rank], error, atol=1e-12, rtol=1e-8)
    assert found.dropped[0] == 1 and found.dropped[-1] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_whitened_factors_are_svd_llms(shape: tuple[int, int]) -> None:
    weight, inputs = matrix(*shape), matrix(200, shape[1], seed=1) @ matrix(shape[1], shape[1], seed=2)
    second = inputs.T @ inputs / len(inputs)
    s = torch.linalg.cholesky(second)
    u, values, vt = torch.linalg.svd(weight @ s, full_matrices=False)
    found = decompose(weight, second)
    torch.testing.assert_close(found.energy, values.square())
    for rank in (1, 5, len(values)):
        down, up = found.factors(weight, rank)
        torch.testing.assert_close(up @ down, u[:, :rank] * values[:rank] @ vt[:rank] @ torch.linalg.inv(s))
        lost = (inputs @ (weight - up @ down).T).square().sum() / (inputs @ weight.T).square().sum()
        torch.testing.assert_close(found.dropped[rank], lost, atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_whitening_copes_with_inputs_that_do_not_span(shape: tuple[int, int]) -> None:
    weight, inputs = matrix(*shape), matrix(50, 3, seed=1) @ matrix(3, shape[1], seed=2)
    down, up = decompose(weight, inputs.T @ inputs / 50).factors(weight, 3)
    torch.testing.assert_close(inputs @ (up @ down).T, inputs @ weight.T, atol=1e-6, rtol=1e-6)


def test_whitener_is_a_root() -> None:
    inputs = matrix(5, 8)
    second = inputs.T @ inputs
    root = whitener(second)
    torch.testing.assert_close(root @ root.T, second)


def test_full_rank_is_the_weight_and_types_stay() -> None:
    weight = matrix(24, 10).to(torch.bfloat16)
    down, up = decompose(weight).factors(weight, 10)
    assert down.dtype == up.dtype == torch.bfloat16
    assert down.is_contiguous() and up.is_contiguous()
    torch.testing.assert_close((up.double() @ down.double()), weight.double(), atol=0.05, rtol=0.05)


def test_zero_weight_drops_nothing() -> None:
    found = decompose(torch.zeros(6, 4))
    down, up = found.factors(torch.zeros(6, 4), 2)
    assert not found.dropped.any() and not (up @ down).any()


@pytest.mark.parametrize("spanned", [8, 3])
def test_inverse_whitener_makes_the_moment_the_identity_where_there_is_input(spanned: int) -> None:
    inputs = 100 * matrix(50, spanned) @ matrix(spanned, 8, seed=1)
    second = inputs.T @ inputs / len(inputs)
    inverse = inverse_whitener(second)
    projector = torch.linalg.pinv(second, hermitian=True) @ second
    torch.testing.assert_close(inverse @ second @ inverse.T, projector, atol=1e-6, rtol=0)
    torch.testing.assert_close(inverse @ whitener(second), projector, atol=1e-6, rtol=0)
    assert float(projector.trace()) == pytest.approx(spanned)
    assert not inverse_whitener(torch.zeros(4, 4)).any()


def test_whiteners_of_a_batch_are_those_of_its_matrices() -> None:
    inputs = matrix(3, 20, 6)
    second = inputs.mT @ inputs
    for function in (whitener, inverse_whitener):
        for one, moment in zip(function(second), second, strict=True):
            torch.testing.assert_close(one, function(moment))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_energies_of_narrow_types_are_those_of_the_numbers_they_hold(dtype: torch.dtype) -> None:
    narrow = (matrix(6, 9) * 1000).to(dtype)  # squares overflow float16
    found = decompose(narrow).energy
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.sqrt(), torch.linalg.svdvals(narrow.double()))


def test_roots_of_nothing_have_no_slope_and_nan_stays() -> None:
    values = torch.tensor([4.0, 1e-20, 0.0, -1e-9], dtype=torch.float64, requires_grad=True)
    found = roots(values, 4)
    found.sum().backward()
    assert found.tolist() == [2, 0, 0, 0]
    assert values.grad is not None and values.grad.tolist() == [0.25, 0, 0, 0]
    assert roots(torch.tensor([1.0, torch.nan]), 2).isnan().any()


@given(sizes, sizes, seeds)
def test_row_reduced_keeps_the_gram_matrix(rows: int, columns: int, seed: int) -> None:
    whole = matrix(2, rows, columns, seed=seed)
    reduced = row_reduced(whole)
    assert reduced.shape == (2, min(rows, columns), columns)
    torch.testing.assert_close(reduced.mT @ reduced, whole.mT @ whole)


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
