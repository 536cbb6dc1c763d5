"""Rates of a recovery that are for different budgets are one contest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.verdicts.standing import verdict
from tests.support.stored import flipped, put, scores


def test_rates_of_different_budgets_are_judged_together(tmp_path: Path) -> None:
    dense = scores(450, 0.95)
    for budget, rate in ((0.5, 3e-4), (0.25, 1e-3)):
        how: dict[str, Any] = {"budget": budget, "recovery": {"method": "full", "rate": rate}}
        for method, loss in (("random", 0.4), ("mine", 0.1), ("taylor", 0.2)):
            put(tmp_path, flipped(dense, loss, 0.01, seed=0), method=method, **how)
    (bar,) = verdict(tmp_path / "made")
    assert bar.regime == "tuned full-kl-300 rate=0.0003/0.001"
    assert [(at.budget, at.rival and at.rival.name) for at in bar.budgets] == [(0.5, "taylor"), (0.25, "taylor")]
