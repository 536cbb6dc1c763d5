"""Plans of whole layers that stay below their budget: what they keep, and where they still compete.

keeps(record)  # "keeps 0.432", or "" for a plan within the tolerance
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from harness.records.record import Record

KEEPS = "coarse"  # the column


def keeps(record: Record) -> str:
    """What a coarse plan keeps of the budget's cost, as text; empty for any other."""
    plan = record.plan
    return f"keeps {plan.achieved:.3f}" if record.error is None and plan is not None and plan.coarse else ""


def competing(groups: Mapping[tuple[str, float], Sequence[Mapping[Any, Any]]]) -> set[tuple[str, float]]:
    """The (curve, budget) whose trials keep what the budget says, or the same as all others at it."""
    texts = {key: {row.get(KEEPS, "") for row in rows} for key, rows in groups.items()}
    at_budget: dict[float, set[str]] = defaultdict(set)
    for (_, budget), kept in texts.items():
        at_budget[budget] |= kept
    return {key for key, kept in texts.items() if kept == {""} or len(at_budget[key[1]]) == 1}
