"""The bar of a board, from its records: does the studied method hold its own against its rivals at each budget?

    infoprune verdict reference

Per scope and regime, every studied variant is compared with the best reference method of each budget, and with the best
of the role `floor`, such as random pruning (paired per question, clustered by image). Which is the best is found in the
same answers, and the intervals allow for that (`stats.against_best`). A budget holds if the studied method is not
significantly below its rival and significantly above the floor (Holm over the budgets); an interval below 0 never
holds.
The bar holds if two thirds of the budgets hold and no rival's mean over the budgets is as high.

A budget is harmless if a loss of a point against the dense model is ruled out there and at all larger budgets: a fixed
sequence of one-sided tests, which needs no correction within a verdict. None is made over the verdicts of a board.

Over all budgets together the studied method is ahead, level or behind. The rival against which it does worst decides,
on the budgets that both have (Holm over the verdicts of the board). Level means that the two cannot be told apart, not
that they are equal. Intervals include the variation between questions and, where there are several seeds, between draws
of calibration samples, random units and trainings; a note names who has only one seed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from harness import stats
from harness.progress import Progress, silent
from harness.records.comparison import Setting, Terms, common, differing, fullest, terms
from harness.records.store import Stored, by_trial, collect
from harness.types import DENSE, InputError, differs
from harness.verdicts.entrants import Entrant, accuracy, gathered

ALPHA = 0.05
ONE_SEED = "one seed: intervals leave out the variation between draws of calibration samples and random units"
SHARE = 2 / 3  # of the budgets must hold
MARGIN = 0.01  # a loss of accuracy, as a fraction, below which nothing counts as lost


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
class Loss:
    """Accuracy of the dense model minus the studied method's, a fraction, and its one-sided 95 % upper bound."""

    estimate: float
    bound: float

    @property
    def ruled_out(self) -> bool:
        return self.bound < MARGIN


@dataclass(frozen=True)
class AtBudget:
    """The studied method at one budget: its accuracy, and its differences; None without a measurement."""

    budget: float
    accuracy: float | None
    rival: Against | None
    floor: Against | None
    loss: Loss | None = None

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
    def harmless(self) -> float | None:
        """The smallest budget where, as at all larger ones, a loss of a point is ruled out; None if there is none."""
        passed = itertools.takewhile(lambda at: at.loss is not None and at.loss.ruled_out, self.budgets)
        return min((at.budget for at in passed), default=None)

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
        for loss in filter(None, (row["loss"] for row in values["budgets"])):
            loss["bound"] = _known(loss["bound"])
        held = sum(at.holds for at in self.budgets)
        return values | {
            "mean": self.mean,
            "standing": self.standing,
            "harmless": self.harmless,
            "highest": self.highest,
            "held": held,
            "goal": self.goal,
            "holds": self.holds,
        }


def verdict(board: str | Path, results: Path | None = None, progress: Progress = silent) -> list[Verdict]:
    """The verdicts on a board, one per studied variant, scope and regime.

    board: what `collect` takes: a folder of records, or the name of a board in `results`. Raises InputError for a
    faulty record, records of several boards, no studied method, missing samples, and answers to other questions.
    """
    stored = by_trial(collect(board, results)).values()
    if len(names := sorted({entry.record.trial.board for entry in stored})) > 1:
        raise InputError(f"{board}: records of {len(names)} boards ({', '.join(names)}); name the folder of one board")
    panels: dict[Terms, list[Stored]] = defaultdict(list)
    dense: dict[Setting, Stored] = {}
    kept = {record.id for record in fullest([entry.record for entry in stored])}
    for entry in (entry for entry in stored if entry.record.id in kept):
        if entry.record.trial.method != DENSE:
            panels[terms(entry.record.trial)].append(entry)
        elif "accuracy" in entry.record.metrics:
            dense[terms(entry.record.trial).setting] = entry
    studied = [
        (entrant, panel)
        for panel in map(gathered, panels.values())
        for entrant in panel
        if entrant.studied and any(entrant.seeds.values())
    ]
    if not studied:
        raise InputError(
            f"{board}: no trial of a method under study (role studied) has an accuracy; a verdict needs one"
        )
    verdicts = []
    for entrant, panel in studied:
        verdicts.append(_verdict(entrant, panel, dense.get(terms(entrant.record.trial).setting)))
        progress(done=len(verdicts), total=len(studied))
    adjusted = iter(stats.holm([entry.overall.p for entry in verdicts if entry.overall]))
    verdicts = [
        dataclasses.replace(entry, overall=dataclasses.replace(entry.overall, p=next(adjusted)))
        if entry.overall
        else entry
        for entry in verdicts
    ]
    return sorted(verdicts, key=lambda entry: (entry.scope, entry.units, entry.regime, entry.name))


def _verdict(studied: Entrant, panel: Sequence[Entrant], dense: Stored | None) -> Verdict:
    """The verdict on one studied entrant of a panel. Its loss is known only with the dense model's answers."""
    references = [entrant for entrant in panel if not entrant.studied]
    alike = [
        entrant
        for entrant in references
        if entrant.regime == studied.regime
        and (entrant.floor or entrant.record.trial.calibration == studied.record.trial.calibration)
    ]
    rivals = [entrant for entrant in alike if not entrant.floor]
    tuning = studied.record.trial.tuning
    floors = [entrant for entrant in alike if entrant.floor]
    floors = floors or [entrant for entrant in references if entrant.floor and entrant.record.trial.tuning == tuning]
    shared = common((name, budget) for name, entrant in enumerate((studied, *alike)) for budget in entrant.seeds)
    budgets = sorted({*studied.seeds, *shared}, reverse=True)
    above, beside = (_compare(studied, others, budgets) for others in (floors, rivals))
    losses, unknown = _losses(dense, studied)
    return Verdict(
        studied.name,
        studied.record.trial.scope,
        studied.record.trial.units,
        studied.regime,
        tuple(AtBudget(at, _known(studied.mean(at)), beside.get(at), above.get(at), losses.get(at)) for at in budgets),
        tuple(rival for entrant in (*rivals, *floors) if (rival := _means(studied, entrant, budgets))),
        _hardest(studied, rivals, budgets),
        (*_notes(studied, rivals, floors, budgets), *unknown),
    )


