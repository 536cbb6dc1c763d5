"""A board file, validated, and its trials: pure data.

board = read("demo"); [trial.method for trial in board.trials()]
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from harness import registry
from harness.text import reason
from harness.trials import board_checks, yaml_text
from harness.types import (
    BOTH,
    DENSE,
    GREEDY,
    KINDS,
    CalibrationSpec,
    Chooser,
    Currency,
    Generation,
    ImageConversion,
    InputError,
    LatencySpec,
    Loading,
    Questions,
    ReferenceInput,
    Scope,
    Trial,
    Tuning,
    UnitKinds,
    wanted,
)

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def _named(value: Any) -> Any:
    """A mapping; a bare name stands for one with that method."""
    return {"method": value} if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Recovery(_Strict):
    """What follows a cut, and the budgets that it is for: a gentle cut may want another rate than a deep one."""

    how: Tuning
    budgets: Annotated[tuple[Fraction, ...], Field(min_length=1)] | None = None  # None: every one of the contestant's

    def follows(self, budget: float) -> bool:
        return self.budgets is None or budget in self.budgets


def _listed(value: Any) -> Any:
    """One recovery or a list of them, as a list of what `Recovery` reads."""
    items = [_named(item) for item in (value if isinstance(value, list) else [value])]
    return [
        {"how": {key: item[key] for key in item if key != "budgets"}, "budgets": item.get("budgets")}
        if isinstance(item, dict)
        else {"how": item}
        for item in items
    ]


# `tuning: refit`, `tuning: [none, bias, refit]` or `tuning: {method: full, steps: 100, budgets: [0.5]}`
Tunings = Annotated[tuple[Recovery, ...], BeforeValidator(_listed), Field(min_length=1)]


class Contestant(_Strict):
    """A contestant on a board: a method with options and a number of seeds.

    `method` is a registered name or the path of a Python file. In a board file the path is relative to that file; here
    and everywhere else it is relative to the current folder.
    With `control: random-units` the widths of its plans are kept and their units drawn at random (Liu et al. 2019).
    With `sequential: true` each block is ranked after the blocks before it are cut, anew for each budget.
    With `tokens: pool` another method chooses visual tokens, and this one cuts the other kinds of `units`.
    With `shares: {layers: 0.5, ffn: 0.5}` each kind gives this share of the saving; without it the solver chooses.
    """

    method: str
    options: dict[str, Any] = {}
    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    calibration: CalibrationSpec | None = None  # None: the board's
    tuning: Tunings | None = None  # None: the board's
    control: Literal["none", "random-units"] = "none"
    sequential: bool = False
    units: UnitKinds | None = None  # None: the board's
    budgets: Annotated[tuple[Fraction, ...], Field(min_length=1)] | None = None  # None: the board's
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] | None = None  # None: the board's
    shares: dict[str, float] = {}
    tokens: Annotated[Chooser, BeforeValidator(_named)] | None = None


class Board(_Strict):
    """A comparison: every method at every budget of every scope, on one model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]
    model: str
    methods: tuple[Contestant, ...] = Field(min_length=1)
    budgets: tuple[Fraction, ...] = Field(min_length=1)
    scopes: tuple[Scope, ...] = Field(default=("vision",), min_length=1)
    units: UnitKinds = BOTH
    tasks: tuple[str, ...] = Field(min_length=1)
    split: str = "validation"
    limit: Count | None = None
    image_conversion: ImageConversion = "viewer"  # how images become RGB; see `types.ImageConversion`
    metrics: tuple[str, ...] = Field(("flops", "latency", "accuracy"), min_length=1)
    # Models to score with blank and shuffled images too: none (false), dense (true), or dense and these budgets.
    floors: bool | tuple[Fraction, ...] = True
    tuning: Tunings = (Recovery(how=Tuning()),)  # each model is recovered in each of these ways, from the same cut
    calibration: CalibrationSpec = CalibrationSpec()
    latency: LatencySpec = LatencySpec()
    reference_input: ReferenceInput = ReferenceInput()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # How the model is loaded; see `types.Loading`.
    revision: str | None = None
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    trust_remote_code: bool = False
    random_weights: bool = False
    generation: Generation = GREEDY  # what is added to greedy decoding, and nothing else is
    # What a budget is a share of, and what kept widths are multiples of; see `types.Currency` and `types.Align`.
    currency: Currency = "flops"
    align: Count | Literal["auto", "off"] | None = None

    @property
    def questions(self) -> Questions:
        return Questions(self.tasks, self.split, self.limit, self.image_conversion)

    @property
    def loading(self) -> Loading:
        return Loading(**{item.name: getattr(self, item.name) for item in fields(Loading)})

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Turn a bare name into an entry without options."""
        return [_named(item) for item in value] if isinstance(value, list) else value

    def trials(self) -> list[Trial]:
        """All trials in the order of their runs: dense first, then the budgets of each ranking together."""
        common = {
            "board": self.name,
            "model": self.model,
            "questions": self.questions,
            "latency": self.latency,
            "reference_input": self.reference_input,
            "dtype": self.dtype,
            "loading": self.loading,
        }
        floors = self.floors is not False and "accuracy" in self.metrics and "floors" not in self.metrics
        with_floors = (*self.metrics, "floors") if floors else self.metrics
        floor_budgets = self.floors if isinstance(self.floors, tuple) else ()
        dense_settings = {
            **common,
            "units": BOTH,
            "calibration": self._drawn(self.calibration),
            "metrics": with_floors,
        }
        trials = [Trial(method=DENSE, options={}, scope="all", budget=1.0, seed=0, **dense_settings)]
        for entry in self.methods:
            if entry.method == DENSE:
                continue
            method = registry.method(entry.method)
            options, chooser = method.check(entry.options, f"board {self.name}: "), entry.tokens
            if chooser:
                chooser = replace(chooser, options=registry.method(chooser.method).check(chooser.options, "tokens: "))
            scopes, budgets = entry.scopes or self.scopes, entry.budgets or self.budgets
            runs = itertools.product(range(entry.seeds), scopes, budgets, entry.tuning or self.tuning)
            trials += [
                Trial(
                    method=method.name,
                    method_file=entry.method if registry.method_file(entry.method) else None,
                    options=options,
                    scope=scope,
                    units=entry.units or self.units,
                    budget=budget,
                    seed=seed,
                    metrics=with_floors if budget in floor_budgets else self.metrics,
                    calibration=self.calibration_of(entry),
                    tuning=recovery.how,
                    control=entry.control,
                    sequential=entry.sequential,
                    shares={kind: entry.shares[kind] for kind in KINDS if kind in entry.shares},
                    tokens=chooser,
                    align=self.align,
                    currency=self.currency,
                    **common,
                )
                for seed, scope, budget, recovery in runs
                if recovery.follows(budget)
            ]
        return trials

    def calibration_of(self, entry: Contestant) -> CalibrationSpec:
        """The calibration of a contestant, with its tasks filled in."""
        return self._drawn(entry.calibration or self.calibration)

    def _drawn(self, calibration: CalibrationSpec) -> CalibrationSpec:
        return replace(calibration, tasks=calibration.tasks or self.tasks)


def read(name: str, /, **overrides: Any) -> Board:
    """A shipped board or a YAML file, with other values for some keys (`limit=50`, `**{"calibration.samples": 16}`).

    A key may go on with dots, to a key of the mapping or a position (from 0) of the list that it holds.
    Raises InputError naming the file and key: not YAML, not a mapping, empty, an unknown key, method, option, task,
    split, metric, scope or model, a model folder that cannot be loaded, a budget outside (0, 1], anything named twice.
    """
    path = registry.board(name)
    try:
        content = yaml_text.value(path.read_text(encoding="utf-8"), f"board {path}: ")
    except OSError as error:
        raise InputError(f"board {path}: cannot read the file: {reason(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"board {path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"board {path}: {'empty' if content is None else 'not a mapping of keys'}; see `infoprune list boards`"
        )
    if "methods" in content:
        content["methods"] = _seen_from_here(content["methods"], path.parent)
    return check(override(content, overrides, f"board {path}: "), path)


def override(content: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A board's content with these values at these dotted keys; raises InputError for a key that leads nowhere."""
    changed: Any = dict(content)
    for key, value in overrides.items():
        changed = _replaced(changed, key.split("."), value, f"{where}{key}: ")
    return changed


