"""Copies of records as runs in MLflow or Weights & Biases. The record files stay the reference.

    infoprune sweep demo --mirror mlflow       # the service reads its own settings, such as MLFLOW_TRACKING_URI
    infoprune results mirror wandb demo

A service is a module here with a function `send(run)`. Only this module imports the service's package, which is an
extra of the same name.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.records.record import Record
from harness.records.store import collect
from harness.text import plain
from harness.types import InputError

SERVICES = ("mlflow", "wandb")
TEXT = 500  # maximal characters of a value


@dataclass(frozen=True)
class Run:
    """A record in the form of these services, with dotted names.

    hash: hash of the record's content. Services use it to send a record only once.
    """

    hash: str
    name: str
    board: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    failed: bool

    @classmethod
    def of(cls, record: Record) -> Run:
        """The run of a written record. Its params are the trial's settings, with the options at their defaults."""
        content = record.to_json()
        trial = {key: value for key, value in content["trial"].items() if key != "options"}
        trial |= {key: value for key, value in content["contestant"].items() if key != "title"}
        measured = {**record.metrics, "cost": content["cost"]}
        about = {key: content[key] or {} for key in ("id", "error", "code", "hashes")}
        numbers = {key: value for key, value in _flat(measured).items() if type(value) in (int, float)}
        return cls(
            hash=record.hashes["record"],
            name=record.label,
            board=record.trial.board,
            params={key: _text(value) for key, value in _flat(trial).items()},
            metrics={key: float(value) for key, value in numbers.items()},
            tags={key: _text(value) for key, value in _flat(about).items()},
            failed=record.status == "failed",
        )


class Mirror:
    """Sends each record after it is written. After the first failure it warns once and sends no more, so that no sweep
    waits or stops.

    Raises InputError if the service is unknown or its package is not installed.
    """

    def __init__(self, service: str, say: Callable[[str], None]) -> None:
        self.service, self.say = service, say
        self._send = _sender(service)
        self._down = False

    def __call__(self, record: Record) -> None:
        if self._down:
            return
        try:
            self._send(Run.of(record))
        except Exception as error:  # a failing server must not stop the sweep
            self._down = True
            advice = f"`infoprune results mirror {self.service} {record.trial.board}` sends the missing records"
            self.say(plain(f"--mirror {self.service}: sends no more records: {_reason(error)}; {advice}"))


def mirror(service: str, source: Path) -> int:
    """Send every record of a results folder or a board's folder. Returns their number.

    Raises InputError if the service is unknown, not installed or fails, or if `source` has no records.
    """
    send = _sender(service)
    stored = collect(source)
    for number, entry in enumerate(stored):
        try:
            send(Run.of(entry.record))
        except Exception as error:
            raise InputError(f"{service}: {number} of {len(stored)} records sent, then {_reason(error)}") from error
    return len(stored)


def _sender(service: str) -> Callable[[Run], None]:
    if service not in SERVICES:
        raise InputError.unknown("service", service, SERVICES)
    if importlib.util.find_spec(service) is None:
        raise InputError(f"{service}: not installed; run pip install 'infoprune-bench[{service}]'")
    return importlib.import_module(f"{__name__}.{service}").send


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every value under its dotted name, with only the characters that all services allow."""
    if not isinstance(value, dict):
        return {name: value}
    parts = ((re.sub(r"[^\w.-]", "_", key), part) for key, part in value.items())
    return {k: v for key, part in parts for k, v in _flat(part, f"{name}.{key}" if name else key).items()}


def _text(value: Any) -> str:
    return plain(value if isinstance(value, str) else json.dumps(value))[:TEXT]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:TEXT]}"
