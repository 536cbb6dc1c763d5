"""The progress log of sweeps, for people and programs: a file beside the records, one JSON object per line.

    infoprune status                    # or: tail -f results/demo/sweep.log

Events: `sweep` (number of trials to run), `begin` and `end` (a trial, with its status and seconds) and `close`. All
sweeps on a folder append to one log. Records alone decide which trials are done; the log adds times.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.records import record
from harness.text import reason
from harness.trials.locks import held, is_id
from harness.types import InputError

NAME = "sweep.log"


class Journal:
    """The log of a folder, open for new lines."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def note(self, event: str, **more: Any) -> None:
        """Append one line, below half a line that a killed sweep has left. Raises InputError if that is impossible."""
        about = {"time": time.time(), "event": event, "host": socket.gethostname(), "pid": os.getpid(), **more}
        try:
            with self.path.open("a+b") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                torn = file.read() not in (b"", b"\n")
                file.write(b"\n" * torn + json.dumps(about).encode() + b"\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot write the log: {reason(error)}") from error


@dataclass(frozen=True)
class Status:
    """The progress of a board. `left` and `end` (seconds since 1970) belong to a running sweep; None without one."""

    board: str
    done: int
    failed: int
    running: list[str]  # trial ids; on a cluster: all submitted trials
    left: int | None
    end: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def status(results: Path) -> list[Status]:
    """A row for every board under a results folder, or for one board if `results` is its folder.

    Raises InputError if no sweep ever wrote there.
    """
    folders = sorted(
        {path.parent for name in (NAME, "*.json") for path in [*results.glob(name), *results.glob(f"*/{name}")]}
    )
    if not folders:
        raise InputError(f"{results}: no board there; a board's folder holds records (*.json) or a {NAME}")
    return [_status(folder) for folder in folders]


def _status(folder: Path) -> Status:
    records, _ = record.load(folder)
    failed = sum(stored.status == "failed" for stored in records)
    events = _events(folder / NAME)
    starts = [place for place, event in enumerate(events) if event["event"] == "sweep"]
    last = events[starts[-1] :] if starts else []
    ends = [event for event in last if event["event"] == "end"]
    begun = {event["trial"] for event in events if event["event"] == "begin"}
    running = sorted(held(folder, begun))
    left = end = None
    if running and last:
        left = max(len(running), last[0]["trials"] - len(ends))
        if ends:
            expected = ends[-1]["time"] + left * (ends[-1]["time"] - last[0]["time"]) / len(ends)
            end = expected if _is_time(expected) else None
    return Status(folder.resolve().name, len(records) - failed, failed, running, left, end)


def _events(path: Path) -> list[dict[str, Any]]:
    """The events of a log that a status is made of. Other lines, such as damaged ones, are ignored."""
    valid = {"time": _is_time, "trial": is_id, "trials": lambda value: type(value) is int and 0 <= value < 1e9}
    needed = {"sweep": ("time", "trials"), "begin": ("time", "trial"), "end": ("time", "trial")}
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        keys = needed.get(str(event.get("event"))) if isinstance(event, dict) else None
        if keys and all(valid[key](event.get(key)) for key in keys):
            events.append(event)
    return events


def _is_time(value: object) -> bool:
    """Whether this is a number of seconds since 1970 that a date can name."""
    return isinstance(value, int | float) and 0 <= value < 2.5e11
