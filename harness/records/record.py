"""Trial records: one JSON file per trial, and its samples as parquet beside it.

    python -c "from harness.records.record import load; print(len(load('results/demo')[0]), 'records')"

A record is all that is stored of a trial; tables, plots and gates use only records. So every written record can be read
again: writer and reader check the same schema, which forbids NaN and infinity, and a file is written completely or not
at all.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.files import put_all
from harness.records.schema import SCHEMA, migrate, problem
from harness.text import plain, reason
from harness.types import BOTH, InputError, Plan, Trial

if TYPE_CHECKING:
    import pyarrow

SAMPLES = ("task", "question_id", "image_id", "answer", "score")  # columns: score is a number, the others are text


@dataclass(frozen=True)
class MethodFacts:
    """The method as the code described it at the run. Defaults and docstrings may change later, records do not."""

    title: str  # first line of the method's docstring
    variant: str  # options that differ from the defaults, as a label
    role: str  # studied, reference or floor
    regime: str  # one of harness.types.REGIMES
    resolved: Mapping[str, Any] = field(default_factory=dict)  # all options, defaults included
    file: str | None = None  # where the method's file was, if it is not registered

    def content(self) -> dict[str, Any]:
        """The part as plain data; the file only where there is one."""
        return {key: value for key, value in vars(self).items() if key != "file" or value is not None}


@dataclass(frozen=True)
class Failure:
    """The error of a failed trial, and the phase that raised it."""

    type: str
    message: str
    phase: str | None = None


@dataclass(frozen=True)
class Code:
    """The version of this package, its git revision, and whether it had uncommitted changes."""

    version: str | None = None
    revision: str | None = None
    dirty: bool | None = None

    def __str__(self) -> str:
        text = f"version {self.version}" + (f", revision {self.revision}" if self.revision else "")
        return plain(text + (", with uncommitted changes" if self.dirty else ""))


@dataclass(frozen=True)
class Cost:
    """The cost of a trial in seconds, bytes and samples. None: not measured."""

    ranking_s: float | None = None  # ranking, with all passes over the samples that it used
    load_s: float | None = None
    calibration_s: float | None = None
    solve_s: float | None = None
    surgery_s: float | None = None
    tuning_s: float | None = None
    total_s: float | None = None
    calibration_samples: int | None = None  # drawn samples, even if the method does not use them
    calibration_batch: int | None = None  # questions per batch, if memory was short
    tuning_steps: int | None = None
    tuning_samples: int | None = None
    peak_memory_bytes: int | None = None  # peak of scoring, cutting and tuning, with the model
    phases_s: Mapping[str, float] | None = None  # seconds per phase, without nested phases
    metrics_s: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Record:
    """All that is stored of a trial."""

    trial: Trial
    contestant: MethodFacts
    error: Failure | None = None  # None: the trial succeeded
    plan: Plan | None = None
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # result of each metric
    cost: Cost = Cost()
    log: Mapping[str, Any] = field(default_factory=dict)  # the method's log, and the tuning curve
    env: Mapping[str, Any] = field(default_factory=dict)  # facts of the machine
    code: Code = Code()
    # Of code, checkpoint, data, calibration, weights, plan, samples and record.
    hashes: Mapping[str, str] = field(default_factory=dict)
    id: str = ""  # default: the trial's id

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", self.trial.id)

    @property
    def status(self) -> Literal["ok", "failed"]:
        return "ok" if self.error is None else "failed"

    @property
    def label(self) -> str:
        """One line that identifies the trial on its board."""
        trial = self.trial
        units = "" if trial.units == BOTH else trial.units
        parts = filter(None, (trial.method, self.contestant.variant, units, trial.tuning, trial.scope, trial.budget))
        return plain(f"{' '.join(map(str, parts))} seed {trial.seed}")

    def to_json(self) -> dict[str, Any]:
        """The JSON content of the record's file; the inverse of `of`."""
        return {
            "schema": SCHEMA,
            "id": self.id,
            "status": self.status,
            "error": None if self.error is None else vars(self.error),
            "trial": self.trial.content(),
            "contestant": self.contestant.content(),
            "plan": None if self.plan is None else self.plan.to_json(),
            "metrics": self.metrics,
            "cost": {key: value for key, value in vars(self.cost).items() if value is not None},
            "log": self.log,
            "env": self.env,
            "code": vars(self.code),
            "hashes": self.hashes,
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Record:
        """The record with this JSON content, which must have the current schema.

        Raises ValueError, KeyError or TypeError for other content.
        """
        plan, error = content.get("plan"), content["error"]
        contestant = _part(MethodFacts, content["contestant"])
        return cls(
            trial=replace(Trial.of(content["trial"]), method_file=contestant.file),
            contestant=contestant,
            error=None if error is None else _part(Failure, error),
            plan=None if plan is None else Plan.of(plan),
            metrics=content.get("metrics") or {},
            cost=_part(Cost, content.get("cost") or {}),
            log=content.get("log") or {},
            env=content["env"],
            code=_part(Code, content["code"]),
            hashes=content["hashes"],
            id=content["id"],
        )


def _part(kind: Any, content: Mapping[str, Any]) -> Any:
    """A part of a record. Unknown keys are ignored."""
    return kind(**{item.name: content[item.name] for item in fields(kind) if item.name in content})


def dig(value: Any, *path: str) -> Any:
    """The value at this path of nested mappings; None if the path ends early."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


# --- files ------------------------------------------------------------------------------------------------


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 of a record's canonical JSON without `hashes.record`, which stores this hash."""
    hashes = {key: value for key, value in content["hashes"].items() if key != "record"}
    text = json.dumps({**content, "hashes": hashes}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write(folder: Path | str, record: Record, samples: pyarrow.Table | None = None) -> Record:
    """Write `<id>.json`, and `<id>.parquet` for samples, into `folder`. Returns the record with its hashes.

    An error while they are written leaves the old record with its samples. Then one is moved into place right after the
    other; a kill in between shows, because `hashes.samples` is the SHA-256 of the samples. `hashes.record` is that of
    the record.
    Raises InputError if the folder cannot be written or the record does not fit the schema, ValueError on NaN.
    """
    folder = Path(folder)
    path = folder / f"{record.id}.json"
    table = path.with_suffix(".parquet")
    content = _loads(_dumps(record.to_json()))
    if fault := problem(content):
        raise InputError(f"{path}: {fault}")

    def fill_table(temporary: Path) -> None:
        from pyarrow import parquet

        parquet.write_table(samples, temporary)
        content["hashes"]["samples"] = hashlib.sha256(temporary.read_bytes()).hexdigest()

    def fill_record(temporary: Path) -> None:
        content["hashes"]["record"] = content_hash(content)
        temporary.write_text(_dumps(content), encoding="utf-8", newline="\n")

    try:
        folder.mkdir(parents=True, exist_ok=True)
        put_all({path: fill_record} if samples is None else {table: fill_table, path: fill_record})
        if samples is None:
            table.unlink(missing_ok=True)  # samples of an earlier run of this trial
    except OSError as error:
        raise InputError(f"{folder}: cannot write records there: {reason(error)}") from error
    return replace(record, hashes=content["hashes"])


def read(path: Path | str) -> Record:
    """The checked record in this file. Raises InputError if the file cannot be read, and the errors of `parse`."""
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the record: {reason(error)}") from error
    return parse(content, path)


def parse(
    content: bytes, path: Path, keep: Callable[[dict[str, Any]], dict[str, Any]] = lambda content: content
) -> Record:
    """The checked record in the bytes of a file, migrated to the current schema.

    `keep` may reduce the checked JSON before the record is built. Raises InputError, which names file and key, if the
    content is no record, comes from a newer version, or was changed after it was written.
    """
    try:
        values = _loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a record: not valid JSON: {error}") from error
    if fault := _checked(values, path, content):
        raise InputError(f"{path}: {fault}")
    try:
        return Record.of(keep(values))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise InputError(f"{path}: not a record of this version: {reason}") from error


def load(
    folder: Path | str, keep: Callable[[dict[str, Any]], dict[str, Any]] = lambda content: content
) -> tuple[list[Record], list[str]]:
    """The records of a board's folder, sorted by file name, and one line for each file that is no record.

    See `parse` for `keep`.
    """
    records, problems = [], []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            records.append(parse(path.read_bytes(), path, keep))
        except OSError as error:
            problems.append(plain(f"{path}: cannot read the record: {reason(error)}"))
        except InputError as problem:
            problems.append(str(problem))
    return records, problems


def _checked(values: Any, path: Path, content: bytes) -> str:
    """Migrate a file's JSON in place to the current schema. Returns its first fault; empty without faults."""
    if not isinstance(values, dict):
        return f"not a record: it must be a JSON object, not a {type(values).__name__}"
    schema = values.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        return f"schema: made by a newer version ({schema}; this one reads up to {SCHEMA}); update infoprune-bench"
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        return f"schema: must be 1 to {SCHEMA}, not {json.dumps(schema)}"
    hashes = values.get("hashes")
    seal = hashes.get("record") if isinstance(hashes, dict) else None
    sealed = isinstance(seal, str) and (_as_written(content, seal) or content_hash(values) == seal)
    migrate(values)
    if fault := problem(values):
        return fault
    if values["id"] != path.stem:
        return f"id: {values['id']} is not the file's name; rename the file to {values['id']}.json"
    if schema == 1:
        values["hashes"]["record"] = content_hash(values)  # these files have none: their content is taken as it is
    elif not sealed:
        return "hashes.record: the record was changed after it was written; restore the original file"
    return ""


# A quote that may be within a string or begin one, so that the white space after its colon counts.
_QUOTED = [before + b'": ' for before in (b"\\", b"[", b"{", b",", b":", b" ", b"\t")]


def _as_written(content: bytes, seal: str) -> bool:
    """Whether these bytes, if in the layout of `write`, are those of the seal. Takes half the time of `content_hash`.

    Only white space outside of strings is taken away, so bytes that pass have the content that was sealed.
    """
    compact = b"".join(map(bytes.strip, content.splitlines()))
    if any(quoted in compact for quoted in _QUOTED):
        return False
    compact = compact.replace(b'": ', b'":')
    entry = f'"record":"{seal}"'.encode()
    cut = next((cut for cut in (b"," + entry, entry + b",", entry) if cut in compact), b"")
    return hashlib.sha256(compact.replace(cut, b"", 1)).hexdigest() == seal


def _dumps(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _loads(content: bytes | str) -> Any:
    """The values of JSON text. Raises ValueError for a number that is not finite as a float."""
    return json.loads(content, parse_float=_finite, parse_int=_whole, parse_constant=_finite)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is not a finite number")
    return number


def _whole(text: str) -> int:
    if len(text) > 300:  # readers calculate with numbers as floats, which end at 1.8e308
        _finite(text)
    return int(text)
