"""The bar of a board, from its records: does the studied method hold its own against its rivals at each budget?

    infoprune verdict results/reference

Per scope and regime, every studied variant is compared with the best reference method of each budget, and with the best
of the role `floor`, such as random pruning (paired per question, clustered by image). A budget holds if the studied
method is not significantly below its rival and significantly above the floor (Holm over the budgets); an interval below
0 never holds.
The bar holds if two thirds of the budgets hold and no rival's mean over the budgets is as high.

Over all budgets together the studied method is ahead, level or behind. The rival against which it does worst decides,
on the budgets that both have (Holm over the verdicts of the board). Intervals are those of the questions; a note says
if there was only one draw of calibration samples.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from harness import stats
from harness.progress import Progress, silent
from harness.records.comparison import BudgetTerms, Terms, common, differing, regime, terms
from harness.records.record import Record
from harness.records.store import Stored, by_trial, collect
from harness.text import plain
from harness.types import CalibrationSpec, InputError, differs

DENSE = "none"
ALPHA = 0.05
ONE_DRAW = "one draw of calibration samples: intervals do not include how draws differ"
SHARE = 2 / 3  # of the budgets must hold


@dataclass(frozen=True)
class Against:
    """Accuracy of the studied method minus another's, a fraction, with its 95 % interval and Holm-adjusted p."""

    name: str
    estimate: float
    lo: float
    hi: float
    p: float

    @property
    def below(self) -> bool:
        """By p, or by an interval that lies below 0 and that the correction over several verdicts would excuse."""
        return self.hi < 0 or (self.estimate < 0 and self.p <= ALPHA)

    @property
    def above(self) -> bool:
        return self.estimate > 0 and self.p <= ALPHA


@dataclass(frozen=True)
class AtBudget:
    """The studied method at one budget: its accuracy, and its differences; None without a measurement."""

    budget: float
    accuracy: float | None
    rival: Against | None
    floor: Against | None

    @property
    def holds(self) -> bool:
        return bool(self.rival and self.floor and not self.rival.below and self.floor.above)


@dataclass(frozen=True)
class Rival:
    """Mean accuracies of a rival (`mean`) and of the studied method (`own`) over the budgets that both have."""

    name: str
    mean: float
    own: float
    budgets: int


