"""How often the gate is right: its false alarms and its misses over simulated changes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness import stats
from harness.stats import Pairs
from harness.verdicts import regressions
from harness.verdicts.regressions import Limits
from tests.support.stored import PER_IMAGE


def _rough(difference: Callable[..., stats.Difference], pairs: Pairs, **options: Any) -> stats.Difference:
    return difference(pairs, **{**options, "resamples": 1000})


def rates(lost: float, gained: float, images: int, changes: int = 500) -> dict[str, float]:
    """Shares of the outcomes over simulated changes: new questions each time, three an image that flip alike."""
    random = np.random.default_rng(0)
    number = images * PER_IMAGE
    names = [place // PER_IMAGE for place in range(number)]
    found: dict[str, float] = dict.fromkeys(("pass", "fail", "inconclusive"), 0.0)
    for _ in range(changes):
        leaning = np.repeat(random.uniform(0, 2, images), PER_IMAGE)  # some images are hit harder
        draw = random.random(number)
        first = (random.random(number) < 0.8).astype(float)
        second = np.where(draw < leaning * np.where(first == 1, lost / 0.8, gained / 0.2), 1 - first, first)
        pairs = Pairs(["t"] * number, names, names, first, second)
        outcome = regressions._settle({"t": regressions._loss(pairs, Limits(), 1)}, {}, Limits())["t"].outcome
        found[outcome] += 1 / changes
    return found


def test_power_and_false_alarms_over_500_simulated_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,800 questions about 600 images: 5 % of the answers change, to no avail or at a cost of 3 points."""
    # A tenth of the resamples: the bounds of one change are rougher, how often they are right is the same.
    monkeypatch.setattr(stats, "difference", functools.partial(_rough, stats.difference))
    nothing, three = rates(0.025, 0.025, 600), rates(0.04, 0.01, 600)
    assert nothing["fail"] <= 0.05 + 0.02 and nothing["pass"] >= 0.5  # 0.02: twice the error of 500 tries
    assert three["fail"] >= 0.95 and three["pass"] <= 0.005