def _replaced(content: Any, path: Sequence[str], value: Any, where: str) -> Any:
    """A copy of the content with another value at the end of this path of keys and positions."""
    if not path:
        return value
    key, *rest = path
    if isinstance(content, list):
        positions = [str(place) for place in range(len(content))]
        if key not in positions:
            raise InputError(
                f"{where}{key!r} is not a position of the list, whose positions are 0 to {len(content) - 1}"
            )
        position = positions.index(key)
        entry = _named(content[position]) if rest else content[position]
        return [*content[:position], _replaced(entry, rest, value, where), *content[position + 1 :]]
    if content is not None and not isinstance(content, dict):
        raise InputError(f"{where}the board has the value {content!r:.80} there, which has no key {key!r}")
    content = content or {}
    child = content.get(key)
    if rest and key in ("tokens", "tuning"):
        child = _named(child)
    return {**content, key: _replaced(child, rest, value, where)}


def _seen_from_here(methods: Any, folder: Path) -> Any:
    """The entries of a board file in this folder, with the paths of method files relative to the current folder."""

    def seen(method: Any) -> Any:
        if not (isinstance(method, str) and method.endswith(".py")) or os.path.isabs(method):
            return method
        return os.path.relpath(folder / method)

    if not isinstance(methods, list):
        return methods
    return [
        {**entry, "method": seen(entry["method"])} if isinstance(entry, dict) and "method" in entry else seen(entry)
        for entry in methods
    ]


