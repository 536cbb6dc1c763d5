"""Effective rank and spectral distance: bounds, invariances, known values, surrogates and their gradients."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torch import Tensor
from torch.autograd import gradcheck

from baselines.infoprune.heads import Layer, Loss, Output
from baselines.infoprune.spectrum import (
    Distribution,
    Over,
    effective_rank,
    ks_distance,
    leading,
    leading_counts,
    masked_spectrum,
    side_by_side,
    smooth_ks_distance,
)
from baselines.linalg import decompose, row_reduced

DISTRIBUTIONS: list[Distribution] = ["amplitude", "energy"]
FORMS: list[Over] = ["cumulative", "values"]
values = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.sampled_from([1.0, 2.0]))  # with ties and zeros
spectra = st.lists(values, min_size=1, max_size=12)


def vector(items: list[float]) -> Tensor:
    return torch.tensor(items, dtype=torch.float64)


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(rows: int, columns: int, items: list[float]) -> Tensor:
    left, right = (torch.linalg.qr(matrix(n, len(items), seed=n)).Q for n in (rows, columns))
    return left * vector(items) @ right.T


@given(spectra, st.sampled_from(DISTRIBUTIONS), st.floats(0.01, 100))
def test_effective_rank_lies_between_1_and_the_rank(
    items: list[float], distribution: Distribution, scale: float
) -> None:
    singular = vector(items)
    rank = float(effective_rank(singular, distribution))
    nonzero = int((singular > 0).sum())
    assert rank == 0 if nonzero == 0 else 1 - 1e-9 <= rank <= nonzero + 1e-9
    assert rank == pytest.approx(float(effective_rank(scale * singular.flip(0), distribution)))
    assert rank == pytest.approx(float(effective_rank(torch.cat([singular, torch.zeros(3)]), distribution)))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_effective_rank_known_values(distribution: Distribution) -> None:
    assert float(effective_rank(torch.full((7,), 3.0), distribution)) == pytest.approx(7)
    assert float(effective_rank(vector([5, 0, 0]), distribution)) == pytest.approx(1)
    assert float(effective_rank(torch.zeros(4), distribution)) == 0


def test_effective_rank_distributions_differ() -> None:
    # s = (2, 1): p = (2/3, 1/3) or (4/5, 1/5); exp of the entropies ln 3 - 2/3 ln 2 and ln 5 - 4/5 ln 4
    assert float(effective_rank(vector([2, 1]))) == pytest.approx(3 / 2 ** (2 / 3))
    assert float(effective_rank(vector([2, 1]), "energy")) == pytest.approx(5 / 4**0.8)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # scipy's, about p-values
@given(spectra, spectra)
def test_distance_over_values_is_the_two_sample_statistic(first: list[float], second: list[float]) -> None:
    expected = cast(Any, ks_2samp(first, second)).statistic
    assert float(ks_distance(vector(first), vector(second), "values")) == pytest.approx(expected)


@given(spectra, spectra)
def test_cumulative_distance_is_the_largest_gap(first: list[float], second: list[float]) -> None:
    longest = max(len(first), len(second))
    padded = [sorted(items, reverse=True) + [0.0] * (longest - len(items)) for items in (first, second)]
    gaps = [abs(sum(padded[0][:i]) - sum(padded[1][:i])) for i in range(1, longest + 1)]
    expected = max(gaps) / sum(first) if sum(first) else float(sum(second) > 0)
    assert float(ks_distance(vector(first), vector(second))) == pytest.approx(expected, abs=1e-9)


def test_cumulative_distance_sees_an_output_that_shrinks_or_vanishes() -> None:
    original = vector([4, 3, 2, 1])
    assert float(ks_distance(original, original)) == 0
    assert float(ks_distance(original, original / 4)) == pytest.approx(0.75)
    assert float(ks_distance(original, torch.zeros(4))) == pytest.approx(1)
    assert float(ks_distance(torch.zeros(4), torch.zeros(4))) == 0


def test_batches_equal_their_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    original, pruned = torch.rand(9, generator=generator), torch.rand(2, 5, 7, generator=generator)
    for over in ("cumulative", "values"):
        batch = ks_distance(original, pruned, over)
        assert batch.shape == (2, 5)
        torch.testing.assert_close(batch[1, 3], ks_distance(original, pruned[1, 3], over))
    assert effective_rank(pruned).shape == (2, 5)
    torch.testing.assert_close(effective_rank(pruned)[1, 3], effective_rank(pruned[1, 3]))


def test_leading_counts_values_by_energy_or_by_number() -> None:
    singular = vector([1, 3, 0, 2])  # energies 9, 4, 1, 0 of 14
    assert [leading(singular, k) for k in (0.5, 9 / 14, 0.65, 0.99)] == [1, 1, 2, 3]
    assert [leading(singular, k) for k in (1, 3, 99)] == [1, 3, 4]


def test_leading_counts_are_those_of_each_spectrum() -> None:
    batch = matrix(2, 3, 8).abs() ** 3
    for k in (0.3, 0.9, 0.99, 1, 5, 99):
        counts = leading_counts(batch, k)
        assert counts.shape == (2, 3)
        assert counts.flatten().tolist() == [leading(row, k) for row in batch.flatten(0, 1)]
    assert leading_counts(torch.zeros(2, 4), 0.99).tolist() == [1, 1]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_effective_rank_of_known_matrices(distribution: Distribution) -> None:
    one = torch.outer(torch.arange(1.0, 5), torch.arange(1.0, 8))
    for known, rank in ((torch.eye(4, 7), 4), (one, 1), (torch.zeros(4, 7), 0)):
        found = effective_rank(decompose(known).energy.sqrt(), distribution)
        assert float(found) == pytest.approx(rank, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_spectra_are_taken_for_the_numbers_they_hold(dtype: torch.dtype) -> None:
    first, second = (matrix(2, 300, seed=seed).abs().mul(1000).to(dtype) for seed in (0, 1))  # squares overflow
    for distribution in DISTRIBUTIONS:
        expected = effective_rank(first.double(), distribution)
        torch.testing.assert_close(effective_rank(first, distribution).double(), expected)
    for over in FORMS:
        expected = ks_distance(first.double(), second.double(), over)
        torch.testing.assert_close(ks_distance(first, second, over).double(), expected)
        torch.testing.assert_close(ks_distance(first, second.double(), over).double(), expected)
        smooth = smooth_ks_distance(first, second, over)
        torch.testing.assert_close(smooth.double(), smooth_ks_distance(first.double(), second.double(), over))
    assert leading(first[0], 0.9) == leading(first[0].double(), 0.9)


def test_nan_is_not_taken_for_a_zero_matrix() -> None:
    broken = vector([1, math.nan])
    assert effective_rank(broken).isnan() and ks_distance(broken, vector([1, 1])).isnan()
    assert smooth_ks_distance(vector([1, 1]), broken).isnan()


steps = st.lists(st.integers(0, 6), min_size=1, max_size=10)


@given(steps, steps, st.sampled_from(FORMS))
def test_surrogate_tends_to_the_distance(first: list[int], second: list[int], over: Over) -> None:
    original, pruned = vector([*map(float, first)]), vector([*map(float, second)])
    exact = float(ks_distance(original, pruned, over))
    for temperature in (1e-2, 1e-3, 1e-4):
        found = float(smooth_ks_distance(original, pruned, over, temperature))
        # The softened maximum of n gaps, and for values a missing share of two steps.
        below = temperature * (math.log(len(first) + len(second)) + 0.28 + 2)
        assert exact - below <= found <= exact + 2 * temperature


@given(spectra, spectra, st.sampled_from(FORMS), st.floats(1e-3, 0.5), st.floats(0.01, 100))
def test_surrogate_is_a_bounded_scale_free_distance(
    first: list[float], second: list[float], over: Over, temperature: float, scale: float
) -> None:
    original, pruned = vector(first), vector(second)
    found = float(smooth_ks_distance(original, pruned, over, temperature))
    assert found >= 0 and float(smooth_ks_distance(original, original.flip(0), over, temperature)) < 1e-12
    assert found == pytest.approx(float(smooth_ks_distance(scale * original, scale * pruned, over, temperature)))
    if over == "values":
        assert found <= 1
        assert found == pytest.approx(float(smooth_ks_distance(pruned, original, over, temperature)))
    else:
        exact = float(ks_distance(original, pruned))
        assert exact - temperature * (math.log(max(len(first), len(second))) + 0.28) - 1e-9 <= found <= exact + 1e-9


@pytest.mark.parametrize("over", FORMS)
def test_surrogate_compares_as_many_values_as_counted(over: Over) -> None:
    original, pruned = matrix(2, 3, 8).abs(), matrix(2, 3, 8, seed=1).abs()
    counts = torch.tensor([[1, 8, 4], [3, 2, 5]])
    found = smooth_ks_distance(original, pruned, over, 0.1, counts)
    assert found.shape == (2, 3)
    for at in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]:
        first, second = (x[at].sort(descending=True).values[: int(counts[at])] for x in (original, pruned))
        torch.testing.assert_close(found[at], smooth_ks_distance(first, second, over, 0.1))
        torch.testing.assert_close(found[at], smooth_ks_distance(original[at], pruned[at], over, 0.1, int(counts[at])))
    assert smooth_ks_distance(original[0, 0], pruned, over, 0.1, counts).shape == (2, 3)


@pytest.mark.parametrize("temperature", [0.0, 1.0, -0.1])
def test_surrogate_refuses_a_temperature_without_meaning(temperature: float) -> None:
    with pytest.raises(ValueError, match="should be in \\(0, 1\\)"):
        smooth_ks_distance(torch.ones(2), torch.ones(2), temperature=temperature)


POINTS = [[4.0, 3, 2, 1], [2.0, 2, 1, 1], [3.0, 3, 3, 3], [2.0, 2, 0, 0], [1.0, 0, 0, 0]]  # repeated values, zeros


@pytest.mark.parametrize("items", POINTS)
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_gradients_of_the_effective_rank(
    items: list[float], shape: tuple[int, int], distribution: Distribution
) -> None:
    """As they flow in training: to a mask, through the spectrum of what it leaves."""
    weight, mask = with_values(*shape, items), torch.ones(shape[1], dtype=torch.float64, requires_grad=True)
    white = torch.eye(shape[1], dtype=torch.float64)
    assert gradcheck(
        lambda m: effective_rank(masked_spectrum(white, weight, m), distribution), mask, eps=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("items", POINTS)
def test_gradients_of_the_surrogate_over_values(items: list[float]) -> None:
    point = vector(items).requires_grad_()
    original = vector([5, 2, 2, 1])
    for temperature in (0.3, 0.05):
        assert gradcheck(lambda x, t=temperature: smooth_ks_distance(original, x, "values", t), point, atol=1e-6)
        assert gradcheck(
            lambda x, t=temperature: smooth_ks_distance(x, original, "values", t, 3),
            point[:4] + vector([0.3, 0.2, 0.1, 0]),
        )


def test_gradients_of_the_surrogate_over_the_cumulative_spectrum() -> None:
    original = vector([5, 2, 2, 1])
    for items in ([4.0, 3, 2, 1], [6.0, 5, 1, 0.5], [2.0, 0.5, 1, 0.2]):
        assert gradcheck(lambda x: smooth_ks_distance(original, x, temperature=0.1), vector(items).requires_grad_())
    # At ties a subgradient: along the scale of the spectrum, which keeps them, it is the derivative.
    for point in map(vector, POINTS[1:]):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        assert gradcheck(lambda x, at=point: smooth_ks_distance(original, x * at, temperature=0.1), scale)


@pytest.mark.parametrize("over", FORMS)
def test_equal_spectra_and_zeros_have_finite_gradients(over: Over) -> None:
    for first in (torch.zeros(4), torch.ones(4), torch.tensor([1.0, 1, 0, 0])):
        for second in (torch.zeros(4), torch.ones(4), torch.tensor([1.0, 1, 0, 0])):
            original, pruned = first.clone().requires_grad_(), second.clone().requires_grad_()
            loss = smooth_ks_distance(original, pruned, over) + ks_distance(original, pruned)
            (loss + effective_rank(pruned) + effective_rank(pruned, "energy")).backward()
            for spectrum in (original, pruned):
                assert spectrum.grad is not None and spectrum.grad.isfinite().all()


def layers(count: int, heads: int, width: int, out: int, samples: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs of the heads (count, samples, heads * width), centred; their covariance; the weight that reads them."""
    outputs = matrix(count, samples, heads * width) @ matrix(count, heads * width, heads * width, seed=1)
    outputs -= outputs.mean(1, keepdim=True)
    return outputs, outputs.mT @ outputs / samples, matrix(count, out, heads * width, seed=2)


