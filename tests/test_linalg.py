"""Low-rank factors are optimal: the error is the dropped energy, plain and whitened (Eckart-Young-Mirsky)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from baselines.linalg import decompose, whitener

SHAPES = [(12, 20), (20, 12), (16, 16)]


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
