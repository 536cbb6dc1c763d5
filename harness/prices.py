"""What a multiply-add costs in seconds here: the rates that a budget in time is solved with.

    rates, fixed = seconds(vlm, Budget("vision", 0.6, extents=extents), lambda vlm: stages(vlm)["vision"], repeats=20)

The model is additive: half of one kind's units are taken away in every block of a component, and the time that this
saves is shared out over their multiply-adds. What no kind accounts for is fixed. Plans found so are estimates; the
latency metric says what became of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from harness import surgery
from harness.metrics.latency import interleave, wait
from harness.types import VLM, Budget, Component, InputError, Keep, Kind, Plan, Ranking

Rates = Mapping[tuple[Component, Kind], float]


@torch.no_grad()
def seconds(vlm: VLM, asked: Budget, call: Callable[[VLM], Callable[[], Any]], repeats: int) -> tuple[Rates, float]:
    """Seconds per multiply-add of every kind that the budget is about, and the fixed rest of the whole call.

    `call` makes the call that is timed for a model. Raises InputError where taking half of a kind away saves no time:
    then time is no currency for it here.
    """
    pairs = vlm.select(asked.scope, asked.units)
    device = next(vlm.model.parameters()).device
    rates: dict[tuple[Component, Kind], float] = {}
    whole, accounted = [], 0.0
    kinds: list[tuple[Component, Kind]] = [(block.component, kind) for block, kind in pairs]
    for component, kind in dict.fromkeys(kinds):
        parts, gone, full = {}, 0, 0
        for block in (block for block, own in pairs if (block.component, own) == (component, kind)):
            units = block.units(kind)
            kept = max(1, units.count // 2)
            parts[block.name, kind] = Keep(tuple(range(kept)))
            cost = units.macs(asked.extents[component])
            gone, full = gone + (units.count - kept) * cost, full + units.count * cost
        less = surgery.apply(vlm, Plan(parts, 1.0, 1.0), Ranking({}))
        times = interleave(call(vlm), call(less), repeats, wait(device))
        saved = float(np.median(times[:, 0] - times[:, 1]))
        if gone == 0 or saved <= 0:
            raise InputError(
                f"currency: taking half of the {kind} of {component} away saves no time here; budget FLOPs instead"
            )
        rates[component, kind] = saved / gone
        accounted += rates[component, kind] * full
        whole.append(float(np.median(times[:, 0])))
    return rates, float(np.median(whole)) - accounted
