"""Which trials of two sides belong together, and what differs in their circumstances.

    python -c "from harness.records.store import collect; from harness.verdicts.matching import match; \
               print(match(collect('results/demo'), collect('results/heads')).keys)"

Trials are matched by what was done to the model (KEYS), so two boards may have other models, questions or machines. A
circumstance is matched on only where a side has several trials that agree in all keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.records.comparison import MACHINE, pairs, regime
from harness.records.record import Record
from harness.records.store import Stored, by_trial
from harness.text import plain, some
from harness.types import DENSE, Trial
from harness.verdicts.gate import order

# Attributes of a trial that say under which circumstances it ran, and those that say what was done to the model.
CIRCUMSTANCES = (
    "board",
    "model",
    "questions",
    "calibration",
    "dtype",
    "loading",
    "metrics",
    "latency",
    "reference_input",
)
KEYS = tuple(item.name for item in dataclasses.fields(Trial) if item.name not in (*CIRCUMSTANCES, "method_file"))
UNKNOWN = "not known"


@dataclass(frozen=True)
class Matched:
    """The trials that two sides share, by the keys that they were matched on, and the others of each side."""

    keys: tuple[str, ...]
    couples: list[tuple[Stored, Stored]]
    only: tuple[list[Record], list[Record]]


@dataclass(frozen=True)
class Fact:
    """A circumstance of the matched trials: what it is on each side, and in how many trials it differs."""

    name: str
    first: str
    second: str
    differing: int


def match(first: Sequence[Stored], second: Sequence[Stored]) -> Matched:
    """The matched trials, by board, method, scope and budget. Raises InputError if a side contradicts itself."""
    sides = [list(by_trial(side).values()) for side in (first, second)]
    keys = matched_on(*([stored.record.trial for stored in side] for side in sides))
    before, after = ({_key(stored.record.trial, keys): stored for stored in side} for side in sides)
    shared = sorted(before.keys() & after.keys(), key=lambda key: order(before[key].record))
    only = [
        [s.record for key, s in side.items() if key not in other] for side, other in ((before, after), (after, before))
    ]
    return Matched(keys, [(before[key], after[key]) for key in shared], (only[0], only[1]))


def matched_on(first: Sequence[Trial], second: Sequence[Trial]) -> tuple[str, ...]:
    """KEYS, and the circumstances that tell apart the trials of a side that agree in all of them."""

    def kinds(side: Sequence[Trial], keys: Sequence[str]) -> int:
        return len({_key(trial, keys) for trial in side})

    keys = KEYS
    for name in CIRCUMSTANCES:
        if any(kinds(side, (*keys, name)) > kinds(side, keys) for side in (first, second)):
            keys = (*keys, name)
    return keys


def panel(record: Record, keys: Sequence[str]) -> str:
    """The name of the trials that are shown and pooled together: one scope, units and regime, apart by `keys`."""
    trial = record.trial
    # The calibration tells methods apart, not panels.
    apart = [_value(trial, key) for key in keys if key in CIRCUMSTANCES and key != "calibration"]
    if trial.method == DENSE:
        return plain(", ".join([*apart, "dense"]))
    plain_budget = (trial.currency, trial.align) == ("flops", None)
    budget = "" if plain_budget else pairs({"currency": trial.currency, "align": trial.align})
    units = "" if trial.units == "both" else f"units {trial.units}"
    place = [f"scope {trial.scope}", units, f"regime {regime(record)}"]
    return plain(", ".join(filter(None, [*apart, *place, budget])))


def label(record: Record, keys: Sequence[str]) -> str:
    """The name of a method within its panel: with its variant, and its calibration if trials were matched on that."""
    calibration = pairs(vars(record.trial.calibration)) if "calibration" in keys else ""
    return plain(" ".join(filter(None, [record.trial.method, record.contestant.variant, calibration])))


def _key(trial: Trial, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(_value(trial, key) for key in keys)


def _value(trial: Trial, name: str) -> str:
    """An attribute of a trial as text, the same for equal values."""
    value: Any = getattr(trial, name)
    if dataclasses.is_dataclass(value) and name != "tuning":
        value = {key: str(part) if dataclasses.is_dataclass(part) else part for key, part in vars(value).items()}
    return pairs(value) if isinstance(value, Mapping) else "+".join(value) if isinstance(value, tuple) else str(value)


# --- circumstances ------------------------------------------------------------------------------------------

FACTS: dict[str, Callable[[Record], str]] = {
    "board": lambda record: record.trial.board,
    "model": lambda record: record.trial.model,
    "checkpoint (hash)": lambda record: record.hashes.get("checkpoint", ""),
    "code": lambda record: str(record.code),
    "what the code does (hash)": lambda record: record.hashes.get("code", ""),
    "resolved options": lambda record: pairs(record.contestant.resolved),
    "regime": regime,
    "questions": lambda record: _value(record.trial, "questions"),
    "questions (hash)": lambda record: record.hashes.get("data", ""),
    "calibration": lambda record: _value(record.trial, "calibration"),
    "calibration (hash)": lambda record: record.hashes.get("calibration", ""),
    "precision": lambda record: record.trial.dtype,
    "loading": lambda record: pairs(record.trial.loading.content()),
    "machine": lambda record: pairs({key: record.env[key] for key in MACHINE if record.env.get(key)}),
    "packages": lambda record: pairs(record.env.get("packages") or {}),
    "timing": lambda record: f"{pairs(record.trial.latency.content())} {_value(record.trial, 'reference_input')}",
}


def facts(couples: Sequence[tuple[Stored, Stored]]) -> list[Fact]:
    """The circumstances. Those that differ in any trial come first, with the values that differ."""
    result = []
    for name, read in FACTS.items():
        values = [(plain(read(first.record)), plain(read(second.record))) for first, second in couples]
        differing = [value for value in values if value[0] != value[1]]
        sides = [_texts(dict.fromkeys(value[side] for value in differing or values)) for side in (0, 1)]
        if not differing and len(set(values)) > 1:
            sides = ["the same in each pair of trials"] * 2
        if any(sides):
            result.append(Fact(name, sides[0] or UNKNOWN, sides[1] or UNKNOWN, len(differing)))
    return sorted(result, key=lambda fact: not fact.differing)


def about(side: Sequence[Stored]) -> str:
    """A side in one line."""
    records = [stored.record for stored in side]

    def told(name: str) -> str:
        return _texts(dict.fromkeys(sorted(FACTS[name](record) for record in records))) or UNKNOWN

    failed = sum(record.error is not None for record in records)
    parts = [f"board {told('board')}", f"{len(records)} trials, {failed} failed", f"model {told('model')}"]
    return plain("; ".join([*parts, told("code"), f"machine {told('machine')}"]))


def _texts(values: Mapping[str, None]) -> str:
    return some([value or UNKNOWN for value in values]) if any(values) else ""