def check(content: Mapping[str, Any], path: Path) -> Board:
    """Validate a board's content. Raises the errors of `read`."""
    for key in content:
        if key not in Board.model_fields:
            raise InputError.unknown("key", key, Board.model_fields, f"board {path}: ")
    try:
        board = Board.model_validate(dict(content))
    except ValidationError as error:
        raise _explain(error, content, path) from error
    try:
        board_checks.check(board)
    except InputError as error:
        raise InputError(f"board {path}: {error}") from error
    return board


# The keys of a board's parts, by the part.
_KEYS: dict[str, Iterable[str]] = {
    "methods": Contestant.model_fields,
    "calibration": [item.name for item in fields(CalibrationSpec)],
    "generation": [item.name for item in fields(Generation)],
    "latency": [item.name for item in fields(LatencySpec)],
    "reference_input": [item.name for item in fields(ReferenceInput)],
    "tokens": [item.name for item in fields(Chooser)],
    "tuning": ["budgets", *(item.name for item in fields(Tuning))],
}
_NAMES = {*Board.model_fields, *itertools.chain(*_KEYS.values())}


def _explain(error: ValidationError, content: Mapping[str, Any], path: Path) -> InputError:
    """The first fault of a board in terms of its file: the key, what is wrong, and the closest valid choice."""
    faults = [(fault, _as_written(fault["loc"], content)) for fault in error.errors()]
    first, loc = faults[0]
    # A value that may have several types has a fault for each; the one that leads deepest is the type that is meant.
    alike = [(fault, at) for fault, at in faults if at[: len(loc)] == loc]
    loc = max((at for _, at in alike), key=len)
    alternatives = [fault for fault, at in alike if at == loc]
    first, kind = alternatives[0], alternatives[0]["type"]
    where = f"board {path}: {'.'.join(loc)}: "
    if kind == "missing":
        return InputError(f"{where}this {'entry' if loc[-1].isdecimal() else 'key'} is missing; add it")
    if kind == "literal_error" and len(alternatives) == 1:
        choices = re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", ""))
        return InputError.unknown("value", first["input"], choices, where)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = next(_KEYS[key] for key in reversed(loc[:-1]) if key in _KEYS)
        return InputError.unknown("key", loc[-1], known, f"board {path}: {'.'.join(loc[:-1])}: ")
    if kind == "value_error":
        return InputError(where + first["msg"].removeprefix("Value error, "))
    return InputError(f"{where}{wanted(alternatives)} (given: {first['input']!r:.80})")


def _as_written(loc: Sequence[Any], content: Any) -> list[str]:
    """A key as the file has it: without positions where the file has a single value, and without names of types."""
    written = []
    for part in loc:
        there = isinstance(content, list) if isinstance(part, int) else isinstance(content, dict) and part in content
        if not there and (isinstance(part, int) or part not in _NAMES):
            continue
        written.append(str(part))
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            content = None
    return written
