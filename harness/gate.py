"""Did a change of the code make things worse? The same trials, before and after, and a verdict on each metric.

    infoprune gate main results                      # the records of a git revision against those of the working tree
    python -c "from harness import gate; print(gate.compare('main', 'results', gate.Limits()).verdict)"

What a metric's cost is, and when it passes, is said in `harness.costs`. The change fails if any metric of any trial
does, and passes if every metric passes pooled over the trials.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import costs, spec
from harness.costs import Finding, Limits, Outcome, Progress
from harness.results import Stored, by_trial, collect
from harness.text import plain
from harness.types import InputError, Trial

METRICS = ("accuracy", "latency", "flops")
EXIT: dict[Outcome, int] = {"pass": 0, "fail": 1, "refused": 2, "inconclusive": 3}


@dataclass(frozen=True)
class Row:
    """A trial, or several pooled, with a finding per metric that was measured."""

    name: str
    id: str  # empty: pooled
    findings: Mapping[str, Finding]


@dataclass(frozen=True)
class Gate:
    """Everything the verdict rests on; `broken` are trials that used to run, `missing` those the candidate lacks."""

    limits: Limits
    trials: tuple[Row, ...]
    pooled: tuple[Row, ...]
    broken: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    @cached_property
    def metrics(self) -> dict[str, Outcome]:
        """One outcome per metric: any failure fails, and a pass is that of the pooled trials."""
        return {metric: out for metric in METRICS if (out := self._overall(metric))}

    def _overall(self, metric: str) -> Outcome | None:
        found = [row.findings[metric] for row in (*self.trials, *self.pooled) if metric in row.findings]
        outcomes = {finding.outcome for finding in found}
        if not found or "fail" in outcomes:
            return "fail" if found else None
        # Times of another machine are no evidence either way; answers to other questions are a fault of the input.
        if "refused" in outcomes and (metric == "accuracy" or outcomes == {"refused"}):
            return "refused"
        decisive = {finding.outcome for finding in found if finding.decides} - {"refused"}
        return "pass" if decisive == {"pass"} else "inconclusive"

    @cached_property
    def verdict(self) -> Outcome:
        """The whole: fail, refused (input that cannot be compared), inconclusive or pass."""
        found = set(self.metrics.values())
        if self.broken or "fail" in found:
            return "fail"
        if self.metrics.get("accuracy") == "refused" or found <= {"refused"}:
            return "refused"
        return "inconclusive" if self.missing or "inconclusive" in found else "pass"

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values; a bound that nobody knows is null."""

        def finding(one: Finding) -> dict[str, Any]:
            made = {"outcome": one.outcome, "p": one.p, "why": one.why}
            cost = dataclasses.asdict(one.cost) if one.cost else dict.fromkeys(("estimate", "lo", "hi", "needed"))
            made |= {key: cost[key] for key in ("estimate", "lo", "hi", "needed")}
            return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in made.items()}

        def row(one: Row) -> dict[str, Any]:
            return {"name": one.name, "id": one.id} | {m: finding(f) for m, f in one.findings.items()}

        return {
            "verdict": self.verdict,
            "metrics": self.metrics,
            "limits": dataclasses.asdict(self.limits),
            "pooled": [row(one) for one in self.pooled],
            "trials": [row(one) for one in self.trials],
            "broken": list(self.broken),
            "missing": list(self.missing),
            "notes": list(self.notes),
        }


def against(trials: Iterable[Trial], baseline: Sequence[Stored]) -> list[Trial]:
    """Those of a board's trials that a gate against this baseline needs: the ones it has a good record of.

    Raises InputError if it has none of them.
    """
    known = {identity for identity, stored in by_trial(baseline).items() if stored.record["status"] == "ok"}
    found = [trial for trial in trials if spec.trial_id(trial) in known]
    if not found:
        raise InputError("the baseline has a good record of none of this board's trials: nothing to compare with")
    return found


# --- the comparison -----------------------------------------------------------------------------------------