def _notes(
    studied: Entrant, rivals: Sequence[Entrant], floors: Sequence[Entrant], budgets: Sequence[float]
) -> Iterator[str]:
    """What limits a verdict: terms, failures, single seeds, new weights against old; who and what is missing."""
    trial = studied.record.trial
    if (trial.currency, trial.align) != ("flops", None):
        yield f"budgets of currency {trial.currency}, align {trial.align}"
    failed: dict[tuple[str, str], list[str]] = defaultdict(list)
    for entrant in (studied, *rivals):
        for failure in entrant.failures:
            failed[failure].append(entrant.name)
    yield from (f"{', '.join(names)} {where}: {why}" for (where, why), names in failed.items())
    everybody = (studied, *rivals, *floors)
    single = [entrant.name for entrant in everybody if entrant.measured and len(entrant.by_seed(entrant.measured)) < 2]
    if single:
        yield ONE_SEED if len(single) == len(everybody) else f"{ONE_SEED} ({', '.join(single)})"
    untouched = [rival.name for rival in rivals if rival.measured and not rival.factored]
    if studied.factored and untouched and not {"refit", "tuned"} & set(studied.regime.split(", ")):
        yield f"its factors are new weights; the weights that {', '.join(untouched)} left are the old ones"
    if not rivals:
        yield f"no rival of regime {studied.regime}: compared with none"
    for floor in floors:
        if floor.regime != studied.regime:
            yield f"{floor.name} is of regime {floor.regime}"
    if not floors:
        yield f"no floor, such as random pruning, with recovery {studied.record.trial.tuning}"
    if missing := [at for at in budgets if at not in studied.seeds]:
        yield f"not run at {', '.join(f'{at:g}' for at in missing)}, where others were"
    for rival in (*rivals, *floors):
        for at in budgets:
            if differs(studied.kept(at), rival.kept(at)):
                yield (
                    f"{rival.name} at {at:g}: keeps {rival.kept(at):.3f}, not {studied.kept(at):.3f}, "
                    "so it is not compared"
                )


# --- comparisons --------------------------------------------------------------------------------------------


def _compare(studied: Entrant, others: Sequence[Entrant], budgets: Sequence[float]) -> dict[float, Against]:
    """Studied minus the best of the others at each budget, with Holm's correction over the budgets."""
    found = {at: change for at in budgets if (change := _hardest(studied, others, [at]))}
    adjusted = stats.holm([change.p for change in found.values()])
    return {at: dataclasses.replace(change, p=p) for (at, change), p in zip(found.items(), adjusted, strict=True)}


def _losses(dense: Stored | None, studied: Entrant) -> tuple[dict[float, Loss], list[str]]:
    """The loss at each budget; without answers of the dense model to the same questions none, and why."""
    if dense is None:
        return {}, ["no dense model with an accuracy: losses are not known"]
    before = {dense.record.trial.seed: accuracy(dense)}
    try:
        changes = {
            at: stats.difference(_pairs([dense], seeds), spread=stats.between(before, studied.by_seed([at])))
            for at, seeds in studied.seeds.items()
            if seeds
        }
    except InputError as error:
        return {}, [f"losses are not known: {error}"]
    tests = {at: stats.noninferiority(change, MARGIN, alpha=ALPHA) for at, change in changes.items()}
    return {at: Loss(tested.loss + 0.0, tested.loss_bound) for at, tested in tests.items()}, []  # + 0.0: no -0.0


def _hardest(studied: Entrant, others: Sequence[Entrant], budgets: Sequence[float]) -> Against | None:
    """Studied minus the best of the others, each over the budgets that both have and over all seeds."""
    met, pairs, spreads = [], [], []
    for other in others:
        if shared := [at for at in budgets if studied.meets(other, at)]:
            seeds = other.by_seed(shared), studied.by_seed(shared)
            met.append(other)
            pairs.append(stats.average([_pairs(other.seeds[at], studied.seeds[at]) for at in shared]))
            spreads.append(stats.between(*seeds, shared=not other.floor))  # a floor draws no samples
    if not met:
        return None
    place, *change = stats.against_best(stats.differences(pairs, spreads))
    return Against(met[place].name, *change)


def _pairs(others: Sequence[Stored], studied: Sequence[Stored]) -> stats.Pairs:
    """The average over all pairs of seeds of both sides. Raises InputError if they answer other questions."""
    first, second = others[0].name, studied[0].name
    if any(differing(others[0].record, entry.record, "answers") for entry in (*others, *studied)):
        raise InputError(f"{first} and {second}: data differ: the trials asked other questions; rerun one of them")
    other_answers, studied_answers = ([stored.answers() for stored in side] for side in (others, studied))
    try:
        return stats.average([stats.pair(base, answers) for base in other_answers for answers in studied_answers])
    except ValueError as error:
        raise InputError(f"{first} and {second}: {error}") from error


def _means(studied: Entrant, other: Entrant, budgets: Sequence[float]) -> Rival | None:
    shared = [at for at in budgets if studied.meets(other, at)]
    if not shared:
        return None
    return Rival(other.name, fmean(map(other.mean, shared)), fmean(map(studied.mean, shared)), len(shared))


def _known(mean: float) -> float | None:
    return mean if math.isfinite(mean) else None
