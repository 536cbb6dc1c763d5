"""The rule for comparable trials. Tables, pages, verdicts and the gate all use it.

terms(first) == terms(second)                    # the same budgets; equal settings: they share a dense model
regime(first) == regime(second)                  # the same was done to the weights that stay; only such results compete
differing(first, second, "answers")              # the reason against a comparison, or an empty text
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from harness.records.record import Record
from harness.types import Align, Currency, Loading, Questions, Scope, Trial, UnitKinds

# Facts of a record's `env` that must agree before times are compared.
MACHINE = ("machine", "platform", "device", "cpu", "gpu", "threads")


@dataclass(frozen=True)
class Setting:
    """The settings that comparable trials share: the model, its loading, the questions, the precision."""

    model: str
    questions: Questions
    dtype: str
    loading: Loading

    def __str__(self) -> str:
        questions = self.questions
        values = {"model": self.model, "tasks": list(questions.tasks), "split": questions.split}
        if questions.image_conversion != "viewer":
            values["image_conversion"] = questions.image_conversion
        return pairs(values | {"limit": questions.limit, "dtype": self.dtype} | self.loading.content())


@dataclass(frozen=True)
class BudgetTerms:
    """The quantity that a budget is a share of, and the step of kept widths."""

    currency: Currency = "flops"
    align: Align = None

    def __str__(self) -> str:
        return pairs({"currency": self.currency, "align": self.align})


@dataclass(frozen=True)
class Terms:
    """The settings that pruned trials share beside their regime. A dense trial fits all terms of its setting."""

    setting: Setting
    scope: Scope
    units: UnitKinds
    budget: BudgetTerms


def terms(trial: Trial) -> Terms:
    """The terms of a trial. Trials with equal terms are comparable."""
    setting = Setting(trial.model, trial.questions, trial.dtype, trial.loading)
    return Terms(setting, trial.scope, trial.units, BudgetTerms(trial.currency, trial.align))


def regime(record: Record) -> str:
    """The regime of a record with the settings of its recovery: `none`, `refit`, `tuned full-kl-300`.

    Results compete within a regime only.
    """
    regime, tuning = record.contestant.regime, record.trial.tuning
    return f"{regime} {tuning}" if tuning.trains else regime + str(tuning).removeprefix(tuning.method)


def differing(first: Record, second: Record, what: Literal["answers", "times"]) -> str:
    """The reason why answers or times of two trials are not comparable; empty if they are."""
    if what == "answers":
        data = [record.hashes.get("data") for record in (first, second)]
        return f"data differ (hash {data[0]} and {data[1]}): other questions" if data[0] != data[1] else ""
    before, after = first.env, second.env
    facts = [f"{key} {before.get(key)} and {after.get(key)}" for key in MACHINE if before.get(key) != after.get(key)]
    return f"machines differ: {', '.join(facts)}" if facts else ""


def pairs(mapping: Mapping[str, Any]) -> str:
    """Short text of a mapping: {"samples": 128, "tasks": ["a", "b"]} -> samples=128 tasks=a+b."""

    def text(value: Any) -> str:
        if isinstance(value, list | tuple):
            return "+".join(map(str, value))
        return value if isinstance(value, str) else json.dumps(value)

    return " ".join(f"{key}={text(value)}" for key, value in sorted(mapping.items()))
