"""Kwon: a damage is its literal form, and the rearrangement a slow greedy search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines import kwon
from harness.statistics.calibration import Calibration
from harness.types import VLM, Kind
from tests.support.calibrations import calibration_on_several_questions
from tests.support.linears import inputs_of, output_gradients_of, weight_of
from tests.support.scores import scores_of


@pytest.fixture(scope="module")
def calibration(tiny: VLM) -> Calibration:
    return calibration_on_several_questions(tiny)


def test_damage_of_a_unit_is_half_the_fisher_information_of_its_mask(tiny: VLM, calibration: Calibration) -> None:
    """The derivative by a mask: what the unit adds to the layer's output, times that output's gradient."""
    ranking = kwon.rank(tiny, calibration, seed=0, within="unit")
    one_by_one = [Calibration(tiny, [sample], batch_size=1) for sample in calibration.samples]
    tokens = sum(int((batch["labels"] != -100).sum()) for single in one_by_one for batch in single.batches())
    keys: list[tuple[str, Kind]] = [(tiny.blocks[0].name, "heads"), (tiny.blocks[-1].name, "ffn")]
    for key in keys:
        units = tiny.block(key[0]).units(key[1])
        expected = torch.zeros(units.count, dtype=torch.float64)
        for single in one_by_one:
            gradients = output_gradients_of(tiny, single, units.consumer)
            share = inputs_of(tiny, single, units.consumer) * (gradients @ weight_of(tiny, units.consumer))
            expected += share.sum(0).unflatten(0, (units.count, -1)).sum(1).square() / 2
        damage = torch.tensor(scores_of(ranking, key), dtype=torch.float64)
        torch.testing.assert_close(damage, expected / tokens, rtol=1e-3, atol=1e-12)


@given(st.integers(2, 12), st.integers(1, 12), st.integers(0, 10_000))
def test_units_go_in_the_order_of_a_slow_greedy_search(samples: int, count: int, seed: int) -> None:
    rows = torch.randn(samples, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    left, order = list(range(count)), []
    while left:
        order.append(min(left, key=lambda unit: float(rows[:, [*order, unit]].sum(1).square().sum())))
        left.remove(order[-1])
    assert kwon.removals(rows).tolist() == order


def test_units_that_cancel_go_together() -> None:
    """Two units whose derivatives nearly cancel in every sample: after the one, the other goes before a smaller one."""
    rows = torch.tensor([[2.0, -2.1, 2.4], [-3.0, 3.1, 2.8]], dtype=torch.float64)
    assert rows.square().sum(0).argsort().tolist() == [0, 2, 1]
    assert kwon.removals(rows).tolist() == [0, 1, 2]
    rows[:, 1] *= -1
    assert kwon.removals(rows).tolist() == [0, 2, 1]


def test_the_rearrangement_changes_which_units_go_and_not_how_many(tiny: VLM, calibration: Calibration) -> None:
    alone, together = (kwon.rank(tiny, calibration, seed=0, within=within) for within in ("unit", "block"))
    changed = 0
    for key in alone.scores:
        ours, theirs = scores_of(alone, key), scores_of(together, key)
        assert sorted(ours) == sorted(theirs)
        changed += ours != theirs
    assert changed