@dataclass(frozen=True)
class Verdict:
    """Whether a studied variant reaches its bar, with all evidence. Accuracies are fractions."""

    name: str
    scope: str
    units: str
    regime: str
    budgets: tuple[AtBudget, ...]
    rivals: tuple[Rival, ...]
    overall: Against | None  # against the rival with the lowest difference over the budgets that both have
    notes: tuple[str, ...]

    @property
    def mean(self) -> float | None:
        """Mean accuracy over all budgets; None if a budget was not measured."""
        means = [at.accuracy for at in self.budgets if at.accuracy is not None]
        return fmean(means) if len(means) == len(self.budgets) else None

    @property
    def standing(self) -> Literal["ahead", "level", "behind", "alone"]:
        """The studied method against its hardest rival over all budgets; alone: there is no rival."""
        if self.overall is None:
            return "alone"
        return "ahead" if self.overall.above else "behind" if self.overall.below else "level"

    @property
    def goal(self) -> int:
        """The number of budgets that must hold."""
        return math.ceil(SHARE * len(self.budgets))

    @property
    def highest(self) -> bool:
        return self.mean is not None and bool(self.rivals) and all(rival.own > rival.mean for rival in self.rivals)

    @property
    def holds(self) -> bool:
        return sum(at.holds for at in self.budgets) >= self.goal and self.highest

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values. An unknown bound is null."""
        values = dataclasses.asdict(self)
        for at, row in zip(self.budgets, values["budgets"], strict=True):
            row["holds"] = at.holds
        differences = [row[key] for row in values["budgets"] for key in ("rival", "floor")]
        for difference in filter(None, [values["overall"], *differences]):
            difference |= {key: None for key in ("lo", "hi") if not math.isfinite(difference[key])}
        held = sum(at.holds for at in self.budgets)
        return values | {
            "mean": self.mean,
            "standing": self.standing,
            "highest": self.highest,
            "held": held,
            "goal": self.goal,
            "holds": self.holds,
        }


def verdict(folder: Path, progress: Progress = silent) -> list[Verdict]:
    """The verdicts on the board in this folder, one per studied variant, scope and regime.

    Raises InputError for a faulty record, records of several boards, no studied method, missing samples, and answers
    to other questions.
    """
    stored = by_trial(collect(folder)).values()
    if len(names := sorted({entry.record.trial.board for entry in stored})) > 1:
        raise InputError(
            plain(f"{folder}: records of {len(names)} boards ({', '.join(names)}); name the folder of one board")
        )
    panels: dict[Terms, list[Stored]] = defaultdict(list)
    for entry in stored:
        if entry.record.trial.method != DENSE:
            panels[terms(entry.record.trial)].append(entry)
    contestants = [_contestants(panel) for panel in panels.values()]
    studied = [
        (contestant, panel)
        for panel in contestants
        for contestant in panel
        if contestant.studied and any(contestant.seeds.values())
    ]
    if not studied:
        raise InputError(
            plain(f"{folder}: no trial of a method under study (role studied) has an accuracy; a verdict needs one")
        )
    verdicts = []
    for contestant, panel in studied:
        verdicts.append(_verdict(contestant, panel))
        progress(done=len(verdicts), total=len(studied))
    adjusted = iter(stats.holm([entry.overall.p for entry in verdicts if entry.overall]))
    verdicts = [
        dataclasses.replace(entry, overall=dataclasses.replace(entry.overall, p=next(adjusted)))
        if entry.overall
        else entry
        for entry in verdicts
    ]
    return sorted(verdicts, key=lambda entry: (entry.scope, entry.units, entry.regime, entry.name))


def _verdict(studied: _Contestant, panel: Sequence[_Contestant]) -> Verdict:
    references = [contestant for contestant in panel if not contestant.studied]
    alike = [
        contestant
        for contestant in references
        if contestant.regime == studied.regime
        and (contestant.floor or contestant.record.trial.calibration == studied.record.trial.calibration)
    ]
    rivals = [contestant for contestant in alike if not contestant.floor]
    notes = [note for contestant in (studied, *rivals) for note in contestant.failures]
    if (budget := terms(studied.record.trial).budget) != BudgetTerms():
        notes.insert(0, f"budgets of currency {budget.currency}, align {budget.align}")
    if max(map(len, studied.seeds.values()), default=0) == 1:
        notes.append(ONE_DRAW)
    if not rivals:
        notes.append(f"no rival of regime {studied.regime}: compared with none")
    floors = [contestant for contestant in alike if contestant.floor]
    if not floors:
        tuning = studied.record.trial.tuning
        recovered = (contestant for contestant in references if contestant.record.trial.tuning == tuning)
        floors = [contestant for contestant in recovered if contestant.floor]
        states = [f"{floor.name} is of regime {floor.regime}" for floor in floors]
        notes += states or [f"no floor, such as random pruning, with recovery {tuning}"]
    shared = common((name, budget) for name, one in enumerate((studied, *alike)) for budget in one.seeds)
    budgets = sorted({*studied.seeds, *shared}, reverse=True)
    if missing := [at for at in budgets if at not in studied.seeds]:
        notes.append(f"not run at {', '.join(f'{at:g}' for at in missing)}, where others were")
    for rival in (*rivals, *floors):
        for at in (at for at in budgets if differs(studied.kept(at), rival.kept(at))):
            notes.append(
                f"{rival.name} at {at:g}: keeps {rival.kept(at):.3f}, not {studied.kept(at):.3f}, so it is not compared"
            )
    above, beside = (_compare(studied, _best(studied, others, budgets)) for others in (floors, rivals))
    return Verdict(
        studied.name,
        studied.record.trial.scope,
        studied.record.trial.units,
        studied.regime,
        tuple(AtBudget(at, _known(studied.mean(at)), beside.get(at), above.get(at)) for at in budgets),
        tuple(rival for contestant in (*rivals, *floors) if (rival := _means(studied, contestant, budgets))),
        _overall(studied, rivals, budgets),
        tuple(notes),
    )


# --- contestants --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Contestant:
    """A method with its options: the trials that differ only in budget and seed."""

    name: str
    record: Record  # record of one of its trials
    seeds: dict[float, list[Stored]]  # budget -> records with an accuracy
    failures: list[str]

    @property
    def regime(self) -> str:
        return regime(self.record)

    @property
    def studied(self) -> bool:
        return self.record.contestant.role == "studied"

    @property
    def floor(self) -> bool:
        return self.record.contestant.role == "floor"

    def kept(self, budget: float) -> float:
        """The share that its plans keep at this budget: the budget, unless whole layers leave them below it."""
        plans = [seed.record.plan for seed in self.seeds.get(budget, ())]
        coarse = any(plan is not None and plan.coarse for plan in plans)
        return fmean(plan.achieved for plan in plans if plan is not None) if coarse else budget

    def meets(self, other: _Contestant | None, budget: float) -> bool:
        """Whether both have an accuracy at this budget, from plans that keep the same share."""
        if other is None or not self.seeds.get(budget) or not other.seeds.get(budget):
            return False
        return not differs(self.kept(budget), other.kept(budget))

    def mean(self, budget: float) -> float:
        """Mean accuracy over seeds; minus infinity without a measurement."""
        means = [seed.record.metrics["accuracy"]["mean"] for seed in self.seeds.get(budget, ())]
        return fmean(means) if means else -math.inf


def _contestant(record: Record) -> tuple[Any, ...]:
    """Key of a contestant: equal for trials that differ only in budget, seed and what is measured."""
    trial, about = record.trial, record.contestant
    same = dataclasses.replace(trial, budget=1.0, seed=0, metrics=())
    if about.role == "floor":  # random choices use no samples
        same = dataclasses.replace(same, calibration=CalibrationSpec())
    return (same.id, about.role, about.regime)


def _contestants(panel: Sequence[Stored]) -> list[_Contestant]:
    groups: dict[tuple[Any, ...], list[Stored]] = defaultdict(list)
    for stored in panel:
        groups[_contestant(stored.record)].append(stored)
    firsts = [group[0].record for group in groups.values()]
    names = [(r.trial.method, r.contestant.variant, r.contestant.regime, r.trial.tuning) for r in firsts]
    contestants = []
    for group, record, name in zip(groups.values(), firsts, names, strict=True):
        several = f" ({record.trial.calibration.samples} samples)" if names.count(name) > 1 else ""
        seeds: dict[float, list[Stored]] = {stored.record.trial.budget: [] for stored in group}
        failures = []
        for stored in group:
            trial, error = stored.record.trial, stored.record.error
            if error is None and "accuracy" in stored.record.metrics:
                seeds[trial.budget].append(stored)
            else:
                why = f"{error.type}: {error.message}" if error else "no accuracy"
                variant = stored.record.contestant.variant
                failures.append(plain(f"{trial.method} {variant} at {trial.budget:g}, seed {trial.seed}: {why}"))
        label = plain(f"{record.trial.method} {record.contestant.variant}{several}")
        contestants.append(_Contestant(label, record, seeds, failures))
    return contestants


# --- comparisons --------------------------------------------------------------------------------------------


def _best(
    studied: _Contestant, others: Sequence[_Contestant], budgets: Sequence[float]
) -> dict[float, _Contestant | None]:
    """The most accurate of the others at each budget, of those that keep the same share."""
    return {
        budget: max((r for r in others if studied.meets(r, budget)), key=lambda r: r.mean(budget), default=None)
        for budget in budgets
    }


def _compare(studied: _Contestant, others: Mapping[float, _Contestant | None]) -> dict[float, Against]:
    """Studied minus other at each budget where both have an accuracy, with Holm's correction over the budgets."""
    differences = {
        budget: (other.name, stats.difference(_pairs(other.seeds[budget], studied.seeds[budget])))
        for budget, other in others.items()
        if other and studied.meets(other, budget)
    }
    adjusted = stats.holm([change.p for _, change in differences.values()])
    return {
        budget: Against(name, change.estimate, change.lo, change.hi, p)
        for (budget, (name, change)), p in zip(differences.items(), adjusted, strict=True)
    }


