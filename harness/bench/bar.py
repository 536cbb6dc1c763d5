"""A row of `infoprune bench`: a ratio measured on this machine, its interval, and its goal.

Bar.of("ten budgets against one", 1.2, rounds=[1.03, 1.09, 1.04], at_most=True).holds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A performance bar: a ratio measured in one run, its interval if it has one, and its goal."""

    name: str
    goal: float
    ratio: float | None = None
    lo: float | None = None
    hi: float | None = None
    at_most: bool = False  # the goal is an upper bound
    sound: bool = True  # further conditions hold: the same answers, a small error
    command: str = ""  # the command that measures a bar which this machine cannot
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, goal: float, rounds: Sequence[float], **settings: Any) -> Bar:
        """The median of several rounds; the interval is their minimum and maximum, and none for a single round."""
        spread = (min(rounds), max(rounds)) if len(rounds) > 1 else (None, None)
        return cls(name, goal, median(rounds), *spread, **settings)

    @property
    def bound(self) -> str:
        """The goal as text."""
        return f"{'<=' if self.at_most else '>='} {self.goal:g}"

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None if the bar was not measured."""
        reached = self.ratio is not None and (self.ratio <= self.goal if self.at_most else self.ratio >= self.goal)
        return None if self.ratio is None else self.sound and reached

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values, with `holds` and `measured`."""
        return {**asdict(self), "holds": self.holds, "measured": self.ratio is not None}
