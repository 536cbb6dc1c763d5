"""A board file, validated, and the trials it stands for: pure data.

board = read("demo"); [trial.method for trial in board.trials()]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness import families, record, registry, tasks
from harness.types import Currency, InputError, Loading, Scope, Trial, Tuning, UnitKinds

Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
ANSWERED = ("accuracy", "floors", "fidelity")  # the metrics that are made of answers


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CalibrationSpec(_Strict):
    """Where statistics come from: this many questions, drawn evenly from these tasks' calibration split."""

    samples: Count = 128
    tasks: tuple[str, ...] = ()  # empty: the board's tasks
    split: str = "calibration"


class Entry(_Strict):
    """A contestant on a board: a method with options and a number of seeds.

    With `control: random-units` the widths of its plans are kept and their units drawn at random (Liu et al. 2019).
    """

    method: str
    options: dict[str, Any] = {}
    seeds: Count = 1
    calibration: CalibrationSpec | None = None  # none given: the board's
    tuning: Tuning | None = None  # likewise
    control: Literal["none", "random-units"] = "none"


class Latency(_Strict):
    """What is timed how often. Further image sizes and modes are timed beside the reference input in eager mode.

    Modes: `compile` is torch.compile of each stage, `graphs` the same with CUDA graphs (left out without a GPU).
    """

    batches: tuple[Count, ...] = Field(default=(1, 8), min_length=1)
    repeats: Annotated[int, Field(ge=3)] = 20
    images: tuple[tuple[Count, Count], ...] = ()
    modes: tuple[Literal["eager", "compile", "graphs"], ...] = Field(default=("eager",), min_length=1)

    def content(self) -> dict[str, Any]:
        """Plain values; what there was not always is left out where it is not used, so that ids of trials stay."""
        found = self.model_dump()
        return {
            k: v for k, v in found.items() if k in ("batches", "repeats") or v != type(self).model_fields[k].default
        }


class ReferenceInput(_Strict):
    """The one input whose FLOPs are counted and which is timed."""

    image: tuple[Count, Count] = (448, 448)
    text: str = "What is in the picture?"


class Board(_Strict):
    """What is compared: every method at every budget of every scope, on one model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]
    model: str
    methods: tuple[Entry, ...] = Field(min_length=1)
    budgets: tuple[Fraction, ...] = Field(min_length=1)
    scopes: tuple[Scope, ...] = Field(default=("vision",), min_length=1)
    units: UnitKinds = "both"
    tasks: tuple[str, ...] = Field(min_length=1)
    split: str = "validation"
    limit: Count | None = None
    metrics: tuple[str, ...] = Field(("flops", "latency", "accuracy"), min_length=1)
    # Also score these models with their images blanked and shuffled: none, dense, or dense and those of these budgets.
    floors: bool | tuple[Fraction, ...] = True
    tuning: Tuning = Tuning()
    calibration: CalibrationSpec = CalibrationSpec()
    latency: Latency = Latency()
    reference_input: ReferenceInput = ReferenceInput()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    # How the model is loaded; see `types.Loading`.
    revision: str | None = None
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    trust_remote_code: bool = False
    random_weights: bool = False
    # What a budget is a share of, and what kept widths are multiples of; see `types.Currency` and `types.Align`.
    currency: Currency = "flops"
    align: Count | Literal["auto", "off"] | None = None

    @property
    def loading(self) -> Loading:
        return Loading(**{item.name: getattr(self, item.name) for item in fields(Loading)})

    @field_validator("methods", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """A bare name is an entry without options."""
        return (
            [{"method": item} if isinstance(item, str) else item for item in value]
            if isinstance(value, list)
            else value
        )

    def trials(self) -> list[Trial]:
        """All trials in the order in which they run: one ranking's budgets stay together, dense comes first."""
        common = {
            "board": self.name,
            "model": self.model,
            "units": self.units,
            "tasks": self.tasks,
            "split": self.split,
            "limit": self.limit,
            "latency": self.latency.content(),
            "reference_input": self.reference_input.model_dump(),
            "dtype": self.dtype,
            "loading": self.loading,
        }
        floors = self.floors is not False and "accuracy" in self.metrics and "floors" not in self.metrics
        blinded = (*self.metrics, "floors") if floors else self.metrics
        blinded_at = self.floors if isinstance(self.floors, tuple) else ()
        whole = {**common, "units": "both", "calibration": self._drawn(self.calibration), "metrics": blinded}
        made = [Trial(method="none", options={}, scope="all", budget=1.0, seed=0, **whole)]
        for entry in self.methods:
            if entry.method == "none":
                continue
            options = registry.method(entry.method).check(entry.options, f"board {self.name}: ")
            for seed in range(entry.seeds):
                for scope in self.scopes:
                    for budget in self.budgets:
                        made.append(
                            Trial(
                                method=entry.method,
                                options=options,
                                scope=scope,
                                budget=budget,
                                seed=seed,
                                metrics=blinded if budget in blinded_at else self.metrics,
                                calibration=self._drawn(entry.calibration or self.calibration),
                                tuning=entry.tuning or self.tuning,
                                control=entry.control,
                                align=self.align,
                                currency=self.currency,
                                **common,
                            )
                        )
        return made

    def _drawn(self, calibration: CalibrationSpec) -> dict[str, Any]:
        return {**calibration.model_dump(), "tasks": calibration.tasks or self.tasks}


