"""Effective rank and spectral distance: bounds, invariances and known values."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from torch import Tensor

from baselines.infoprune.spectrum import Distribution, effective_rank, ks_distance, leading

DISTRIBUTIONS: list[Distribution] = ["amplitude", "energy"]
values = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.sampled_from([1.0, 2.0]))  # with ties and zeros
spectra = st.lists(values, min_size=1, max_size=12)


def vector(items: list[float]) -> Tensor:
    return torch.tensor(items, dtype=torch.float64)


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
