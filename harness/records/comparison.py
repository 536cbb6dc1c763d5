"""The rule for comparable trials. Tables, pages, verdicts, the gate and `compare` all use it.

terms(first) == terms(second)                    # the same budgets; equal settings: they share a dense model
regime(first) == regime(second)                  # the same followed the cut; only such results compete (see `regimes`)
differing(first, second, "answers")              # the reason against a comparison, or an empty text
basis(first, second, "answers")                  # how they compare all the same: paired, unpaired or refused, and why
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from harness.records.record import Record
from harness.types import (
    REGIMES,
    Align,
    Currency,
    LatencySpec,
    Loading,
    Questions,
    ReferenceInput,
    Scope,
    Trial,
    Tuning,
    UnitKinds,
)

# Facts of a record's `env` that must agree before times are compared; of the device only the kind, because the GPUs of
# a machine share the trials of a sweep, and the same trial may run on another one next time. `gpu` names the model.
MACHINE = ("machine", "platform", "device", "cpu", "gpu", "threads")


What = Literal["answers", "times"]
Basis = Literal["paired", "unpaired", "refused"]


@dataclass(frozen=True)
class Setting:
    """The settings that comparable trials share: the model, its loading, the questions, the precision."""

    model: str
    questions: Questions
    dtype: str
    loading: Loading

    def __str__(self) -> str:
        return _named(self)


@dataclass(frozen=True)
class BudgetTerms:
    """The quantity that a budget is a share of, the input that it is counted on, and the step of kept widths."""

    input: ReferenceInput
    currency: Currency = "flops"
    align: Align = None

    @property
    def asked(self) -> str:
        """The input in words: long, and most boards have one."""
        return pairs({"image": "x".join(map(str, self.input.image)), "text": self.input.text})

    def __str__(self) -> str:
        return pairs({"currency": self.currency, "align": self.align})


@dataclass(frozen=True)
class Terms:
    """The settings that pruned trials share beside their regime. A dense trial fits all terms of its setting."""

    setting: Setting
    scope: Scope
    units: UnitKinds
    budget: BudgetTerms


@lru_cache(maxsize=1 << 8)  # the trials of a board share a few
def _named(setting: Setting) -> str:
    questions = setting.questions
    values = {"model": setting.model, "tasks": list(questions.tasks), "split": questions.split}
    if questions.image_conversion != "viewer":
        values["image_conversion"] = questions.image_conversion
    return pairs(values | {"limit": questions.limit, "dtype": setting.dtype} | setting.loading.content())


def terms(trial: Trial) -> Terms:
    """The terms of a trial. Trials with equal terms are comparable."""
    setting = Setting(trial.model, trial.questions, trial.dtype, trial.loading)
    return Terms(setting, trial.scope, trial.units, BudgetTerms(trial.reference_input, trial.currency, trial.align))


def fullest(records: Sequence[Record]) -> list[Record]:
    """The records, but of trials that differ only in what they measure the one that measured most.

    A board whose metrics or timings were changed has such trials; side by side they would pose as seeds.
    """

    def order(record: Record) -> tuple[bool, int, str]:
        return record.error is None, len(record.metrics), record.id

    best: dict[str, Record] = {}
    for record in records:
        same = replace(record.trial, metrics=(), latency=LatencySpec()).id
        best[same] = max(best.get(same, record), record, key=order)
    kept = {record.id for record in best.values()}
    return [record for record in records if record.id in kept]


def regime(record: Record) -> str:
    """The regime of a record with the settings of its recovery: `none`, `refit`, `tuned full-kl-300`.

    Results compete within a regime only.
    """
    regime, tuning = record.contestant.regime, replace(record.trial.tuning, weights="same")  # which the regime says
    return f"{regime} {tuning}" if tuning.trains else regime + str(tuning).removeprefix(tuning.method)


def regimes(records: Iterable[Record]) -> dict[str, str]:
    """The name under which each `regime` of these records is shown.

    Regimes that differ only in the learning rate are one, whose name has all rates, if no two of them share a budget:
    then the rate is a choice for the budget, and not another recovery.
    """
    budgets: dict[str, dict[str, set[float]]] = {}
    rates: dict[str, float] = {}
    for record in records:
        trial, own = record.trial, regime(record)
        any_rate = replace(record, trial=replace(trial, tuning=replace(trial.tuning, rate=Tuning.rate)))
        budgets.setdefault(regime(any_rate), {}).setdefault(own, set()).add(trial.budget)
        rates[own] = trial.tuning.rate
    shown = {}
    for name, of_rate in budgets.items():
        alone = len(of_rate) == 1 or sum(map(len, of_rate.values())) > len(set.union(*of_rate.values()))
        falling = sorted(of_rate, key=lambda own: max(of_rate[own]), reverse=True)
        together = f"{name} rate={'/'.join(f'{rates[own]:g}' for own in falling)}"
        shown |= {own: own if alone else together for own in of_rate}
    return shown


def regime_order(regime: str) -> tuple[int, str]:
    """Sort key of regimes: from untouched weights to tuned ones, each before its fewer bits; unknown ones come last."""
    whole = regime.replace(", int8", "").replace(", int4", "")
    known = [place for place, name in enumerate(REGIMES) if whole == name or whole.startswith(f"{name} ")]
    return max(known, default=len(REGIMES)), regime


def common(points: Iterable[tuple[Any, float]]) -> list[float]:
    """The budgets at which contestants compete, rising: those of at least half of them, or all if there are none.

    points: each (contestant, budget) once. A contestant may have budgets of its own, which say nothing of the others.
    """
    points = list(points)
    contestants, at_budget = {contestant for contestant, _ in points}, Counter(budget for _, budget in points)
    return sorted(at for at, count in at_budget.items() if 2 * count >= len(contestants)) or sorted(at_budget)


def differing(first: Record, second: Record, what: What) -> str:
    """The reason why answers or times of two trials are not comparable; empty if they are."""
    if what == "answers":
        data = [record.hashes.get("data") for record in (first, second)]
        return f"data differ (hash {data[0]} and {data[1]}): other questions" if data[0] != data[1] else ""
    facts = [f"{key} {before} and {after}" for key, before, after in other_machine(first.env, second.env)]
    return f"machines differ: {', '.join(facts)}" if facts else ""


def basis(first: Record, second: Record, what: What) -> tuple[Basis, str]:
    """How two trials compare that `differing` keeps apart, and why not better.

    Answers to other questions of the same tasks and split are samples of one population, so they compare unpaired. So
    do speedups that two machines measured on the same inputs. Other tasks or inputs are refused.
    """
    why = differing(first, second, what)
    one, two = first.trial, second.trial
    if what == "answers":
        asked = [f"{', '.join(sorted(trial.questions.tasks))} ({trial.questions.split})" for trial in (one, two)]
        if why and asked[0] != asked[1]:
            return "refused", f"other tasks or another split: {asked[0]} and {asked[1]}"
    else:
        inputs = [pairs({"batch": max(trial.latency.batches), **vars(trial.reference_input)}) for trial in (one, two)]
        if inputs[0] != inputs[1]:
            return "refused", f"other inputs were timed: {inputs[0]} and {inputs[1]}"
    return ("unpaired" if why else "paired"), why


def other_machine(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The facts with their values by which two machines (`env`) differ, so that times of them cannot be compared."""
    kinds = [{**env, "device": str(env.get("device")).partition(":")[0]} for env in (first, second)]
    return [(key, first.get(key), second.get(key)) for key in MACHINE if kinds[0].get(key) != kinds[1].get(key)]


def pairs(mapping: Mapping[str, Any]) -> str:
    """Short text of a mapping: {"samples": 128, "tasks": ["a", "b"]} -> samples=128 tasks=a+b."""

    def text(value: Any) -> str:
        if isinstance(value, list | tuple):
            return "+".join(map(str, value))
        return value if isinstance(value, str) else json.dumps(value)

    return " ".join(f"{key}={text(value)}" for key, value in sorted(mapping.items()))