@settings(max_examples=30)
@given(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=3, max_size=3), st.sampled_from([4, 6, 9]))
def test_masked_spectrum_is_that_of_the_masked_outputs(mask: list[float], out: int) -> None:
    outputs, covariance, weight = layers(2, 3, 2, out)
    masked = outputs * vector(mask).repeat_interleave(2) @ weight.mT
    expected = torch.linalg.svdvals(masked / math.sqrt(40))[:, : min(out, 6)]
    found = masked_spectrum(covariance, weight, vector(mask))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(masked_spectrum(covariance, row_reduced(weight), vector(mask)), found, atol=1e-5, rtol=0)
    blocks = [outputs[..., 2 * i : 2 * i + 2] @ weight[..., 2 * i : 2 * i + 2].mT * m for i, m in enumerate(mask)]
    expected = torch.linalg.svdvals(torch.cat(blocks, -1) / math.sqrt(40))[:, :6]
    found = masked_spectrum(covariance, side_by_side(weight, 3), vector(mask))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("output", ["layer", "head"])
def test_hard_masks_give_the_spectra_of_subsets(output: Output) -> None:
    _, covariance, weight = layers(1, 4, 2, 8)
    layer = Layer(covariance[0], weight[0], 4, output)
    read = weight[0] if output == "layer" else side_by_side(weight[0], 4)
    for subset in ([0, 1, 2, 3], [1, 3], [2], []):
        mask = torch.tensor([float(head in subset) for head in range(4)])
        expected = layer.spectra([subset])[0]
        torch.testing.assert_close(masked_spectrum(covariance[0], read, mask), expected, atol=1e-6, rtol=1e-6)


