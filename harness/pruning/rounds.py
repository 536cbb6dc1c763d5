"""Combine successive cuts of one model into one plan.

plan = merged_plan(first, then)
"""

from __future__ import annotations

import math
from dataclasses import replace

from harness.types import Choice, InputError, Keep, Plan


def merged_plan(first: Plan, then: Plan) -> Plan:
    """Two cuts as one plan in the unit indices of the original model; `then` cuts the result of `first`.

    Raises InputError if a plan replaces Linears, because these cannot be cut again.
    """
    if any(isinstance(part, Choice) for plan in (first, then) for part in plan.parts.values()):
        raise InputError(
            "tuning.rounds: this method replaces Linears, and only removed units can be cut in rounds; set rounds to 1"
        )
    parts = dict(first.parts)
    for key, part in then.parts.items():
        before = first.parts.get(key)
        assert isinstance(part, Keep)
        parts[key] = Keep(tuple(before.indices[i] for i in part.indices)) if isinstance(before, Keep) else part
    requested, achieved = first.requested * then.requested, first.achieved * then.achieved
    align = math.gcd(first.align, then.align) if first.parts else then.align
    both = Plan(parts, requested, achieved, align, widths={**then.widths, **first.widths})
    left = {key: part for key, part in parts.items() if key[1] == "layers" or key[0] not in both.gone}
    return replace(both, parts=left, coarse=first.coarse or then.coarse)
