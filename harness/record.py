"""Trial records: one JSON file per trial, and the samples it is made of beside it as parquet.

    python -c "from harness.record import load; print(len(load('results/demo')[0]), 'records')"

A record is everything that is kept of a trial; tables, plots and gates are made from records alone. So nothing is
written that could not be read again: both ends check the same schema, NaN and infinity have no place in it, and a
file appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from harness.files import put
from harness.text import plain
from harness.types import Align, Currency, InputError, Scope, UnitKinds

if TYPE_CHECKING:
    import pyarrow

SCHEMA = 2
# Of a trial: what the code says about it, and no part of what its id is made of.
DESCRIBED = ("title", "variant", "role", "regime", "resolved")
SETTING = ("model", "tasks", "split", "limit", "dtype")
SAMPLES = ("task", "question_id", "image_id", "answer", "score")  # columns: the last a number, the others text

# --- the schema: what readers rely on; a record may hold more -----------------------------------------------

Number = float | None
Share = Annotated[float, Field(ge=0, le=1)]


class _Trial(TypedDict):
    board: str
    model: str
    method: str
    title: str
    variant: str
    options: dict[str, Any]
    role: Literal["studied", "reference"]
    regime: str
    tuning: str
    units: UnitKinds
    scope: Scope
    budget: Annotated[float, Field(gt=0, le=1)]
    seed: int
    tasks: list[str]
    split: str
    limit: int | None
    dtype: str
    calibration: dict[str, Any]
    recovery: NotRequired[dict[str, Any]]  # the tuning in full, if there is one
    control: NotRequired[str]
    loading: NotRequired[dict[str, Any]]  # what of it is not the default
    currency: NotRequired[Currency]
    align: NotRequired[Align]


class _Kept(TypedDict, total=False):
    kept: Number


class _Flops(_Kept, total=False):
    reduction: Number
    total: _Kept
    params: _Kept


class _Latency(TypedDict, total=False):
    speedup: Number
    speedup_lo: Number
    speedup_hi: Number


class _Task(TypedDict):
    accuracy: Share
    lo: NotRequired[Number]
    hi: NotRequired[Number]
    n: NotRequired[int]
    images: NotRequired[int]


class _Accuracy(TypedDict):
    mean: Share
    lo: NotRequired[Number]
    hi: NotRequired[Number]
    tasks: NotRequired[dict[str, _Task]]
    collapse: NotRequired[list[str]]


class _Floor(TypedDict):
    mean: Share


class _Gain(TypedDict):
    mean: float
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


class _Metrics(TypedDict, total=False):
    flops: _Flops
    latency: _Latency
    accuracy: _Accuracy
    floors: _Floors
    fidelity: _Fidelity


class _Cost(TypedDict, total=False):
    ranking_s: Number
    tuning_s: Number
    total_s: Number
    calibration_samples: Number
    peak_memory_bytes: Number


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
    plan: NotRequired[dict[str, Any] | None]
    metrics: NotRequired[_Metrics | None]
    cost: NotRequired[_Cost | None]
    log: NotRequired[dict[str, Any] | None]
    env: dict[str, Any]
    code: dict[str, Any]
    hashes: dict[str, Any]


_SCHEMA = TypeAdapter(_Record)


# --- in and out ---------------------------------------------------------------------------------------------


def short_hash(mapping: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 of the mapping's canonical JSON, whatever the order of its keys."""
    text = json.dumps(dict(mapping), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(record: Mapping[str, Any]) -> str:
    """The id that a record's trial has by its content: trials of two revisions of the code are joined by it."""
    return short_hash({key: value for key, value in record["trial"].items() if key not in DESCRIBED})


def setting(trial: Mapping[str, Any]) -> dict[str, Any]:
    """What any two trials must agree in to be compared: the model, how it is loaded, the questions, the precision."""
    return {key: trial[key] for key in SETTING} | trial.get("loading", {})


def terms(trial: Mapping[str, Any]) -> dict[str, Any]:
    """What the budget is a share of and what kept widths are multiples of: pruned trials must agree in it as well.

    A dense trial has neither, and goes with pruned ones of any terms.
    """
    return {"currency": trial.get("currency", "flops"), "align": trial.get("align")}


def label(record: Mapping[str, Any]) -> str:
    """A record's trial in a line, to tell it from others of its board."""
    trial = record["trial"]
    parts = (trial[key] for key in ("method", "variant", "tuning", "scope", "budget"))
    return plain(f"{' '.join(map(str, parts))} seed {trial['seed']}")


def dig(value: Any, *path: str) -> Any:
    """What stands at this path of nested mappings; None where nothing does."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def content_hash(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record's canonical JSON, all of it but this hash, which stands in `hashes.record`."""
    hashes = {key: value for key, value in record["hashes"].items() if key != "record"}
    text = json.dumps({**record, "hashes": hashes}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write(folder: Path | str, record: Mapping[str, Any], samples: pyarrow.Table | None = None) -> Path:
    """Write `<id>.json` and, if there are samples, `<id>.parquet` into `folder`, atomically; returns the JSON's path.

    The samples come first, so a record that is there has its samples; their SHA-256 goes into `hashes.samples`, that
    of the record into `hashes.record`.
    Raises InputError if the folder cannot be written or the record does not fit the schema, ValueError on NaN.
    """
    folder = Path(folder)
    path = folder / f"{record.get('id')}.json"
    table = path.with_suffix(".parquet")
    made = _check(json.loads(_dumps(dict(record))), path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if samples is None:
            table.unlink(missing_ok=True)  # of an earlier run of the same trial
        else:
            from pyarrow import parquet

            put(table, lambda temporary: parquet.write_table(samples, temporary))
            made["hashes"]["samples"] = hashlib.sha256(table.read_bytes()).hexdigest()
        made["hashes"]["record"] = content_hash(made)
        text = _dumps(made)
        put(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))
    except OSError as error:
        raise InputError(plain(f"{folder}: cannot write records there: {error.strerror or error}")) from error
    return path


def read(path: Path | str) -> dict[str, Any]:
    """The record in this file, checked; see `parse`."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(plain(f"{path}: cannot read the record: {error.strerror or error}")) from error
    return parse(content, path)


def parse(content: bytes, path: Path) -> dict[str, Any]:
    """The record in these bytes of a file, checked, and brought to this version's schema.

    Raises InputError, one line naming file and key, if it is not a record, was made by a newer version, or is not
    what was written.
    """
    try:
        record = json.loads(content, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(plain(f"{path}: not a record: not valid JSON: {error}")) from error
    record = _check(record, path)
    if record["hashes"].get("record") != content_hash(record):
        raise InputError(plain(f"{path}: hashes.record: the record was changed after it was written"))
    return record


def load(
    folder: Path | str, keep: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found
) -> tuple[list[dict[str, Any]], list[str]]:
    """The records of a board's folder in the order of their names, and one line for each file that is not one.

    `keep` makes of each what is held of it.
    """
    records, problems = [], []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            records.append(keep(read(path)))
        except InputError as problem:
            problems.append(str(problem))
    return records, problems


def _check(record: Any, path: Path) -> dict[str, Any]:
    def problem(text: str) -> InputError:
        return InputError(plain(f"{path}: {text}"))

    if not isinstance(record, dict):
        raise problem(f"not a record: a JSON object is needed, not a {type(record).__name__}")
    schema = record.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise problem(f"schema: made by a newer version ({schema}; this one reads up to {SCHEMA})")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise problem(f"schema: must be 1 to {SCHEMA}, not {json.dumps(schema)}")
    for older in range(schema, SCHEMA):
        _MIGRATIONS[older](record)
    try:
        _SCHEMA.validate_python(record, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise problem(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if record["id"] != path.stem:
        raise problem(f"id: {record['id']} is not the file's name")
    if (record["status"] == "failed") != (record["error"] is not None):
        raise problem(f"error: does not go with status {record['status']}")
    return record


def _give_hash(record: dict[str, Any]) -> None:
    """1 to 2: a record carries the hash of its content; what an older one held when it was read is taken as it is."""
    record["schema"] = 2
    if isinstance(record.get("hashes"), dict):  # if not, the check says so
        record["hashes"]["record"] = content_hash(record)


_MIGRATIONS = {1: _give_hash}  # schema -> what brings a record, in place, to the next one


def _dumps(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