def trial_id(trial: Trial) -> str:
    """The id a trial's record is stored under."""
    return record.short_hash(trial.content())


def read(name: str, **overrides: Any) -> Board:
    """A shipped board or a YAML file, with top-level keys overridden (`limit=50`).

    Raises InputError naming the file and key: not YAML, not a mapping, empty, an unknown key, method, option, task,
    split, metric, scope or model, a model folder that cannot be loaded, a budget outside (0, 1], anything named twice.
    """
    path = registry.board(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"board {path}: cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise InputError(f"board {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(
            f"board {path}: {'empty' if content is None else 'not a mapping of keys'}; see `infoprune list boards`"
        )
    return check({**content, **overrides}, path)


def check(content: Mapping[str, Any], path: Path) -> Board:
    """Validate a board's content; see `read` for what is raised."""
    for key in content:
        if key not in Board.model_fields:
            raise InputError.unknown("key", key, Board.model_fields, f"board {path}: ")
    try:
        board = Board.model_validate(dict(content))
    except ValidationError as error:
        raise _explain(error, path) from error
    where = f"board {path}: "
    for entry in board.methods:
        if entry.method not in registry.methods():
            raise InputError.unknown("method", entry.method, registry.methods(), where + "methods: ")
    for metric in board.metrics:
        if metric not in registry.metrics():
            raise InputError.unknown("metric", metric, registry.metrics(), where + "metrics: ")
    if board.random_weights and (asked := [metric for metric in board.metrics if metric in ANSWERED]):
        raise InputError(
            f"{where}metrics: {asked[0]}: random weights have no answers worth scoring; with random_weights ask for "
            "metrics: [flops, latency]"
        )
    if board.random_weights and board.device_map:
        raise InputError(f"{where}device_map: random weights are made on one device; leave it out")
    for key in ("budgets", "scopes", "tasks", "metrics"):
        values = getattr(board, key)
        if twice := [value for value in values if values.count(value) > 1]:
            raise InputError(f"{where}{key}: {twice[0]} is named twice")
    try:
        source = Path(registry.model(board.model))
        if source.is_dir():
            families.check_folder(source, random_weights=board.random_weights)
        tasks.require(board.tasks, board.split)
        contestants = []
        for entry in board.methods:
            drawn, tuning = entry.calibration or board.calibration, entry.tuning or board.tuning
            tasks.require(drawn.tasks or board.tasks, drawn.split, drawn.samples)
            if tuning.method != "none":
                tasks.require(drawn.tasks or board.tasks, drawn.split, tuning.samples, "tuning.samples")
            options = registry.method(entry.method).check(entry.options, "methods: ")
            contestants.append((entry.method, options, drawn, tuning, entry.control))
    except InputError as error:
        raise InputError(f"{where}{error}") from error
    for contestant in contestants:
        if contestants.count(contestant) > 1:
            raise InputError(f"{where}methods: {contestant[0]} is named twice with the same options")
    return board


def _explain(error: ValidationError, path: Path) -> InputError:
    """The first fault of a board in its own terms: the key, what is wrong with it, the nearest choice."""
    first = error.errors()[0]
    loc, kind = [str(part) for part in first["loc"]], first["type"]
    where = f"board {path}: {'.'.join(loc)}: "
    if kind == "missing":
        return InputError(f"{where}is missing")
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", ""))
        return InputError.unknown("value", first["input"], choices, where)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        parts = {
            "methods": Entry,
            "calibration": CalibrationSpec,
            "latency": Latency,
            "reference_input": ReferenceInput,
        }
        known = Tuning.__dataclass_fields__ if "tuning" in loc[:-1] else parts[loc[0]].model_fields
        return InputError.unknown("key", loc[-1], known, f"board {path}: {'.'.join(loc[:-1])}: ")
    if kind == "value_error":
        return InputError(where + first["msg"].removeprefix("Value error, "))
    text = re.sub(r"a (valid )?dictionary.*", "a mapping of keys", first["msg"]).replace("a valid tuple", "a list")
    text = text.replace("Tuple", "List")
    return InputError(f"{where}{text} (given: {first['input']!r:.80})")