def information_loss(covariance: Tensor, weight: Tensor, mask: Tensor, **how: Any) -> Tensor:
    """J with soft masks (..., heads), as training takes it."""
    original = masked_spectrum(covariance, weight, torch.ones_like(mask)).detach()
    return Loss(**how).smooth(original, masked_spectrum(covariance, weight, mask))


GATES = [[1.0, 1, 1], [0.7, 0.2, 0.9], [0.0, 0.4, 1], [0.0, 0, 0.5]]


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("over", FORMS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_gradients_of_the_information_loss(gates: list[float], over: Over, distribution: Distribution) -> None:
    _, covariance, weight = layers(2, 3, 2, 6)
    for k in (0.95, 4):
        assert gradcheck(
            lambda m, k=k: information_loss(covariance, weight, m, distribution=distribution, ks_over=over, k=k),
            torch.stack([vector(gates), vector(gates).flip(0)]).requires_grad_(),
            eps=1e-5,
            atol=2e-3,
        )


@pytest.mark.parametrize("over", FORMS)
def test_gradients_of_the_information_loss_where_singular_values_repeat(over: Over) -> None:
    # White heads read alike: the singular values are the gates themselves, each twice.
    covariance, weight = torch.eye(6, dtype=torch.float64), torch.linalg.qr(matrix(6, 6)).Q

    for gates in GATES[1:3]:
        mask = vector(gates).requires_grad_()
        torch.testing.assert_close(
            masked_spectrum(covariance, weight, mask), mask.repeat_interleave(2).sort(descending=True).values
        )
        assert gradcheck(
            lambda m: information_loss(covariance, weight, m, ks_over=over, k=6), mask, eps=1e-5, atol=1e-3
        )


def test_information_loss_of_no_gate_all_gates_and_a_batch() -> None:
    _, covariance, weight = layers(2, 3, 2, 6)
    ones, zeros = torch.ones(2, 3), torch.zeros(2, 3, requires_grad=True)
    full = information_loss(covariance, weight, ones, alpha=0.3, beta=0.8)
    torch.testing.assert_close(full, torch.full_like(full, 0.3))
    empty = information_loss(covariance, weight, zeros, alpha=0.3, beta=0.8)
    torch.testing.assert_close(empty, torch.full_like(empty, 0.8), atol=0.05, rtol=0)
    empty.sum().backward()
    assert zeros.grad is not None and zeros.grad.isfinite().all()
    gates = torch.tensor([[0.9, 0.5, 0.0], [0.2, 1.0, 0.6]])
    batch = information_loss(covariance, weight, gates)
    for i in range(2):
        torch.testing.assert_close(batch[i], information_loss(covariance[i], weight[i], gates[i]))


def test_descent_on_the_information_loss_spares_the_head_that_carries_the_spectrum() -> None:
    scale = vector([3, 1, 1]).repeat_interleave(2)
    covariance, weight = torch.diag(scale.square()), torch.eye(6, dtype=torch.float64)
    gates = torch.full((3,), 0.8, dtype=torch.float64, requires_grad=True)
    information_loss(covariance, weight, gates).backward()
    assert gates.grad is not None and gates.grad[0] < gates.grad[1:].min()


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="4 heads"):
        masked_spectrum(torch.eye(6), torch.eye(6), torch.ones(4))
