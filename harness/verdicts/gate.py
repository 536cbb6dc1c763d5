"""The regression gate: compare the same trials before and after a code change, with a verdict on each metric.

    infoprune gate main results                      # the records of a git revision against those of the working tree
    python -c "from harness.verdicts import gate; print(gate.compare('main', 'results', gate.Limits()).verdict)"

`harness.verdicts.regressions` defines each metric's cost and limit. The change fails if any metric of any trial fails,
and passes if every metric passes over the pooled trials.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.progress import Progress, silent
from harness.records.record import Record
from harness.records.store import Stored, by_trial, collect
from harness.text import plain
from harness.types import BOTH, InputError, Tuning
from harness.verdicts import regressions
from harness.verdicts.regressions import Finding, Limits, Outcome

METRICS = ("accuracy", "latency", "flops")
EXIT: dict[Outcome, int] = {"pass": 0, "fail": 1, "refused": 2, "inconclusive": 3}


@dataclass(frozen=True)
class Row:
    """A trial, or a pool of trials, with a finding per measured metric."""

    name: str
    id: str  # empty: a pool
    findings: Mapping[str, Finding]


@dataclass(frozen=True)
class Gate:
    """The basis of the verdict. `broken` trials ran before and fail now; `missing` trials are not in the candidate."""

    limits: Limits
    trials: tuple[Row, ...]
    pooled: tuple[Row, ...]
    broken: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @cached_property
    def metrics(self) -> dict[str, Outcome]:
        """One outcome per metric: any failed trial fails it, and only the pooled trials pass it."""
        return {metric: out for metric in METRICS if (out := self._overall(metric))}

    def _overall(self, metric: str) -> Outcome | None:
        findings = [row.findings[metric] for row in (*self.trials, *self.pooled) if metric in row.findings]
        outcomes = {finding.outcome for finding in findings}
        if not findings or "fail" in outcomes:
            return "fail" if findings else None
        # Times of another machine are no evidence; answers to other questions make the input unusable.
        if "refused" in outcomes and (metric == "accuracy" or outcomes == {"refused"}):
            return "refused"
        decisive = {finding.outcome for finding in findings if finding.decides} - {"refused"}
        return "pass" if decisive == {"pass"} else "inconclusive"

    @cached_property
    def verdict(self) -> Outcome:
        """The overall outcome: fail, refused (the input is not comparable), inconclusive or pass."""
        outcomes = set(self.metrics.values())
        if self.broken or "fail" in outcomes:
            return "fail"
        if self.metrics.get("accuracy") == "refused" or outcomes <= {"refused"}:
            return "refused"
        return "inconclusive" if self.missing or "inconclusive" in outcomes else "pass"

    def to_json(self) -> dict[str, Any]:
        """All fields as plain values. An unknown bound is null."""

        def plain_finding(finding: Finding) -> dict[str, Any]:
            values = {"outcome": finding.outcome, "p": finding.p, "why": finding.why}
            keys = ("estimate", "lo", "hi", "needed")
            cost = dataclasses.asdict(finding.cost) if finding.cost else dict.fromkeys(keys)
            values |= {key: cost[key] for key in keys}
            return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}

        def plain_row(row: Row) -> dict[str, Any]:
            findings = {metric: plain_finding(finding) for metric, finding in row.findings.items()}
            return {"name": row.name, "id": row.id} | findings

        return {
            "verdict": self.verdict,
            "metrics": self.metrics,
            "limits": dataclasses.asdict(self.limits),
            "pooled": [plain_row(row) for row in self.pooled],
            "trials": [plain_row(row) for row in self.trials],
            "broken": list(self.broken),
            "missing": list(self.missing),
            "notes": list(self.notes),
        }


# --- the comparison -----------------------------------------------------------------------------------------


def compare(baseline: str, candidate: str, limits: Limits, progress: Progress = silent) -> Gate:
    """The gate between two sources of records; see `harness.records.store.collect`.

    If the candidate is a record file, only its trial is compared. Raises the errors of `collect` and `judge`.
    """
    after = collect(candidate)
    return judge(collect(baseline), after, limits, progress=progress, whole=not Path(candidate).is_file())


def judge(
    baseline: Sequence[Stored],
    candidate: Sequence[Stored],
    limits: Limits,
    *,
    progress: Progress = silent,
    whole: bool = True,
) -> Gate:
    """Compare the trials that both sides have. Trial ids join the records, so the code may differ.

    A trial of the candidate's boards that only the baseline has is `missing` from a `whole` candidate. Records with
    identical bytes pass on their own and are not pooled. Raises InputError if records of one side contradict each
    other, if samples are missing or answer other questions, or if both sides share no trial.
    """
    before, after = by_trial(baseline), by_trial(candidate)
    shared = sorted((key for key in before if key in after), key=lambda key: order(after[key].record))
    if not shared:
        raise InputError(
            f"no trial is in both: the baseline has {_boards(before)}, the candidate {_boards(after)};"
            " compare records of the same board"
        )
    boards = {stored.record.trial.board for stored in after.values()}
    absent = [key for key in before if key not in after and before[key].record.trial.board in boards and whole]
    names = names_of({key: (after.get(key) or before[key]).record for key in (*shared, *absent)})
    broken, notes, ids = [], [], {}
    compared: dict[str, tuple[Stored, Stored]] = {}
    for key in shared:
        first, second = before[key].record, after[key].record
        ids[names[key]] = second.id
        if second.error is not None and first.error is None:
            broken.append(plain(f"{names[key]}: failed: {second.error.type}: {second.error.message}"))
        elif first.error is not None:
            where = "in the baseline only" if second.error is None else "before and after"
            notes.append(f"{names[key]}: failed {where}: not compared")
        else:
            compared[names[key]] = (before[key], after[key])
    if extra := len(after.keys() - before.keys()):
        notes.append(f"{extra} trials of the candidate have no baseline: not compared")
    findings: dict[str, dict[str, Finding]] = {
        "accuracy": regressions.accuracy(compared, limits, progress),
        "latency": regressions.latency(compared, limits),
        "flops": regressions.flops(compared, limits),
    }

    def row(name: str) -> Row:
        by_metric = {metric: by_name[name] for metric, by_name in findings.items() if name in by_name}
        return Row(name, ids.get(name, ""), by_metric)

    pools = dict.fromkeys(name for by_name in findings.values() for name in by_name if name not in compared)
    return Gate(
        limits,
        tuple(map(row, compared)),
        tuple(map(row, pools)),
        tuple(broken),
        tuple(names[key] for key in absent),
        tuple(notes),
    )


# --- names --------------------------------------------------------------------------------------------------


def order(record: Record) -> tuple[Any, ...]:
    """Sort key of trials: by board, method, scope and seed, larger budgets first."""
    trial = record.trial
    return (trial.board, trial.method, record.contestant.variant, trial.scope, -trial.budget, trial.seed)


def names_of(records: Mapping[str, Record]) -> dict[str, str]:
    """A name for each trial, from the settings that distinguish the trials."""
    several = len({record.trial.board for record in records.values()}) > 1
    names = {}
    for key, record in records.items():
        trial = record.trial
        parts = [
            f"{trial.board}:" if several else "",
            trial.method,
            record.contestant.variant,
            "" if trial.tuning == Tuning() else str(trial.tuning),
            trial.scope,
            "" if trial.units == BOTH else trial.units,
            f"{trial.budget:g}",
            f"seed {trial.seed}" if trial.seed else "",
        ]
        names[key] = plain(" ".join(filter(None, parts)))
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else f"{name} ({records[key].id})" for key, name in names.items()}


def _boards(stored: Mapping[str, Stored]) -> str:
    return plain(", ".join(sorted({entry.record.trial.board for entry in stored.values()})))
