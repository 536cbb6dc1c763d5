"""Records as runs of MLflow or of Weights & Biases, for those who look there; the files stay the evidence.

    infoprune sweep demo --mirror mlflow       # where to: what the service reads itself, such as MLFLOW_TRACKING_URI
    infoprune results mirror wandb demo

A service is a file here with a function `send(run)`; its package is an extra of the same name and imported there only.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.record import label
from harness.results import collect
from harness.text import plain
from harness.types import InputError

SERVICES = ("mlflow", "wandb")
TEXT = 500  # characters of a value


@dataclass(frozen=True)
class Run:
    """A record as such services see one; names are dotted, numbers as the record has them.

    hash: of the record's content; what has been sent before is the same run, not another one.
    """

    hash: str
    name: str
    board: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    failed: bool

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Run:
        """The run of a record as it was written; params are the trial's, its options with their defaults."""
        trial = {key: value for key, value in record["trial"].items() if key not in ("title", "options")}
        measured = {**(record.get("metrics") or {}), "cost": record.get("cost") or {}}
        about = {"id": record["id"], "error": record["error"] or {}, "code": record["code"], "hashes": record["hashes"]}
        numbers = {key: value for key, value in _flat(measured).items() if type(value) in (int, float)}
        return cls(
            hash=record["hashes"]["record"],
            name=label(record),
            board=record["trial"]["board"],
            params={key: _text(value) for key, value in _flat(trial).items()},
            metrics={key: float(value) for key, value in numbers.items()},
            tags={key: _text(value) for key, value in _flat(about).items()},
            failed=record["status"] == "failed",
        )


class Mirror:
    """Sends records as they are written; at the first failure it says so and stops, so that no sweep waits or ends.

    Raises InputError if there is no such service, or its package is not installed.
    """

    def __init__(self, service: str, say: Callable[[str], None]) -> None:
        self.service, self.say = service, say
        self._send = _sender(service)
        self._down = False

    def __call__(self, record: Mapping[str, Any]) -> None:
        if self._down:
            return
        try:
            self._send(Run.of(record))
        except Exception as error:  # whatever another's server does, the record is kept
            self._down = True
            again = f"`infoprune results mirror {self.service} {record['trial']['board']}` sends what is missing"
            self.say(plain(f"--mirror {self.service}: no more records are sent: {_said(error)}; {again}"))


def mirror(service: str, source: Path) -> int:
    """Send every record of a results folder or of one board's; returns how many that were.

    Raises InputError if there is no such service, its package is not installed, it fails, or `source` has no records.
    """
    send = _sender(service)
    stored = collect(source)
    for number, one in enumerate(stored):
        try:
            send(Run.of(one.record))
        except Exception as error:
            raise InputError(
                plain(f"{service}: {number} of {len(stored)} records sent, then {_said(error)}")
            ) from error
    return len(stored)


def _sender(service: str) -> Callable[[Run], None]:
    if service not in SERVICES:
        raise InputError.unknown("service", service, SERVICES)
    if importlib.util.find_spec(service) is None:
        raise InputError(f"{service}: not installed; pip install 'infoprune-bench[{service}]'")
    return importlib.import_module(f"{__name__}.{service}").send


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every value under its dotted name, in the letters that all services allow."""
    if not isinstance(value, dict):
        return {name: value}
    parts = ((re.sub(r"[^\w.-]", "_", key), part) for key, part in value.items())
    return {k: v for key, part in parts for k, v in _flat(part, f"{name}.{key}" if name else key).items()}


def _text(value: Any) -> str:
    return plain(value if isinstance(value, str) else json.dumps(value))[:TEXT]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:TEXT]}"
