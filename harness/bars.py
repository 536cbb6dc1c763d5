"""What `infoprune bench` shows: a ratio measured here, its interval, and the goal it is held to.

Bar.of("ten budgets against one", 1.2, rounds=[1.03, 1.09, 1.04], at_most=True).holds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A performance bar: a ratio measured in one run, its interval if there is one, and the goal it is held to."""

    name: str
    goal: float
    ratio: float | None = None
    lo: float | None = None
    hi: float | None = None
    at_most: bool = False  # the goal is an upper bound
    sound: bool = True  # what else has to be true: the same answers, a small error
    command: str = ""  # what measures a bar that this machine cannot show
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, goal: float, rounds: Sequence[float], **more: Any) -> Bar:
        """The median of several rounds, and the least and the greatest of them for its interval; of one round none."""
        spread = (min(rounds), max(rounds)) if len(rounds) > 1 else (None, None)
        return cls(name, goal, median(rounds), *spread, **more)

    @property
    def bound(self) -> str:
        """The goal as it is shown."""
        return f"{'<=' if self.at_most else '>='} {self.goal:g}"

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None if it was not measured."""
        reached = self.ratio is not None and (self.ratio <= self.goal if self.at_most else self.ratio >= self.goal)
        return None if self.ratio is None else self.sound and reached

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values, with `holds` and `measured`."""
        return {**asdict(self), "holds": self.holds, "measured": self.ratio is not None}
