"""Seconds per multiply-add on this machine: the rates for a budget in time.

    rates, fixed = seconds(vlm, Budget("vision", 0.6, extents=extents), lambda vlm: stages(vlm)["vision"], repeats=20)

The model of time is additive. For each kind of unit, half of the units are removed from every block of a component; the
seconds saved, divided by the multiply-adds removed, are the rate. Time that no kind accounts for is fixed. The plans
are therefore estimates; the latency metric measures the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from harness.machine.timing import interleave, wait
from harness.pruning import surgery
from harness.types import VLM, Budget, Component, InputError, Keep, Kind, Plan, Ranking

Rates = Mapping[tuple[Component, Kind], float]


@torch.no_grad()
def seconds(vlm: VLM, budget: Budget, call: Callable[[VLM], Callable[[], Any]], repeats: int) -> tuple[Rates, float]:
    """Seconds per multiply-add of every kind of unit that the budget counts, and the fixed rest of the call in seconds.

    `call` gives the call to time for a model. Raises InputError if removing half of a kind saves no time, because then
    time cannot be the currency.
    """
    pairs = vlm.counted(budget.scope, budget.units)
    device = next(vlm.model.parameters()).device
    rates: dict[tuple[Component, Kind], float] = {}
    dense_seconds, accounted = [], 0.0
    kinds: list[tuple[Component, Kind]] = [(block.component, kind) for block, kind in pairs]
    for component, kind in dict.fromkeys(kinds):
        parts, removed, total = {}, 0, 0
        for block in (block for block, block_kind in pairs if (block.component, block_kind) == (component, kind)):
            units = block.units(kind)
            remaining = max(1, units.count // 2)
            parts[block.name, kind] = Keep(tuple(range(remaining)))
            cost = units.macs(budget.extents[component])
            removed, total = removed + (units.count - remaining) * cost, total + units.count * cost
        pruned = surgery.apply(vlm, Plan(parts, 1.0, 1.0), Ranking({}))
        times = interleave(call(vlm), call(pruned), repeats, wait(device))
        saved = float(np.median(times[:, 0] - times[:, 1]))
        if removed == 0 or saved <= 0:
            raise InputError(
                f"currency: removing half of the {kind} of {component} saves no time here; use currency: flops"
            )
        rates[component, kind] = saved / removed
        accounted += rates[component, kind] * total
        dense_seconds.append(float(np.median(times[:, 0])))
    return rates, float(np.median(dense_seconds)) - accounted
