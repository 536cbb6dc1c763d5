"""Low-rank factors are optimal, plain and whitened (Eckart-Young-Mirsky)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines.linalg import (
    decompose,
    inverse_whitener,
    roots,
    row_reduced,
    whitener,
)

SHAPES = [(12, 20), (20, 12), (16, 16)]
sizes, seeds = st.integers(1, 9), st.integers(0, 2**16)


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
