"""The bar of a board, from its records: is the method under study good enough against its rivals, budget by budget?

    infoprune verdict results/reference

Like is compared with like: per scope, regime and tuning, every studied variant against the best reference method of
each budget, and against the floor of pruning at random. Once tuned, all weights have changed alike: then
methods of every regime are rivals. A budget holds if the studied method is not significantly below
that rival and significantly above random (paired per question, clustered by image, Holm over the budgets). The bar
holds if two thirds of the budgets do and no rival's mean over the budgets is as high.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from harness import stats
from harness.costs import Progress
from harness.record import setting, short_hash, terms
from harness.results import Stored, by_trial, collect
from harness.text import plain
from harness.types import InputError

DENSE, FLOOR = "none", "random"  # the two methods that are part of the protocol
ALPHA = 0.05
SHARE = 2 / 3  # of the budgets have to hold
CONTESTANT = ("method", "options", "calibration", "role", "regime", "tuning", "recovery", "control")


@dataclass(frozen=True)
class Against:
    """Studied minus other as a fraction, with its 95 % interval and the p that Holm leaves."""

    name: str
    estimate: float
    lo: float
    hi: float
    p: float

    @property
    def below(self) -> bool:
        return self.estimate < 0 and self.p <= ALPHA

    @property
    def above(self) -> bool:
        return self.estimate > 0 and self.p <= ALPHA


@dataclass(frozen=True)
class AtBudget:
    """One budget: the studied method's accuracy, and how it stands; None where there is nothing to compare."""

    budget: float
    accuracy: float | None
    rival: Against | None
    floor: Against | None

    @property
    def holds(self) -> bool:
        return bool(self.rival and self.floor and not self.rival.below and self.floor.above)


@dataclass(frozen=True)
class Rival:
    """A rival's mean accuracy over the budgets that both were measured at, and the studied method's over the same."""

    name: str
    mean: float
    own: float
    budgets: int


@dataclass(frozen=True)
class Verdict:
    """Whether a studied variant reaches its bar, and all that this rests on; accuracies are fractions."""

    name: str
    scope: str
    units: str
    regime: str
    tuning: str
    budgets: tuple[AtBudget, ...]
    rivals: tuple[Rival, ...]
    notes: tuple[str, ...]

    @property
    def mean(self) -> float | None:
        """Over all budgets; None if one was not measured."""
        found = [at.accuracy for at in self.budgets if at.accuracy is not None]
        return fmean(found) if len(found) == len(self.budgets) else None

    @property
    def goal(self) -> int:
        """How many budgets have to hold."""
        return math.ceil(SHARE * len(self.budgets))

    @property
    def highest(self) -> bool:
        return self.mean is not None and bool(self.rivals) and all(one.own > one.mean for one in self.rivals)

    @property
    def holds(self) -> bool:
        return sum(at.holds for at in self.budgets) >= self.goal and self.highest

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; a bound that nobody knows is null."""
        made = dataclasses.asdict(self)
        for at, row in zip(self.budgets, made["budgets"], strict=True):
            row["holds"] = at.holds
            for other in (row["rival"], row["floor"]):
                if other:
                    other |= {key: None for key in ("lo", "hi") if not math.isfinite(other[key])}
        held = sum(at.holds for at in self.budgets)
        return made | {"mean": self.mean, "highest": self.highest, "held": held, "goal": self.goal, "holds": self.holds}


def verdict(folder: Path, progress: Progress = lambda made, total: None) -> list[Verdict]:
    """The verdicts on the board in this folder, one per studied variant, scope, regime and tuning.

    Raises InputError for what is no sound record, records of two boards, no method under study, samples that are
    missing, and answers to other questions.
    """
    stored = by_trial(collect(folder)).values()
    if len(names := sorted({one.record["trial"]["board"] for one in stored})) > 1:
        raise InputError(plain(f"{folder}: records of {len(names)} boards ({', '.join(names)}); a verdict is on one"))
    panels: dict[str, list[Stored]] = defaultdict(list)
    for one in stored:
        if one.record["trial"]["method"] != DENSE:
            panels[_panel(one.record["trial"])].append(one)
    contestants = [_contestants(panel) for panel in panels.values()]
    studied = [(own, panel) for panel in contestants for own in panel if own.studied and any(own.seeds.values())]
    if not studied:
        raise InputError(plain(f"{folder}: no trial of a method under study (role studied) with an accuracy"))
    found = []
    for own, panel in studied:
        found.append(_verdict(own, panel))
        progress(len(found), len(studied))
    return sorted(found, key=lambda one: (one.scope, one.units, one.tuning, one.regime, one.name))


def _verdict(own: _Contestant, panel: Sequence[_Contestant]) -> Verdict:
    references = [one for one in panel if not one.studied]
    keys = ("tuning",) if own.tuned else ("regime", "tuning")
    alike = [one for one in references if one.alike(own, *keys)]
    rivals = [one for one in alike if not one.floor]
    notes = [note for one in (own, *rivals) for note in one.failures]
    if (meant := terms(own.trial)) != terms({}):
        notes.insert(0, f"budgets of currency {meant['currency']}, align {meant['align']}")
    if not rivals:
        shared = ", ".join(f"{key} {own.trial[key]}" for key in keys)
        notes.append(f"no rival of {shared}: compared with none")
    floor = next((one for one in alike if one.floor), None)
    if floor is None:
        floor = next((one for one in references if one.floor and one.alike(own, "tuning")), None)
        said = f"is of regime {floor.trial['regime']}" if floor else f"of tuning {own.trial['tuning']} is not there"
        notes.append(f"{FLOOR} {said}")
    budgets = sorted({budget for one in (own, *alike) for budget in one.seeds}, reverse=True)
    best = {budget: max(rivals, key=lambda one: one.mean(budget), default=None) for budget in budgets}
    above, beside = _compare(own, dict.fromkeys(budgets, floor)), _compare(own, best)
    return Verdict(
        own.name,
        own.trial["scope"],
        own.trial["units"],
        own.trial["regime"],
        own.trial["tuning"],
        tuple(AtBudget(at, _known(own.mean(at)), beside.get(at), above.get(at)) for at in budgets),
        tuple(rival for one in (*rivals, floor) if one and (rival := _means(own, one, budgets))),
        tuple(notes),
    )


# --- contestants --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Contestant:
    """A method with its options: what its trials share, budgets and seeds aside."""

    name: str
    trial: dict[str, Any]
    seeds: dict[float, list[Stored]]  # budget -> what has measured an accuracy
    failures: list[str]

    @property
    def studied(self) -> bool:
        return self.trial["role"] == "studied"

    @property
    def floor(self) -> bool:
        return self.trial["method"] == FLOOR

    @property
    def tuned(self) -> bool:
        return self.trial["tuning"] != "none"

    def alike(self, other: _Contestant, *keys: str) -> bool:
        return all(self.trial[key] == other.trial[key] for key in keys)

    def mean(self, budget: float) -> float:
        """Of its seeds' accuracies; below all others if there is none."""
        found = [one.record["metrics"]["accuracy"]["mean"] for one in self.seeds.get(budget, ())]
        return fmean(found) if found else -math.inf


