"""Who competes on a panel: the trials of one method with its options, over budgets and seeds."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from harness.records.comparison import pairs, regime, regimes
from harness.records.record import Record
from harness.records.store import Stored
from harness.text import plain
from harness.types import CalibrationSpec, Choice, LatencySpec, Tuning, differs


@dataclass(frozen=True)
class Entrant:
    """A method with its options: the trials that differ only in budget and seed."""

    name: str
    regime: str  # as shown; see `comparison.regimes`
    record: Record  # record of one of its trials
    seeds: dict[float, list[Stored]]  # budget -> records with an accuracy
    failures: list[tuple[str, str]]  # where and why, such as ("at 0.1, seed 0", "InputError: ...")

    @property
    def studied(self) -> bool:
        return self.record.contestant.role == "studied"

    @property
    def floor(self) -> bool:
        return self.record.contestant.role == "floor"

    @property
    def factored(self) -> bool:
        """Whether its plans put new Linears in the place of old ones, such as low-rank factors."""
        plans = [entry.record.plan for entries in self.seeds.values() for entry in entries]
        return any(isinstance(part, Choice) for plan in plans if plan is not None for part in plan.parts.values())

    def kept(self, budget: float) -> float:
        """The share that its plans keep at this budget: the budget, unless whole layers leave them below it."""
        plans = [seed.record.plan for seed in self.seeds.get(budget, ())]
        coarse = any(plan is not None and plan.coarse for plan in plans)
        return fmean(plan.achieved for plan in plans if plan is not None) if coarse else budget

    def meets(self, other: Entrant | None, budget: float) -> bool:
        """Whether both have an accuracy at this budget, from plans that keep the same share."""
        if other is None or not self.seeds.get(budget) or not other.seeds.get(budget):
            return False
        return not differs(self.kept(budget), other.kept(budget))

    @property
    def measured(self) -> list[float]:
        """The budgets at which it has an accuracy."""
        return [budget for budget, entries in self.seeds.items() if entries]

    def mean(self, budget: float) -> float:
        """Mean accuracy over seeds; minus infinity without a measurement."""
        means = [accuracy(seed) for seed in self.seeds.get(budget, ())]
        return fmean(means) if means else -math.inf

    def by_seed(self, budgets: Sequence[float]) -> dict[int, float]:
        """Mean accuracy over these budgets, of each seed that has them all."""
        each = [{entry.record.trial.seed: accuracy(entry) for entry in self.seeds.get(at, ())} for at in budgets]
        shared = set.intersection(*map(set, each)) if each else set()
        return {seed: fmean(at[seed] for at in each) for seed in sorted(shared)}


def accuracy(stored: Stored) -> float:
    """Mean accuracy over the tasks, a fraction."""
    return stored.record.metrics["accuracy"]["mean"]


def _key(record: Record, shown: str) -> tuple[Any, ...]:
    """Key of an entrant: equal for trials that differ only in budget, seed, what is measured, and rates of a regime."""
    trial, about = record.trial, record.contestant
    same = dataclasses.replace(trial, budget=1.0, seed=0, metrics=(), latency=LatencySpec())
    if shown != regime(record):
        same = dataclasses.replace(same, tuning=dataclasses.replace(same.tuning, rate=Tuning.rate))
    if about.role == "floor":  # random choices use no samples
        same = dataclasses.replace(same, calibration=CalibrationSpec())
    return (same.id, about.role, about.regime)


def gathered(panel: Sequence[Stored]) -> list[Entrant]:
    """The entrants of a panel, in the order of their first records."""
    groups: dict[tuple[Any, ...], list[Stored]] = defaultdict(list)
    shown = regimes(stored.record for stored in panel)
    for stored in panel:
        groups[_key(stored.record, shown[regime(stored.record)])].append(stored)
    firsts = [group[0].record for group in groups.values()]
    names = [(r.trial.method, r.contestant.variant, r.contestant.regime, r.trial.tuning) for r in firsts]
    entrants = []
    for group, record, name in zip(groups.values(), firsts, names, strict=True):
        several = f" ({pairs(vars(record.trial.calibration))})" if names.count(name) > 1 else ""
        seeds: dict[float, list[Stored]] = {stored.record.trial.budget: [] for stored in group}
        failures = []
        for stored in group:
            trial, error = stored.record.trial, stored.record.error
            if error is None and "accuracy" in stored.record.metrics:
                seeds[trial.budget].append(stored)
            else:
                why = f"{error.type}: {error.message}" if error else "no accuracy"
                failures.append((f"at {trial.budget:g}, seed {trial.seed}", plain(why)))
        label = plain(f"{record.trial.method} {record.contestant.variant}{several}")
        entrants.append(Entrant(label, shown[regime(record)], record, seeds, failures))
    return entrants
