"""LASER: its pairs and rises equal their literal forms, and its estimate is a second-order one."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from baselines import laser
from baselines.low_rank import factorables
from harness.statistics.calibration import Calibration, linears
from harness.types import VLM, InputError, LowRank, Options
from tests.support.calibrations import calibration_on_several_questions
from tests.support.linears import inputs_of, output_gradients_of, weight_of

DAMPING = 0.1


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


def root(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=1e-12 * float(values.max())) ** power @ vectors.T


def literal(g: Tensor, weight: Tensor, a: Tensor, rank: int) -> tuple[Tensor, float]:
    """The product of the pair, and the rise: from the SVD of G^1/2 W A^1/2 by its definition."""
    u, s, vt = torch.linalg.svd(root(g, 0.5) @ weight @ root(a, 0.5), full_matrices=False)
    pair = root(g, -0.5) @ (u[:, :rank] * s[:rank]) @ vt[:rank] @ root(a, -0.5)
    return pair, float(s[rank:].square().sum()) / 2


def test_pairs_and_rises_are_those_of_the_definition(tiny: VLM, calibration: Calibration) -> None:
    """In attention and FFNs, for Linears that widen and that narrow."""
    ranking = laser.rank(tiny, calibration, seed=0, damping=DAMPING)
    tokens = sum(int((batch["labels"] != -100).sum()) for batch in calibration.batches())
    for block, kind in (*tiny.select("all")[:2], *tiny.select("all")[-2:]):
        points = cast(Options, ranking.scores[block.name, kind]).points
        point, paths = points[len(points) // 2], linears(block.units(kind))
        assert point.make is not None
        made, rise = point.make(), 0.0
        for path in paths:
            if path not in made:
                continue
            weight, inputs, gradients = (
                weight_of(tiny, path),
                inputs_of(tiny, calibration, path),
                output_gradients_of(tiny, calibration, path),
            )
            g = gradients.T @ gradients / tokens
            g += DAMPING * g.diagonal().mean() * torch.eye(len(g))
            pair = cast(LowRank, made[path])
            expected, lost = literal(g, weight, inputs.T @ inputs / len(inputs), len(pair.down))
            found = pair.up.double() @ pair.down.double()
            torch.testing.assert_close(found, expected, atol=2e-3 * float(expected.abs().max()), rtol=2e-3)
            rise += lost
        assert point.loss == pytest.approx(rise, rel=1e-3)


sizes = st.tuples(st.integers(2, 12), st.integers(2, 12))


def drawn(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, G and A."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    grams = [rows.T @ rows for rows in (normal(20, size) for size in shape)]
    return normal(*shape), *grams  # type: ignore[return-value]


def parts(weight: Tensor, g: Tensor, a: Tensor) -> laser.Weighted:
    return laser.weighted(weight, g if len(weight) <= weight.shape[1] else weight.T @ g @ weight, a)


@given(sizes, st.integers(0, 10**6), st.data())
def test_no_other_pair_raises_the_quadratic_loss_less(shape: tuple[int, int], seed: int, data: st.DataObject) -> None:
    """tr(G D A D^T) is the dropped energy, and not less for other pairs of this rank, near and far."""
    weight, g, a = drawn(shape, seed)
    rank = data.draw(st.integers(1, min(shape)))
    part = parts(weight, g, a)
    down, up = part.factors(weight, rank)

    def rise(product: Tensor) -> float:
        change = product - weight
        return float((g @ change @ a * change).sum())

    whole = float(part.energy.sum())
    assert whole == pytest.approx(rise(torch.zeros_like(weight)), rel=1e-9)
    assert rise(up @ down) == pytest.approx(float(part.energy[rank:].sum()), rel=1e-6, abs=1e-9 * whole)
    generator = torch.Generator().manual_seed(seed)
    for scale in (1e-3, 1e-1, 1.0):
        noise = scale * torch.randn(down.shape, generator=generator, dtype=torch.float64) * down.abs().max()
        assert rise(up @ (down + noise)) >= rise(up @ down) - 1e-9 * whole


@given(sizes, st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_the_scale_of_the_curvature_scales_the_rise_only(shape: tuple[int, int], seed: int, scale: float) -> None:
    weight, g, a = drawn(shape, seed)
    one, other = parts(weight, g, a), parts(weight, scale * g, a)
    torch.testing.assert_close(other.energy, scale * one.energy, rtol=1e-6, atol=1e-9 * float(other.energy[0]))
    products = [up @ down for down, up in (part.factors(weight, 1) for part in (one, other))]
    gap = 1 - float(one.energy[1] / one.energy[0])
    torch.testing.assert_close(*products, rtol=1e-6, atol=1e-8 / max(gap, 1e-6))


def test_a_linear_without_gradients_is_decomposed_as_svd_llm_would(tiny: VLM, calibration: Calibration) -> None:
    linear = factorables(tiny.model, tiny.blocks[-1].ffn)[-1]

    class Silent(Calibration):
        def visit_output_gradients(self, modules, see) -> None:  # type: ignore[no-untyped-def]
            for path in modules:
                see(path, torch.zeros(3, len(linear.weight)))

    curvature = laser.curvatures(Silent(tiny, calibration.samples), [linear], 1.0)[linear.path]
    inputs = inputs_of(tiny, calibration, linear.path)
    second = inputs.T @ inputs / len(inputs)
    down, up = laser.weighted(linear.weight, curvature, second).factors(linear.weight, 5)
    expected, _ = literal(torch.eye(len(linear.weight)).double(), linear.weight.double(), second, 5)
    torch.testing.assert_close((up @ down).double(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("damping", [0.0, -1.0])
def test_damping_is_above_zero(tiny: VLM, calibration: Calibration, damping: float) -> None:
    with pytest.raises(InputError, match=f"damping: {damping} should be above 0"):
        laser.rank(tiny, calibration, seed=0, damping=damping)