def _panel(trial: Mapping[str, Any]) -> str:
    """The same for trials that may be compared at all."""
    return short_hash({**setting(trial), **terms(trial), "units": trial["units"], "scope": trial["scope"]})


def _contestant(trial: Mapping[str, Any]) -> str:
    looks_at_none = trial["method"] == FLOOR
    parts = (part for part in CONTESTANT if part != "calibration" or not looks_at_none)
    return short_hash({part: trial.get(part) for part in parts})


def _contestants(panel: Sequence[Stored]) -> list[_Contestant]:
    groups: dict[str, list[Stored]] = defaultdict(list)
    for one in panel:
        groups[_contestant(one.record["trial"])].append(one)
    trials = [own[0].record["trial"] for own in groups.values()]
    names = [(trial["method"], trial["variant"], trial["regime"], trial["tuning"]) for trial in trials]
    made = []
    for own, trial, name in zip(groups.values(), trials, names, strict=True):
        several = f" ({trial['calibration'].get('samples')} samples)" if names.count(name) > 1 else ""
        seeds: dict[float, list[Stored]] = {one.record["trial"]["budget"]: [] for one in own}
        failures = []
        for one in own:
            at, error = one.record["trial"], one.record["error"]
            if error is None and "accuracy" in (one.record.get("metrics") or {}):
                seeds[at["budget"]].append(one)
            else:
                said = f"{error['type']}: {error['message']}" if error else "no accuracy"
                failures.append(plain(f"{at['method']} {at['variant']} at {at['budget']:g}, seed {at['seed']}: {said}"))
        made.append(_Contestant(plain(f"{trial['method']} {trial['variant']}{several}"), trial, seeds, failures))
    return made


# --- comparisons --------------------------------------------------------------------------------------------


def _compare(own: _Contestant, others: Mapping[float, _Contestant | None]) -> dict[float, Against]:
    """Own minus other at each budget where both have an accuracy, Holm over them."""
    found = {
        budget: (other.name, stats.difference(_pairs(other.seeds[budget], own.seeds[budget])))
        for budget, other in others.items()
        if other and other.seeds.get(budget) and own.seeds.get(budget)
    }
    adjusted = stats.holm([change.p for _, change in found.values()])
    return {
        budget: Against(name, change.estimate, change.lo, change.hi, p)
        for (budget, (name, change)), p in zip(found.items(), adjusted, strict=True)
    }


def _pairs(others: Sequence[Stored], own: Sequence[Stored]) -> stats.Pairs:
    """Every seed of one side with every seed of the other, as one: the mean over seeds of either."""
    first, second = others[0].name, own[0].name
    if len({one.record["hashes"].get("data") for one in (*others, *own)}) > 1:
        raise InputError(plain(f"{first} and {second}: data differ: other questions were asked"))
    theirs, mine = ([one.answers() for one in side] for side in (others, own))
    try:
        return stats.average([stats.pair(one, other) for one in theirs for other in mine])
    except ValueError as error:
        raise InputError(plain(f"{first} and {second}: {error}")) from error


def _means(own: _Contestant, other: _Contestant, budgets: Sequence[float]) -> Rival | None:
    shared = [at for at in budgets if own.seeds.get(at) and other.seeds.get(at)]
    if not shared:
        return None
    return Rival(other.name, fmean(map(other.mean, shared)), fmean(map(own.mean, shared)), len(shared))


def _known(mean: float) -> float | None:
    return mean if math.isfinite(mean) else None
