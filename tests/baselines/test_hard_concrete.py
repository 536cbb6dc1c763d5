"""Gates reach 0 and 1, are open as often as they say, and their cost is pushed to the budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.hard_concrete import Lagrangian, open_probability, sample


@pytest.mark.parametrize("logit", [-3.0, 0.0, 2.0])
def test_gates_are_open_as_often_as_they_say(logit: float) -> None:
    logits = torch.full((20_000,), logit)
    gates = sample(logits, torch.Generator().manual_seed(0))
    assert gates.min() == 0 and gates.max() == 1
    share = float((gates > 0).float().mean())
    assert share == pytest.approx(float(open_probability(logits[:1])), abs=0.01)


@given(st.floats(0.05, 0.95), st.integers(2, 500))
def test_the_target_falls_to_the_budget_over_the_first_half(keep: float, steps: int) -> None:
    targets = [Lagrangian(keep, steps).target(step) for step in range(steps)]
    assert targets == sorted(targets, reverse=True) and targets[0] < 1
    assert targets[steps // 2 :] == [pytest.approx(keep)] * (steps - steps // 2)


def test_prices_push_an_excess_to_the_target_from_both_sides() -> None:
    """Gradient steps on a loss that wants to keep all, or nothing, end at the target."""
    for wish in (1.0, -1.0):
        kept, hold = torch.tensor(0.9, requires_grad=True), Lagrangian(0.5, 1)
        for _ in range(400):
            loss = hold.on(-wish * kept, kept - 0.5)
            (slope,) = torch.autograd.grad(loss, kept)
            kept = (kept - 0.01 * slope).clamp(0, 1).detach().requires_grad_()
            hold.raise_by(kept.item() - 0.5)
        assert kept.item() == pytest.approx(0.5, abs=0.05)