def compare(baseline: str, candidate: str, limits: Limits, progress: Progress = lambda made, total: None) -> Gate:
    """The gate between two sources of records, see `harness.results.collect`; of a record file, only its trial counts.

    Raises InputError as `collect` and `judge` do.
    """
    after = collect(candidate)
    return judge(collect(baseline), after, limits, progress=progress, whole=not Path(candidate).is_file())


def judge(
    baseline: Sequence[Stored],
    candidate: Sequence[Stored],
    limits: Limits,
    *,
    progress: Progress = lambda made, total: None,
    whole: bool = True,
) -> Gate:
    """Compare the records of the trials that both have, joined by everything of the trial except the code.

    A trial that the candidate's boards have in the baseline only is `missing` from a `whole` candidate. Records of
    identical bytes pass, and say nothing about the others. Raises InputError for records that contradict each other on
    one side, for samples that are missing or answer other questions, and if no trial is in both.
    """
    before, after = by_trial(baseline), by_trial(candidate)
    shared = sorted((key for key in before if key in after), key=lambda key: _order(after[key].record["trial"]))
    if not shared:
        raise InputError(
            f"no trial is in both: baseline of {_boards(before)}, candidate of {_boards(after)};"
            " trials are joined by everything but the code"
        )
    own = {one.record["trial"]["board"] for one in after.values()}
    absent = [key for key in before if key not in after and before[key].record["trial"]["board"] in own and whole]
    names = _names({key: (after.get(key) or before[key]).record for key in (*shared, *absent)})
    broken, notes, ids = [], [], {}
    compared: dict[str, tuple[Stored, Stored]] = {}
    for key in shared:
        first, second = before[key].record, after[key].record
        ids[names[key]] = second["id"]
        if second["status"] != "ok" and first["status"] == "ok":
            error = second["error"]
            broken.append(plain(f"{names[key]}: failed: {error['type']}: {error['message']}"))
        elif first["status"] != "ok":
            where = "in the baseline only" if second["status"] == "ok" else "before and after"
            notes.append(f"{names[key]}: failed {where}: not compared")
        else:
            compared[names[key]] = (before[key], after[key])
    if extra := len(after.keys() - before.keys()):
        notes.append(f"{extra} trials of the candidate have no baseline: not compared")
    found: dict[str, dict[str, Finding]] = {
        "accuracy": costs.accuracy(compared, limits, progress),
        "latency": costs.latency(compared, limits),
        "flops": costs.flops(compared, limits),
    }

    def row(name: str) -> Row:
        return Row(name, ids.get(name, ""), {metric: own[name] for metric, own in found.items() if name in own})

    pools = dict.fromkeys(name for own in found.values() for name in own if name not in compared)
    return Gate(
        limits,
        tuple(map(row, compared)),
        tuple(map(row, pools)),
        tuple(broken),
        tuple(names[key] for key in absent),
        tuple(notes),
    )


# --- names --------------------------------------------------------------------------------------------------


def _order(trial: Mapping[str, Any]) -> tuple[Any, ...]:
    return (trial["board"], trial["method"], trial["variant"], trial["scope"], -trial["budget"], trial["seed"])


def _names(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A name for each trial, of what tells them apart."""
    trials = {key: made["trial"] for key, made in records.items()}
    several = len({trial["board"] for trial in trials.values()}) > 1
    names = {}
    for key, trial in trials.items():
        parts = [
            f"{trial['board']}:" if several else "",
            trial["method"],
            trial["variant"],
            "" if trial["tuning"] == "none" else trial["tuning"],
            trial["scope"],
            "" if trial["units"] == "both" else trial["units"],
            f"{trial['budget']:g}",
            f"seed {trial['seed']}" if trial["seed"] else "",
        ]
        names[key] = plain(" ".join(filter(None, parts)))
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else f"{name} ({records[key]['id']})" for key, name in names.items()}


def _boards(stored: Mapping[str, Stored]) -> str:
    return plain(", ".join(sorted({one.record["trial"]["board"] for one in stored.values()})))
