"""Two sets of records side by side: how far the trials that they share differ.

    infoprune compare demo HEAD~1:results/demo
    python -c "from harness.verdicts.compare import compare; print(compare('results/demo', 'results/heads').rows)"

`harness.verdicts.matching` says which trials belong together. There is no verdict: that is what the gate is for.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

from harness import stats
from harness.progress import Progress, silent
from harness.records.comparison import basis
from harness.records.record import Record, dig
from harness.records.store import Stored, collect
from harness.text import TOO_FEW, plain, some
from harness.types import DENSE, InputError
from harness.verdicts import matching
from harness.verdicts.gate import names_of
from harness.verdicts.matching import Fact

METRICS = {"accuracy": 0.0, "speedup": 1.0, "time": 1.0, "flops": 0.0}  # metric -> the figure of no difference
SAME = "the same record"
TIMES = {"paired": "one machine", "unpaired": "two machines"}  # what speedups stand on


@dataclass(frozen=True)
class Change:
    """A figure on both sides and B's distance from A's, with its 95 % interval where one is known.

    accuracy, flops: fractions, and their difference. speedup, time: a factor and ms, and B's as a multiple of A's.
    `how` says what the interval stands on; without an estimate, the figures are not comparable. `why` says why there is
    no estimate, or no interval.
    """

    metric: str
    first: float | None
    second: float | None
    estimate: float | None = None
    lo: float | None = None
    hi: float | None = None
    how: str = "refused"
    why: str = ""
    tasks: Mapping[str, float] = field(default_factory=dict)  # accuracy: the difference in each task

    @property
    def stands(self) -> bool:
        """Whether the interval excludes that there is no difference."""
        nothing = METRICS[self.metric]
        return self.lo is not None and self.hi is not None and not self.lo <= nothing <= self.hi

    @property
    def better(self) -> bool:
        """Whether B's accuracy or speedup is the higher one."""
        return self.estimate is not None and self.estimate > METRICS[self.metric]

    @property
    def size(self) -> float:
        """The distance from no difference, of factors that of their logarithms. -1: not compared."""
        if self.estimate is None:
            return -1.0
        return abs(math.log(self.estimate)) if METRICS[self.metric] else abs(self.estimate)


@dataclass(frozen=True)
class Row:
    """A trial that both sides have finished, with a change per metric that either side measured."""

    name: str
    label: str  # the method's name within the panel
    first: Record
    second: Record
    changes: Mapping[str, Change]


@dataclass(frozen=True)
class Panel:
    """The rows of one scope, units and regime, and the changes of their means."""

    name: str
    rows: tuple[Row, ...]
    changes: Mapping[str, Change]

    @property
    def dense(self) -> bool:
        return bool(self.rows) and self.rows[0].first.trial.method == DENSE


