"""The schema of a record file, and the migrations of older files.

A record may hold further keys, but not in the settings of a trial (`_Settings`): an unknown one makes another trial.
The bounds of figures lie far beyond what is measured; within them, readers can calculate.

Version 2 added the hash of the content. Version 3 moved the description of the method from the trial to `contestant`.
Version 4 names the recovery in the regime; before, it was training-free, repaired or trained. Version 5 gives methods
that choose at random the role `floor`; before, they were references.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this class before Python 3.12

from harness.types import (
    KINDS,
    Align,
    CalibrationSpec,
    Currency,
    ImageConversion,
    Kind,
    LatencySpec,
    Loading,
    ReferenceInput,
    Scope,
    Tuning,
    UnitKinds,
    differs,
)

SCHEMA = 5
# The code's description of a trial's method; the trial's id does not depend on it.
DESCRIBED = ("title", "variant", "role", "regime", "resolved")

LARGEST = 1e18  # of a figure
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)] | None
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=1e-9, le=1e9)] | None  # of times, whose logarithms are taken
Whole = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Contestant(TypedDict):
    title: str
    variant: str
    role: Literal["studied", "reference", "floor"]
    regime: Annotated[str, Field(pattern="^[a-z]")]
    resolved: NotRequired[dict[str, Any]]
    file: NotRequired[str]


class _Chooser(TypedDict):
    method: str
    options: dict[str, Any]


class _Trial(TypedDict):
    board: str
    model: str
    method: str
    options: dict[str, Any]
    tuning: str
    units: UnitKinds
    scope: Scope
    budget: Annotated[float, Field(gt=0, le=1)]
    seed: Whole
    tasks: list[str]
    split: str
    limit: Whole | None
    dtype: str
    metrics: list[str]
    calibration: dict[str, Any]
    latency: dict[str, Any]
    reference_input: dict[str, Any]
    recovery: NotRequired[dict[str, Any]]  # all settings of the tuning, if any
    control: NotRequired[str]
    sequential: NotRequired[bool]
    shares: NotRequired[dict[Kind, float]]
    tokens: NotRequired[_Chooser]
    loading: NotRequired[dict[str, Any]]  # settings at non-default values
    currency: NotRequired[Currency]
    align: NotRequired[Align]
    image_conversion: NotRequired[ImageConversion]


class _Kept(TypedDict, total=False):
    kept: Number


class _Params(_Kept, total=False):
    pruned: Number


class _Flops(_Kept, total=False):
    reduction: Number
    total: _Kept
    params: _Params


class _Latency(TypedDict, total=False):
    speedup: Factor
    speedup_lo: Factor
    speedup_hi: Factor


class _Task(TypedDict):
    accuracy: Share
    lo: NotRequired[Number]
    hi: NotRequired[Number]
    n: NotRequired[Whole]
    images: NotRequired[Whole]


class _Accuracy(TypedDict):
    mean: Share
    lo: NotRequired[Number]
    hi: NotRequired[Number]
    tasks: NotRequired[dict[str, _Task]]
    collapse: NotRequired[list[str]]


class _Floor(TypedDict):
    mean: Share


class _Gain(TypedDict):
    mean: Annotated[float, Field(ge=-1, le=1)]
    lo: NotRequired[Number]
    hi: NotRequired[Number]


class _Floors(TypedDict, total=False):
    majority: _Floor
    blank: _Floor
    shuffled: _Floor
    gain_over_blind: _Gain


class _Fidelity(TypedDict, total=False):
    flips: Share
    agreement: Share
    kl_first_token: Number


class _Weights(TypedDict, total=False):
    weight_bytes: Number


class _Memory(TypedDict, total=False):
    pruned: _Weights


class _Metrics(TypedDict, total=False):
    flops: _Flops
    latency: _Latency
    accuracy: _Accuracy
    floors: _Floors
    fidelity: _Fidelity
    memory: _Memory


class _Cost(TypedDict, total=False):
    ranking_s: Number
    tuning_s: Number
    total_s: Number
    calibration_samples: Number
    peak_memory_bytes: Number


class _Plan(TypedDict):
    requested: Share
    achieved: Annotated[float, Field(ge=0, le=LARGEST)]


class _Env(TypedDict, total=False):
    packages: dict[str, str]


class _Error(TypedDict):
    type: str
    message: str
    phase: NotRequired[str | None]


class _Record(TypedDict):
    schema: int
    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    status: Literal["ok", "failed"]
    error: _Error | None
    trial: _Trial
    contestant: _Contestant
    plan: NotRequired[_Plan | None]
    metrics: NotRequired[_Metrics | None]
    cost: NotRequired[_Cost | None]
    log: NotRequired[dict[str, Any] | None]
    env: _Env
    code: dict[str, Any]
    hashes: dict[str, str]


class _Settings(TypedDict):
    """What of a trial becomes a value of its own, and is checked as one."""

    calibration: CalibrationSpec
    latency: LatencySpec
    reference_input: ReferenceInput
    recovery: NotRequired[Tuning]
    loading: NotRequired[Loading]


_SCHEMA = TypeAdapter(_Record)
_SETTINGS = TypeAdapter(_Settings)


def problem(content: dict[str, Any]) -> str:
    """The first fault of a record of the current schema, as "key: reason"; empty without faults."""
    try:
        _SCHEMA.validate_python(content, strict=True)
    except ValidationError as error:
        return _first(error)
    trial = content["trial"]
    settings = {key: trial[key] for key in _Settings.__annotations__ if key in trial}
    try:
        _SETTINGS.validate_json(json.dumps(settings), strict=True)  # JSON, whose lists may be tuples
    except ValidationError as error:
        return f"trial.{_first(error)}"
    if (content["status"] == "failed") != (content["error"] is not None):
        return f"error: contradicts status {content['status']}; only a failed trial has an error"
    return _flops_disagreement(content)


def _flops_disagreement(content: dict[str, Any]) -> str:
    """The fault of a plan whose FLOPs are not the measured ones, where both are known."""
    stated = (content.get("plan") or {}).get("achieved")
    measured = ((content.get("metrics") or {}).get("flops") or {}).get("kept")
    in_flops = content["trial"].get("currency", "flops") == "flops"
    if not in_flops or stated is None or measured is None:
        return ""
    if differs(stated, measured):
        return f"plan.achieved: {stated:.4f} of the FLOPs, but metrics.flops.kept is {measured:.4f}; they must agree"
    return ""


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def migrate(content: dict[str, Any]) -> None:
    """Migrate a record of an older schema to the current one, in place."""
    for version in range(content["schema"], SCHEMA):
        _MIGRATIONS[version](content)
        content["schema"] = version + 1


def _describe(content: dict[str, Any]) -> None:
    """2 to 3: move the description of the method out of the trial."""
    trial = content.get("trial")
    if isinstance(trial, dict):  # other content fails the check
        content["contestant"] = {key: trial.pop(key) for key in DESCRIBED if key in trial}


def _regime(content: dict[str, Any]) -> None:
    """3 to 4: name the recovery in the regime. A method's own repair, of whatever kind, stays `repaired`."""
    contestant, trial = content.get("contestant"), content.get("trial")
    if isinstance(contestant, dict) and isinstance(trial, dict):
        recovery = trial.get("recovery")
        how = recovery.get("method") if isinstance(recovery, dict) else None
        if how is not None:
            contestant["regime"] = "refit" if how == "refit" else "tuned"
        elif contestant.get("regime") == "training-free":
            contestant["regime"] = "none"


def _floor(content: dict[str, Any]) -> None:
    """4 to 5: random choices are a floor, and were a reference before there was this role."""
    contestant, trial = content.get("contestant"), content.get("trial")
    random = ("random", *(f"random_{kind}" for kind in KINDS))
    if isinstance(contestant, dict) and isinstance(trial, dict) and trial.get("method") in random:
        contestant["role"] = "floor"


# Version 2 added the hash, and version 1 has none to check.
_MIGRATIONS = {1: lambda content: None, 2: _describe, 3: _regime, 4: _floor}