def _overall(studied: _Contestant, rivals: Sequence[_Contestant], budgets: Sequence[float]) -> Against | None:
    """Studied minus the rival with the lowest difference, per question averaged over the budgets that both have."""
    means = {rival.name: (rival, means) for rival in rivals if (means := _means(studied, rival, budgets))}
    if not means:
        return None
    hardest, _ = min(means.values(), key=lambda entry: entry[1].own - entry[1].mean)
    shared = [at for at in budgets if studied.meets(hardest, at)]
    pairs = stats.average([_pairs(hardest.seeds[at], studied.seeds[at]) for at in shared])
    change = stats.difference(pairs)
    return Against(hardest.name, change.estimate, change.lo, change.hi, change.p)


def _pairs(others: Sequence[Stored], studied: Sequence[Stored]) -> stats.Pairs:
    """The average over all pairs of seeds of both sides. Raises InputError if they answer other questions."""
    first, second = others[0].name, studied[0].name
    if any(differing(others[0].record, entry.record, "answers") for entry in (*others, *studied)):
        raise InputError(
            plain(f"{first} and {second}: data differ: the trials asked other questions; rerun one of them")
        )
    other_answers, studied_answers = ([stored.answers() for stored in side] for side in (others, studied))
    try:
        return stats.average([stats.pair(base, answers) for base in other_answers for answers in studied_answers])
    except ValueError as error:
        raise InputError(plain(f"{first} and {second}: {error}")) from error


def _means(studied: _Contestant, other: _Contestant, budgets: Sequence[float]) -> Rival | None:
    shared = [at for at in budgets if studied.meets(other, at)]
    if not shared:
        return None
    return Rival(other.name, fmean(map(other.mean, shared)), fmean(map(studied.mean, shared)), len(shared))


def _known(mean: float) -> float | None:
    return mean if math.isfinite(mean) else None