@dataclass(frozen=True)
class Comparison:
    """Two sides and what there is to say about them. `only` has the names of each side's unmatched trials."""

    sides: tuple[str, str]
    about: tuple[str, str]
    keys: tuple[str, ...]
    facts: tuple[Fact, ...]
    panels: tuple[Panel, ...]
    failed: tuple[str, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]

    @cached_property
    def rows(self) -> list[Row]:
        """All rows, the largest difference of accuracy first, then of speedup."""

        def key(row: Row) -> tuple[float, ...]:
            return tuple(-row.changes[m].size if m in row.changes else 1.0 for m in ("accuracy", "speedup"))

        return sorted((row for panel in self.panels for row in panel.rows), key=key)

    def counts(self, metric: str) -> Counter[str]:
        """The rows by what their change of this metric stands on; `intervals`, and those that `stand`."""
        changes = [row.changes[metric] for row in self.rows if metric in row.changes]
        result = Counter(change.how for change in changes)
        result["intervals"] = sum(change.lo is not None and change.how != SAME for change in changes)
        result["stand"] = sum(change.stands for change in changes)
        return result

    def refusals(self, metric: str) -> Counter[str]:
        """The reasons why rows were not compared in this metric."""
        changes = [row.changes[metric] for row in self.rows if metric in row.changes]
        return Counter(change.why for change in changes if change.estimate is None)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values. An unknown bound is null."""

        def changes(shown: Row | Panel) -> dict[str, Any]:
            return {metric: _plain(change) for metric, change in shown.changes.items()}

        return {
            "sides": [{"source": name, "about": about} for name, about in zip(self.sides, self.about, strict=True)],
            "matched_on": list(self.keys),
            "circumstances": [dataclasses.asdict(fact) for fact in self.facts],
            "matched": len(self.rows) + len(self.failed),
            "failed": list(self.failed),
            "only": [list(names) for names in self.only],
            "panels": [{"name": shown.name, "trials": len(shown.rows)} | changes(shown) for shown in self.panels],
            "trials": [{"name": row.name, "ids": [row.first.id, row.second.id]} | changes(row) for row in self.rows],
        }


def _plain(change: Change) -> dict[str, Any]:
    values = {item.name: getattr(change, item.name) for item in dataclasses.fields(change)}
    del values["metric"]
    values = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
    return values | {"stands": change.stands}


def compare(first: str, second: str, results: Path | None = None, progress: Progress = silent) -> Comparison:
    """The comparison of two sources of records; see `harness.records.store.collect`.

    Raises the errors of `collect` and `match`; InputError if no trial of one side matches one of the other, or if
    samples are missing or do not pair although both sides were asked the same questions.
    """
    sides = (collect(first, results), collect(second, results))
    matched = matching.match(*sides)
    if not matched.couples:
        boards = [some(sorted({stored.record.trial.board for stored in side})) for side in sides]
        raise InputError(
            f"{first} (board {boards[0]}) and {second} (board {boards[1]}) have no trial in common; trials match "
            f"if they agree in {', '.join(matched.keys)}"
        )
    names = names_of({str(place): before.record for place, (before, _) in enumerate(matched.couples)})
    failed, panels, done = [], defaultdict(list), 0
    for name, couple in zip(names.values(), matched.couples, strict=True):
        errors = zip("AB", (stored.record.error for stored in couple), strict=True)
        if said := [f"failed in {side}: {e.type}: {e.message}" for side, e in errors if e]:
            failed.append(plain(f"{name}: {'; '.join(said)}"))
        else:
            panels[matching.panel(couple[0].record, matched.keys)].append((name, *couple))
    shown = []
    for panel, trials in panels.items():
        rows, answers = [], {}
        for name, before, after in trials:
            changes = [_accuracy(before, after, name, answers), _speedup(before, after), _time(before, after)]
            changes.append(_flops(before, after))
            measured = {change.metric: change for change in changes if (change.first, change.second) != (None, None)}
            label = matching.label(before.record, matched.keys)
            rows.append(Row(name, label, before.record, after.record, measured))
            progress(done=(done := done + 1), total=len(matched.couples))
        shown.append(Panel(panel, tuple(rows), _pool(rows, answers)))
    return Comparison(
        (first, second),
        (matching.about(sides[0]), matching.about(sides[1])),
        matched.keys,
        tuple(matching.facts(matched.couples)),
        tuple(shown),
        tuple(failed),
        (tuple(_names(matched.only[0])), tuple(_names(matched.only[1]))),
    )


def _names(records: Sequence[Record]) -> list[str]:
    return list(names_of({record.id: record for record in records}).values())


# --- one figure of one trial --------------------------------------------------------------------------------


def _accuracy(first: Stored, second: Stored, name: str, answers: dict[str, stats.Pairs]) -> Change:
    """The change of accuracy. `answers` gets what is paired."""
    one, two = (dig(stored.record.metrics, "accuracy", "mean") for stored in (first, second))
    change, open_ = _begun("accuracy", first, second, one, two)
    if not open_:
        return change
    how, why = basis(first.record, second.record, "answers")
    change = replace(change, how=how, why=plain(why))
    if how == "paired":
        try:
            answers[name] = stats.pair(first.answers(), second.answers())
        except ValueError as error:
            raise InputError(f"{first.name} and {second.name}: {error}") from error
        return _paired(change, answers[name])
    if how == "unpaired":
        known = [_figures(stored, "accuracy", "mean", "lo", "hi") for stored in (first, second)]
        if known[0] and known[1]:
            return _estimated(change, stats.gap(known[0], known[1]))
        return replace(change, how="refused", why=f"{change.why}; a record has no interval")
    return change


def _paired(change: Change, answers: stats.Pairs) -> Change:
    found = stats.difference(answers)
    tasks = {plain(str(task)): value for task, value in found.tasks.items()}
    change = replace(_estimated(change, (found.estimate, found.lo, found.hi)), how="paired", tasks=tasks)
    return change if math.isfinite(found.lo + found.hi) else replace(change, lo=None, hi=None, why=TOO_FEW)


def _estimated(change: Change, figures: stats.Estimate) -> Change:
    return replace(change, **dict(zip(("estimate", "lo", "hi"), figures, strict=True)))


def _speedup(first: Stored, second: Stored) -> Change:
    """The change of the speedup over the dense model, which each side timed beside it."""
    known = [_figures(stored, "latency", "speedup", "speedup_lo", "speedup_hi") for stored in (first, second)]
    change, open_ = _begun("speedup", first, second, *(side and side[0] for side in known))
    if not open_ or not known[0] or not known[1]:
        return change
    how, why = basis(first.record, second.record, "times")
    if how == "refused":
        return replace(change, why=plain(why))
    try:
        return _estimated(replace(change, how=TIMES[how]), stats.quotient(known[1], known[0]))
    except ValueError as error:
        raise InputError(f"{first.name} and {second.name}: metrics.latency: {error}") from error


def _time(first: Stored, second: Stored) -> Change:
    """The change of the median time where the speedup is measured. Records have no interval of it."""
    times = []
    for stored in (first, second):
        trial = stored.record.trial
        place = ("stages", trial.scope, str(max(trial.latency.batches)), "pruned_ms", "p50")
        value = dig(stored.record.metrics, "latency", *place)
        times.append(value if isinstance(value, int | float) and value > 0 else None)
    change, open_ = _begun("time", first, second, *times)
    if not open_:
        return change
    how, why = basis(first.record, second.record, "times")
    if how == "refused":
        return replace(change, why=plain(why))
    return replace(change, estimate=times[1] / times[0], how="medians")


def _flops(first: Stored, second: Stored) -> Change:
    kept = [dig(stored.record.metrics, "flops", "kept") for stored in (first, second)]
    change, open_ = _begun("flops", first, second, *kept)
    return replace(change, estimate=kept[1] - kept[0], how="counted") if open_ else change


def _begun(metric: str, first: Stored, second: Stored, one: Any, two: Any) -> tuple[Change, bool]:
    """The change with both figures, and whether they have to be compared still."""
    if one is None or two is None:
        return Change(metric, one, two, why=f"measured in {'A' if two is None else 'B'} only"), False
    if first.content == second.content:
        nothing = METRICS[metric]
        return Change(metric, one, two, nothing, nothing, nothing, how=SAME), False
    return Change(metric, one, two), True


def _figures(stored: Stored, metric: str, *keys: str) -> stats.Estimate | None:
    """An estimate with its interval; None if the record lacks a part of it."""
    values = [dig(stored.record.metrics, metric, key) for key in keys]
    return None if None in values else (values[0], values[1], values[2])


# --- the mean of many ---------------------------------------------------------------------------------------


def _pool(rows: Sequence[Row], answers: Mapping[str, stats.Pairs]) -> dict[str, Change]:
    """The changes of the mean accuracy and speedup (geometric) over at least two rows that were compared anew.

    The mean accuracy has an interval if all rows are paired on the same questions, whose images can be resampled.
    """
    pooled = {}
    for metric in ("accuracy", "speedup"):
        changes = [row.changes[metric] for row in rows if metric in row.changes]
        changes = [change for change in changes if change.estimate is not None and change.how != SAME]
        if len(changes) < 2 or len({change.how for change in changes}) > 1:
            continue
        figures = zip(*((change.first or 0.0, change.second or 0.0) for change in changes), strict=True)
        change = Change(metric, *map(geometric_mean if metric == "speedup" else fmean, figures), how=changes[0].how)
        if metric == "speedup":
            ratios = [stats.Ratio(c.estimate or 0.0, c.lo or 0.0, c.hi or 0.0) for c in changes]
            pooled[metric] = _estimated(change, stats.mean_ratio(ratios))
        elif len({(tuple(own.tasks), tuple(own.questions), tuple(own.images)) for own in answers.values()}) == 1:
            pooled[metric] = _paired(change, stats.average(list(answers.values())))
        else:
            pooled[metric] = replace(change, estimate=fmean(change.estimate or 0.0 for change in changes))
    return pooled
